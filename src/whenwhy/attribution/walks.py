"""A flat batch of places on straight paths, made only where a network asks for more than their first projection."""

from __future__ import annotations

from typing import Any

import torch


class Walk(torch.Tensor):
    """The places `at` on the ways of some records [node * row, ...]: begin + at * way, nodes outermost.

    It has no numbers of its own until an operation asks for them. What projects it linearly may ask for `way` and
    `begin` instead, and project each record once, whatever the number of nodes.

    What comes back to `way` is the mean of the places' gradients by their shares: not the gradient of `way`, of which
    each place has only a part.

    Attributes:
        way: [row, ...], to which the mean gradient comes back.
        begin: [row, ...], without a gradient; None: 0.
        at, shares: [node].

    Example:
        >>> walk = Walk(torch.tensor([[4.0]]), None, torch.tensor([0.25, 0.5]), torch.tensor([0.5, 0.5]))
        >>> walk.shape, (walk + 1).tolist()
        (torch.Size([2, 1]), [[2.0], [3.0]])
    """

    way: torch.Tensor
    begin: torch.Tensor | None
    at: torch.Tensor
    shares: torch.Tensor

    @staticmethod
    def __new__(cls, way: torch.Tensor, begin: torch.Tensor | None, at: torch.Tensor, shares: torch.Tensor) -> Walk:
        shape = (len(at) * len(way), *way.shape[1:])
        made = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=way.dtype, device=way.device)
        made.way, made.begin, made.at, made.shares = way, begin, at.to(way), shares.to(way)
        return made

    def places(self) -> torch.Tensor:
        """The numbers themselves [node * row, ...]."""
        return _Places.apply(self.way, self.begin, self.at, self.shares)  # type: ignore[no-any-return, no-untyped-call]

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        named = named or {}
        if _same(function, arguments, named):
            return arguments[0]
        with torch._C.DisableTorchFunctionSubclass():
            if function in _ABOUT:
                return function(*arguments, **named)
            return function(*_made(arguments), **_made(named))

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise AssertionError(f"{function} reached a walk that has no numbers")


class _Places(torch.autograd.Function):
    """The numbers of a walk."""

    @staticmethod
    def forward(
        ctx: Any, way: torch.Tensor, begin: torch.Tensor | None, at: torch.Tensor, shares: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(shares)
        each = at.view(-1, *[1] * way.ndim)
        return (each * way if begin is None else torch.addcmul(begin, each, way)).flatten(0, 1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (shares,) = ctx.saved_tensors
        return torch.tensordot(shares, gradients.unflatten(0, (len(shares), -1)), dims=1), None, None, None


#: What is asked of a tensor's shape and kind, which a walk answers without numbers.
_ABOUT = frozenset(
    [
        torch.Tensor.size, torch.Tensor.dim, torch.Tensor.numel, torch.Tensor.__len__, torch.Tensor.is_floating_point,
        torch.is_floating_point, torch.numel,
        *(getattr(torch.Tensor, name).__get__ for name in ("shape", "dtype", "device", "ndim", "is_cuda", "layout")),
    ]
)  # fmt: skip


def _same(function: Any, arguments: Any, named: Any) -> bool:
    """Whether an operation on a walk leaves it as it is: all of it is chosen, or dropout outside training."""
    if not isinstance(arguments[0], Walk):
        return False
    if function is torch.nn.functional.dropout:
        return not (arguments[2] if len(arguments) > 2 else named.get("training", True))
    if function is torch.Tensor.__getitem__:
        chosen, shape = arguments[1], arguments[0].shape
        parts = chosen if isinstance(chosen, tuple) else (chosen,)
        return len(parts) <= len(shape) and all(
            isinstance(part, slice) and part.indices(size) == (0, size, 1)
            for part, size in zip(parts, shape, strict=False)
        )
    return False


def _made(told: Any) -> Any:
    """The same with numbers for walks; also in tuples, lists and dicts."""
    if isinstance(told, Walk):
        return told.places()
    if isinstance(told, tuple | list):
        return type(told)(map(_made, told))
    return {name: _made(value) for name, value in told.items()} if isinstance(told, dict) else told
