"""A deep ensemble as one model: what its members say, averaged."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from whenwhy.events.sequence_batch import SequenceBatch
from whenwhy.models.bag_classifier import BagClassifier, Classifier
from whenwhy.models.sequence_model import Embedded


class Pasts(tuple[Any, ...]):
    """What each member keeps of the first steps of some records."""

    def of(self, rows: torch.Tensor) -> Pasts:
        """That of some patients, each as often as it is named."""
        return Pasts(past.of(rows) for past in self)


class Ensemble(Classifier):
    """The mean of the logits of several models of one kind (Lakshminarayanan et al., NeurIPS 2017).

    The members see the same batches and differ by their initial weights and by what dropout takes from
    each. An embedding is theirs side by side, so it is linear in the bag weights as each of theirs is.

    Args:
        member: makes one, with weights of its own.
        number: how many.

    Example:
        >>> from whenwhy.models.recurrent import RecurrentClassifier
        >>> len(Ensemble(lambda: RecurrentClassifier(8, hidden=4), 3).members)
        3
    """

    def __init__(self, member: Callable[[], BagClassifier], number: int) -> None:
        super().__init__()
        self.member = nn.ModuleList(member() for _ in range(number))
        first = self.members[0]
        self.vocabulary_size, self.not_causal, self.classes = first.vocabulary_size, first.not_causal, first.classes

    @property
    def members(self) -> Sequence[BagClassifier]:
        """The models, each of which learns as it would alone."""
        return list(self.member)  # type: ignore[arg-type]

    def embed(self, batch: SequenceBatch, weights: Mapping[str, torch.Tensor] | None = None) -> Embedded:
        """The members' sums: events [patient, step, members * hidden], static [patient, members * hidden]."""
        each = [member.embed(batch, weights) for member in self.members]
        return {stream: torch.cat([embedded[stream] for embedded in each], dim=-1) for stream in each[0]}

    def outputs(self, embedded: Embedded, lengths: torch.Tensor) -> torch.Tensor:
        """The mean of the members' outputs [patient, output]."""
        told = zip(self.members, self._shares(embedded), strict=True)
        return torch.stack([member.outputs(share, lengths) for member, share in told]).mean(0)

    def step_outputs(self, embedded: Embedded, lengths: torch.Tensor) -> torch.Tensor:
        """The mean of the members' outputs after each step [patient, step, output].

        Raises:
            UserError: the members are not causal.
        """
        told = zip(self.members, self._shares(embedded), strict=True)
        return torch.stack([member.step_outputs(share, lengths) for member, share in told]).mean(0)

    def prefix_logits(self, embedded: Embedded, lengths: torch.Tensor) -> torch.Tensor:
        """As of each member [patient, step, class]: their mean."""
        told = zip(self.member, self._shares(embedded), strict=True)
        return torch.stack([member.prefix_logits(share, lengths) for member, share in told]).mean(0)  # type: ignore[operator]

    def own_step_logits(self, before: Embedded, own: torch.Tensor) -> torch.Tensor:
        """The mean of the members' logits after each step, as a function of that step alone [..., patient, step, class].

        Raises:
            UserError: the members are not causal.
        """
        told = zip(self.member, self._shares(before), own.chunk(len(self.member), dim=-1), strict=True)
        return torch.stack([member.own_step_logits(share, part) for member, share, part in told]).mean(0)  # type: ignore[operator]

    def own_states(self, before: Embedded, own: torch.Tensor) -> torch.Tensor:
        """The members' states after each step, as a function of that step alone, side by side [..., patient, step, unit]."""
        told = zip(self.member, self._shares(before), own.chunk(len(self.member), dim=-1), strict=True)
        return torch.cat([member.own_states(share, part) for member, share, part in told], dim=-1)  # type: ignore[operator]

    def states(self, embedded: Embedded, lengths: torch.Tensor) -> torch.Tensor:
        """The members' states after each step, side by side [patient, step, unit].

        Raises:
            UserError: the members have none that belong to the steps.
        """
        told = zip(self.members, self._shares(embedded), strict=True)
        return torch.cat([member.states(share, lengths) for member, share in told], dim=-1)

    def attention_weights(self, embedded: Embedded, lengths: torch.Tensor) -> Embedded:
        """The mean of the members' attention, events [patient, step], static [patient].

        Raises:
            UserError: the members have none.
        """
        told = zip(self.members, self._shares(embedded), strict=True)
        each = [member.attention_weights(share, lengths) for member, share in told]
        return {stream: torch.stack([of[stream] for of in each]).mean(0) for stream in each[0]}

    def effects(self, embedded: Embedded, lengths: torch.Tensor) -> Embedded:
        """The members' effects side by side, each on the mean [*place, output].

        Raises:
            UserError: the members' outputs are no such sums.
        """
        told = zip(self.members, self._shares(embedded), strict=True)
        each = [member.effects(share, lengths) for member, share in told]
        return {stream: torch.cat([of[stream] for of in each], dim=-2) / len(each) for stream in each[0]}

    @property
    def restarts(self) -> bool:
        """Whether all members do."""
        return all(member.restarts for member in self.members)

    def read(self, embedded: Embedded, steps: int, past: Pasts | None = None) -> Pasts:
        """What each member keeps of the records' first steps, from where `past` has come to."""
        known = past or [None] * len(self.members)
        told = zip(self.member, self._shares(embedded), known, strict=True)
        return Pasts(member.read(share, steps, before) for member, share, before in told)  # type: ignore[operator]

    def resumed(self, past: Pasts, rows: torch.Tensor) -> Ensemble:
        """The members, each after its own past."""
        later = copy.copy(self)
        members = [member.resumed(before, rows) for member, before in zip(self.member, past, strict=True)]  # type: ignore[operator]
        later._modules = {**self._modules, "member": nn.ModuleList(members)}
        return later

    def _shares(self, embedded: Embedded) -> list[Embedded]:
        """Each member's own part of an embedding."""
        parts = {stream: tensor.chunk(len(self.member), dim=-1) for stream, tensor in embedded.items()}
        return [{stream: of[at] for stream, of in parts.items()} for at in range(len(self.member))]
