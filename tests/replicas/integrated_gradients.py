"""Integrated gradients the slow way: one dense multi-hot record, a GRU written out, Simpson's rule at many places, float64.

Sundararajan, Taly and Yan 2017, equation 1. Imports nothing from the package.
"""

from __future__ import annotations

import torch


def dense_score(parameters: dict[str, torch.Tensor], events: torch.Tensor, static: torch.Tensor) -> torch.Tensor:
    """The logit of a record given as multi-hot events [step, feature value] and static [feature value].

    torch's GRU convention: r and z gate, n = tanh(W_n x + b_in + r (U_n h + b_hn)), h' = (1 - z) n + z h.
    """
    p = parameters
    embedded = events @ p["tables.events"]
    static_embedded = static @ p["tables.static"]
    h = torch.tanh(static_embedded)
    for x in embedded:
        a = p["cell.weight_ih_l0"] @ x + p["cell.bias_ih_l0"]
        b = p["cell.weight_hh_l0"] @ h + p["cell.bias_hh_l0"]
        ar, az, an = a.chunk(3)
        br, bz, bn = b.chunk(3)
        r, z = torch.sigmoid(ar + br), torch.sigmoid(az + bz)
        n = torch.tanh(an + r * bn)
        h = (1 - z) * n + z * h
    return p["head.weight"][0] @ torch.cat([h, static_embedded]) + p["head.bias"][0]


def dense_integrated_gradients(
    parameters: dict[str, torch.Tensor], events: torch.Tensor, static: torch.Tensor, nodes: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attributions of events [step, feature value] and static [feature value] against the empty record."""
    total_events, total_static = torch.zeros_like(events), torch.zeros_like(static)
    for node in range(nodes + 1):  # Simpson's rule: weights 1 4 2 4 ... 2 4 1, for an even number of intervals
        place = node / nodes
        weight = (1 if node in (0, nodes) else 4 if node % 2 else 2) / (3 * nodes)
        e, s = (place * events).requires_grad_(), (place * static).requires_grad_()
        gradients = torch.autograd.grad(dense_score(parameters, e, s), [e, s], materialize_grads=True)
        total_events += weight * gradients[0]
        total_static += weight * gradients[1]
    return events * total_events, static * total_static
