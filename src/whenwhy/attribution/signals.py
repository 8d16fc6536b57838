"""Tensors that follow rules of their own through any network: what the input reaches is a signal.

Relevance, DeepLIFT and contextual decomposition are rules for what a network is made of: linear maps,
elementwise functions, products, softmaxes, maxima and recurrent cells. A `Signal` meets each operation of a network,
whoever wrote it, and asks its rule. What is linear passes; what no rule knows is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn import functional

from whenwhy.attribution.operations import (
    ABOUT,
    ADD,
    DIVIDE,
    ELEMENTWISE,
    JOINS,
    LINEAR,
    MATRIX,
    MAXIMUM,
    MOVES,
    MULTIPLY,
    SIGMOID,
    SOFTMAX,
    SUBTRACT,
)
from whenwhy.attribution.recurrences import RecurrentCall, unrolled
from whenwhy.errors import UserError


class Rule:
    """What becomes of a signal. All tensors that a rule sees are plain; a signal is what it returns, unless `Plain`.

    Attributes:
        name: of the method, for people.
    """

    name = "The method"

    def elementwise(self, function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor | Plain:
        """f(x), of a function of one number with f(0) = 0 or not."""
        return function(x)

    def sigmoid(self, x: torch.Tensor) -> torch.Tensor | Plain:
        """A gate."""
        return self.elementwise(torch.sigmoid, x)

    def softmax(self, x: torch.Tensor, dim: int) -> torch.Tensor | Plain:
        """Shares over an axis."""
        return x.softmax(dim)

    def product(self, first: torch.Tensor, second: torch.Tensor, times: Callable[..., torch.Tensor]) -> torch.Tensor:
        """The product, elementwise or of matrices, of two signals."""
        return times(first, second)

    def linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """X W^T + b."""
        return functional.linear(x, weight, bias)

    def plus_constant(self, x: torch.Tensor, constant: torch.Tensor | float) -> torch.Tensor:
        """X + c."""
        return x + constant

    def maximum(self, x: torch.Tensor, dim: int) -> torch.Tensor:
        """The largest along an axis."""
        return x.amax(dim)

    def recurrence(self, call: RecurrentCall) -> tuple[Any, ...]:
        """What a recurrent layer answers; its cells meet the rule step by step."""
        return unrolled(call, begins=self.step_begins)

    def step_begins(self, place: int) -> None:
        """Told the place of a recurrent layer's step before it is computed, from 0; -1 before and after a layer."""

    def rows_chosen(self, rows: torch.Tensor) -> None:
        """Told when rows are put into another order, as packing does."""

    def steps_moved(self, operation: str) -> None:
        """Told when a signal's steps may have changed their places, as a network does that reads backwards."""

    def constant(self, given: torch.Tensor) -> torch.Tensor:
        """What stands for a constant that is joined with signals."""
        return given

    def refuse(self, what: str) -> UserError:
        """What to raise for what the rule does not know."""
        return UserError(f"{self.name} has no rule for {what}, which the network uses: choose integrated_gradients.")


class TwoPasses(Rule):
    """A rule that notes numbers on a first way through a network, and meets them again on a second.

    Both ways go through the same operations in the same order, since they have the same lengths.
    """

    def __init__(self) -> None:
        self._tape: list[tuple[torch.Tensor, ...]] = []
        self._noted: Iterator[tuple[torch.Tensor, ...]] | None = None

    @property
    def first(self) -> bool:
        """Whether this is the first way."""
        return self._noted is None

    def begin_second(self) -> None:
        """The first way is done."""
        self._noted = iter(self._tape)

    def note(self, *numbers: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """These numbers on the first way, those of the same place of the first way on the second."""
        if self._noted is None:
            self._tape.append(numbers)
            return numbers
        return next(self._noted)


class Plain:
    """Something that a rule returns as a constant: the signal ends there."""

    def __init__(self, value: torch.Tensor) -> None:
        self.value = value.detach()


class Signal(torch.Tensor):
    """A tensor that follows a rule.

    Example:
        >>> x = signal(torch.tensor([1.0, -2.0]), Rule())
        >>> bool((plain(torch.tanh(2 * x) + 1) == torch.tanh(2 * plain(x)) + 1).all())
        True
    """

    rule: Rule

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        rule = next(_rules((arguments, named)), None)
        with torch._C.DisableTorchFunctionSubclass():
            if rule is None:
                return function(*arguments, **(named or {}))
            return _asked(rule, function, arguments, dict(named or {}))


def signal(x: torch.Tensor, rule: Rule) -> Signal:
    """The same numbers, followed by a rule; gradients flow through."""
    found: Signal = plain(x).as_subclass(Signal)
    found.rule = rule
    return found


def plain(x: Any) -> Any:
    """The same numbers, followed by nothing; also of tensors in tuples, lists and dicts."""
    if isinstance(x, Signal):
        with torch._C.DisableTorchFunctionSubclass():
            return x.as_subclass(torch.Tensor)
    if isinstance(x, tuple) and hasattr(x, "_fields"):
        return type(x)(*map(plain, x))
    if isinstance(x, tuple | list):
        return type(x)(map(plain, x))
    return {name: plain(value) for name, value in x.items()} if isinstance(x, dict) else x


def _rules(told: Any) -> Iterator[Rule]:
    if isinstance(told, Signal):
        yield told.rule
    elif isinstance(told, tuple | list):
        for one in told:
            yield from _rules(one)
    elif isinstance(told, dict):
        yield from _rules(tuple(told.values()))


def _wrapped(rule: Rule, told: Any) -> Any:
    if isinstance(told, Plain):
        return told.value
    if isinstance(told, torch.Tensor):
        return signal(told, rule) if told.is_floating_point() else told
    if isinstance(told, tuple) and hasattr(told, "_fields"):
        return type(told)(*(_wrapped(rule, one) for one in told))
    if isinstance(told, tuple | list):
        return type(told)(_wrapped(rule, one) for one in told)
    return told


def _asked(rule: Rule, function: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """What an operation on signals answers. Torch's own dispatch to signals is off while this runs."""
    name = getattr(function, "__name__", str(function))
    given = plain(arguments)
    if function in (torch.gru, torch.lstm):
        return _recurrence(rule, function, arguments)
    if name in ELEMENTWISE:
        apply = ELEMENTWISE[name]
        if name in ("gelu", "elu", "leaky_relu", "softplus", "hardtanh"):  # the functions that have settings
            settings = {key: value for key, value in named.items() if key not in ("inplace", "input")}
            apply = lambda x: function(x, *given[1:], **settings)  # noqa: E731
        return _wrapped(rule, rule.elementwise(apply, given[0]))
    if name in SIGMOID:
        return _wrapped(rule, rule.sigmoid(given[0]))
    if name in SOFTMAX:
        dim = named.get("dim", given[1] if len(given) > 1 else -1)
        return _wrapped(rule, rule.softmax(given[0], int(dim)))
    if name == "linear":
        x, weight = given[0], given[1]
        if isinstance(arguments[1], Signal):
            raise rule.refuse("a product of two signals")
        return _wrapped(rule, rule.linear(x, weight, named.get("bias", given[2] if len(given) > 2 else None)))
    if name in ADD or name in SUBTRACT or name in ("rsub", "__rsub__"):
        return _wrapped(rule, _sum(rule, name, arguments, given, named))
    if name in MULTIPLY or name in MATRIX:
        if name in ("__rmul__", "__rmatmul__"):
            arguments, given = arguments[::-1], given[::-1]
        times = torch.mul if name in MULTIPLY else torch.matmul
        first, second = given
        if isinstance(arguments[0], Signal) and isinstance(arguments[1], Signal):
            return _wrapped(rule, rule.product(first, second, times))
        return _wrapped(rule, times(first, second))
    if name in DIVIDE or name in ("__rdiv__", "__rtruediv__"):
        if name not in DIVIDE:
            arguments, given = arguments[::-1], given[::-1]
        if isinstance(arguments[1], Signal):
            inverse = rule.elementwise(torch.reciprocal, given[1])
            if isinstance(inverse, Plain):
                return _wrapped(rule, given[0] * inverse.value)
            both = isinstance(arguments[0], Signal)
            return _wrapped(rule, rule.product(given[0], inverse, torch.mul) if both else given[0] * inverse)
        return _wrapped(rule, given[0] / given[1])
    if name in MAXIMUM and (len(given) > 1 or "dim" in named) and not named.get("keepdim"):
        dim = named.get("dim", given[1] if len(given) > 1 else None)
        if isinstance(dim, int):
            found = _wrapped(rule, rule.maximum(given[0], dim))
            return found if name == "amax" else torch.return_types.max((found, given[0].argmax(dim)))
    if name in ("masked_fill", "masked_fill_"):
        return _wrapped(rule, given[0].masked_fill(*given[1:], **named))
    if name == "batch_norm":
        return _wrapped(rule, _batch_norm(rule, *given, **named))
    if name in LINEAR:
        if name == "index_select":
            rule.rows_chosen(given[2])
        if name in MOVES:
            rule.steps_moved(name)
        if name in JOINS:
            given = _with_constants(rule, arguments)
        return _wrapped(rule, function(*given, **plain(named)))
    if name in ABOUT:
        told = function(*given, **plain(named))
        return _wrapped(rule, told) if name == "__get__" else told  # a tensor that is asked for by name, such as x.T
    raise rule.refuse(f"'{name}'")


def _with_constants(rule: Rule, given: Any) -> Any:
    """The same numbers, signals as plain tensors, and of plain tensors of numbers what the rule puts there."""
    if isinstance(given, Signal):
        return plain(given)
    if isinstance(given, torch.Tensor):
        return rule.constant(given) if given.is_floating_point() else given
    return type(given)(_with_constants(rule, one) for one in given) if isinstance(given, tuple | list) else given


def _sum(rule: Rule, name: str, arguments: tuple[Any, ...], given: tuple[Any, ...], named: dict[str, Any]) -> Any:
    if named.get("alpha", 1) != 1:
        raise rule.refuse("a sum with alpha")
    first, second = given[:2]
    minus = name in SUBTRACT
    if name in ("rsub", "__rsub__"):
        first, second, minus = second, first, True
        arguments = (arguments[1], arguments[0])
    if isinstance(arguments[0], Signal) and isinstance(arguments[1], Signal):
        return first - second if minus else first + second
    if isinstance(arguments[0], Signal):
        return rule.plus_constant(first, -second if minus else second)
    return rule.plus_constant(-second if minus else second, first)


def _batch_norm(
    rule: Rule,
    x: torch.Tensor,
    mean: torch.Tensor | None,
    variance: torch.Tensor | None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> torch.Tensor:
    """In evaluation mode a scale and a shift of each channel."""
    if training or mean is None or variance is None:
        raise rule.refuse("a batch norm in training mode")
    scale = torch.rsqrt(variance + eps) * (1 if weight is None else weight)
    shift = (0 if bias is None else bias) - mean * scale
    shape = (1, -1, *[1] * (x.ndim - 2))
    return rule.plus_constant(x * scale.view(shape), shift.view(shape))


def _recurrence(rule: Rule, function: Any, arguments: tuple[Any, ...]) -> Any:
    """The call with its input and start as signals, so that a cell's own arithmetic asks the rule."""
    if not isinstance(arguments[0], Signal):
        arguments = (signal(arguments[0], rule), *arguments[1:])
    with torch._C._EnableTorchFunction():
        call = RecurrentCall.of(function, arguments)
        start = tuple(of if isinstance(of, Signal) else signal(of, rule) for of in call.start)
        answer = rule.recurrence(RecurrentCall(call.kind, call.steps, start, call.cells, call.packed, call.batch_first))
        return tuple(one if isinstance(one, Signal) else signal(one, rule) for one in answer)
