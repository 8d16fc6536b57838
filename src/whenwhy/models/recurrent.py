"""Recurrent classifiers on bags of feature values."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from whenwhy.events.sequence_batch import EVENTS, STATIC, SequenceBatch
from whenwhy.models.sequence_model import Embedded, embed_bags


class GRUClassifier(nn.Module):
    """A GRU over the steps, started from the static values, read at the last true step.

    Args:
        vocabulary_size: number of feature values, "everything absent" included.
        hidden: width of the embeddings and of the state.
        dropout: of embeddings and of what the head reads, in training.
    """

    def __init__(self, vocabulary_size: int, hidden: int = 32, dropout: float = 0.3) -> None:
        super().__init__()
        self.vocabulary_size, self.hidden = vocabulary_size, hidden
        self.tables = nn.ParameterDict(
            {
                name: nn.Parameter(torch.randn(vocabulary_size, hidden) * scale)
                for name, scale in ((EVENTS, 0.1), (STATIC, 0.05))
            }
        )
        self.cell = nn.GRU(hidden, hidden, batch_first=True)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(2 * hidden, 1)

    def embed(self, batch: SequenceBatch, weights: Mapping[str, torch.Tensor] | None = None) -> Embedded:
        """The bags' sums: events [patient, step, hidden], static [patient, hidden]."""
        given = weights or {}
        events, static = (
            embed_bags(self.tables[name], batch.streams[name], given.get(name)) for name in (EVENTS, STATIC)
        )
        return {EVENTS: events.view(len(batch), batch.n_steps, self.hidden), STATIC: static}

    def score(self, embedded: Embedded, lengths: torch.Tensor) -> torch.Tensor:
        """The logit of the positive class [patient]."""
        static = embedded[STATIC]
        start = torch.tanh(static)  # [patient, hidden]: also the last state of a record without steps
        states, _ = self.cell(self.drop(embedded[EVENTS]), start.unsqueeze(0))  # [patient, step, hidden]
        states = torch.cat([start.unsqueeze(1), states], dim=1)
        last = states[torch.arange(len(lengths), device=lengths.device), lengths]  # [patient, hidden]
        logit: torch.Tensor = self.head(self.drop(torch.cat([last, static], dim=1))).squeeze(1)
        return logit

    def forward(self, batch: SequenceBatch) -> torch.Tensor:
        """The logit of the positive class [patient]."""
        return self.score(self.embed(batch), batch.lengths)


ARCHITECTURES = {"gru": GRUClassifier}
