"""Slow, independent contextual decomposition of one record: both parts are carried, unit by unit, by the written formulas."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

Arrays = dict[str, np.ndarray]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def split(phi: Callable[[float], float], a: float, b: float, c: float) -> tuple[float, float, float]:
    """The parts of phi(a + b + c) that a, b and the constant have."""
    of_a = 0.5 * (phi(a + c) - phi(c) + phi(a + b + c) - phi(b + c))
    of_b = 0.5 * (phi(b + c) - phi(c) + phi(a + b + c) - phi(a + c))
    return of_a, of_b, phi(c)


def layer(
    weights: Arrays, suffix: str, inputs: list[tuple[np.ndarray, np.ndarray]], start: tuple[np.ndarray, np.ndarray],
    shares: list[float], cell: str,
) -> list[tuple[np.ndarray, np.ndarray]]:  # fmt: skip
    """Beta and gamma of the states after each step."""
    w, u = weights[f"cell.weight_ih_{suffix}"], weights[f"cell.weight_hh_{suffix}"]
    b, d = weights[f"cell.bias_ih_{suffix}"], weights[f"cell.bias_hh_{suffix}"]
    size = u.shape[1]
    beta, gamma = start
    beta_cell, gamma_cell = start
    told = []
    for (x_a, x_b), share in zip(inputs, shares, strict=True):
        new = [np.zeros(size) for _ in range(4)]
        to_a, to_b, constant = w @ x_a + u @ beta, w @ x_b + u @ gamma, b + d
        for k in range(size):
            of = [(to_a[at * size + k], to_b[at * size + k], constant[at * size + k]) for at in range(len(w) // size)]
            if cell == "gru":
                r_a, r_b, r_c = split(sigmoid, *of[0])
                z_a, z_b, z_c = split(sigmoid, *of[1])
                row = 2 * size + k
                ub, ug = u[row] @ beta, u[row] @ gamma
                m_a = r_a * (ub + d[row]) + r_c * ub
                m_c = r_c * d[row]
                m_b = r_b * (ub + ug + d[row]) + (r_a + r_c) * ug
                n_a, n_b, n_c = split(math.tanh, w[row] @ x_a + m_a, w[row] @ x_b + m_b, b[row] + m_c)
                w_a, w_b, w_c = -z_a, -z_b, 1 - z_c
                new[0][k] = w_a * (n_a + n_c) + w_c * n_a + share * w_c * n_c + (z_a + z_c) * beta[k]
                new[1][k] = (
                    w_b * (n_a + n_b + n_c) + (w_a + w_c) * n_b + (1 - share) * w_c * n_c
                    + (z_a + z_b + z_c) * gamma[k] + z_b * beta[k]
                )  # fmt: skip
            else:
                i_a, i_b, i_c = split(sigmoid, *of[0])
                f_a, f_b, f_c = split(sigmoid, *of[1])
                g_a, g_b, g_c = split(math.tanh, *of[2])
                o = sum(split(sigmoid, *of[3]))
                new[2][k] = (f_a + f_c) * beta_cell[k] + i_a * (g_a + g_c) + i_c * g_a + share * i_c * g_c
                new[3][k] = (
                    (f_a + f_b + f_c) * gamma_cell[k] + f_b * beta_cell[k] + i_b * (g_a + g_b + g_c)
                    + (i_a + i_c) * g_b + (1 - share) * i_c * g_c
                )  # fmt: skip
                c_a, c_b = new[2][k], new[3][k]
                new[0][k] = o * 0.5 * (math.tanh(c_a) + math.tanh(c_a + c_b) - math.tanh(c_b))
                new[1][k] = o * 0.5 * (math.tanh(c_b) + math.tanh(c_a + c_b) - math.tanh(c_a))
        beta, gamma, beta_cell, gamma_cell = new
        told.append((beta, gamma))
    return told


def decomposed(
    weights: Arrays, xs: tuple[np.ndarray, np.ndarray], static: tuple[np.ndarray, np.ndarray], shares: list[float],
    cell: str, layers: int, bidirectional: bool, pooling: str,
) -> tuple[float, float]:  # fmt: skip
    """The parts of the logit, without the head's bias, that the group and the rest make.

    Args:
        xs, static: what the group and the rest embed to, [step, input] and [input].
    """
    a, b = static
    start_a = np.array([0.5 * (math.tanh(x) + math.tanh(x + y) - math.tanh(y)) for x, y in zip(a, b, strict=True)])
    start_b = np.tanh(a + b) - start_a
    inputs = list(zip(*xs, strict=True))
    states: list[tuple[np.ndarray, np.ndarray]] = []
    last: tuple[np.ndarray, np.ndarray] = (start_a, start_b)
    for depth in range(layers):
        ways = [layer(weights, f"l{depth}", inputs, (start_a, start_b), shares, cell)]
        if bidirectional:
            back = layer(weights, f"l{depth}_reverse", inputs[::-1], (start_a, start_b), shares[::-1], cell)
            ways.append(back[::-1])
        states = [
            (np.concatenate([p for p, _ in at]), np.concatenate([q for _, q in at])) for at in zip(*ways, strict=True)
        ]
        ends = [(way[0] if at else way[-1]) if way else (start_a, start_b) for at, way in enumerate(ways)]
        last = np.concatenate([p for p, _ in ends]), np.concatenate([q for _, q in ends])
        inputs = states
    times = 2 if bidirectional else 1
    first = np.tile(start_a, times), np.tile(start_b, times)
    everything = [first, *states]
    if pooling == "last":
        pooled = last
    elif pooling == "mean":
        pooled = tuple(np.mean([state[part] for state in everything], axis=0) for part in (0, 1))  # type: ignore[assignment]
    else:
        highest = np.argmax([p + q for p, q in everything], axis=0)
        pooled = tuple(np.array([everything[at][part][k] for k, at in enumerate(highest)]) for part in (0, 1))  # type: ignore[assignment]
    head = weights["head.weight"][0]
    width = len(pooled[0])
    return tuple(float(head[:width] @ pooled[part] + head[width:] @ static[part]) for part in (0, 1))  # type: ignore[return-value]
