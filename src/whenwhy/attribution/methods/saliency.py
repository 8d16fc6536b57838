"""Saliency: how steep the score is at the record, without a sign.

Simonyan, Vedaldi and Zisserman, "Deep inside convolutional networks", arXiv 1312.6034, section 3.
"""

from __future__ import annotations

from whenwhy.attribution.contributions import Contributions
from whenwhy.attribution.question import Question
from whenwhy.attribution.registry import NOTHING, Explanation, method


@method(
    "gradients",
    "the size of the slope at the record itself, without sign or baseline: one pass, not complete",
    laws={"zero_on_padding", "alone_equals_batched", "dummy", "symmetry"},
    measures="steepness",
    compares_with=lambda baseline: NOTHING,
)
def saliency(question: Question) -> Explanation:
    """|the derivative of the score with respect to the value's weight|, at the record.

    It compares with nothing, so there is no baseline in it, and nothing to tell of what is absent.
    """
    slopes = question.slopes(question.record_gradients)
    return Explanation(
        Contributions({name: slope.abs() for name, slope in slopes.items()}, {}), question.evaluations(1)
    )
