"""Recurrent layers whose backward pass is at hand on every device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from whenwhy.models.sequence_model import SequenceModel


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
