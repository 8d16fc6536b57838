"""Masks that keep of a record what its prediction needs, beside a perturbation that takes the place of the rest.

Enguehard, "Learning perturbations to explain time series predictions", ICML 2023. The paper mixes a record x and what
a network makes of it, cell by cell, x~ = m x + (1 - m) NN(x). Here the way leads from the record to its baseline
plus the perturbation: the same where the baseline is 0. Of bags, masks belong to the recorded values and the
perturbation u to the embedding of a step, which its values share: sum_j m_j w_j W_j + mean_j(1 - m_j) u.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from whenwhy.attribution.contributions import Contributions
from whenwhy.attribution.gradients import recurrence_with_gradients
from whenwhy.attribution.question import NO_GRADIENT, Question
from whenwhy.errors import UserError, unknown_name
from whenwhy.events.sequence_batch import EVENTS
from whenwhy.models.sequence_model import Embedded, not_dense

PRESERVATION, DELETION = "preservation", "deletion"
MODES = {
    PRESERVATION: "the least that must be kept for the outputs to stay the record's",
    DELETION: "the least that must be deleted for the outputs to become the baseline's",
}
SQUARED, CROSS_ENTROPY = "squared", "cross_entropy"
LOSSES = {
    SQUARED: "the mean squared difference of the outputs",
    CROSS_ENTROPY: "the cross-entropy against the class that is predicted with the wanted outputs, among all of the "
    "model's classes; of log-odds among those two",
}


@dataclass(frozen=True)
class MaskGame:
    """What a mask of a question's records is worth: each record's objective is its own, in any batch.

    Attributes:
        mode: one of MODES. Both punish a large mask, and a value with a mask of 1 is what matters. In the
            authors' code the deletion game punishes 1 - m of what it deletes, which is then everything.
        loss: one of LOSSES.
        l1, l2: weights of the mean mask, and of the perturbation's mean size.

    Raises:
        UserError: no such mode or loss, or a model that takes no dense embeddings.
    """

    question: Question
    mode: str = PRESERVATION
    loss: str = SQUARED
    l1: float = 1.0
    l2: float = 1.0

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise unknown_name("mode", self.mode, MODES)
        if self.loss not in LOSSES:
            raise unknown_name("loss", self.loss, LOSSES)
        reason = not_dense(self.question.model)
        if reason:
            raise UserError(
                f"A mask fills places of a record with what a network makes up, and this model takes no such input: {reason}. "
                "Use another method, such as integrated_gradients."
            )

    @cached_property
    def wanted(self) -> torch.Tensor:
        """The outputs that the mixed record should have [patient, ..., class]."""
        question, whole = self.question, self.mode == PRESERVATION
        if self.loss == SQUARED:
            return question.record_outputs if whole else question.baseline_outputs
        with torch.no_grad():
            return self.outputs(question.embedded if whole else question.baseline)

    def outputs(self, embedded: Embedded) -> torch.Tensor:
        """What the loss compares [patient, ..., class], with a gradient: what is explained, or what tells the classes."""
        question = self.question
        return question.outputs(embedded) if self.loss == SQUARED else question.told_apart(embedded)

    def masks(self, start: float) -> Contributions:
        """The same mask everywhere, of what is absent too where the baseline records something."""
        like = self.question.embedded[EVENTS]
        values = {
            name: torch.full_like(tensor, start, dtype=like.dtype) for name, tensor in self.question.weights.items()
        }
        absent = {}
        for name in self.question.extra:
            shape = self.question.embedded[name].shape[: 2 if name == EVENTS else 1]
            absent[name] = torch.full(shape, start, dtype=like.dtype, device=like.device)
        return Contributions(values, absent)

    def mixed(self, masks: Contributions, perturbation: Embedded) -> Embedded:
        """The embeddings of the mixed records, with gradients."""
        kept = masks if self.mode == PRESERVATION else _inverse(masks)
        found = self.question.at(kept.values, kept.absent or None)
        left = self.question.left(kept.values, kept.absent or None)
        return {name: found[name] + left[name] * perturbation[name] for name in found}

    def objective(self, masks: Contributions, perturbation: Embedded) -> torch.Tensor:
        """What is minimised [patient], with a gradient: equation 2 of the paper, of each record alone."""
        outputs = self.outputs(self.mixed(masks, perturbation))
        if not outputs.requires_grad and torch.is_grad_enabled():
            raise UserError(NO_GRADIENT)
        told = self._difference(outputs) + self.l1 * self.mean_mask(masks)
        return told + self.l2 * self._size(perturbation)

    def mean_mask(self, masks: Contributions) -> torch.Tensor:
        """The mean mask of each record [patient]."""
        question = self.question
        total = next(iter(masks.values.values())).new_zeros(len(question))
        count = torch.zeros_like(total)
        for name, mask in masks.values.items():
            patient = question.values[name].patient
            total = total.index_add(0, patient, mask)
            count = count.index_add(0, patient, torch.ones_like(mask))
        for name, mask in masks.absent.items():
            true = question.true_steps.to(mask) if name == EVENTS else torch.ones_like(mask)
            total = total + (mask * true).flatten(1).sum(1) if mask.ndim > 1 else total + mask
            count = count + (true.flatten(1).sum(1) if mask.ndim > 1 else true)
        return total / count.clamp(min=1)

    def _size(self, perturbation: Embedded) -> torch.Tensor:
        """The mean size of the perturbation of each record's true steps and static values [patient]."""
        total = count = perturbation[EVENTS].new_zeros(len(self.question))
        for name, tensor in perturbation.items():
            true = self.question.true_steps if name == EVENTS else torch.ones_like(self.question.lengths).bool()
            places = true.view(*true.shape, *[1] * (tensor.ndim - true.ndim)).expand_as(tensor)
            total = total + (tensor.abs() * places).flatten(1).sum(1)
            count = count + places.flatten(1).sum(1)
        return total / count.clamp(min=1)

    def _difference(self, outputs: torch.Tensor) -> torch.Tensor:
        """How far the outputs are from those wanted [patient]."""
        if self.loss == SQUARED:
            return (outputs - self.wanted).square().flatten(1).mean(1)
        predicted = outputs.log_softmax(-1).gather(-1, self.wanted.argmax(-1, keepdim=True))
        return -predicted.flatten(1).mean(1)


def _inverse(masks: Contributions) -> Contributions:
    return Contributions(
        {name: 1 - mask for name, mask in masks.values.items()}, {name: 1 - mask for name, mask in masks.absent.items()}
    )


def descend(
    game: MaskGame,
    masks: Contributions,
    perturbation: Callable[[], Embedded],
    parameters: Sequence[torch.Tensor],
    epochs: int,
    learning_rate: float,
) -> None:
    """Changes masks and parameters in place, by Adam; masks stay in [0, 1].

    Adam treats every number alone and the objectives of the records are summed, so each record goes the way that
    it would go alone.

    Args:
        perturbation: what the parameters make of the records.
    """
    of_masks = [*masks.values.values(), *masks.absent.values()]
    moving = [tensor.requires_grad_() for tensor in (*of_masks, *parameters) if tensor.numel()]
    optimizer = torch.optim.Adam(moving, learning_rate) if moving else None
    for _ in range(epochs if optimizer else 0):
        with torch.enable_grad(), recurrence_with_gradients(game.question.model):
            total = game.objective(masks, perturbation()).sum()
            gradients = torch.autograd.grad(total, moving, materialize_grads=True)
        for tensor, gradient in zip(moving, gradients, strict=True):
            tensor.grad = gradient
        assert optimizer is not None
        optimizer.step()
        with torch.no_grad():
            for mask in of_masks:
                mask.clamp_(0, 1)
    for tensor in moving:
        tensor.requires_grad_(False)
        tensor.grad = None


def shown(game: MaskGame, masks: Contributions) -> Contributions:
    """The masks as attributions, 0 in padding."""
    absent = {
        name: mask * game.question.true_steps.to(mask) if name == EVENTS else mask
        for name, mask in masks.absent.items()
    }
    return Contributions(masks.values, absent)


def objective_of(game: MaskGame, masks: Contributions, perturbation: Embedded) -> torch.Tensor:
    """What the masks are worth, of each record [patient]."""
    with torch.no_grad():
        return game.objective(masks, perturbation)
