"""RETAIN's own contributions: with its attention held, its score is a sum over what is recorded.

Choi et al., "RETAIN: an interpretable predictive model for healthcare using reverse time attention mechanism",
NeurIPS 2016, equation 5.
"""

from __future__ import annotations

import torch

from whenwhy.attribution.question import Question
from whenwhy.attribution.registry import Explanation, method
from whenwhy.attribution.targets import PROBABILITY, UNIT
from whenwhy.errors import UserError
from whenwhy.models.bag_classifier import NO_EFFECTS


@method(
    "attention",
    "RETAIN's own: attention held, each value's part of its sum; what a value does to attention is in no number",
    laws={"completeness", "zero_on_padding", "alone_equals_batched", "dummy", "symmetry"},
)
def retain_contributions(question: Question) -> Explanation:
    """alpha_i W (beta_i * v) for each value, of step i and embedding v, with the record's own alpha and beta.

    They sum to the score minus that of the empty record, exactly. But a value also moves alpha and beta, of its own
    step and of earlier ones, and that is told nowhere: removing it may change the score by another number.

    Raises:
        UserError: another model than RETAIN, another baseline than the empty record, or a target that is no linear
            function of the outputs at the end.
    """
    if question.given.embedded:
        raise UserError("RETAIN's own contributions are not told against a baseline: use the baseline 'empty'.")
    if question.target.kind in (UNIT, PROBABILITY) or question.target.step is not None:
        raise UserError(
            f"RETAIN's own contributions are to its outputs at the end, not to '{question.target.name}': use the target "
            "'logit', or 'log_odds:A:B'."
        )
    tell = getattr(question.model, "effects", None)
    if tell is None:
        raise UserError(NO_EFFECTS)
    with torch.no_grad():
        effects = tell(question.embedded, question.told_lengths)
        chosen = {name: question.target.of_outputs(question.model, effect) for name, effect in effects.items()}
    return Explanation(question.contributions(chosen), question.evaluations(1))
