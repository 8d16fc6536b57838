"""What of a model is explained: an output, of the whole record or of its first steps, or a hidden unit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from whenwhy.attribution.recurrences import unit_states
from whenwhy.errors import UserError, unknown_name
from whenwhy.models.sequence_model import (
    Embedded,
    SequenceModel,
    class_logits,
    classes_of,
    logits_of,
    step_logits_of,
)

LOGIT, PROBABILITY, LOG_ODDS, UNIT = "logit", "probability", "log_odds", "unit"
TARGETS = {
    LOGIT: "the score before it becomes a probability; of several classes, logit:CLASS",
    PROBABILITY: "the probability of the positive class, or probability:CLASS",
    LOG_ODDS: "log_odds:A:B, the logarithm of how many times more likely A is than B",
    UNIT: "unit:K, the K-th state of the last recurrent layer, from 0",
}


@dataclass(frozen=True)
class Target:
    """A number a record.

    Attributes:
        kind: one of TARGETS.
        classes: the names of one class, or of two for log-odds; none: the positive one.
        unit: which state.
        step: the record is cut after this step, from 0, or -1 for the last and so on; a record of fewer
            steps is taken whole. None: the whole record.
    """

    kind: str = LOGIT
    classes: tuple[str, ...] = ()
    unit: int = 0
    step: int | None = None

    @property
    def name(self) -> str:
        """What `target_named` makes it from."""
        parts = [self.kind, *self.classes] + ([str(self.unit)] if self.kind == UNIT else [])
        return ":".join(parts) + ("" if self.step is None else f"@{self.step}")

    def score(self, model: SequenceModel, embedded: Embedded, lengths: torch.Tensor) -> torch.Tensor:
        """The number [patient], with a gradient.

        Raises:
            UserError: the model has no such class, unit or steps.
        """
        if self.kind == UNIT:
            states = unit_states(model, embedded, lengths)  # [patient, step, unit]
            if self.unit >= states.shape[2]:
                raise UserError(f"The model has {states.shape[2]} states: give a unit from 0 to {states.shape[2] - 1}.")
            return self._at_step(states[:, :, self.unit], lengths, torch.zeros_like(states[:, 0, 0]))
        return self._of_classes(self._logits(model, embedded, lengths), classes_of(model))

    def told_apart(self, model: SequenceModel, embedded: Embedded, lengths: torch.Tensor) -> torch.Tensor:
        """What says which class is predicted, with a gradient: a logit a class [patient, class], of log-odds those two.

        Raises:
            UserError: as `score`; or the target is a unit, which predicts no class.
        """
        if self.kind == UNIT:
            raise UserError(
                "A unit predicts no class: name a target such as logit, or another loss than cross_entropy."
            )
        names, logits = classes_of(model), self._logits(model, embedded, lengths)
        places = self._places(names)
        return logits[:, places[::-1]] if self.kind == LOG_ODDS else logits

    def own_step_scores(self, model: SequenceModel, before: Embedded, own: torch.Tensor) -> torch.Tensor:
        """The number of the record cut after each step [..., patient, step], with a gradient in each step's own events.

        Args:
            before, own: as `StepwiseModel.own_step_logits` takes them; only where `has_own_step_scores`.
        """
        if self.kind == UNIT:
            states: torch.Tensor = model.own_states(before, own)  # type: ignore[attr-defined]
            return states[..., self.unit]
        logits: torch.Tensor = model.own_step_logits(before, own)  # type: ignore[attr-defined]
        return self.of_outputs(model, logits)

    def prefix_scores(self, model: SequenceModel, embedded: Embedded, lengths: torch.Tensor) -> torch.Tensor:
        """The number of the record cut after each step [patient, step], whose gradient is in its last state alone.

        Only where `has_own_step_scores`.
        """
        if self.kind == UNIT:
            states: torch.Tensor = model.states(embedded, lengths)  # type: ignore[attr-defined]
            return states[..., self.unit]
        return self.of_outputs(model, model.prefix_logits(embedded, lengths))  # type: ignore[attr-defined]

    def of_outputs(self, model: SequenceModel, outputs: torch.Tensor) -> torch.Tensor:
        """The number of these outputs [..., output], or of what adds to each where the target is linear in them [...].

        Raises:
            UserError: the model has no such class.
        """
        logits = class_logits(outputs)
        return self._of_classes(logits.flatten(0, -2), classes_of(model)).view(outputs.shape[:-1])

    def shown_class(self, names: Sequence[str], probabilities: torch.Tensor) -> torch.Tensor:
        """Whose probability is shown [patient]: the class that is named, else the later of two, else the predicted one.

        Args:
            probabilities: [patient, class]; ties go to the class that is named later.
        """
        most = probabilities.shape[1] - 1 - probabilities.flip(1).argmax(1)
        if self.classes:
            return torch.full_like(most, names.index(self.classes[0]))
        return torch.ones_like(most) if len(names) == 2 else most

    def _logits(self, model: SequenceModel, embedded: Embedded, lengths: torch.Tensor) -> torch.Tensor:
        """Of the record, or of its first steps [patient, class]."""
        logits = logits_of(model, embedded, lengths)
        if self.step is None:
            return logits
        steps = step_logits_of(model, embedded, lengths)  # [patient, step, class]
        return self._at_step(steps, lengths, logits)

    def _at_step(self, steps: torch.Tensor, lengths: torch.Tensor, without: torch.Tensor) -> torch.Tensor:
        """The element at the asked step [patient, ...]; `without` for records without steps."""
        last = lengths - 1
        asked = last if self.step is None else last.clamp(max=self.step) if self.step >= 0 else lengths + self.step
        patient = torch.arange(len(lengths), device=lengths.device)
        found = steps[patient, asked.clamp(min=0)]
        some = (lengths > 0).view(-1, *[1] * (found.ndim - 1))
        return torch.where(some, found, without)

    def _places(self, names: tuple[str, ...]) -> list[int]:
        """Where the named classes stand among those of a model."""
        if self.classes:
            for name in self.classes:
                if name not in names:
                    raise unknown_name("class", name, names)
            return [names.index(name) for name in self.classes]
        if len(names) != 2:
            raise UserError(f"The model has the classes {', '.join(names)}: name one, as in {self.kind}:{names[0]}.")
        return [1]

    def _of_classes(self, logits: torch.Tensor, names: tuple[str, ...]) -> torch.Tensor:
        places = self._places(names)
        if self.kind == LOG_ODDS:
            return logits[:, places[0]] - logits[:, places[1]]
        if self.kind == PROBABILITY:
            return logits.softmax(1)[:, places[0]]
        # Of two classes only the difference of their outputs is defined.
        return logits[:, places[0]] - logits[:, 1 - places[0]] if len(names) == 2 else logits[:, places[0]]


def has_own_step_scores(model: SequenceModel, target: Target) -> bool:
    """Whether every step's own prediction comes in one pass: a causal model that says how."""
    asked = "own_states" if target.kind == UNIT else "own_step_logits"
    return getattr(model, "not_causal", None) is None and hasattr(model, asked)


def target_named(text: str) -> Target:
    """The target of a name such as logit, probability:sepsis, log_odds:sepsis:stroke, unit:12, each also with @STEP.

    Raises:
        UserError: it is none.

    Example:
        >>> target_named("unit:12@-1")
        Target(kind='unit', classes=(), unit=12, step=-1)
    """
    what, at, step = text.rpartition("@") if "@" in text else (text, "", "")
    kind, *rest = what.split(":")
    if kind not in TARGETS:
        raise unknown_name("target", kind, TARGETS)
    try:
        number = int(step) if at else None
        unit = int(rest[0]) if kind == UNIT else 0
    except (ValueError, IndexError):
        raise UserError(f"'{text}' is no target: write e.g. unit:12 or logit@-1, with whole numbers.") from None
    wanted = {LOG_ODDS: (2,), UNIT: (1,)}.get(kind, (0, 1))
    if len(rest) not in wanted or unit < 0 or not all(rest):
        raise UserError(f"'{text}' is no target: write {TARGETS[kind]}.")
    return Target(kind, () if kind == UNIT else tuple(rest), unit, number)
