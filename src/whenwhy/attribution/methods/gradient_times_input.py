"""Gradient times input: the slope at the record itself."""

from __future__ import annotations

import torch

from whenwhy.attribution.gradients import score_gradients
from whenwhy.attribution.registry import PathGradients, method
from whenwhy.models.sequence_model import Embedded, SequenceModel


@method(
    "the slope at the record itself: one pass, not complete",
    laws={"linearity", "zero_on_padding", "alone_equals_batched", "dummy", "symmetry"},
)
def gradient_times_input(
    model: SequenceModel, embedded: Embedded, lengths: torch.Tensor, tolerance: float
) -> PathGradients:
    """The gradient of the score at the record. `tolerance` does not apply."""
    score, gradients = score_gradients(model, embedded, lengths)
    with torch.no_grad():
        empty = model.score({name: torch.zeros_like(tensor) for name, tensor in embedded.items()}, lengths)
    return PathGradients(gradients, score, empty, torch.ones_like(lengths, dtype=torch.int32))
