"""Integrated gradients from the empty record, with as many quadrature nodes as each sequence needs.

Sundararajan, Taly and Yan, "Axiomatic attribution for deep networks", ICML 2017, equation 1.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch

from whenwhy.attribution.gradients import score_gradients
from whenwhy.attribution.registry import PathGradients, method
from whenwhy.models.sequence_model import Embedded, SequenceModel

#: Numbers of Gauss-Legendre nodes, tried in turn for the sequences that are still over the tolerance.
LADDER = (8, 16, 32, 64, 128)

#: Nodes that share one flat batch, so that memory does not grow with the ladder.
NODES_AT_ONCE = 8


@method(
    "the gradient's mean along the way from the empty record, complete within a tolerance",
    laws={"completeness", "linearity", "zero_on_padding", "alone_equals_batched", "dummy", "symmetry"},
)
def integrated_gradients(
    model: SequenceModel, embedded: Embedded, lengths: torch.Tensor, tolerance: float
) -> PathGradients:
    """The gradients' mean along the straight path from the empty record to this one.

    The first layer is linear, so scaling a record's bag weights by a scales its embeddings by a, and
    the path is walked there. |sum of attributions - (score - baseline score)| is each sequence's
    residual; only those over `tolerance` are done again with more nodes.
    """
    with torch.no_grad():
        score = model.score(embedded, lengths)
        empty = model.score({name: torch.zeros_like(tensor) for name, tensor in embedded.items()}, lengths)
    wanted = (score - empty).double()
    mean = {name: torch.zeros_like(tensor) for name, tensor in embedded.items()}
    n_nodes = torch.zeros_like(lengths, dtype=torch.int32)
    open_rows = torch.arange(len(lengths), device=lengths.device)
    for nodes in LADDER:
        part = {name: tensor[open_rows] for name, tensor in embedded.items()}
        gradients = _path_mean(model, part, lengths[open_rows], nodes)
        total = torch.zeros(len(open_rows), dtype=torch.float64, device=lengths.device)
        for name, gradient in gradients.items():
            mean[name][open_rows] = gradient
            total += (gradient.double() * part[name].double()).flatten(1).sum(1)
        n_nodes[open_rows] = nodes
        open_rows = open_rows[(total - wanted[open_rows]).abs() > tolerance]
        if not len(open_rows):
            break
    return PathGradients(mean, score, empty, n_nodes)


def _path_mean(model: SequenceModel, embedded: Embedded, lengths: torch.Tensor, nodes: int) -> Embedded:
    """The quadrature of the gradient over the path, in flat batches of (node, sequence)."""
    places, shares = gauss_legendre(nodes)
    mean = {name: torch.zeros_like(tensor) for name, tensor in embedded.items()}
    for begin in range(0, nodes, NODES_AT_ONCE):
        at = torch.as_tensor(places[begin : begin + NODES_AT_ONCE])
        share = torch.as_tensor(shares[begin : begin + NODES_AT_ONCE])
        flat = {name: _outer(at, tensor).flatten(0, 1) for name, tensor in embedded.items()}
        _, gradients = score_gradients(model, flat, lengths.repeat(len(at)))
        for name, gradient in gradients.items():
            per_node = gradient.unflatten(0, (len(at), len(lengths)))  # [node, patient, ...]
            mean[name] += torch.tensordot(share.to(per_node), per_node, dims=1)
    return mean


def _outer(at: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """Every node's multiple of a tensor [node, *tensor]."""
    return at.to(tensor).view(-1, *[1] * tensor.ndim) * tensor


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
