"""Gradient times input: the slope at the record itself.

Shrikumar, Greenside, Shcherbina and Kundaje, "Not just a black box", arXiv 1605.01713.
"""

from __future__ import annotations

from whenwhy.attribution.question import Question
from whenwhy.attribution.registry import Explanation, method


@method(
    "gradients",
    "the slope at the record itself, times the way from the baseline: one pass, not complete",
    laws={"linearity", "zero_on_padding", "alone_equals_batched", "dummy", "symmetry"},
    tells_absence=True,
)
def gradient_times_input(question: Question) -> Explanation:
    """The gradient of the score at the record, times the way from the baseline."""
    gradients = question.record_gradients
    return Explanation(question.contributions(gradients), question.evaluations(1), gradients=gradients)
