"""The register of attribution methods. A method states its laws, and tests hold it to them."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from whenwhy.errors import unknown_name

if TYPE_CHECKING:
    import torch

    from whenwhy.models.sequence_model import Embedded, SequenceModel

#: What a method may promise; `tests/method_laws/` has one test for each.
LAWS = {
    "completeness": "a prediction's attributions sum to its score minus the baseline's score, within the tolerance",
    "linearity": "for a linear model an attribution is weight times effect",
    "zero_on_padding": "steps beyond a record's end change nothing",
    "alone_equals_batched": "a prediction gets the same attributions alone as in any batch, up to float rounding",
    "dummy": "a feature value on which the score does not depend gets exactly 0",
    "symmetry": "feature values that play the same part get equal shares",
}


@dataclass(frozen=True)
class PathGradients:
    """What a method says of a batch.

    Attributes:
        gradients: a tensor a stream, shaped as the embeddings: an attribution is the embedding of a
            weighted feature value, times this.
        score, baseline_score: [patient].
        n_nodes: [patient] int32, model evaluations with gradient.
    """

    gradients: Embedded
    score: torch.Tensor
    baseline_score: torch.Tensor
    n_nodes: torch.Tensor


Compute = Callable[["SequenceModel", "Embedded", "torch.Tensor", float], PathGradients]


@dataclass(frozen=True)
class Method:
    """A registered method: `compute(model, embedded, lengths, tolerance)` gives its `PathGradients`."""

    name: str
    describes: str
    laws: frozenset[str]
    compute: Compute


_METHODS: dict[str, Method] = {}


def method(describes: str, laws: set[str]) -> Callable[[Compute], Compute]:
    """Registers the decorated function under its own name, with the laws that it keeps."""
    unknown = laws - set(LAWS)
    assert not unknown, f"no such law: {unknown}"

    def register(compute: Compute) -> Compute:
        name = compute.__name__
        _METHODS[name] = Method(name, describes, frozenset(laws), compute)
        return compute

    return register


def registered_methods() -> dict[str, Method]:
    """Every method by name.

    Example:
        >>> sorted(registered_methods())
        ['gradient_times_input', 'integrated_gradients']
    """
    package = f"{__name__.rpartition('.')[0]}.methods"
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        importlib.import_module(f"{package}.{module.name}")
    return dict(sorted(_METHODS.items()))


def method_named(name: str) -> Method:
    """The method of this name; raises `UserError` with the nearest one otherwise."""
    known = registered_methods()
    if name not in known:
        raise unknown_name("method", name, known)
    return known[name]
