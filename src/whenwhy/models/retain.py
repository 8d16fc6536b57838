"""RETAIN: attention over steps and over embeddings, both read backwards, and a linear head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from whenwhy.events.sequence_batch import EVENTS, STATIC
from whenwhy.models.bag_classifier import BagClassifier
from whenwhy.models.sequence_model import TWO_CLASSES, Embedded


class Retain(BagClassifier):
    """An output is linear in sum_i alpha_i beta_i * v_i and in the static values.

    Choi et al., "RETAIN: an interpretable predictive model for healthcare using reverse time attention
    mechanism", NeurIPS 2016, steps 1 to 5: v_i is the embedding of step i, alpha_i a number (a softmax over
    the steps) and beta_i a vector (a tanh), each from a GRU that begins at the last step. The static values
    are not in the paper; they enter the head alone, so that what a step contributes stays alpha, beta and v.

    Example:
        >>> Retain(8, hidden=4).beta_head.out_features
        4
    """

    not_causal = "RETAIN reads a record backwards from its end"

    def __init__(
        self,
        vocabulary_size: int,
        hidden: int = 32,
        dropout: float = 0.3,
        *,
        layers: int = 1,
        input_dropout: float = 0.0,
        classes: Sequence[str] = TWO_CLASSES,
    ) -> None:
        super().__init__(vocabulary_size, hidden, dropout, input_dropout, classes)
        between = dropout if layers > 1 else 0.0
        self.alpha_cell = nn.GRU(hidden, hidden, layers, batch_first=True, dropout=between)
        self.beta_cell = nn.GRU(hidden, hidden, layers, batch_first=True, dropout=between)
        self.alpha_head = nn.Linear(hidden, 1)
        self.beta_head = nn.Linear(hidden, hidden)
        self.head = self._head(2 * hidden)

    def attention_weights(self, embedded: Embedded, lengths: torch.Tensor) -> Embedded:
        """Alpha, events [patient, step]: it sums to 1 over true steps and is 0 in padding; static [patient]: 0."""
        alpha, _ = self._attention(embedded[EVENTS], lengths)
        return {EVENTS: alpha, STATIC: torch.zeros_like(embedded[STATIC][:, 0])}

    def effects(self, embedded: Embedded, lengths: torch.Tensor) -> Embedded:
        """W (alpha_i beta_i), events [patient, step, hidden, output], and W itself, static [patient, hidden, output].

        The outputs are the sum of these times the embeddings, and the bias (equation 5).
        """
        alpha, beta = self._attention(embedded[EVENTS], lengths)
        of_events, of_static = self.head.weight.T.chunk(2)  # [hidden, output] each
        events = (alpha.unsqueeze(2) * beta).unsqueeze(3) * of_events
        return {EVENTS: events, STATIC: of_static.expand(len(lengths), -1, -1)}

    def outputs(self, embedded: Embedded, lengths: torch.Tensor) -> torch.Tensor:
        """One output, or one a class [patient, output]."""
        values = self.drop(embedded[EVENTS])  # [patient, step, hidden]
        alpha, beta = self._attention(values, lengths)
        context = (alpha.unsqueeze(2) * beta * values).sum(1)  # [patient, hidden]: 0 for a record without steps
        return self._told(torch.cat([context, embedded[STATIC]], dim=1))

    def _attention(self, values: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        step = torch.arange(values.shape[1], device=lengths.device)
        true = step < lengths.unsqueeze(1)  # [patient, step]
        # Each record turned within its own length; turning it again puts it right.
        turned = torch.where(true, lengths.unsqueeze(1) - 1 - step, step).unsqueeze(2)  # [patient, step, 1]
        backwards = values.gather(1, turned.expand_as(values))
        alpha_states, beta_states = self.alpha_cell(backwards)[0], self.beta_cell(backwards)[0]
        energy = self.alpha_head(alpha_states).gather(1, turned).squeeze(2)  # [patient, step]
        lowest = torch.finfo(energy.dtype).min  # not minus infinity: a record without steps has nothing else
        alpha = energy.masked_fill(~true, lowest).softmax(1) * true
        beta = torch.tanh(self.beta_head(beta_states)).gather(1, turned.expand_as(values))
        return alpha, beta
