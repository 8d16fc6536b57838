"""What every model promises, so that attribution need not know it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch

from whenwhy.errors import UserError
from whenwhy.events.sequence_batch import Bags, SequenceBatch

#: One tensor a stream: "events" [patient, step, hidden], "static" [patient, hidden].
Embedded = dict[str, torch.Tensor]


class SequenceModel(Protocol):
    """A model whose first layer is a bag of feature values in every stream.

    `embed` is linear in the bag weights, and everything the model sees passes through it. So a path in
    the inputs is a path in the embeddings, and no contribution can leak past the rows.
    """

    vocabulary_size: int

    def embed(self, batch: SequenceBatch, weights: Mapping[str, torch.Tensor] | None = None) -> Embedded:
        """The bags' sums, a tensor a stream; `weights` replaces the batch's own bag weights."""
        ...

    def score(self, embedded: Embedded, lengths: torch.Tensor) -> torch.Tensor:
        """The logit of the positive class [patient]; padded steps do not count."""
        ...


class StepwiseModel(SequenceModel, Protocol):
    """A model that says of itself whether it has scores at the steps of a record.

    It may also have `own_step_scores(before, own)`: those scores as functions of each one's own step alone.
    """

    #: Why it has none; None: it is causal, and has them.
    not_causal: str | None

    def step_scores(self, embedded: Embedded, lengths: torch.Tensor) -> torch.Tensor:
        """What `score` would say of the record cut after each step [patient, step]; padding says nothing."""
        ...


def not_dense(model: SequenceModel) -> str | None:
    """Why a model's embeddings cannot be replaced by any others of their shape; None: they can.

    A model that tells what is recorded from where its embeddings are 0 says so in an attribute `not_dense`.
    """
    found: str | None = getattr(model, "not_dense", None)
    return found


class RestartingModel(SequenceModel, Protocol):
    """A causal model that can go on from the middle of a record, so that a change at a step costs the steps after it."""

    #: Whether this one can.
    restarts: bool

    def read(self, embedded: Embedded, steps: int, past: Any = None) -> Any:
        """What it keeps of the records' first steps, from where `past` has come to."""
        ...

    def resumed(self, past: Any, rows: torch.Tensor) -> SequenceModel:
        """The same model after the past of these patients: of the steps in it, an embedding is not looked at."""
        ...


#: The classes of a model that tells one logit.
TWO_CLASSES = ("false", "true")


def classes_of(model: SequenceModel) -> tuple[str, ...]:
    """The names of a model's classes, in the order of its logits."""
    return tuple(getattr(model, "classes", TWO_CLASSES))


def logits_of(model: SequenceModel, embedded: Embedded, lengths: torch.Tensor) -> torch.Tensor:
    """The model's outputs [patient, class], whose softmax are the probabilities; of one logit, 0 stands for "false"."""
    if hasattr(model, "logits"):
        found: torch.Tensor = model.logits(embedded, lengths)
        return found
    return beside_zero(model.score(embedded, lengths))


def step_logits_of(model: SequenceModel, embedded: Embedded, lengths: torch.Tensor) -> torch.Tensor:
    """What `logits_of` would say of the record cut after each step [patient, step, class].

    Raises:
        UserError: the model has no scores at the steps of a record.
    """
    if hasattr(model, "step_logits"):
        found: torch.Tensor = model.step_logits(embedded, lengths)
        return found
    if not hasattr(model, "step_scores"):
        raise UserError("The model has no scores at the steps of a record: name a target without @STEP.")
    return beside_zero(model.step_scores(embedded, lengths))


def beside_zero(score: torch.Tensor) -> torch.Tensor:
    """The outputs [..., class] of one logit [...], of which 0 stands for "false"."""
    return torch.stack([torch.zeros_like(score), score], dim=-1)


def embed_bags(table: torch.Tensor, bags: Bags, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Weighted sums of embedding rows [bag, hidden]; an empty bag gives 0.

    The gradient with respect to the weights is the dense multi-hot gradient at the recorded places.
    """
    given = bags.weights if weights is None else weights
    return torch.nn.functional.embedding_bag(
        bags.ids, table, bags.offsets, mode="sum", per_sample_weights=given.to(table.dtype)
    )
