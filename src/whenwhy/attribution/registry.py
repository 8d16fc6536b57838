"""The register of attribution methods. A method states its laws, and tests hold it to them."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from whenwhy.errors import UserError, unknown_name

if TYPE_CHECKING:
    import torch

    from whenwhy.attribution.contributions import Contributions
    from whenwhy.models.sequence_model import Embedded

#: What a method may promise; `tests/method_laws/` has one test for each.
LAWS = {
    "completeness": "a prediction's attributions sum to its score minus the baseline's score, within the tolerance",
    "linearity": "for a linear model an attribution is weight times effect",
    "zero_on_padding": "steps beyond a record's end change nothing",
    "alone_equals_batched": "a prediction gets the same attributions alone as in any batch, up to float rounding",
    "dummy": "a feature value on which the score does not depend gets exactly 0",
    "steps_complete": "a step's attributions sum to what its own prediction changes when its values become the baseline's",
    "symmetry": "feature values that play the same part get equal shares",
    "share": "an attribution lies between 0 and 1, and tells how much, not in which direction",
}


CONTRIBUTION: Final = "contribution"

#: What a method compares a record with that has no baseline.
NOTHING: Final = "nothing"

#: What the numbers of a method are; only contributions may be summed to a difference of scores.
MEASURES = {
    CONTRIBUTION: "what a value adds to the score",
    "step_contribution": "what a value adds to the prediction made at its own step",
    "steepness": "how fast the score moves with a value: not a contribution",
    "share": "how much of a value the prediction needs: not a contribution",
    "attention": "how much attention a value's step gets: not a contribution",
}


@dataclass(frozen=True)
class Explanation:
    """What a method says of a batch.

    Attributes:
        contributions: a number a value, and for what is absent.
        n_evaluations: [patient] int32, model evaluations that it took.
        spread: the standard deviation that each contribution has over the draws, of methods that draw: its
            standard error.
        notes: [patient] or [patient, step] each, what the method tells beside, by name.
        baseline_score: [patient], of methods that draw baselines of their own; None: the question's.
        gradients: of methods that tell absence, the one gradient a place that all its contributions are the way
            times, shaped as the embeddings; empty for others.
    """

    contributions: Contributions
    n_evaluations: torch.Tensor
    spread: Contributions | None = None
    notes: dict[str, torch.Tensor] = field(default_factory=dict)
    baseline_score: torch.Tensor | None = None
    gradients: Embedded = field(default_factory=dict)


@dataclass(frozen=True)
class Fitted:
    """What a method learned of a model before it explains anything: data, never code.

    Attributes:
        tensors: by name; a method finds them in `Question.fitted`.
        summary: what is told of the fit, by name.
    """

    tensors: Mapping[str, torch.Tensor]
    summary: Mapping[str, float] = field(default_factory=dict)


#: A method: a question, and its own options by keyword.
Compute = Callable[..., Explanation]

#: What fits a method: the questions of a sample, and the method's options by keyword.
Fit = Callable[..., Fitted]


@dataclass(frozen=True)
class Method:
    """A registered method; `compute(question, **options)` gives its `Explanation`.

    Attributes:
        family: gradients, relevance, decomposition, perturbation, learned or attention.
        laws: names of LAWS that it keeps.
        measures: what its numbers are, one of MEASURES.
        tells_absence: a contribution is the way times one gradient a place, which it gives: so it tells what not
            having a feature value adds.
        needs_population: whether, with these options, it asks the question for the training patients.
        fit: what must run once, on a sample, before it can explain; None: nothing.
        compares_with: what it really compares a record with when it is given a baseline, e.g. references that it draws.
    """

    name: str
    family: str
    describes: str
    laws: frozenset[str]
    compute: Compute
    measures: str = CONTRIBUTION
    tells_absence: bool = False
    needs_population: Callable[[Mapping[str, Any]], bool] = lambda options: False
    fit: Fit | None = None
    compares_with: Callable[[str], str] = lambda baseline: baseline

    @property
    def sums_to_score(self) -> bool:
        """Whether a prediction's numbers are meant to sum to its score minus the baseline's, exactly or about."""
        return self.measures == CONTRIBUTION

    @property
    def options(self) -> dict[str, Any]:
        """Its options and their defaults."""
        parameters = list(inspect.signature(self.compute).parameters.values())[1:]
        return {parameter.name: parameter.default for parameter in parameters}

    def with_options(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """All options, those asked for as the type of their defaults.

        Raises:
            UserError: an option that the method does not have, or a value of another type.
        """
        known = self.options
        told = dict(known)
        for name, value in asked.items():
            if name not in known:
                raise unknown_name("option", name, known, f"the method '{self.name}'")
            try:
                told[name] = _as(type(known[name]), value)
            except ValueError:
                kind = type(known[name]).__name__
                raise UserError(f"The option {name} of '{self.name}' is a {kind}, not '{value}'.") from None
        return told


def _as(kind: type, value: Any) -> Any:
    """A value, or how it is written, as a type."""
    if kind is bool and isinstance(value, str):
        if value.lower() not in ("true", "false"):
            raise ValueError(value)
        return value.lower() == "true"
    if isinstance(value, str) or (kind is float and isinstance(value, int) and not isinstance(value, bool)):
        return kind(value)
    if type(value) is not kind:
        raise ValueError(value)
    return value


_METHODS: dict[str, Method] = {}


def method(
    family: str,
    describes: str,
    laws: set[str],
    *,
    measures: str = CONTRIBUTION,
    tells_absence: bool = False,
    needs_population: Callable[[Mapping[str, Any]], bool] = lambda options: False,
    fit: Fit | None = None,
    compares_with: Callable[[str], str] = lambda baseline: baseline,
) -> Callable[[Compute], Compute]:
    """Registers the decorated function under its own name, with the laws that it keeps."""
    unknown = (laws - set(LAWS)) | ({measures} - set(MEASURES))
    assert not unknown, f"no such law or measure: {unknown}"

    def register(compute: Compute) -> Compute:
        name = compute.__name__
        laws_kept = frozenset(laws)
        _METHODS[name] = Method(
            name, family, describes, laws_kept, compute, measures, tells_absence, needs_population, fit, compares_with
        )
        return compute

    return register


def registered_methods() -> dict[str, Method]:
    """Every method by name.

    Example:
        >>> "integrated_gradients" in registered_methods()
        True
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
