"""What every model promises, so that attribution need not know it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch

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
    """A model that says of itself whether it has scores at the steps of a record."""

    #: Why it has none; None: it is causal, and has them.
    not_causal: str | None

    def step_scores(self, embedded: Embedded, lengths: torch.Tensor) -> torch.Tensor:
        """What `score` would say of the record cut after each step [patient, step]; padding says nothing."""
        ...


def embed_bags(table: torch.Tensor, bags: Bags, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Weighted sums of embedding rows [bag, hidden]; an empty bag gives 0.

    The gradient with respect to the weights is the dense multi-hot gradient at the recorded places.
    """
    given = bags.weights if weights is None else weights
    return torch.nn.functional.embedding_bag(
        bags.ids, table, bags.offsets, mode="sum", per_sample_weights=given.to(table.dtype)
    )
