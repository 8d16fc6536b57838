"""Quadrature along the straight path from the baselines of some sequences to their records."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch

from whenwhy.attribution.question import AT_ONCE, Question
from whenwhy.models.sequence_model import Embedded


def mean_gradients(question: Question, rows: torch.Tensor, nodes: int) -> Embedded:
    """The gradients' mean over the path, by Gauss-Legendre quadrature [row, ...] a stream.

    Args:
        rows: [row] whose paths are walked; a flat batch is of (node, row).
    """
    record = {name: tensor[rows] for name, tensor in question.embedded.items()}
    begin = {name: tensor[rows] for name, tensor in question.baseline.items()} if question.given.embedded else {}
    places, shares = gauss_legendre(nodes)
    mean = {name: torch.zeros_like(tensor) for name, tensor in record.items()}
    for first in range(0, nodes, AT_ONCE):
        at = torch.as_tensor(places[first : first + AT_ONCE])
        share = torch.as_tensor(shares[first : first + AT_ONCE])
        flat = {name: on_the_way(at, tensor, begin.get(name)).flatten(0, 1) for name, tensor in record.items()}
        gradients = question.gradients_at(flat, rows.repeat(len(at)))
        for name, gradient in gradients.items():
            per_node = gradient.unflatten(0, (len(at), len(rows)))  # [node, row, ...]
            mean[name] += torch.tensordot(share.to(per_node), per_node, dims=1)
    return mean


def on_the_way(at: torch.Tensor, record: torch.Tensor, begin: torch.Tensor | None) -> torch.Tensor:
    """Every node's place on the way [node, *record]; without a begin the way starts at 0."""
    share = at.to(record).view(-1, *[1] * record.ndim)
    return share * record if begin is None else torch.lerp(begin, record, share)


@cache
def gauss_legendre(nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Places in (0, 1) and shares that sum to 1: exact for polynomials of degree 2 nodes - 1.

    Example:
        >>> place, share = gauss_legendre(2)
        >>> round(float((share * place**3).sum()), 12)
        0.25
    """
    place, share = np.polynomial.legendre.leggauss(nodes)
    return (place + 1) / 2, share / 2
