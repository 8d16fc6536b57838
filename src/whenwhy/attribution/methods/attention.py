"""Attention, as what it is: how much of each step a model lets through, which says nothing of what the step adds.

Jain and Wallace, "Attention is not explanation", NAACL 2019. It is offered for comparison, and because people ask.
"""

from __future__ import annotations

import torch

from whenwhy.attribution.contributions import Contributions
from whenwhy.attribution.question import Question
from whenwhy.attribution.registry import NOTHING, Explanation, method
from whenwhy.attribution.targets import UNIT
from whenwhy.errors import UserError
from whenwhy.events.sequence_batch import EVENTS, STATIC
from whenwhy.models.bag_classifier import NO_ATTENTION


@method(
    "attention",
    "how much attention a value's step gets: not a contribution, and the same for all values of a step",
    laws={"zero_on_padding", "alone_equals_batched", "share"},
    measures="attention",
    compares_with=lambda baseline: NOTHING,
)
def attention(question: Question) -> Explanation:
    """The attention weight of each value's step; static values have that of the state before the first step.

    A record's weights sum to 1 over its steps and that state, however many values a step has. They are the model's
    own (of an ensemble their mean), whatever the target and the baseline; there is nothing to tell of absence.

    Raises:
        UserError: a model without attention, or a target that is a unit or a step.
    """
    if question.target.kind == UNIT or question.target.step is not None:
        raise UserError(
            f"Attention is that of the whole record, not of '{question.target.name}': use the target 'logit'."
        )
    tell = getattr(question.model, "attention_weights", None)
    if tell is None:
        raise UserError(NO_ATTENTION)
    with torch.no_grad():
        weights = tell(question.embedded, question.told_lengths)
    events, static = question.values[EVENTS], question.values[STATIC]
    told = {EVENTS: weights[EVENTS][events.patient, events.step], STATIC: weights[STATIC][static.patient]}
    return Explanation(Contributions(told, {}), question.evaluations(1))
