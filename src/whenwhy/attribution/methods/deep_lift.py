"""DeepLIFT: each function's rise from the baseline is shared among what rose before it.

Shrikumar, Greenside and Kundaje, "Learning important features through propagating activation differences", ICML 2017,
section 3.5.1 (the rescale rule); products, which gates are, share their rise as the Shapley value of two does
(Lundberg and Lee, NeurIPS 2017, supplement), so it is complete for gated cells too.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from whenwhy.attribution.question import Question
from whenwhy.attribution.registry import Explanation, method
from whenwhy.attribution.signals import TwoPasses

#: A rise below this, in units of the number, is taken as none: the slope is the derivative then.
NO_RISE = 1e-6


class Rises(TwoPasses):
    """The rule of DeepLIFT: notes what happens on the way of the baseline, then compares on the way of the record."""

    name = "DeepLIFT"

    def elementwise(self, function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        """f(x), whose slope is the rise of f over the rise of x."""
        held = x.detach()
        value = function(held)
        before, value_before = self.note(held, value)
        if self.first:
            return value
        rise = held - before
        finite = torch.isfinite(rise)
        none = ~finite | (rise.abs() <= NO_RISE * (1 + held.abs()))
        slope = (value - value_before) / torch.where(none, torch.ones_like(rise), rise)
        if none.any():
            with torch.enable_grad():
                leaf = held.clone().requires_grad_()
                (derivative,) = torch.autograd.grad(function(leaf).sum(), leaf)
            slope = torch.where(none, torch.where(finite, derivative, 0.0), slope)
        return value + slope * torch.where(finite, x - held, 0.0)

    def softmax(self, x: torch.Tensor, dim: int) -> torch.Tensor:
        """An exponential, a sum, and a quotient, each by its own rule."""
        (largest,) = self.note(x.detach().amax(dim, keepdim=True))  # the same shift on both ways, so that it cancels
        powers = self.elementwise(torch.exp, x - largest)
        return self.product(powers, self.elementwise(torch.reciprocal, powers.sum(dim, keepdim=True)), torch.mul)

    def product(self, first: torch.Tensor, second: torch.Tensor, times: Callable[..., torch.Tensor]) -> torch.Tensor:
        """The rise of one times the other's mean, and the other way round."""
        a, b = first.detach(), second.detach()
        value = times(a, b)
        a_before, b_before = self.note(a, b)
        if self.first:
            return value
        return value + times(first - a, (b + b_before) / 2) + times((a + a_before) / 2, second - b)

    def maximum(self, x: torch.Tensor, dim: int) -> torch.Tensor:
        """A rise goes to what is the largest now, a fall to what was it at the baseline."""
        held = x.detach()
        largest, at = held.max(dim, keepdim=True)
        before, at_before = self.note(held, at)
        if self.first:
            return largest.squeeze(dim)
        rise = largest - before.gather(dim, at_before)
        part = torch.zeros_like(largest)
        for place, share in ((at, rise.clamp(min=0)), (at_before, rise.clamp(max=0))):
            own = held.gather(dim, place) - before.gather(dim, place)
            slope = torch.where(share == 0, 0.0, share / torch.where(own == 0, 1.0, own))
            part = part + slope * (x - held).gather(dim, place)
        return (largest + part).squeeze(dim)


@method(
    "gradients",
    "each function's rise from the baseline, shared among what rose before it: two passes, complete",
    laws={"completeness", "linearity", "zero_on_padding", "alone_equals_batched", "dummy", "symmetry"},
    tells_absence=True,
)
def deep_lift(question: Question) -> Explanation:
    """Rescale multipliers from the baseline to the record, times the way.

    Raises:
        UserError: the network does something that has no rule, such as a layer norm.
    """
    rule = Rises()
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in question.embedded.items()}
    with torch.no_grad():
        question.scored_under(rule, question.baseline)
    rule.begin_second()
    with torch.enable_grad():
        score = question.scored_under(rule, leaves)
        found = torch.autograd.grad(score.sum(), list(leaves.values()), materialize_grads=True)
    multipliers = dict(zip(leaves, found, strict=True))
    return Explanation(question.contributions(multipliers), question.evaluations(1), gradients=multipliers)
