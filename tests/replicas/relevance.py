"""Slow, independent relevance and DeepLIFT of one record: a GRU or LSTM layer read at its last state, unit by unit.

Relevance is handed back as messages between single numbers, by the written rules, never by a gradient.
"""

from __future__ import annotations

import math

import numpy as np

Arrays = dict[str, np.ndarray]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def steady(z: float, epsilon: float) -> float:
    return z + (epsilon if z >= 0 else -epsilon)


def forward(weights: Arrays, xs: np.ndarray, static: np.ndarray, cell: str) -> list[Arrays]:
    """What happens at each step; the first entry is the start."""
    w, u = weights["cell.weight_ih_l0"], weights["cell.weight_hh_l0"]
    b, d = weights["cell.bias_ih_l0"], weights["cell.bias_hh_l0"]
    size = u.shape[1]
    told = [{"h": np.tanh(static), "c": np.tanh(static)}]
    for x in xs:
        before = told[-1]
        now = {name: np.zeros(size) for name in ("h", "c", "r", "z", "n", "un", "hn", "i", "f", "g", "ug", "o")}
        for k in range(size):

            def total(gate: int, k: int = k, x: np.ndarray = x, before: Arrays = before) -> tuple[float, float]:
                row = gate * size + k
                return float(w[row] @ x + b[row]), float(u[row] @ before["h"] + d[row])

            if cell == "gru":
                now["r"][k], now["z"][k] = sigmoid(sum(total(0))), sigmoid(sum(total(1)))
                own, now["hn"][k] = total(2)
                now["un"][k] = own + now["r"][k] * now["hn"][k]
                now["n"][k] = math.tanh(now["un"][k])
                now["h"][k] = (1 - now["z"][k]) * now["n"][k] + now["z"][k] * before["h"][k]
            else:
                now["i"][k], now["f"][k], now["o"][k] = (sigmoid(sum(total(gate))) for gate in (0, 1, 3))
                now["ug"][k] = sum(total(2))
                now["g"][k] = math.tanh(now["ug"][k])
                now["c"][k] = now["f"][k] * before["c"][k] + now["i"][k] * now["g"][k]
                now["h"][k] = now["o"][k] * math.tanh(now["c"][k])
        told.append(now)
    return told


def relevance(
    weights: Arrays, xs: np.ndarray, static: np.ndarray, cell: str, epsilon: float, unit: tuple[int, int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Relevance of each number of xs [step, input] and of static [input], from the logit or from a unit at a step."""
    w, u = weights["cell.weight_ih_l0"], weights["cell.weight_hh_l0"]
    told = forward(weights, xs, static, cell)
    size, steps = u.shape[1], len(xs)
    at_x, at_static = np.zeros_like(xs), np.zeros_like(static)
    at_h, at_c = np.zeros((steps + 1, size)), np.zeros((steps + 1, size))
    if unit is None:
        head, bias = weights["head.weight"][0], weights["head.bias"][0]
        read = np.concatenate([told[-1]["h"], static])
        score = float(head @ read + bias)
        share = head * read / steady(score, epsilon) * score
        at_h[steps] += share[:size]
        at_static += share[size:]
    else:
        step, k = unit
        value = told[step + 1]["h"][k]
        at_h[step + 1][k] = value * value / steady(value, epsilon)
    for t in range(steps, 0, -1):
        now, before, x = told[t], told[t - 1], xs[t - 1]
        for k in range(size):
            if cell == "gru":
                if at_h[t][k] == 0:
                    continue
                of_new = (1 - now["z"][k]) * now["n"][k] / now["h"][k] * at_h[t][k]
                at_h[t - 1][k] += now["z"][k] * before["h"][k] / now["h"][k] * at_h[t][k]
                row, z, gate = 2 * size + k, steady(now["un"][k], epsilon), now["r"][k]
            else:
                at_c[t][k] += (
                    at_h[t][k]
                    * math.tanh(now["c"][k])
                    / math.tanh(now["c"][k])
                    * (now["c"][k] / steady(now["c"][k], epsilon))
                )
                of_new = now["i"][k] * now["g"][k] / now["c"][k] * at_c[t][k]
                at_c[t - 1][k] += now["f"][k] * before["c"][k] / now["c"][k] * at_c[t][k]
                row, z, gate = 2 * size + k, steady(now["ug"][k], epsilon), 1.0
            for i in range(len(x)):
                at_x[t - 1][i] += x[i] * w[row][i] / z * of_new
            for i in range(size):
                at_h[t - 1][i] += gate * before["h"][i] * u[row][i] / z * of_new
    for k in range(size):
        if static[k] != 0:
            at_static[k] += (at_h[0][k] + at_c[0][k]) * static[k] / steady(static[k], epsilon)
    return at_x, at_static


def deep_lift(
    weights: Arrays, xs: np.ndarray, static: np.ndarray, other: tuple[np.ndarray, np.ndarray], cell: str
) -> tuple[np.ndarray, np.ndarray]:
    """What the rise of each number of xs and static, from `other`, adds to the logit."""
    w, u = weights["cell.weight_ih_l0"], weights["cell.weight_hh_l0"]
    b, d = weights["cell.bias_ih_l0"], weights["cell.bias_hh_l0"]
    told, base = forward(weights, xs, static, cell), forward(weights, *other, cell)
    size, steps = u.shape[1], len(xs)
    head = weights["head.weight"][0]
    m_h, m_c, m_static = head[:size].copy(), np.zeros(size), head[size:].copy()
    found = np.zeros_like(xs)

    def slope(function: object, now: float, before: float) -> float:
        if abs(now - before) < 1e-9:
            step = 1e-6
            return (function(now + step) - function(now - step)) / (2 * step)  # type: ignore[operator]
        return (function(now) - function(before)) / (now - before)  # type: ignore[operator]

    for t in range(steps, 0, -1):
        now, was, before, was_before, x, y = told[t], base[t], told[t - 1], base[t - 1], xs[t - 1], other[0][t - 1]
        next_h, next_c, m_x = np.zeros(size), np.zeros(size), np.zeros(xs.shape[1])

        def sums(gate: int, k: int, of: Arrays, given: np.ndarray) -> float:
            row = gate * size + k
            return float(w[row] @ given + b[row] + u[row] @ of["h"] + d[row])

        for k in range(size):
            gates = {}
            if cell == "gru":
                m_new = m_h[k] * ((1 - now["z"][k]) + (1 - was["z"][k])) / 2
                m_update = m_h[k] * (-(now["n"][k] + was["n"][k]) / 2 + (before["h"][k] + was_before["h"][k]) / 2)
                next_h[k] += m_h[k] * (now["z"][k] + was["z"][k]) / 2
                m_un = m_new * slope(math.tanh, now["un"][k], was["un"][k])
                m_reset = m_un * (now["hn"][k] + was["hn"][k]) / 2
                m_hn = m_un * (now["r"][k] + was["r"][k]) / 2
                m_x += m_un * w[2 * size + k]
                next_h += m_hn * u[2 * size + k]
                gates = {0: m_reset, 1: m_update}
            else:
                tanh_now, tanh_was = math.tanh(now["c"][k]), math.tanh(was["c"][k])
                m_cell = m_c[k] + m_h[k] * (now["o"][k] + was["o"][k]) / 2 * slope(math.tanh, now["c"][k], was["c"][k])
                gates = {
                    3: m_h[k] * (tanh_now + tanh_was) / 2,
                    1: m_cell * (before["c"][k] + was_before["c"][k]) / 2,
                    0: m_cell * (now["g"][k] + was["g"][k]) / 2,
                }
                next_c[k] += m_cell * (now["f"][k] + was["f"][k]) / 2
                m_ug = m_cell * (now["i"][k] + was["i"][k]) / 2 * slope(math.tanh, now["ug"][k], was["ug"][k])
                m_x += m_ug * w[2 * size + k]
                next_h += m_ug * u[2 * size + k]
            for gate, m in gates.items():
                m *= slope(sigmoid, sums(gate, k, before, x), sums(gate, k, was_before, y))
                m_x += m * w[gate * size + k]
                next_h += m * u[gate * size + k]
        found[t - 1] = m_x * (x - y)
        m_h, m_c = next_h, next_c
    for k in range(size):
        m_static[k] += (m_h[k] + m_c[k]) * slope(math.tanh, static[k], other[1][k])
    return found, m_static * (static - other[1])
