"""Recurrent classifiers on bags of feature values: one class for every cell, depth, direction and pooling."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from whenwhy.events.sequence_batch import EVENTS, STATIC
from whenwhy.models.bag_classifier import BagClassifier
from whenwhy.models.sequence_model import TWO_CLASSES, Embedded, class_logits

CELLS = {"gru": nn.GRU, "lstm": nn.LSTM}

#: How the states become one vector. Attention is of two kinds: additive, softmax of v tanh(W h_i + b) (Yang
#: et al. 2016, equations 5 to 7), and dot, softmax of q h_i / sqrt(width) with the last state as q (Vaswani
#: et al. 2017, equation 1).
POOLINGS = ("last", "mean", "max")
ATTENTIONS = ("additive", "dot")


@dataclass(frozen=True)
class Past:
    """What a causal stack of cells keeps of the first steps of some records.

    Attributes:
        parts: the start [patient, 1, width], then the last layer's states after some steps each [patient, step, width].
        layers: where every layer stands [layer, patient, hidden]; of LSTM cells the memory too.
    """

    parts: tuple[torch.Tensor, ...]
    layers: tuple[torch.Tensor, ...]

    @property
    def n_steps(self) -> int:
        """How many steps were read."""
        return sum(part.shape[1] for part in self.parts) - 1

    @property
    def states(self) -> torch.Tensor:
        """The start and the states after each step [patient, 1 + step, width]."""
        return self.parts[0] if len(self.parts) == 1 else torch.cat(self.parts, dim=1)

    def after(self, steps: torch.Tensor) -> torch.Tensor:
        """The state after so many steps [patient] of each record [patient, width]; `states` need not be made."""
        patient = torch.arange(len(steps), device=steps.device)
        found, begin = [], 0
        which = torch.zeros_like(steps)
        for at, part in enumerate(self.parts):
            found.append(part[patient, (steps - begin).clamp(0, part.shape[1] - 1)])
            which = torch.where(steps >= begin, at, which)
            begin += part.shape[1]
        return found[0] if len(found) == 1 else torch.stack(found, dim=1)[patient, which]

    def of(self, rows: torch.Tensor) -> Past:
        """That of some patients, each as often as it is named."""
        return Past((self.states[rows],), tuple(layer[:, rows] for layer in self.layers))


class RecurrentClassifier(BagClassifier):
    """A stack of GRU or LSTM layers over the steps; the head reads the pooled states and the static values.

    Every layer and direction starts from tanh(static), and that start is a state like those of the
    steps: a record without steps has it alone.

    Args:
        cell: "gru" (Cho et al. 2014) or "lstm" (Hochreiter and Schmidhuber 1997).
        layers: how many, one upon the other.
        bidirectional: each layer reads forwards and backwards, a half of the states each; not causal.
        pooling: one of `POOLINGS` or `ATTENTIONS`. The last state of both directions is each one's own.

    Example:
        >>> RecurrentClassifier(8, hidden=4, cell="lstm", layers=2, pooling="mean").head.in_features
        8
    """

    #: What was read before the steps that are read now; None: nothing.
    past: Past | None = None

    def __init__(
        self,
        vocabulary_size: int,
        hidden: int = 32,
        dropout: float = 0.3,
        *,
        cell: str = "gru",
        layers: int = 1,
        bidirectional: bool = False,
        pooling: str = "last",
        input_dropout: float = 0.0,
        classes: Sequence[str] = TWO_CLASSES,
    ) -> None:
        super().__init__(vocabulary_size, hidden, dropout, input_dropout, classes)
        self.pooling, self.directions = pooling, 2 if bidirectional else 1
        if bidirectional:
            self.not_causal = "a bidirectional one has seen the end of the record at its first step"
        between = dropout if layers > 1 else 0.0
        self.cell: nn.RNNBase = CELLS[cell](
            hidden, hidden, layers, batch_first=True, dropout=between, bidirectional=bidirectional
        )
        width = hidden * self.directions
        if pooling == "additive":
            self.energy = nn.Sequential(nn.Linear(width, hidden), nn.Tanh(), nn.Linear(hidden, 1, bias=False))
        self.head = self._head(width + hidden)

    def outputs(self, embedded: Embedded, lengths: torch.Tensor) -> torch.Tensor:
        """One output, or one a class [patient, output]."""
        if self.pooling == "last" and self.directions == 1:
            pooled = self._read_all(embedded).after(lengths)
        else:
            pooled = self._pooled(self._states(embedded, lengths), lengths)  # [patient, width]
        return self._read(pooled, embedded[STATIC])

    def step_outputs(self, embedded: Embedded, lengths: torch.Tensor) -> torch.Tensor:
        """What `outputs` would say of the record cut after each step [patient, step, output]; padding says nothing.

        Raises:
            UserError: the model is bidirectional.
        """
        if self.not_causal:
            return super().step_outputs(embedded, lengths)
        states = self._states(embedded, lengths)
        return self._read_prefixes(states, states[:, 1:], embedded[STATIC])

    def prefix_logits(self, embedded: Embedded, lengths: torch.Tensor) -> torch.Tensor:
        """As `step_logits`, of which each has a gradient in its last step's state, not in earlier ones and static values.

        Raises:
            UserError: the model is bidirectional.
        """
        if self.not_causal:
            return super().step_logits(embedded, lengths)
        states = self._states(embedded, lengths)
        return class_logits(self._read_prefixes(states.detach(), states[:, 1:], embedded[STATIC].detach()))

    def own_step_logits(self, before: Embedded, own: torch.Tensor) -> torch.Tensor:
        """The logits of the record cut after each step, as a function of that step alone [..., patient, step, class].

        All states of the past in one pass without gradient, then one step of the cell for all steps at once.

        Args:
            before: the embeddings whose steps, up to the one before, and static values stand as they are.
            own: the step's own embeddings [..., patient, step, hidden].

        Raises:
            UserError: the model is bidirectional.
        """
        if self.not_causal:
            return super().step_outputs(before, before[STATIC])
        return class_logits(self._read_prefixes(*self._own(before, own), before[STATIC]))

    def own_states(self, before: Embedded, own: torch.Tensor) -> torch.Tensor:
        """The last layer's states after each step, as a function of that step alone [..., patient, step, width]."""
        return self._own(before, own)[1]

    def _own(self, before: Embedded, own: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The past's start and states [patient, 1 + step, width], and each step's own [..., patient, step, width]."""
        start, inputs = torch.tanh(before[STATIC]).detach(), before[EVENTS].detach()
        for layer in self.cell.all_weights:
            weights: list[torch.Tensor] = list(layer)
            with torch.no_grad():
                known = self._known(inputs, start, weights)
            earlier = [of[:, :-1].expand(*own.shape[:-1], -1).flatten(0, -2) for of in known]
            if isinstance(self.cell, nn.LSTM):
                after, _ = torch.lstm_cell(own.flatten(0, -2), earlier, *weights)
            else:
                after = torch.gru_cell(own.flatten(0, -2), *earlier, *weights)
            own, inputs = after.view(*own.shape[:-1], -1), known[0][:, 1:]
        return known[0], own

    @staticmethod
    def _known(inputs: torch.Tensor, start: torch.Tensor, weights: list[torch.Tensor]) -> list[torch.Tensor]:
        """A layer's start and states, and an LSTM's memories, [patient, 1 + step, hidden] each."""
        if len(weights[0]) == 3 * start.shape[1]:
            states, _ = torch.gru(inputs, start.unsqueeze(0), weights, True, 1, 0.0, False, False, True)
            return [torch.cat([start.unsqueeze(1), states], dim=1)]
        known = [(start, start)]
        for x in inputs.unbind(1):
            known.append(torch.lstm_cell(x, known[-1], *weights))  # one step at a time, for the memories' sake
        return [torch.stack(of, dim=1) for of in zip(*known, strict=True)]

    def states(self, embedded: Embedded, lengths: torch.Tensor) -> torch.Tensor:
        """The last layer's states after each step [patient, step, width]; padding says nothing."""
        return self._states(embedded, lengths)[:, 1:]

    def attention_weights(self, embedded: Embedded, lengths: torch.Tensor) -> Embedded:
        """What each step's state weighs in the pooled one, events [patient, step], and the start's, static [patient].

        Raises:
            UserError: the states are pooled without attention.
        """
        if self.pooling not in ATTENTIONS:
            return super().attention_weights(embedded, lengths)
        weights = self._attention(self._states(embedded, lengths), lengths)
        return {EVENTS: weights[:, 1:], STATIC: weights[:, 0]}

    @property
    def restarts(self) -> bool:
        """Whether it reads forwards alone, so that what it has read once need not be read again."""
        return self.directions == 1

    def read(self, embedded: Embedded, steps: int, past: Past | None = None) -> Past:
        """What it keeps of the records' first steps, from where `past` has come to."""
        known = past or self._start(embedded)
        new = self.drop(embedded[EVENTS][:, known.n_steps : steps])  # [patient, new step, hidden]
        return self._read_on(known, new) if new.shape[1] else known

    def resumed(self, past: Past, rows: torch.Tensor) -> Self:
        """The same model after the past of these patients: of the steps in it, an embedding is not looked at.

        Example: `model.resumed(model.read(embedded, 5), torch.tensor([0])).score(changed_from_step_5_on, lengths)`
        """
        later = copy.copy(self)  # the weights are shared
        later.past = past.of(rows)
        return later

    def _read(self, pooled: torch.Tensor, static: torch.Tensor) -> torch.Tensor:
        return self._told(torch.cat([pooled, static], dim=-1))

    def _read_prefixes(self, states: torch.Tensor, ends: torch.Tensor, static: torch.Tensor) -> torch.Tensor:
        """The outputs of the record cut after each step [..., patient, step, output]; arguments as of `_pooled_prefixes`.

        Args:
            static: [patient, hidden].
        """
        pooled = self._pooled_prefixes(states, ends)
        return self._read(pooled, static.unsqueeze(1).expand(*pooled.shape[:-1], -1))

    def _states(self, embedded: Embedded, lengths: torch.Tensor) -> torch.Tensor:
        """The start and the states after each step [patient, 1 + step, width]."""
        if self.directions == 1:
            # Padding comes last, and its states are not read.
            return self._read_all(embedded).states
        start = self._start(embedded)
        # The backward direction must begin at each record's own end. A record without steps is given one,
        # since cells take no fewer, and its states are not read either.
        events = self.drop(embedded[EVENTS])  # [patient, step, hidden]
        packed = pack_padded_sequence(events, lengths.clamp(min=1).cpu(), batch_first=True, enforce_sorted=False)
        states, _ = self.cell(packed, self._given(start.layers))
        states, _ = pad_packed_sequence(states, batch_first=True, total_length=events.shape[1])
        return torch.cat([start.states, states], dim=1)

    def _read_all(self, embedded: Embedded) -> Past:
        """What it keeps of all steps, after the past that it has."""
        return self.read(embedded, embedded[EVENTS].shape[1], self.past)

    def _start(self, embedded: Embedded) -> Past:
        """What is kept of no steps: the static values."""
        start = torch.tanh(embedded[STATIC])  # [patient, hidden]
        first = start.expand(self.cell.num_layers * self.directions, -1, -1).contiguous()
        layers = (first, first) if isinstance(self.cell, nn.LSTM) else (first,)
        return Past((start.repeat(1, self.directions).unsqueeze(1),), layers)

    def _read_on(self, past: Past, events: torch.Tensor) -> Past:
        """The past and what follows it, events [patient, step, hidden]."""
        states, layers = self.cell(events, self._given(past.layers))
        layers = layers if isinstance(layers, tuple) else (layers,)
        return Past((*past.parts, states), layers)

    def _given(self, layers: tuple[torch.Tensor, ...]) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """The states as torch's cells take them."""
        return layers if isinstance(self.cell, nn.LSTM) else layers[0]

    def _last(self, states: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Each direction's state when it has read the whole record [patient, width]."""
        patient = torch.arange(len(lengths), device=lengths.device)
        forwards = states[patient, lengths, : self.hidden]
        if self.directions == 1:
            return forwards
        return torch.cat([forwards, states[patient, lengths.clamp(max=1), self.hidden :]], dim=1)

    def _pooled(self, states: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """The states of each whole record as one vector [patient, width]."""
        if self.pooling == "last":
            return self._last(states, lengths)
        true = torch.arange(states.shape[1], device=lengths.device) <= lengths.unsqueeze(1)  # [patient, 1 + step]
        if self.pooling == "mean":
            return (states * true.unsqueeze(2)).sum(1) / (lengths + 1).unsqueeze(1)
        if self.pooling == "max":
            return states.masked_fill(~true.unsqueeze(2), -math.inf).amax(1)
        attended: torch.Tensor = (self._attention(states, lengths).unsqueeze(1) @ states).squeeze(1)
        return attended

    def _attention(self, states: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """What each state weighs in the pooled one [patient, 1 + step]; they sum to 1, and padding's are 0."""
        true = torch.arange(states.shape[1], device=lengths.device) <= lengths.unsqueeze(1)
        if self.pooling == "additive":
            energy = self.energy(states).squeeze(2)  # [patient, 1 + step]
        else:
            energy = (states @ self._last(states, lengths).unsqueeze(2)).squeeze(2) / math.sqrt(states.shape[2])
        weights: torch.Tensor = energy.masked_fill(~true, -math.inf).softmax(1)
        return weights

    def _pooled_prefixes(self, states: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        """What `_pooled` would say of the record cut after each step [..., patient, step, width].

        Args:
            states: [patient, 1 + step, width], of which each prefix reads those before its last.
            ends: its last one [..., patient, step, width].
        """
        earlier, n_steps = states[:, :-1], states.shape[1] - 1
        if self.pooling == "last":
            return ends
        if self.pooling == "mean":
            return (earlier.cumsum(1) + ends) / torch.arange(2, n_steps + 2, device=states.device).unsqueeze(1)
        if self.pooling == "max":
            return torch.maximum(earlier.cummax(1).values, ends)
        if self.pooling == "additive":
            energy = self.energy(earlier).squeeze(2).unsqueeze(1).expand(*ends.shape[:-1], -1)
            of_end = self.energy(ends)
        else:
            energy = ends @ earlier.transpose(1, 2) / math.sqrt(states.shape[2])  # [..., patient, step, state]
            of_end = (ends * ends).sum(-1, keepdim=True) / math.sqrt(states.shape[2])
        later = torch.ones(n_steps, n_steps, dtype=torch.bool, device=states.device).triu(1)
        share = torch.cat([energy.masked_fill(later, -math.inf), of_end], dim=-1).softmax(-1)
        attended: torch.Tensor = share[..., :-1] @ earlier + share[..., -1:] * ends
        return attended


#: The plain GRU, which is what `RecurrentClassifier` is without further arguments.
GRUClassifier = RecurrentClassifier
