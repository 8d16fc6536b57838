"""Occlusion: what the score loses without a value.

Zeiler and Fergus, "Visualizing and understanding convolutional networks", ECCV 2014, section 4; in the terms of
Covert, Lundberg and Lee, "Explaining by removing", JMLR 2021: removal by the baseline, alone.
"""

from __future__ import annotations

from whenwhy.attribution.players import CODE, CODE_CELL, VALUE, Players, scores_without
from whenwhy.attribution.question import Question
from whenwhy.attribution.registry import Explanation, method


@method(
    "perturbation",
    "what the score loses when a value is set to the baseline's, one at a time; not complete",
    laws={"linearity", "zero_on_padding", "alone_equals_batched", "dummy", "symmetry"},
    needs_population=lambda options: options.get("unit") in (CODE, CODE_CELL),
)
def occlusion(question: Question, *, unit: str = VALUE) -> Explanation:
    """The score of the record less its score without the value, for each value and for what is absent of each step.

    Args:
        unit: what is set to the baseline's together, and shares what the score loses equally: "value", each
            alone; "cell" or "code_cell", a feature value's or a code's records in a step; "feature_value" or
            "code", its records in the whole sequence; "step", all that a step records.

    Raises:
        UserError: no such unit, or codes that are not known.
    """
    players = Players(question, unit)
    lost = question.score[players.patient] - scores_without(players)
    return Explanation(players.contributions(lost), (players.count + 1).int())
