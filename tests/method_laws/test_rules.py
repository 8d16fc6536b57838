"""Operations of networks under rules: nothing changes under the rule that does nothing, and DeepLIFT stays complete."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from whenwhy.attribution.decomposition import Decomposition
from whenwhy.attribution.methods.deep_lift import Rises
from whenwhy.attribution.signals import Rule, plain, signal
from whenwhy.errors import UserError

pytestmark = pytest.mark.usefixtures("one_thread")

GENERATOR = torch.Generator().manual_seed(3)
C = torch.rand(4, generator=GENERATOR, dtype=torch.float64) + 0.5
W = torch.randn(4, 4, generator=GENERATOR, dtype=torch.float64)
B = torch.randn(4, generator=GENERATOR, dtype=torch.float64)

#: Functions of x [row, 4], all numbers of which are positive, to numbers of any shape that begins with the row.
OPERATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "signal minus signal": lambda x: torch.tanh(x) - x.flip(1),
    "signal plus signal": lambda x: torch.tanh(x) + x.flip(1),
    "signal minus constant": lambda x: torch.tanh(x - C),
    "constant minus signal": lambda x: torch.tanh(C - x),
    "number minus signal": lambda x: torch.tanh(1 - x),
    "signal plus constant": lambda x: torch.tanh(x + C),
    "signal times signal": lambda x: torch.sigmoid(x) * x.flip(1),
    "number times signal": lambda x: torch.tanh(2 * x),
    "signal over signal": lambda x: x / (1 + x.flip(1)),
    "constant over signal": lambda x: C / (1 + x),
    "number over signal": lambda x: 3 / (1 + x),
    "signal over constant": lambda x: torch.tanh(x / C),
    "matrix times signal": lambda x: torch.tanh((x.unsqueeze(2) * x.unsqueeze(1)).__rmatmul__(W)).flatten(1),
    "signal times matrix": lambda x: torch.tanh(x @ W),
    "linear": lambda x: torch.tanh(functional.linear(x, W, B)),
    "attention": lambda x: (x.unsqueeze(2) @ torch.softmax(x @ W, dim=1).unsqueeze(1)).flatten(1),
    "largest": lambda x: torch.amax(x * C, dim=1),
    "largest and where": lambda x: torch.max(torch.tanh(x), dim=1)[0],
    "norm": lambda x: functional.batch_norm(x, B, C, weight=W[0], bias=W[1], eps=1e-3),
    "norm without a scale": lambda x: torch.tanh(functional.batch_norm(x, B, C)),
    "filled": lambda x: torch.tanh(x.masked_fill(torch.tensor([True, False, False, True]), 0.7)),
    "arranged": lambda x: torch.cat([x[:, 1:], x[:, :1].expand(-1, 2)], dim=1).mean(1) * x.sum(1),
    "gelu": lambda x: functional.gelu(x - C),
    "leaky": lambda x: functional.leaky_relu(x - C, 0.2),
}


def numbers(seed: int) -> torch.Tensor:
    return torch.rand(3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 + 0.05


def slopes(f: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, rule: Rule | None) -> tuple[torch.Tensor, ...]:
    leaf = x.clone().requires_grad_()
    value = plain(f(leaf if rule is None else signal(leaf, rule)))
    (found,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), found


@pytest.mark.parametrize("name", OPERATIONS)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_the_rule_that_does_nothing_changes_nothing(name: str, seed: int) -> None:
    x = numbers(seed)
    (value, found), (wanted, gradient) = (slopes(OPERATIONS[name], x, rule) for rule in (Rule(), None))
    torch.testing.assert_close(value, wanted, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found, gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", OPERATIONS)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_deep_lift_hands_out_the_whole_rise(name: str, seed: int) -> None:
    x, begin, rule = numbers(seed), numbers(seed + 1), Rises()
    with torch.no_grad():
        before = plain(OPERATIONS[name](signal(begin, rule)))
    rule.begin_second()
    value, multipliers = slopes(OPERATIONS[name], x, rule)
    torch.testing.assert_close(value, OPERATIONS[name](x), rtol=1e-12, atol=1e-12)
    rise = (value - before).flatten(1).sum(1) if value.ndim > 1 else value - before
    torch.testing.assert_close((multipliers * (x - begin)).sum(1), rise, rtol=1e-6, atol=1e-8)


def test_a_constant_that_is_joined_is_in_neither_part() -> None:
    rule = Decomposition(torch.ones(1, 1))
    for joined in (lambda x: torch.cat([x, torch.ones(2)]), lambda x: torch.stack([x, torch.ones(2)]).flatten()):
        rule = Decomposition(torch.ones(1, 1))
        assert plain(joined(signal(torch.tensor([2.0, 3.0]), rule))).tolist() == [2, 3, 1, 1]
        rule.begin_second()
        assert plain(joined(signal(torch.tensor([0.5, 0.0]), rule))).tolist() == [0.5, 0, 0, 0]


def test_steps_that_are_turned_round_are_not_decomposed() -> None:
    with pytest.raises(UserError, match="no rule for a flip of steps"):
        signal(torch.ones(1, 3, 2), Decomposition(torch.ones(1, 3))).flip(1)


def test_a_constant_is_in_neither_part() -> None:
    """A whole record's part of x W + c is x W, however the constant is put on or taken off."""
    x = numbers(5)
    for f in (lambda x: x @ W + C, lambda x: C + x @ W, lambda x: x @ W - C, lambda x: 3 + x @ W):
        rule = Decomposition(torch.ones(3, 1))
        torch.testing.assert_close(plain(f(signal(x, rule))), f(x))
        rule.begin_second()
        torch.testing.assert_close(plain(f(signal(x, rule))), x @ W)
