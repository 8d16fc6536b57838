"""The models that `whenwhy train` knows by name, and which options each takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from whenwhy.errors import UserError, unknown_name
from whenwhy.models.bag_classifier import BagClassifier, Classifier
from whenwhy.models.ensemble import Ensemble
from whenwhy.models.recurrent import ATTENTIONS, POOLINGS, RecurrentClassifier
from whenwhy.models.retain import Retain
from whenwhy.models.sequence_model import TWO_CLASSES
from whenwhy.shards import Json


@dataclass(frozen=True)
class Architecture:
    """A model by name; called with its arguments, it gives the model.

    Attributes:
        poolings: how it may pool its states, the default first; none: it has its own way.
        bidirectional: whether it may read backwards too.
    """

    describes: str
    model: Callable[..., BagClassifier]
    poolings: tuple[str, ...] = ()
    bidirectional: bool = False

    def __call__(self, *, members: int = 1, **arguments: Any) -> Classifier:
        one = partial(self.model, **arguments)
        return Ensemble(one, members) if members > 1 else one()


ARCHITECTURES = {
    "gru": Architecture("gated recurrent units", partial(RecurrentClassifier, cell="gru"), POOLINGS, True),
    "gru_attention": Architecture(
        "a GRU whose states are pooled by attention", partial(RecurrentClassifier, cell="gru"), ATTENTIONS, True
    ),
    "lstm": Architecture("long short-term memory", partial(RecurrentClassifier, cell="lstm"), POOLINGS, True),
    "retain": Architecture("RETAIN: reverse-time attention over steps and embeddings, linear head", Retain),
}


def architecture_named(name: str) -> Architecture:
    """The architecture of this name; raises `UserError` with the nearest one otherwise."""
    if name not in ARCHITECTURES:
        raise unknown_name("architecture", name, ARCHITECTURES)
    return ARCHITECTURES[name]


def model_arguments(
    name: str,
    *,
    vocabulary_size: int,
    hidden: int,
    layers: int = 1,
    bidirectional: bool = False,
    pooling: str | None = None,
    dropout: float = 0.0,
    input_dropout: float = 0.0,
    members: int = 1,
    classes: Sequence[str] = TWO_CLASSES,
) -> Json:
    """What `ARCHITECTURES[name]` is called with: only what it takes, its own pooling where none is asked.

    Classes are named unless they are "false" and "true", which is what a description without them means.

    Raises:
        UserError: an option that the architecture does not have, or a number out of range.

    Example:
        >>> model_arguments("gru_attention", vocabulary_size=8, hidden=4)["pooling"]
        'additive'
        >>> sorted(model_arguments("retain", vocabulary_size=8, hidden=4))
        ['dropout', 'hidden', 'input_dropout', 'layers', 'members', 'vocabulary_size']
    """
    architecture = architecture_named(name)
    if min(hidden, layers, members) < 1:
        raise UserError("A model needs at least 1 hidden unit, 1 layer and 1 member: give larger numbers.")
    if not (0 <= dropout < 1 and 0 <= input_dropout < 1):
        raise UserError("Dropout is a share from 0 to below 1: give such a number, e.g. 0.5.")
    arguments: Json = {
        "vocabulary_size": vocabulary_size,
        "hidden": hidden,
        "layers": layers,
        "dropout": dropout,
        "input_dropout": input_dropout,
        "members": members,
    }
    if architecture.bidirectional:
        arguments["bidirectional"] = bidirectional
    elif bidirectional:
        raise UserError(f"The architecture '{name}' has one direction: leave out --bidirectional.")
    if architecture.poolings:
        arguments["pooling"] = pooling or architecture.poolings[0]
        if arguments["pooling"] not in architecture.poolings:
            choices = ", ".join(architecture.poolings)
            raise UserError(f"The architecture '{name}' has no pooling '{pooling}': choose {choices}.")
    elif pooling:
        raise UserError(f"The architecture '{name}' has its own pooling: leave out --pooling.")
    if tuple(classes) != TWO_CLASSES:
        arguments["classes"] = list(classes)
    return arguments
