"""PyHealth 2.1's RNN and RETAIN the slow way: one patient, one visit after the other, from the state dict alone.

torch's GRU convention: r and z gate, n = tanh(W_n x + b_in + r (U_n h + b_hn)), h' = (1 - z) n + z h.
Imports nothing from the package.
"""

from __future__ import annotations

import torch

State = dict[str, torch.Tensor]
Visits = dict[str, list[list[int]]]  # of each key, the indexes of each visit


def gru(state: State, prefix: str, inputs: list[torch.Tensor], suffix: str = "l0") -> list[torch.Tensor]:
    """The states after each input."""
    p = {part: state[f"{prefix}.{part}_{suffix}"] for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
    h, states = torch.zeros(p["weight_hh"].shape[1], dtype=p["weight_hh"].dtype), []
    for x in inputs:
        ar, az, an = (p["weight_ih"] @ x + p["bias_ih"]).chunk(3)
        br, bz, bn = (p["weight_hh"] @ h + p["bias_hh"]).chunk(3)
        r, z = torch.sigmoid(ar + br), torch.sigmoid(az + bz)
        h = (1 - z) * torch.tanh(an + r * bn) + z * h
        states.append(h)
    return states


def visit_vectors(state: State, key: str, visits: list[list[int]]) -> list[torch.Tensor]:
    table = state[f"embedding_model.embedding_layers.{key}.weight"]
    nothing = torch.zeros(table.shape[1], dtype=table.dtype)
    return [sum((table[index] for index in visit), nothing) for visit in visits] or [nothing]


def rnn_logit(state: State, keys: list[str], visits: Visits) -> torch.Tensor:
    """The logit of PyHealth's RNN with one GRU a key; bidirectional if the state says so."""
    summaries = []
    for key in keys:
        x = visit_vectors(state, key, visits[key])
        read = x[: max(1, sum(bool(visit) for visit in visits[key]))]
        last = gru(state, f"rnn.{key}.rnn", read)[-1]
        if f"rnn.{key}.rnn.weight_ih_l0_reverse" in state:
            back = gru(state, f"rnn.{key}.rnn", read[::-1], "l0_reverse")[-1]
            last = state[f"rnn.{key}.down_projection.weight"] @ torch.cat([last, back])
            last = last + state[f"rnn.{key}.down_projection.bias"]
        summaries.append(last)
    return (state["fc.weight"] @ torch.cat(summaries) + state["fc.bias"])[0]


def retain_logit(state: State, keys: list[str], visits: Visits) -> torch.Tensor:
    """The logit of PyHealth's RETAIN for a patient alone in a batch."""
    contexts = []
    for key in keys:
        part = f"retain.{key}"
        x = visit_vectors(state, key, visits[key])
        read = x[: max(1, sum(bool(visit) for visit in visits[key]))][::-1]
        nothing = [torch.zeros_like(x[0])] * (len(x) - len(read))
        g = gru(state, f"{part}.alpha_gru", read) + nothing
        h = gru(state, f"{part}.beta_gru", read) + nothing
        e = torch.stack([state[f"{part}.alpha_li.weight"][0] @ s + state[f"{part}.alpha_li.bias"][0] for s in g])
        alpha = torch.exp(e) / torch.exp(e).sum()
        context = torch.zeros_like(x[0])
        for weight, s, vector in zip(alpha, h, x, strict=True):
            beta = torch.tanh(state[f"{part}.beta_li.weight"] @ s + state[f"{part}.beta_li.bias"])
            context = context + weight * beta * vector
        contexts.append(context)
    return (state["fc.weight"] @ torch.cat(contexts) + state["fc.bias"])[0]
