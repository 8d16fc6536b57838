"""A model and a batch flow in, attributions with the batch's own offsets flow out."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from whenwhy.attribution.registry import method_named
from whenwhy.errors import UserError, unknown_name
from whenwhy.events.sequence_batch import SequenceBatch
from whenwhy.models.sequence_model import SequenceModel

#: Score units (of a logit) by which attributions may miss the score difference: an odds ratio of 1.0001.
TOLERANCE = 1e-4

BASELINES = ("empty",)
TARGETS = ("logit",)


@dataclass(frozen=True)
class Attributions:
    """The contributions of a batch's feature values.

    Attributes:
        streams: a tensor [value] a stream, in the order of `batch.streams[name].ids`.
        score, baseline_score: [patient], what the model says of the record and of the baseline.
        n_nodes: [patient] int32, quadrature nodes.
    """

    streams: dict[str, torch.Tensor]
    score: torch.Tensor
    baseline_score: torch.Tensor
    n_nodes: torch.Tensor


def attribute(
    model: SequenceModel,
    batch: SequenceBatch,
    *,
    method: str = "integrated_gradients",
    baseline: str = "empty",
    target: str = "logit",
    tolerance: float = TOLERANCE,
) -> Attributions:
    """The contribution of every recorded feature value to the score of its prediction.

    Args:
        baseline: "empty": the same steps with nothing recorded, and nothing static.
        target: "logit": of the positive class.
        tolerance: of completeness, in score units, for methods that keep it.

    Raises:
        UserError: no such method, baseline or target; or scores that are not finite.

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
    compute = method_named(method).compute
    check_names(baseline, target)
    batch = getattr(model, "seen", lambda same: same)(batch)  # some networks count a record's steps their own way
    weights = {name: bags.weights.detach().clone().requires_grad_() for name, bags in batch.streams.items()}
    with torch.enable_grad():
        embedded = model.embed(batch, weights)
    path = compute(model, {name: tensor.detach() for name, tensor in embedded.items()}, batch.lengths, tolerance)
    if not torch.isfinite(path.score).all():
        raise UserError("The model's score is not finite (NaN or infinite): check its weights.")
    # The gradient with respect to the bag weights: each value's embedding row times its place's gradient.
    names = [name for name in embedded if len(batch.streams[name].ids)]
    per_weight = (
        torch.autograd.grad(
            [embedded[name] for name in names],
            [weights[name] for name in names],
            [path.gradients[name] for name in names],
            materialize_grads=True,
        )
        if names
        else ()
    )
    streams = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for name, gradient in zip(names, per_weight, strict=True):
        streams[name] = (weights[name] * gradient).detach()
    return Attributions(streams, path.score, path.baseline_score, path.n_nodes)


def check_names(baseline: str, target: str) -> None:
    """Raises `UserError` for a baseline or target that does not exist."""
    if baseline not in BASELINES:
        raise unknown_name("baseline", baseline, BASELINES)
    if target not in TARGETS:
        raise unknown_name("target", target, TARGETS)
