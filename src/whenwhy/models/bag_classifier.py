"""What this package's own models share: tables of feature values, whose bags' sums are all that they see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from whenwhy.errors import UserError
from whenwhy.events.sequence_batch import EVENTS, STATIC, Bags, SequenceBatch
from whenwhy.models.sequence_model import Embedded, ModelOfClasses, class_logits, embed_bags, n_outputs

#: Spread of the initial embeddings.
SPREAD = {EVENTS: 0.1, STATIC: 0.05}


NO_ATTENTION = (
    "The model has no attention that whenwhy knows, as its own gru_attention and retain have: use a method that "
    "explains any model, such as integrated_gradients."
)
NO_EFFECTS = (
    "The model has no contributions of its own that whenwhy knows, as its own retain has: use a method that explains "
    "any model, such as integrated_gradients."
)


class Classifier(ModelOfClasses, nn.Module):
    """A `StepwiseModel` that training can fit: one model, or several whose logits are averaged."""

    #: Why the model has no scores at the steps of a record; None: it has them.
    not_causal: str | None = None
    vocabulary_size: int

    @property
    def restarts(self) -> bool:
        """Whether it is a `RestartingModel`."""
        return False

    @property
    def members(self) -> Sequence[BagClassifier]:
        """The models that learn, each from its own loss."""
        raise NotImplementedError

    def embed(self, batch: SequenceBatch, weights: Mapping[str, torch.Tensor] | None = None) -> Embedded:
        """The bags' sums: events [patient, step, width], static [patient, width]."""
        raise NotImplementedError

    def step_outputs(self, embedded: Embedded, lengths: torch.Tensor) -> torch.Tensor:
        """What `outputs` would say of the record cut after each step [patient, step, output]; padding says nothing.

        Raises:
            UserError: the model is not causal.
        """
        raise UserError(f"A model has scores at every step only if it reads forwards: {self.not_causal}.")

    def step_scores(self, embedded: Embedded, lengths: torch.Tensor) -> torch.Tensor:
        """What `score` would say of the record cut after each step [patient, step]; padding says nothing.

        Raises:
            UserError: the model is not causal, or has more than two classes.
        """
        return self.the_one(self.step_outputs(embedded, lengths))

    def step_logits(self, embedded: Embedded, lengths: torch.Tensor) -> torch.Tensor:
        """What `logits` would say of the record cut after each step [patient, step, class]; padding says nothing.

        Raises:
            UserError: the model is not causal.
        """
        return class_logits(self.step_outputs(embedded, lengths))

    def states(self, embedded: Embedded, lengths: torch.Tensor) -> torch.Tensor:
        """The states after each step [patient, step, unit].

        Raises:
            UserError: the model has none that belong to the steps.
        """
        raise UserError("The model has no states that belong to the steps one by one: name a target other than unit.")

    def attention_weights(self, embedded: Embedded, lengths: torch.Tensor) -> Embedded:
        """How much attention each step gets, events [patient, step], and the state before the first, static [patient].

        Raises:
            UserError: the model has no attention.
        """
        raise UserError(NO_ATTENTION)

    def effects(self, embedded: Embedded, lengths: torch.Tensor) -> Embedded:
        """What one more in each place of the embeddings adds to each output where attention is held [*place, output].

        Raises:
            UserError: the outputs are no such sum.
        """
        raise UserError(NO_EFFECTS)

    def forward(self, batch: SequenceBatch) -> torch.Tensor:
        """The logit of the later of two classes [patient]."""
        return self.score(self.embed(batch), batch.lengths)


class BagClassifier(Classifier):
    """A table [feature value, hidden] a stream, whose sums of rows a subclass reads; `head` tells the outputs.

    Args:
        vocabulary_size: number of feature values, "everything absent" included.
        hidden: width of the embeddings and of every state.
        dropout: of embeddings, of states between layers and of what the head reads, in training.
        input_dropout: share of the feature values that each record lacks in training, at all of its steps
            (Gal and Ghahramani 2016, section 4.2: what is dropped at one step alone is found at the next);
            what stays weighs 1 / (1 - share), so that a bag keeps its mean.
        classes: their names; two have one output, the logit of the later, and more have one each.
    """

    head: nn.Linear

    def __init__(
        self, vocabulary_size: int, hidden: int, dropout: float, input_dropout: float, classes: Sequence[str]
    ) -> None:
        super().__init__()
        self.classes = tuple(classes)
        self.vocabulary_size, self.hidden, self.input_dropout = vocabulary_size, hidden, input_dropout
        self.tables = nn.ParameterDict(
            {name: nn.Parameter(torch.randn(vocabulary_size, hidden) * spread) for name, spread in SPREAD.items()}
        )
        self.drop = nn.Dropout(dropout)

    @property
    def members(self) -> Sequence[BagClassifier]:
        """Itself alone."""
        return (self,)

    def embed(self, batch: SequenceBatch, weights: Mapping[str, torch.Tensor] | None = None) -> Embedded:
        """The bags' sums: events [patient, step, hidden], static [patient, hidden]."""
        given = dict(weights or {})
        if self.training and self.input_dropout:
            for name, per_patient in ((EVENTS, batch.n_steps), (STATIC, 1)):
                bags = batch.streams[name]
                kept = self._kept(bags, per_patient, len(batch))
                given[name] = kept * given.get(name, bags.weights)
        events, static = (
            embed_bags(self.tables[name], batch.streams[name], given.get(name)) for name in (EVENTS, STATIC)
        )
        return {EVENTS: events.view(len(batch), batch.n_steps, self.hidden), STATIC: static}

    def _head(self, width: int) -> nn.Linear:
        """What tells the outputs from what a record comes to."""
        return nn.Linear(width, n_outputs(self.classes))

    def _told(self, summary: torch.Tensor) -> torch.Tensor:
        """The outputs [..., output] of what a record comes to [..., width]."""
        told: torch.Tensor = self.head(self.drop(summary))
        return told

    def _kept(self, bags: Bags, per_patient: int, patients: int) -> torch.Tensor:
        """0 or 1 / (1 - input_dropout), the same for a feature value wherever a record has it [value]."""
        whole = torch.ones(patients, self.vocabulary_size, device=bags.ids.device)
        return nn.functional.dropout(whole, self.input_dropout)[bags.bag // per_patient, bags.ids.long()]
