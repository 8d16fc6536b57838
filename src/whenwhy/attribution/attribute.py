"""A model and a batch flow in, attributions with the batch's own offsets flow out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from whenwhy.attribution.absence import require_absence_told
from whenwhy.attribution.baselines import BASELINES, Population, given_baseline
from whenwhy.attribution.precision import (
    BFLOAT16,
    FLOAT32,
    SAMPLE,
    at_precision,
    batch_at,
    first_records,
    population_at,
    precision_error,
)
from whenwhy.attribution.question import Question
from whenwhy.attribution.registry import Fitted, Method, method_named
from whenwhy.attribution.targets import Target, target_named
from whenwhy.errors import UserError, unknown_name
from whenwhy.events.sequence_batch import SequenceBatch
from whenwhy.models.sequence_model import Embedded, SequenceModel, classes_of

#: Score units (of a logit) by which attributions may miss the score difference: an odds ratio of 1.0001.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Attributions:
    """The contributions of a batch's feature values.

    Attributes:
        streams: a tensor [value] a stream, in the order of `batch.streams[name].ids`.
        score, baseline_score: [patient], what the model says of the record and of the baseline; of baselines that
            a method draws, their mean.
        n_evaluations: [patient] int32, model evaluations that it took; of path methods, quadrature nodes.
        absent: what the baseline records and the record does not, events [patient, step], static
            [patient]; empty where the baseline records nothing.
        probabilities: [patient, class] float64, what the model says of the whole record; classes: their names.
        residual: [patient] float64, the sum of all contributions less (score - baseline_score); NaN where they are
            not meant to sum to it.
        measures: what the numbers are, one of `registry.MEASURES`; not all are contributions.
        spread: as `streams`, each one's standard error over other draws, of methods that draw; empty for others.
        notes: [patient] or [patient, step] each, what the method tells beside, by name.
        gradients: where absence was asked for, the gradient of each place that all contributions are the way times,
            events [patient, step, ...], static [patient, ...]; empty elsewhere. See `absent_contributions`.
        slopes: as `streams`, what one more of each value adds along these gradients; empty elsewhere.
        precision_error: of bfloat16, how far the first predictions of the batch are from themselves in float32; see
            `whenwhy.attribution.precision.precision_error`. Empty for others.
    """

    streams: dict[str, torch.Tensor]
    score: torch.Tensor
    baseline_score: torch.Tensor
    n_evaluations: torch.Tensor
    residual: torch.Tensor
    probabilities: torch.Tensor
    classes: tuple[str, ...]
    measures: str
    absent: Embedded = field(default_factory=dict)
    spread: dict[str, torch.Tensor] = field(default_factory=dict)
    notes: dict[str, torch.Tensor] = field(default_factory=dict)
    gradients: Embedded = field(default_factory=dict)
    slopes: dict[str, torch.Tensor] = field(default_factory=dict)
    precision_error: dict[str, float] = field(default_factory=dict)


def attribute(
    model: SequenceModel,
    batch: SequenceBatch,
    *,
    method: str = "integrated_gradients",
    baseline: str = "empty",
    target: str | Target = "logit",
    tolerance: float = TOLERANCE,
    population: Population | None = None,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    fitted: Fitted | None = None,
    absence: bool = False,
    precision: str = FLOAT32,
) -> Attributions:
    """The contribution of every recorded feature value to the score of its prediction.

    Args:
        method: a name of `registered_methods`.
        baseline: "empty", "rates", "carried_forward" or "reference"; see `BASELINES`.
        target: "logit", "probability", "log_odds:A:B" or "unit:K", each also with "@STEP"; see `target_named`.
        tolerance: of completeness, in units of the score, for methods that keep it; what misses it is in
            `residual`.
        population: what baselines other than "empty", and methods that need it, know of training patients; see
            `population_of`.
        seed: of methods and baselines that draw; a prediction's draws are its own, in any batch.
        options: of the method, by name.
        fitted: of a method that must be fitted first, what `fit_method` found.
        absence: keep what tells, feature value by feature value, what not having it adds: of methods that tell
            absence, against the baseline "rates".
        precision: "float32", the model as it is; "float64"; or "bfloat16", whose error is measured on the first up
            to 64 predictions and told as `precision_error`. The tolerance is usually not met in bfloat16, however
            many nodes are spent on it, and `residual` says so: ask for one that can be met, such as 0.05.

    Raises:
        UserError: no such method, baseline, target, option or precision; a method that was not fitted; scores that
            are not finite; absence of a method or a baseline that cannot tell it; a model that does not compute in the
            precision.

    Example:
        >>> import numpy as np, pyarrow as pa
        >>> from whenwhy.events.sequence_batch import Sequences
        >>> from whenwhy.models.recurrent import GRUClassifier
        >>> from whenwhy.schema import SEQUENCES
        >>> row = dict(subject_id=1, prediction_time=0, label="true", split="train", strata=[], step_minutes=[60, 0],
        ...            event_step=[0, 1, 1], event_id=[5, 6, 7], event_value=[None] * 3, static_id=[2], static_value=[None])
        >>> batch = Sequences(pa.Table.from_pylist([row], schema=SEQUENCES)).batch(np.array([0]))
        >>> found = attribute(GRUClassifier(8).eval(), batch)
        >>> total = found.streams["events"].sum() + found.streams["static"].sum()
        >>> bool((total - (found.score - found.baseline_score)).abs() < 1e-4)
        True
    """
    chosen = method_named(method)
    asked = chosen.with_options(options or {})
    if absence:
        require_absence_told(chosen, baseline)
    require_fitted(chosen, fitted)
    of = population_at(population, precision)

    def explained(network: SequenceModel, records: SequenceBatch) -> Attributions:
        question = question_of(
            network,
            records,
            baseline=baseline,
            target=target,
            tolerance=tolerance,
            population=of,
            seed=seed,
            fitted=fitted,
        )
        return _answered(question, chosen, asked, absence)

    if not len(batch):
        return _of_nobody(model, batch, chosen, baseline, target)
    found = explained(at_precision(model, precision, batch), batch_at(batch, precision))
    if precision != BFLOAT16:
        return found
    exact = explained(model, first_records(batch, SAMPLE))
    return replace(found, precision_error=precision_error([(found, exact)]))


def _of_nobody(
    model: SequenceModel, batch: SequenceBatch, chosen: Method, baseline: str, target: str | Target
) -> Attributions:
    """What any method says of a batch without predictions; no network need be asked, and some cannot."""
    _named(baseline, target)
    nothing = batch.hours.new_zeros(0)
    return Attributions(
        {name: torch.zeros_like(bags.weights) for name, bags in batch.streams.items()},
        nothing,
        nothing,
        torch.zeros_like(batch.lengths, dtype=torch.int32),
        nothing.double(),
        batch.hours.new_zeros(0, len(classes_of(model)), dtype=torch.float64),
        classes_of(model),
        chosen.measures,
    )


def _named(baseline: str, target: str | Target) -> Target:
    """The target; raises `UserError` if there is none of this name, or no such baseline."""
    if baseline not in BASELINES:
        raise unknown_name("baseline", baseline, BASELINES)
    return target_named(target) if isinstance(target, str) else target


def _answered(question: Question, chosen: Method, options: Mapping[str, Any], absence: bool) -> Attributions:
    """What a method says of a question."""
    if chosen.family != "gradients":
        question.require_finite()
    found = chosen.compute(question, **options)
    question.require_finite()  # gradients come with their scores, which are looked at behind them
    baseline_score = question.baseline_score if found.baseline_score is None else found.baseline_score
    residual = torch.full_like(baseline_score, torch.nan, dtype=torch.float64)
    if chosen.sums_to_score:
        residual = question.totals(found.contributions) - (question.score.double() - baseline_score.double())
    return Attributions(
        found.contributions.values,
        question.score,
        baseline_score,
        found.n_evaluations,
        residual,
        question.probabilities,
        classes_of(question.model),
        chosen.measures,
        found.contributions.absent,
        found.spread.values if found.spread else {},
        found.notes,
        found.gradients if absence else {},
        question.slopes(found.gradients) if absence else {},
    )


def question_of(
    model: SequenceModel,
    batch: SequenceBatch,
    *,
    baseline: str = "empty",
    target: str | Target = "logit",
    tolerance: float = TOLERANCE,
    population: Population | None = None,
    seed: int = 0,
    fitted: Fitted | None = None,
) -> Question:
    """What a method is asked; the arguments are those of `attribute`."""
    asked = _named(baseline, target)
    population = population.to(batch.lengths.device) if population else None
    given = given_baseline(baseline, model, batch, population, seed)
    tensors = fitted.tensors if fitted else None
    return Question(model, batch, given, asked, tolerance, seed, baseline, population, tensors)


def fit_method(
    model: SequenceModel,
    batches: Iterable[SequenceBatch],
    *,
    method: str,
    baseline: str = "empty",
    target: str | Target = "logit",
    tolerance: float = TOLERANCE,
    population: Population | None = None,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    precision: str = FLOAT32,
) -> Fitted:
    """What a method must learn of a model once, on a sample of records, before it can explain any.

    Args:
        batches: the sample; the last of several measures what was learned. The others are those of `attribute`,
            which must be asked with the same ones.

    Raises:
        UserError: as `attribute`; or a method that needs no fitting, or no records.

    Example: `attribute(model, batch, method=name, fitted=fit_method(model, sample, method=name))`
    """
    chosen = method_named(method)
    asked = chosen.with_options(options or {})
    sample = [batch for batch in batches if len(batch)]
    changed = at_precision(model, precision, sample[0]) if sample else model
    questions = [
        question_of(
            changed,
            batch_at(batch, precision),
            baseline=baseline,
            target=target,
            tolerance=tolerance,
            population=population_at(population, precision),
            seed=seed,
        )
        for batch in sample
    ]
    return fitted_on(chosen, questions, asked)


def fitted_on(chosen: Method, questions: Sequence[Question], options: Mapping[str, Any]) -> Fitted:
    """`fit_method` on questions."""
    if chosen.fit is None:
        raise UserError(f"The method '{chosen.name}' needs no fitting: use it as it is.")
    if not questions:
        raise UserError(f"The method '{chosen.name}' is fitted on records, and there is none: give some.")
    for question in questions:
        question.require_finite()
    return chosen.fit(questions, **options)


def require_fitted(chosen: Method, fitted: Fitted | None) -> None:
    """Raises `UserError` unless the method has what it needs."""
    if chosen.fit is not None and fitted is None:
        raise UserError(
            f"The method '{chosen.name}' is fitted to a model before it explains: give fitted=, what fit_method finds."
        )
