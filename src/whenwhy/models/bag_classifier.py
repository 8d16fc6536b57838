"""What this package's own models share: tables of feature values, whose bags' sums are all that they see."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from whenwhy.errors import UserError
from whenwhy.events.sequence_batch import EVENTS, STATIC, SequenceBatch
from whenwhy.models.sequence_model import Embedded, embed_bags

#: Spread of the initial embeddings.
SPREAD = {EVENTS: 0.1, STATIC: 0.05}


class BagClassifier(nn.Module):
    """A table [feature value, hidden] a stream; a subclass scores the sums of its rows.

    Args:
        vocabulary_size: number of feature values, "everything absent" included.
        hidden: width of the embeddings and of every state.
        dropout: of embeddings, of states between layers and of what the head reads, in training.
        input_dropout: share of the recorded values that are left out of their bags in training; those
            that stay weigh 1 / (1 - share), so that a bag keeps its mean.
    """

    #: Why the model has no scores at the steps of a record; None: it has them.
    not_causal: str | None = None

    def __init__(self, vocabulary_size: int, hidden: int, dropout: float, input_dropout: float) -> None:
        super().__init__()
        self.vocabulary_size, self.hidden, self.input_dropout = vocabulary_size, hidden, input_dropout
        self.tables = nn.ParameterDict(
            {name: nn.Parameter(torch.randn(vocabulary_size, hidden) * spread) for name, spread in SPREAD.items()}
        )
        self.drop = nn.Dropout(dropout)

    def embed(self, batch: SequenceBatch, weights: Mapping[str, torch.Tensor] | None = None) -> Embedded:
        """The bags' sums: events [patient, step, hidden], static [patient, hidden]."""
        given = dict(weights) if weights is not None else {name: bags.weights for name, bags in batch.streams.items()}
        if self.input_dropout:
            given = {
                name: nn.functional.dropout(weight, self.input_dropout, self.training) for name, weight in given.items()
            }
        events, static = (
            embed_bags(self.tables[name], batch.streams[name], given.get(name)) for name in (EVENTS, STATIC)
        )
        return {EVENTS: events.view(len(batch), batch.n_steps, self.hidden), STATIC: static}

    def score(self, embedded: Embedded, lengths: torch.Tensor) -> torch.Tensor:
        """The logit of the positive class [patient]."""
        raise NotImplementedError

    def step_scores(self, embedded: Embedded, lengths: torch.Tensor) -> torch.Tensor:
        """What `score` would say of the record cut after each step [patient, step]; padding says nothing.

        Raises:
            UserError: the model is not causal.
        """
        raise UserError(f"A model has scores at every step only if it reads forwards: {self.not_causal}.")

    def forward(self, batch: SequenceBatch) -> torch.Tensor:
        """The logit of the positive class [patient]."""
        return self.score(self.embed(batch), batch.lengths)
