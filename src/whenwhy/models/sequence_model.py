"""What every model promises, so that attribution need not know it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
        """The logit of the positive class, which is the later of two [patient]; padded steps do not count."""
        ...


class ModelOfClasses:
    """A `SequenceModel` whose classes have names: two have one output, the logit of the later; more have a logit each.

    A `SequenceModel` need not be one: of others the classes are "false" and "true", and `score` is all there is.
    """

    #: The classes' names, in the order of their logits.
    classes: tuple[str, ...] = ("false", "true")

    def outputs(self, embedded: Embedded, lengths: torch.Tensor) -> torch.Tensor:
        """One output, or one a class [patient, output]; padded steps do not count."""
        raise NotImplementedError

    def score(self, embedded: Embedded, lengths: torch.Tensor) -> torch.Tensor:
        """The logit of the later of two classes [patient].

        Raises:
            UserError: the model has more classes.
        """
        return self.the_one(self.outputs(embedded, lengths))

    def logits(self, embedded: Embedded, lengths: torch.Tensor) -> torch.Tensor:
        """A logit a class [patient, class], whose softmax are the probabilities."""
        return class_logits(self.outputs(embedded, lengths))

    def the_one(self, outputs: torch.Tensor) -> torch.Tensor:
        """The only output [...], of outputs [..., output].

        Raises:
            UserError: there are several.
        """
        if len(self.classes) != 2:
            raise UserError(f"The model has a logit a class ({', '.join(self.classes)}), not one: name a class.")
        return outputs.squeeze(-1)


class StepwiseModel(SequenceModel, Protocol):
    """A model that says of itself whether it has scores at the steps of a record.

    It may also have `own_step_logits(before, own)`: a logit a class [..., patient, step, class] of the record cut after
    each step, as a function of that step alone.
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
        """What it keeps of the records' first steps, from where `past` has come to; its `of(rows)` is that of some."""
        ...

    def resumed(self, past: Any, rows: torch.Tensor) -> SequenceModel:
        """The same model after the past of these patients: of the steps in it, an embedding is not looked at."""
        ...


#: The classes of yes/no labels, which a model has unless it says otherwise.
TWO_CLASSES = ModelOfClasses.classes


def classes_of(model: SequenceModel) -> tuple[str, ...]:
    """The names of a model's classes, in the order of its logits."""
    return tuple(getattr(model, "classes", TWO_CLASSES))


def n_outputs(classes: Sequence[str]) -> int:
    """How many outputs tell classes apart: one logit of two classes, of more a logit each.

    Example:
        >>> n_outputs(("alive", "dead")), n_outputs(("home", "nursing", "dead"))
        (1, 3)
    """
    return 1 if len(classes) == 2 else len(classes)


def class_logits(outputs: torch.Tensor) -> torch.Tensor:
    """A logit a class [..., class] of outputs [..., output]: beside a single one, 0 stands for the earlier of two classes.

    Example:
        >>> class_logits(torch.tensor([[3.0]])).tolist()
        [[0.0, 3.0]]
    """
    return outputs if outputs.shape[-1] > 1 else torch.cat([torch.zeros_like(outputs), outputs], dim=-1)


def logits_of(model: SequenceModel, embedded: Embedded, lengths: torch.Tensor) -> torch.Tensor:
    """The model's outputs [patient, class], whose softmax are the probabilities; beside a single score stands 0."""
    if hasattr(model, "logits"):
        found: torch.Tensor = model.logits(embedded, lengths)
        return found
    return class_logits(model.score(embedded, lengths).unsqueeze(-1))


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
    return class_logits(model.step_scores(embedded, lengths).unsqueeze(-1))


def embed_bags(table: torch.Tensor, bags: Bags, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Weighted sums of embedding rows [bag, hidden]; an empty bag gives 0.

    The gradient with respect to the weights is the dense multi-hot gradient at the recorded places.
    """
    given = bags.weights if weights is None else weights
    return torch.nn.functional.embedding_bag(
        bags.ids, table, bags.offsets, mode="sum", per_sample_weights=given.to(table.dtype)
    )
