"""Gradients of a model's score with respect to its embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from whenwhy.models.sequence_model import Embedded, SequenceModel


def score_gradients(model: SequenceModel, embedded: Embedded, lengths: torch.Tensor) -> tuple[torch.Tensor, Embedded]:
    """The scores [patient], detached, and their gradients with respect to each stream's embeddings.

    Patients do not see each other, so the gradient of the sum is each one's own gradient.
    """
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in embedded.items()}
    with torch.enable_grad(), recurrence_with_gradients(model):
        score = model.score(leaves, lengths)
        gradients = torch.autograd.grad(score.sum(), list(leaves.values()), materialize_grads=True)
    return score.detach(), dict(zip(leaves, gradients, strict=True))


@contextmanager
def recurrence_with_gradients(model: SequenceModel) -> Iterator[None]:
    """CuDNN's recurrent layers have a backward pass in training mode alone: enter it without dropout, then leave."""
    cells = [
        module
        for module in (model.modules() if isinstance(model, torch.nn.Module) else ())
        if isinstance(module, torch.nn.RNNBase) and not module.training and next(module.parameters()).is_cuda
    ]
    dropouts = [cell.dropout for cell in cells]
    for cell in cells:
        cell.dropout = 0.0
        cell.train()
    try:
        yield
    finally:
        for cell, dropout in zip(cells, dropouts, strict=True):
            cell.dropout = dropout
            cell.eval()
