"""Contextual decomposition of every value, feature value or step; see `whenwhy.attribution.decomposition`."""

from __future__ import annotations

import torch

from whenwhy.attribution.contributions import Contributions
from whenwhy.attribution.decomposition import decomposed_scores
from whenwhy.attribution.question import Question
from whenwhy.attribution.registry import Explanation, method
from whenwhy.errors import unknown_name
from whenwhy.events.sequence_batch import EVENTS, STATIC

VALUE, FEATURE_VALUE, STEP = "value", "feature_value", "step"
UNITS = (VALUE, FEATURE_VALUE, STEP)


@method(
    "decomposition",
    "the part of the score that each value, feature value or step makes alone and through its context",
    laws={"zero_on_padding", "alone_equals_batched", "symmetry"},
)
def contextual_decomposition(question: Question, *, unit: str = VALUE) -> Explanation:
    """The part of the score of each group alone; a group of several values is told in equal shares.

    Not complete: what groups do together is in the part of each of them. A step's biases go
    to its values in equal shares, so a value on which nothing depends may get a little.

    Args:
        unit: "value", "feature_value" (all of a record's values of one kind and stream) or "step"
            (all values of a step; static values together).
    """
    if unit not in UNITS:
        raise unknown_name("unit", unit, UNITS)
    number, size = _groups(question, unit)
    groups = [{name: of == group for name, of in number.items()} for group in range(_most(number))]
    scores = decomposed_scores(question, groups)  # [group, patient]
    values = {
        name: scores[of, question.values[name].patient] / size[name] if len(of) else scores.new_zeros(0)
        for name, of in number.items()
    }
    return Explanation(Contributions(values, {}), question.evaluations(len(groups)))


def _most(number: dict[str, torch.Tensor]) -> int:
    return max((int(of.max()) + 1 for of in number.values() if len(of)), default=0)


def _groups(question: Question, unit: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The number of each value's group, from 0 within its record [value], and the size of that group [value]."""
    streams = {name: question.values[name] for name in (EVENTS, STATIC)}
    patient = torch.cat([of.patient for of in streams.values()])
    if unit == VALUE:
        what = torch.arange(len(patient), device=patient.device)
    else:
        static = [torch.full_like(of.id, int(name == STATIC)) for name, of in streams.items()]
        own = torch.cat([of.id if unit == FEATURE_VALUE else of.step for of in streams.values()])
        what = 2 * own + torch.cat(static)
    pairs, group, counts = torch.unique(
        torch.stack([patient, what]), dim=1, return_inverse=True, return_counts=True
    )  # in order of patient
    first = torch.searchsorted(pairs[0].contiguous(), torch.arange(len(question), device=patient.device))
    number = group - first[patient]
    lengths = [len(of.patient) for of in streams.values()]
    return dict(zip(streams, number.split(lengths), strict=True)), dict(
        zip(streams, counts[group].split(lengths), strict=True)
    )
