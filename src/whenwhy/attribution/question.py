"""What is asked of a batch: the score of each record beside that of its baseline. A method sees nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from functools import cached_property
from itertools import islice
from typing import Any, cast

import numpy as np
import torch

from whenwhy.attribution.baselines import EMPTY, REFERENCE, Given, Population, given_baseline
from whenwhy.attribution.contributions import Contributions, PerValue, Values
from whenwhy.attribution.draws import Draws
from whenwhy.attribution.gradients import recurrence_with_gradients
from whenwhy.attribution.quick_recurrences import QuickRecurrences
from whenwhy.attribution.signals import Rule, plain, signal
from whenwhy.attribution.targets import Target
from whenwhy.errors import UserError
from whenwhy.events.sequence_batch import EVENTS, SequenceBatch
from whenwhy.models.bag_classifier import Classifier
from whenwhy.models.sequence_model import Embedded, RestartingModel, SequenceModel, classes_of, logits_of

#: Nodes or draws that share one flat batch, so that memory does not grow with their number.
AT_ONCE = 8

#: The most steps that a model may read for one record: minutes on one core. Beyond are hours, or years.
MOST_STEPS = 1 << 30

NO_GRADIENT = "The model's score has no gradient: use a method that needs none, such as occlusion."


class Question:
    """A batch of records, their baselines, and the number that is explained.

    Attributes:
        embedded, baseline: a tensor a stream, without gradient; padding is 0 in both.
        lengths: [patient] true steps.
        told_lengths: [patient] how the model is told of them: some networks count a record's steps their own way.
        tolerance: of completeness, in units of the score.
        seed, draws: of the run, and random numbers of each prediction.
        kind: the name of the baseline, one of `BASELINES`.
        population: what is known of training patients; None: nothing.
        fitted: the tensors of a method that was fitted to the model beforehand, by name; empty for others.
    """

    def __init__(
        self,
        model: SequenceModel,
        batch: SequenceBatch,
        given: Given,
        target: Target,
        tolerance: float,
        seed: int,
        kind: str = EMPTY,
        population: Population | None = None,
        fitted: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        self.kind, self.population = kind, population
        self.model, self.batch, self.target, self.tolerance = model, batch, target, tolerance
        self.seed, self.fitted = seed, dict(fitted or {})
        self.lengths = batch.lengths
        self.told_lengths = getattr(model, "seen", lambda same: same)(batch).lengths
        self.weights = {name: bags.weights.detach() for name, bags in batch.streams.items()}
        self.given = given
        with torch.no_grad():
            self.embedded = dict(model.embed(batch))
        self.baseline = given.embedded or {name: torch.zeros_like(t) for name, t in self.embedded.items()}
        self.draws = Draws(batch.keys, seed)

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def own_model(self) -> bool:
        """Whether the model is one of this package, whose code is known to leave inputs and states as they are."""
        return isinstance(self.model, Classifier)

    def _recurrences(self) -> AbstractContextManager[object]:
        """The recurrent layers of own models are quick ones; a stranger's may change in place what they answer."""
        return QuickRecurrences() if self.own_model else nullcontext()

    def require_finite(self) -> None:
        """Raises `UserError` unless what is explained is finite."""
        if not (torch.isfinite(self.score).all() and torch.isfinite(self.baseline_score).all()):
            raise UserError("The model's score is not finite (NaN or infinite): check its weights.")

    def evaluations(self, number: int) -> torch.Tensor:
        """The same number for every patient [patient] int32."""
        return torch.full_like(self.lengths, number, dtype=torch.int32)

    def require_affordable(self, evaluations: torch.Tensor, instead: str) -> None:
        """Raises `UserError` if a record needs more steps of the model than `MOST_STEPS`.

        Args:
            evaluations: [patient] how many times each record is read from its begin to its end.
            instead: what to do about it.
        """
        if not len(self):
            return
        steps = (evaluations.double() * self.lengths).cpu()
        worst = int(steps.argmax())
        if steps[worst] > MOST_STEPS:
            raise UserError(
                f"A record of {int(self.lengths[worst]):,} steps would be read {float(evaluations[worst]):,.0f} times, "
                f"{float(steps[worst]):.0e} steps of the model, and {MOST_STEPS:.0e} are the most: {instead}, or prepare "
                "with --max-steps."
            )

    @cached_property
    def score(self) -> torch.Tensor:
        """Of the records [patient]."""
        return self.score_of(self.embedded)

    @cached_property
    def baseline_score(self) -> torch.Tensor:
        """Of the baselines [patient]."""
        if self.given.embedded or not len(self):
            return self.score_of(self.baseline)
        # Empty records of one length are one and the same.
        lengths, of = torch.unique(self.told_lengths, return_inverse=True)
        rows = torch.empty_like(lengths).scatter_(0, of, torch.arange(len(of), device=of.device))
        return self.score_of({name: tensor[rows] for name, tensor in self.baseline.items()}, rows)[of]

    @cached_property
    def record_gradients(self) -> Embedded:
        """The gradients at the records themselves; their scores come along, so that these are not computed twice."""
        score, found = self.with_slopes(self.explained, self.embedded)
        self.__dict__.setdefault("score", score)
        return found

    @cached_property
    def probabilities(self) -> torch.Tensor:
        """Of the records' classes [patient, class] float64."""
        if self.target == Target() and len(classes_of(self.model)) == 2:
            logits = torch.stack([torch.zeros_like(self.score), self.score], dim=1)
        else:
            with torch.no_grad():
                logits = logits_of(self.model, self.embedded, self.told_lengths)
        return logits.double().softmax(1)

    @cached_property
    def true_steps(self) -> torch.Tensor:
        """Which steps are the record's own, and no padding [patient, step] bool."""
        return self.batch.true_steps

    def explained(self, embedded: Embedded, rows: torch.Tensor | None = None) -> torch.Tensor:
        """The explained number [row] of any embeddings [row, ...], with a gradient where it is enabled.

        Args:
            rows: [row] whose each is; None: one a patient, in order.
        """
        with self._recurrences():
            return self.target.score(
                self.model, embedded, self.told_lengths if rows is None else self.told_lengths[rows]
            )

    def outputs(self, embedded: Embedded, rows: torch.Tensor | None = None) -> torch.Tensor:
        """All that is explained at once [row, ..., class], as `explained` takes it: here that one number [row, 1]."""
        return self.explained(embedded, rows).unsqueeze(1)

    @cached_property
    def record_outputs(self) -> torch.Tensor:
        """`outputs` of the records, without gradient."""
        return self.score.unsqueeze(1)

    @cached_property
    def baseline_outputs(self) -> torch.Tensor:
        """`outputs` of the baselines, without gradient."""
        return self.baseline_score.unsqueeze(1)

    def told_apart(self, embedded: Embedded, rows: torch.Tensor | None = None) -> torch.Tensor:
        """What says which class is predicted [row, ..., class], as `explained` takes it."""
        with self._recurrences():
            return self.target.told_apart(
                self.model, embedded, self.told_lengths if rows is None else self.told_lengths[rows]
            )

    def score_of(self, embedded: Embedded, rows: torch.Tensor | None = None) -> torch.Tensor:
        """The explained number [row] of any embeddings [row, ...], without gradient; `rows` as for `explained`."""
        with torch.no_grad():
            return self.explained(embedded, rows)

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
            return self.target.score(later, embedded, self.told_lengths[rows])

    def gradients_at(self, embedded: Embedded, rows: torch.Tensor | None = None) -> Embedded:
        """The explained number's gradients at any embeddings [row, ...], shaped as they are.

        Patients do not see each other, so the gradient of the sum is each one's own gradient.
        """
        return self.with_slopes(lambda leaves: self.explained(leaves, rows), embedded)[1]

    def gradients_along(self, places: Iterable[Embedded]) -> Iterator[Embedded]:
        """The gradients at each of some places [patient, ...], a few of which share a flat batch."""
        patients, left = torch.arange(len(self), device=self.lengths.device), iter(places)
        while some := list(islice(left, AT_ONCE)):
            flat = {name: torch.cat([place[name] for place in some]) for name in some[0]}  # [place * patient, ...]
            found = self.gradients_at(flat, patients.repeat(len(some)))
            each = {name: tensor.split(len(self)) for name, tensor in found.items()}
            yield from ({name: parts[at] for name, parts in each.items()} for at in range(len(some)))

    def with_slopes(
        self, number: Callable[[Embedded], torch.Tensor], embedded: Embedded
    ) -> tuple[torch.Tensor, Embedded]:
        """A number of embeddings [row], and its gradients."""
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in embedded.items()}
        with torch.enable_grad(), recurrence_with_gradients(self.model):
            score = number(leaves)
            if not score.requires_grad:
                raise UserError(NO_GRADIENT)
            found = torch.autograd.grad(score.sum(), list(leaves.values()), materialize_grads=True)
        return score.detach(), dict(zip(leaves, found, strict=True))

    def scored_under(self, rule: Rule, embedded: Embedded, rows: torch.Tensor | None = None) -> torch.Tensor:
        """The explained number [row] of any embeddings [row, ...] that follow a rule through the model.

        Raises:
            UserError: the model does something that the rule does not know.
        """
        followed: Embedded = {name: signal(tensor, rule) for name, tensor in embedded.items()}
        found: torch.Tensor = plain(self.explained(followed, rows))
        return found

    @cached_property
    def values(self) -> dict[str, Values]:
        """Where each stream's values stand."""
        found = {}
        for name, bags in self.batch.streams.items():
            bag, steps = bags.bag, self.batch.n_steps if name == EVENTS else 1
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
        """The embeddings on the way from the baseline to the record, with a gradient where the shares have one.

        Args:
            shares: a tensor [value] a stream, how far each value has come: 0 the baseline's, 1 the record's.
            absent: how far what is absent has come, events [patient, step], static [patient]; None: all the way.
        """
        way = {
            name: self.given.matched[name]
            + share.to(self.weights[name]) * (self.weights[name] - self.given.matched[name])
            for name, share in shares.items()
        }
        moving = [*shares.values(), *(absent or {}).values()]
        with torch.set_grad_enabled(torch.is_grad_enabled() and any(share.requires_grad for share in moving)):
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
        slopes = self.slopes(gradients)
        values = {name: (self.weights[name] - self.given.matched[name]) * slope for name, slope in slopes.items()}
        return Contributions(values, self.absent_parts(gradients))

    def slopes(self, gradients: Embedded) -> PerValue:
        """What one more of each value adds along these gradients [value]: its embedding times its place's gradient.

        It is linear in the gradients, and has a gradient with respect to them where it is enabled.
        """
        names = list(self.weights)
        given = (gradients[name] for name in names)
        slopes: tuple[torch.Tensor, ...] = _Slopes.apply(self, names, *given)  # type: ignore[no-untyped-call]
        return dict(zip(names, slopes, strict=True))

    def left(self, shares: PerValue, absent: Embedded | None = None) -> Embedded:
        """How much of each place of the embeddings `at` leaves behind, in [0, 1], of as many axes as they have.

        All values of a step share its places, and so do the static ones: the mean of 1 - share over them, and over
        what is absent where the baseline records something; 0 where there is nothing to leave.
        """
        found = {}
        for name, share in shares.items():
            values, like = self.values[name], self.embedded[name]
            shape = (len(self), self.batch.n_steps) if name == EVENTS else (len(self),)
            place = values.patient * self.batch.n_steps + values.step if name == EVENTS else values.patient
            number = int(np.prod(shape))
            total = share.new_zeros(number).index_add(0, place, 1 - share).view(shape)
            count = torch.bincount(place, minlength=number).view(shape)
            if self.extra:
                true = self.true_steps if name == EVENTS else torch.ones_like(self.lengths)
                total = total + true * (1 - (absent or {})[name]) if absent else total
                count = count + true
            found[name] = (total / count.clamp(min=1)).view(*shape, *[1] * (like.ndim - len(shape)))
        return found

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

    def beside_reference(self, draw: int) -> Question:
        """The same records beside another reference record each, a new one a draw.

        A baseline that is not drawn, such as the population's rates, is the same in every draw.

        Raises:
            UserError: there are no reference records.
        """
        if self.kind not in (EMPTY, REFERENCE):
            return self
        if self.population is None:
            raise UserError(
                "References are drawn from the training patients: name the baseline 'reference', and give a population."
            )
        other = copy(self)
        for name in ("extra", "baseline_score", "baseline_outputs"):
            other.__dict__.pop(name, None)
        other.given = given_baseline(REFERENCE, self.model, self.batch, self.population, self.seed, draw + 1)
        other.baseline = other.given.embedded
        return other


class _Slopes(torch.autograd.Function):
    """`Question.slopes`: embedding is linear in the weights, so the way back is to embed what comes back."""

    @staticmethod
    def forward(ctx: Any, question: Question, names: list[str], *gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.question, ctx.names = question, names
        weights = {name: question.weights[name].clone().requires_grad_() for name in names}
        with torch.enable_grad():
            embedded = question.model.embed(question.batch, weights)
        given = dict(zip(names, gradients, strict=True))
        some = [name for name in names if len(weights[name]) and embedded[name].requires_grad]
        found = {name: torch.zeros_like(weights[name]) for name in names}
        if some:
            slopes = torch.autograd.grad(
                [embedded[name] for name in some],
                [weights[name] for name in some],
                [given[name] for name in some],
                materialize_grads=True,
            )
            found |= dict(zip(some, slopes, strict=True))
        return tuple(found[name] for name in names)

    @staticmethod
    def backward(ctx: Any, *slopes: torch.Tensor) -> tuple[Any, ...]:
        embedded = ctx.question.model.embed(ctx.question.batch, dict(zip(ctx.names, slopes, strict=True)))
        return None, None, *(embedded[name] for name in ctx.names)
