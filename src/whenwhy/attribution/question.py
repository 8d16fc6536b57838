"""What is asked of a batch: the score of each record beside that of its baseline. A method sees nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch

from whenwhy.attribution.baselines import Given, Population
from whenwhy.attribution.draws import Draws
from whenwhy.attribution.gradients import recurrence_with_gradients
from whenwhy.attribution.targets import Target
from whenwhy.errors import UserError
from whenwhy.events.sequence_batch import EVENTS, SequenceBatch
from whenwhy.models.sequence_model import Embedded, RestartingModel, SequenceModel, classes_of, logits_of

#: A number a value of a stream: [value].
PerValue = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Values:
    """Where the values of a stream stand.

    Attributes:
        patient, step: [value] int64; step is 0 for static values.
        id: [value] feature value.
    """

    patient: torch.Tensor
    step: torch.Tensor
    id: torch.Tensor


@dataclass(frozen=True)
class Contributions:
    """A number for each value, and for what is absent.

    Attributes:
        values: a tensor [value] a stream, in the order of the batch's.
        absent: of everything that a step does not record and the baseline does, events [patient, step],
            static [patient]; empty where the baseline records nothing.
    """

    values: PerValue
    absent: Embedded


class Question:
    """A batch of records, their baselines, and the number that is explained.

    Attributes:
        embedded, baseline: a tensor a stream, without gradient; padding is 0 in both.
        lengths: [patient] true steps.
        tolerance: of completeness, in units of the score.
        draws: random numbers of each prediction.
        population: what is known of training patients; None: nothing.

    Raises:
        UserError: the score of a record or of its baseline is not finite.
    """

    def __init__(
        self,
        model: SequenceModel,
        batch: SequenceBatch,
        given: Given,
        target: Target,
        tolerance: float,
        seed: int,
        population: Population | None = None,
    ) -> None:
        self.model, self.batch, self.target, self.tolerance = model, batch, target, tolerance
        self.lengths = batch.lengths
        self.weights = {name: bags.weights.detach() for name, bags in batch.streams.items()}
        self.given, self.population = given, population
        with torch.no_grad():
            self.embedded = dict(model.embed(batch))
        self.baseline = given.embedded or {name: torch.zeros_like(t) for name, t in self.embedded.items()}
        self.draws = Draws(batch.keys, seed)
        if not (torch.isfinite(self.score).all() and torch.isfinite(self.baseline_score).all()):
            raise UserError("The model's score is not finite (NaN or infinite): check its weights.")

    def __len__(self) -> int:
        return len(self.lengths)

    def evaluations(self, number: int) -> torch.Tensor:
        """The same number for every patient [patient] int32."""
        return torch.full_like(self.lengths, number, dtype=torch.int32)

    @cached_property
    def score(self) -> torch.Tensor:
        """Of the records [patient]."""
        return self.score_of(self.embedded)

    @cached_property
    def baseline_score(self) -> torch.Tensor:
        """Of the baselines [patient]."""
        return self.score_of(self.baseline)

    @cached_property
    def probabilities(self) -> torch.Tensor:
        """Of the records' classes [patient, class] float64."""
        if self.target == Target() and len(classes_of(self.model)) == 2:
            logits = torch.stack([torch.zeros_like(self.score), self.score], dim=1)
        else:
            with torch.no_grad():
                logits = logits_of(self.model, self.embedded, self.lengths)
        return logits.double().softmax(1)

    def score_of(self, embedded: Embedded, rows: torch.Tensor | None = None) -> torch.Tensor:
        """The explained number [row] of any embeddings [row, ...], without gradient.

        Args:
            rows: [row] whose each is; None: one a patient, in order.
        """
        lengths = self.lengths if rows is None else self.lengths[rows]
        with torch.no_grad():
            return self.target.score(self.model, embedded, lengths)

    @property
    def restarts(self) -> bool:
        """Whether the model can go on from the middle of a record."""
        return bool(getattr(self.model, "restarts", False))

    def read(self, steps: int, past: Any = None, embedded: Embedded | None = None) -> Any:
        """What a model that restarts keeps of the first steps, from where `past` has come to.

        Args:
            embedded: [row, ...] of what; None: of the records.
        """
        with torch.no_grad():
            return cast(RestartingModel, self.model).read(embedded or self.embedded, steps, past)

    def score_after(self, past: Any, of: torch.Tensor, embedded: Embedded, rows: torch.Tensor) -> torch.Tensor:
        """As `score_of`, by a model that restarts: embeddings before the end of what was read are not looked at.

        Args:
            of: [row] which row of what was read comes before each.
        """
        with torch.no_grad():
            later = cast(RestartingModel, self.model).resumed(past, of)
            return self.target.score(later, embedded, self.lengths[rows])

    def gradients_at(self, embedded: Embedded, rows: torch.Tensor | None = None) -> Embedded:
        """The explained number's gradients at any embeddings [row, ...], shaped as they are.

        Patients do not see each other, so the gradient of the sum is each one's own gradient.
        """
        lengths = self.lengths if rows is None else self.lengths[rows]
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in embedded.items()}
        with torch.enable_grad(), recurrence_with_gradients(self.model):
            score = self.target.score(self.model, leaves, lengths)
            if not score.requires_grad:
                raise UserError("The model's score has no gradient: use a method that needs none, such as occlusion.")
            found = torch.autograd.grad(score.sum(), list(leaves.values()), materialize_grads=True)
        return dict(zip(leaves, found, strict=True))

    @cached_property
    def values(self) -> dict[str, Values]:
        """Where each stream's values stand."""
        found = {}
        for name, bags in self.batch.streams.items():
            ends = torch.cat([bags.offsets, bags.offsets.new_tensor([len(bags.ids)])])
            bag = torch.repeat_interleave(torch.arange(len(bags.offsets), device=ends.device), torch.diff(ends).long())
            steps = self.batch.n_steps if name == EVENTS else 1
            found[name] = Values(bag // steps, bag % steps, bags.ids.long())
        return found

    @cached_property
    def extra(self) -> Embedded:
        """What the baseline records and the record does not, embedded; empty where the baseline records nothing."""
        if not self.given.embedded:
            return {}
        with torch.no_grad():
            matched = self.model.embed(self.batch, self.given.matched)
        return {name: self.baseline[name] - matched[name] for name in self.baseline}

    def at(self, shares: Mapping[str, torch.Tensor], absent: Mapping[str, torch.Tensor] | None = None) -> Embedded:
        """The embeddings on the way from the baseline to the record.

        Args:
            shares: a tensor [value] a stream, how far each value has come: 0 the baseline's, 1 the record's.
            absent: how far what is absent has come, events [patient, step], static [patient]; None: all the way.
        """
        way = {
            name: self.given.matched[name]
            + share.to(self.weights[name]) * (self.weights[name] - self.given.matched[name])
            for name, share in shares.items()
        }
        with torch.no_grad():
            embedded = dict(self.model.embed(self.batch, way))
            if absent is not None:
                for name, extra in self.extra.items():
                    left = (1 - absent[name]).to(extra)
                    embedded[name] = embedded[name] + left.view(*left.shape, *[1] * (extra.ndim - left.ndim)) * extra
        return embedded

    def contributions(self, gradients: Embedded) -> Contributions:
        """What a change along these gradients, from the baseline to the record, adds: each value's part.

        A part is the value's own way, (weight - weight in the baseline) times its embedding, times the
        gradient of its place; the rest of the way is what is absent.
        """
        weights = {name: tensor.clone().requires_grad_() for name, tensor in self.weights.items()}
        with torch.enable_grad():
            embedded = self.model.embed(self.batch, weights)
        names = [name for name in embedded if len(weights[name])]
        slopes: tuple[torch.Tensor, ...] = ()
        if names:
            slopes = torch.autograd.grad(
                [embedded[name] for name in names],
                [weights[name] for name in names],
                [gradients[name] for name in names],
                materialize_grads=True,
            )
        values = {name: torch.zeros_like(tensor) for name, tensor in self.weights.items()}
        for name, slope in zip(names, slopes, strict=True):
            values[name] = (self.weights[name] - self.given.matched[name]) * slope
        return Contributions(values, self.absent_parts(gradients))

    def absent_parts(self, gradients: Embedded) -> Embedded:
        """What leaving what is absent adds along these gradients, shaped as `Contributions.absent`."""
        parts = {}
        for name, extra in self.extra.items():
            axes = 2 if name == EVENTS else 1
            parts[name] = -(extra * gradients[name]).flatten(axes).sum(axes)
        return parts

    def totals(self, found: Contributions) -> torch.Tensor:
        """The sum of each prediction's contributions [patient] float64."""
        total = torch.zeros(len(self), dtype=torch.float64, device=self.lengths.device)
        for name, part in found.values.items():
            total.index_add_(0, self.values[name].patient, part.double())
        for part in found.absent.values():
            total += part.double().flatten(1).sum(1) if part.ndim > 1 else part.double()
        return total

    def random_rows(self, rows: torch.Tensor | None) -> np.ndarray | None:
        """`rows` as `Draws` takes them."""
        return None if rows is None else rows.cpu().numpy()
