"""Temporal occlusion: what the score loses without what a step records.

A causal model has the same states before that step with and without it: what it has read until there is kept, and it
restarts from there. So half of the steps need not be read where steps are many.
"""

from __future__ import annotations

from whenwhy.attribution.players import STEP, Players, scores_without
from whenwhy.attribution.question import Question
from whenwhy.attribution.registry import Explanation, method


@method(
    "perturbation",
    "what the score loses without what a step records, in equal shares to its values; not complete",
    laws={"zero_on_padding", "alone_equals_batched", "dummy"},
)
def temporal_occlusion(question: Question, *, restart: bool = True) -> Explanation:
    """The score of the record less its score with all values of a step set to the baseline's, shared among them equally.

    What is absent of a step is set to the baseline's by itself; static values are set together, as if they were a step.

    Args:
        restart: causal recurrent models go on from the step; False: they read every record from its start.
    """
    players = Players(question, STEP)
    lost = question.score[players.patient] - scores_without(players, restart=restart)
    return Explanation(players.contributions(lost), (players.count + 1).int())
