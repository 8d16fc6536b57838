"""Recurrent classifiers and RETAIN the slow way: one record, one step, one cell at a time, float64, numpy.

Written from the papers: GRU (Cho et al. 2014, in the form of the cuDNN and torch manuals, where r multiplies
U_n h + b), LSTM (Hochreiter and Schmidhuber 1997, with a forget gate), attention (Yang et al. 2016, equations
5 to 7; Vaswani et al. 2017, equation 1), RETAIN (Choi et al. 2016, steps 1 to 5). Imports nothing from the
package; parameters come by their names in the checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

Parameters = dict[str, np.ndarray]


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def softmax(energies: list[float]) -> list[float]:
    shares = [math.exp(energy - max(energies)) for energy in energies]
    return [share / sum(shares) for share in shares]


def gru_states(p: Parameters, name: str, suffix: str, inputs: list[np.ndarray], start: np.ndarray) -> list[np.ndarray]:
    """The state after each input."""
    h, states = start, []
    for x in inputs:
        ar, az, an = np.split(p[f"{name}.weight_ih_{suffix}"] @ x + p[f"{name}.bias_ih_{suffix}"], 3)
        br, bz, bn = np.split(p[f"{name}.weight_hh_{suffix}"] @ h + p[f"{name}.bias_hh_{suffix}"], 3)
        r, z = sigmoid(ar + br), sigmoid(az + bz)
        h = (1 - z) * np.tanh(an + r * bn) + z * h
        states.append(h)
    return states


def lstm_states(p: Parameters, name: str, suffix: str, inputs: list[np.ndarray], start: np.ndarray) -> list[np.ndarray]:
    """The state after each input; cell and state both begin at `start`."""
    h, c, states = start, start, []
    for x in inputs:
        a = p[f"{name}.weight_ih_{suffix}"] @ x + p[f"{name}.bias_ih_{suffix}"]
        i, f, g, o = np.split(a + p[f"{name}.weight_hh_{suffix}"] @ h + p[f"{name}.bias_hh_{suffix}"], 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        states.append(h)
    return states


def recurrent_score(
    p: Parameters,
    events: np.ndarray,
    static: np.ndarray,
    cell: str,
    layers: int,
    bidirectional: bool,
    pooling: str,
) -> float:
    """The logit of a record given as multi-hot events [step, feature value] and static [feature value]."""
    states, last = recurrent_states(p, events, static, cell, layers, bidirectional)
    if pooling == "last":
        pooled = last
    elif pooling == "mean":
        pooled = sum(states) / len(states)
    elif pooling == "max":
        pooled = np.array([max(state[i] for state in states) for i in range(len(last))])
    else:
        shares = recurrent_attention(p, states, last, pooling)
        pooled = sum(share * state for share, state in zip(shares, states, strict=True))
    return float(p["head.weight"][0] @ np.concatenate([pooled, static @ p["tables.static"]]) + p["head.bias"][0])


def recurrent_states(
    p: Parameters, events: np.ndarray, static: np.ndarray, cell: str, layers: int, bidirectional: bool
) -> tuple[list[np.ndarray], np.ndarray]:
    """The start and the last layer's state after each step, and each direction's own last state side by side."""
    states_of = {"gru": gru_states, "lstm": lstm_states}[cell]
    start = np.tanh(static @ p["tables.static"])
    inputs = [bag @ p["tables.events"] for bag in events]
    for layer in range(layers):
        forwards = states_of(p, "cell", f"l{layer}", inputs, start)
        if bidirectional:
            backwards = states_of(p, "cell", f"l{layer}_reverse", inputs[::-1], start)[::-1]
            inputs = [np.concatenate(pair) for pair in zip(forwards, backwards, strict=True)]
        else:
            backwards, inputs = [], forwards
    finals = [forwards[-1] if forwards else start]
    if bidirectional:
        finals.append(backwards[0] if backwards else start)
    return [np.concatenate([start] * len(finals)), *inputs], np.concatenate(finals)


def recurrent_attention(p: Parameters, states: list[np.ndarray], last: np.ndarray, pooling: str) -> list[float]:
    """What each state weighs in the pooled one."""
    energies = []
    for state in states:
        if pooling == "additive":
            hidden = np.tanh(p["energy.0.weight"] @ state + p["energy.0.bias"])
            energies.append(float(p["energy.2.weight"][0] @ hidden))
        else:
            energies.append(float(last @ state) / math.sqrt(len(last)))
    return softmax(energies)


def retain_score(p: Parameters, events: np.ndarray, static: np.ndarray, layers: int) -> float:
    """RETAIN's logit of a record given as multi-hot events [step, feature value] and static [feature value]."""
    context = np.zeros(p["tables.events"].shape[1])
    alphas, betas = retain_attention(p, events, layers)
    for alpha, beta, bag in zip(alphas, betas, events, strict=True):  # step 4
        context = context + alpha * beta * (bag @ p["tables.events"])
    read = np.concatenate([context, static @ p["tables.static"]])
    return float(p["head.weight"][0] @ read + p["head.bias"][0])  # step 5


def retain_attention(p: Parameters, events: np.ndarray, layers: int) -> tuple[list[float], list[np.ndarray]]:
    """Alpha and beta of each step."""
    values = [bag @ p["tables.events"] for bag in events]  # step 1
    width = p["tables.events"].shape[1]
    states = {}
    for name in ("alpha_cell", "beta_cell"):
        read = values[::-1]
        for layer in range(layers):
            read = gru_states(p, name, f"l{layer}", read, np.zeros(width))
        states[name] = read[::-1]
    energies = [float(p["alpha_head.weight"][0] @ g + p["alpha_head.bias"][0]) for g in states["alpha_cell"]]
    alphas = softmax(energies) if energies else []  # step 2
    betas = [np.tanh(p["beta_head.weight"] @ h + p["beta_head.bias"]) for h in states["beta_cell"]]  # step 3
    return alphas, betas


def retain_contributions(p: Parameters, events: np.ndarray, layers: int) -> np.ndarray:
    """Equation 5 for every step and feature value, recorded there or not, one at a time [step, feature value]."""
    alphas, betas = retain_attention(p, events, layers)
    effect = p["head.weight"][0][: p["tables.events"].shape[1]]
    found = np.zeros(events.shape)
    for step, (alpha, beta) in enumerate(zip(alphas, betas, strict=True)):
        for value, embedding in enumerate(p["tables.events"]):
            found[step, value] = alpha * float(effect @ (beta * embedding)) * events[step, value]
    return found


def ensemble_score(p: Parameters, members: int, score: Callable[[Parameters], float]) -> float:
    """The mean of what `score` says with each member's parameters."""
    told = []
    for member in range(members):
        prefix = f"member.{member}."
        told.append(score({name.removeprefix(prefix): p[name] for name in p if name.startswith(prefix)}))
    return sum(told) / members
