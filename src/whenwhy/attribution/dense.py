"""Dense inputs [patient, time, feature] and any function of them, asked like records: every method takes both.

A dense input is a record whose steps hold every feature, each weighing what its cell says; the function's first
layer is then the cells themselves. So a model here is a `SequenceModel`, and a question a `Question`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from whenwhy.attribution.attribute import TOLERANCE, fitted_on, require_fitted
from whenwhy.attribution.baselines import Given
from whenwhy.attribution.contributions import PerValue
from whenwhy.attribution.question import Question
from whenwhy.attribution.registry import Fitted, method_named
from whenwhy.attribution.targets import Target
from whenwhy.errors import UserError
from whenwhy.events.sequence_batch import EVENTS, STATIC, Bags, SequenceBatch
from whenwhy.models.sequence_model import Embedded, class_logits

#: Which output is explained: of [patient, class] a number, of [patient, time, class] two; a tensor has a row a patient.
Index = int | Sequence[int] | torch.Tensor | None


class DenseModel(nn.Module):
    """A function of dense inputs as a `SequenceModel`: its embeddings are the inputs, and nothing is static.

    Args:
        forward: takes [patient, time, feature], returns [patient], [patient, class] or [patient, time, class].
        features: how many an input has.
    """

    def __init__(self, forward: Callable[[torch.Tensor], torch.Tensor], features: int) -> None:
        super().__init__()
        self.function, self.vocabulary_size = forward, features

    def embed(self, batch: SequenceBatch, weights: Mapping[str, torch.Tensor] | None = None) -> Embedded:
        """The cells [patient, time, feature], and static values of no width."""
        cells = batch.streams[EVENTS].weights if weights is None else weights[EVENTS]
        steps, features = len(batch) * batch.n_steps, self.vocabulary_size
        if len(cells) != steps * features:  # not every cell is named, as where single features are looked at
            bags = batch.streams[EVENTS]
            place = bags.bag * features + bags.ids.long()
            cells = cells.new_zeros(steps * features).index_add(0, place, cells)
        events = cells.view(len(batch), batch.n_steps, features)
        return {EVENTS: events, STATIC: events.new_zeros(len(batch), 0)}

    def score(self, embedded: Embedded, lengths: torch.Tensor) -> torch.Tensor:
        """The one output [patient] of a function that has no other."""
        return _chosen(self.function(embedded[EVENTS]), None)


@dataclass(frozen=True)
class OutputTarget(Target):
    """An output by its index, the same of every patient."""

    index: tuple[int, ...] = ()

    def score(self, model: Any, embedded: Embedded, lengths: torch.Tensor) -> torch.Tensor:
        """The output [patient], with a gradient."""
        outputs = model.function(embedded[EVENTS])
        return _chosen(outputs, torch.tensor(self.index, device=outputs.device).expand(len(outputs), -1))


class DenseQuestion(Question):
    """A batch of dense inputs, their baselines, and the output that is explained.

    Its values are all cells, in the order of the flattened inputs. A prediction's draws follow from the contents
    of its input, so that they are the same alone as in any batch.

    Args:
        forward: takes [patient, time, feature], returns [patient], [patient, class] or [patient, time, class];
            patients must not see each other.
        inputs: floating point [patient, time, feature].
        baselines: a number, or a tensor that broadcasts to the inputs; None: 0.
        target: index of the output: a class of [patient, class], (time, class) of [patient, time, class]; a tensor
            with a row a patient: each one's own. None: the only output there is; the methods that mask compare all
            outputs then, the others need one.

    Raises:
        UserError: inputs of another kind, an index that does not fit the outputs, outputs that are not finite.

    Example:
        >>> question = DenseQuestion(lambda x: x.sum((1, 2)), torch.ones(2, 3, 4))
        >>> question.score.tolist(), len(question.values["events"].id)
        ([12.0, 12.0], 24)
    """

    def __init__(
        self,
        forward: Callable[[torch.Tensor], torch.Tensor],
        inputs: torch.Tensor,
        baselines: torch.Tensor | float | None = None,
        target: Index = None,
        *,
        tolerance: float = TOLERANCE,
        seed: int = 0,
        fitted: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        if inputs.ndim != 3 or not inputs.is_floating_point():
            raise UserError(
                f"Dense inputs are floating-point numbers [patient, time, feature], not {inputs.dtype} of shape "
                f"{tuple(inputs.shape)}: reshape them."
            )
        inputs = inputs.detach().contiguous()
        begin = _like(inputs, baselines)
        matched = torch.zeros_like(inputs) if begin is None else begin
        none = {STATIC: inputs.new_zeros(0)}
        given = Given(
            {} if begin is None else {EVENTS: begin, STATIC: inputs.new_zeros(len(inputs), 0)},
            {EVENTS: matched.flatten()} | none,
        )
        batch = dense_batch(inputs)
        with torch.no_grad():
            outputs = forward(inputs)
        if outputs.ndim not in (1, 2, 3) or len(outputs) != len(inputs):
            raise UserError(
                f"A function of {len(inputs)} inputs must return [patient], [patient, class] or [patient, time, class], "
                f"not {tuple(outputs.shape)}."
            )
        self.index = _index(target, outputs)  # [patient, axis], or None
        super().__init__(
            DenseModel(forward, inputs.shape[2]), batch, given, _target(self.index), tolerance, seed, fitted=fitted
        )
        self._of_record = outputs
        _require_finite(self.record_outputs)

    @cached_property
    def _of_baseline(self) -> torch.Tensor:
        """What the function returns of the baselines; of zeros, which are all alike, it is asked once."""
        baseline, like = self.baseline[EVENTS], self._of_record
        with torch.no_grad():
            if not self.given.embedded and len(baseline):
                one = self._function(baseline[:1])
                if one.shape == (1, *like.shape[1:]):  # some functions leave out an axis of one patient
                    return one.expand_as(like)
            return self._function(baseline)

    @cached_property
    def score(self) -> torch.Tensor:
        """Of the inputs [patient]."""
        return _chosen(self._of_record, self.index)

    @cached_property
    def baseline_score(self) -> torch.Tensor:
        """Of the baselines [patient]: each input may have a target of its own."""
        return _chosen(self._of_baseline, self.index)

    @cached_property
    def record_outputs(self) -> torch.Tensor:
        """`outputs` of the inputs, without gradient."""
        return self._all(self._of_record, self.index)

    @cached_property
    def baseline_outputs(self) -> torch.Tensor:
        """`outputs` of the baselines, without gradient."""
        return self._all(self._of_baseline, self.index)

    def explained(self, embedded: Embedded, rows: torch.Tensor | None = None) -> torch.Tensor:
        """The explained output [row] of any inputs [row, time, feature]."""
        return _chosen(self._function(embedded[EVENTS]), self._index_of(rows))

    def outputs(self, embedded: Embedded, rows: torch.Tensor | None = None) -> torch.Tensor:
        """All that is explained at once: the one output [row, 1], or without a target all of them [row, ..., class]."""
        return self._all(self._function(embedded[EVENTS]), self._index_of(rows))

    def _function(self, inputs: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.model.function(inputs)  # type: ignore[attr-defined]
        return found

    def _index_of(self, rows: torch.Tensor | None) -> torch.Tensor | None:
        return self.index if self.index is None or rows is None else self.index[rows]

    @staticmethod
    def _all(outputs: torch.Tensor, index: torch.Tensor | None) -> torch.Tensor:
        if index is None:
            return outputs.unsqueeze(1) if outputs.ndim == 1 else outputs
        return _chosen(outputs, index).unsqueeze(1)

    def told_apart(self, embedded: Embedded, rows: torch.Tensor | None = None) -> torch.Tensor:
        """As `outputs`; beside a single output stands 0."""
        return class_logits(self.outputs(embedded, rows))

    @property
    def extra(self) -> Embedded:
        """Nothing: a baseline's cells are the input's own, with other numbers."""
        return {}

    def require_finite(self) -> None:
        """Raises `UserError` unless all that is explained is finite."""
        _require_finite(self.record_outputs)
        _require_finite(self.baseline_outputs)

    def left(self, shares: PerValue, absent: Embedded | None = None) -> Embedded:
        """How much of each cell is left behind: no value shares its place with another."""
        return {EVENTS: (1 - shares[EVENTS]).view_as(self.embedded[EVENTS]), STATIC: self.embedded[STATIC]}


def _require_finite(outputs: torch.Tensor) -> None:
    if not bool(torch.isfinite(outputs).all()):
        raise UserError("The function's output is not finite (NaN or infinite) at an input or its baseline.")


class Explainer:
    """Any registered method on a function of dense inputs, called as Captum's attribution classes are.

    Args:
        forward: as of `DenseQuestion`.
        method: a name of `registered_methods`; options: of the method, by name.
        tolerance: of completeness, in units of the output.
        fitted: of a method that must be fitted first; `fit` sets it.

    Example:
        >>> explainer = Explainer(lambda x: (2 * x).sum((1, 2)), method="integrated_gradients")
        >>> explainer.attribute(torch.ones(1, 2, 2)).tolist()
        [[[2.0, 2.0], [2.0, 2.0]]]
    """

    def __init__(
        self,
        forward: Callable[[torch.Tensor], torch.Tensor],
        method: str = "integrated_gradients",
        *,
        tolerance: float = TOLERANCE,
        seed: int = 0,
        options: Mapping[str, Any] | None = None,
        fitted: Fitted | None = None,
    ) -> None:
        self.forward, self.method = forward, method_named(method)
        self.options = self.method.with_options(options or {})
        self.tolerance, self.seed, self.fitted = tolerance, seed, fitted

    def attribute(
        self, inputs: torch.Tensor, baselines: torch.Tensor | float | None = None, target: Index = None
    ) -> torch.Tensor:
        """The attribution of every cell, shaped as the inputs; arguments are those of `DenseQuestion`.

        Raises:
            UserError: as `DenseQuestion`, or a method that was not fitted.
        """
        require_fitted(self.method, self.fitted)
        found = self.method.compute(self._question(inputs, baselines, target), **self.options)
        return found.contributions.values[EVENTS].view_as(inputs)

    def fit(
        self,
        batches: Sequence[torch.Tensor],
        baselines: torch.Tensor | float | None = None,
        target: Index = None,
    ) -> Explainer:
        """Itself, fitted on batches of inputs; the last of several measures what was learned.

        Raises:
            UserError: as `attribute`, or a method that needs no fitting.
        """
        questions = [self._question(inputs, baselines, target) for inputs in batches]
        self.fitted = fitted_on(self.method, questions, self.options)
        return self

    def _question(self, inputs: torch.Tensor, baselines: torch.Tensor | float | None, target: Index) -> DenseQuestion:
        return DenseQuestion(
            self.forward,
            inputs,
            baselines,
            target,
            tolerance=self.tolerance,
            seed=self.seed,
            fitted=self.fitted.tensors if self.fitted else None,
        )


def dense_batch(inputs: torch.Tensor) -> SequenceBatch:
    """Inputs [patient, time, feature] as bags that hold every feature."""
    patients, steps, features = inputs.shape
    device = inputs.device
    ids = torch.arange(features, dtype=torch.int32, device=device).repeat(patients * steps)
    offsets = torch.arange(patients * steps, dtype=torch.int32, device=device) * features
    none = torch.zeros(0, dtype=torch.int32, device=device)
    rows = np.ascontiguousarray(inputs.double().cpu().numpy())
    digests = (hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in rows)
    return SequenceBatch(
        {
            EVENTS: Bags(ids, inputs.flatten(), offsets, np.arange(len(ids))),
            STATIC: Bags(
                none, inputs.new_zeros(0), torch.zeros(patients, dtype=torch.int32, device=device), np.arange(0)
            ),
        },
        torch.zeros(patients, steps, device=device),
        torch.full((patients,), steps, device=device),
        steps,
        np.arange(patients),
        np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64),
    )


def _like(inputs: torch.Tensor, baselines: torch.Tensor | float | None) -> torch.Tensor | None:
    if baselines is None:
        return None
    begin = torch.as_tensor(baselines, dtype=inputs.dtype, device=inputs.device).detach()
    try:
        return begin.expand_as(inputs).contiguous()
    except RuntimeError:
        raise UserError(
            f"Baselines of shape {tuple(begin.shape)} do not broadcast to inputs of shape {tuple(inputs.shape)}: "
            "give a number, or one of [time, feature], [1, time, feature] or the inputs' own shape."
        ) from None


def _index(target: Index, outputs: torch.Tensor) -> torch.Tensor | None:
    """The index of each patient's output [patient, axis]; None: there is but one, or all are explained."""
    if target is None:
        return None
    axes = outputs.shape[1:]
    index = torch.as_tensor(target, device=outputs.device)
    if index.is_floating_point():
        raise UserError(f"A target is the index of an output, a whole number, not {target}.")
    one = index.ndim == 0 or not isinstance(target, torch.Tensor)
    whole = index.view(1, -1).expand(len(outputs), -1) if one else index.view(len(index), -1)
    if whole.shape != (len(outputs), len(axes)):
        raise UserError(
            f"The target {_told(target)} does not name an output of [patient, {', '.join(map(str, axes))}]: "
            f"give {len(axes)} whole number(s), or a tensor with a row of so many for each of {len(outputs)} patients."
        )
    for axis, size in enumerate(axes):
        if not ((whole[:, axis] >= -size) & (whole[:, axis] < size)).all():
            raise UserError(
                f"The target {_told(target)} is out of range: there are {size} outputs along axis {axis + 1}."
            )
    return whole.long()


def _told(target: Index) -> str:
    return f"of shape {tuple(target.shape)}" if isinstance(target, torch.Tensor) and target.ndim else str(target)


def _target(index: torch.Tensor | None) -> Target:
    """What others than the question itself may ask the model for."""
    same = index is not None and len(index) > 0 and bool((index == index[0]).all())
    return OutputTarget(index=tuple(index[0].tolist())) if same and index is not None else OutputTarget()


def _chosen(outputs: torch.Tensor, index: torch.Tensor | None) -> torch.Tensor:
    """The outputs at each row's index [row]; without one, the only output there is.

    Raises:
        UserError: there are several.
    """
    if index is None or not index.shape[1]:
        flat = outputs.flatten(1) if outputs.ndim > 1 else outputs.unsqueeze(1)
        if flat.shape[1] != 1:
            raise UserError(
                f"The function has outputs of shape [patient, {', '.join(map(str, outputs.shape[1:]))}], of which this "
                "method explains one: name its index as target, such as 1 or (-1, 1)."
            )
        return flat[:, 0]
    row = torch.arange(len(outputs), device=outputs.device)
    return outputs[(row, *index.unbind(1))]
