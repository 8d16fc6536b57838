"""Layer-wise relevance propagation through gated cells: gates are constants, what they gate passes relevance on.

Bach et al., "On pixel-wise explanations for non-linear classifier decisions by layer-wise relevance propagation",
PLoS ONE 2015, equation 58 (the epsilon rule); Arras et al., "Explaining and interpreting LSTMs", 2019, equation 11.10
(the rule that gives a product's relevance to the signal, and none to the gate).

With epsilon 0 this is gradient times input of the network in which gates are held and tanh(u) is u times a held
tanh(u) / u: one ordinary backward pass, without small denominators.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from whenwhy.attribution.question import Question
from whenwhy.attribution.registry import Explanation, method
from whenwhy.attribution.signals import Plain, Rule
from whenwhy.attribution.targets import PROBABILITY
from whenwhy.errors import UserError
from whenwhy.models.sequence_model import Embedded


class Relevance(Rule):
    """The rule of relevance: values are the network's own, gradients are relevance per unit of the input.

    Args:
        epsilon: absorbs relevance where a sum is small; 0: none.
        dropout: share of the backward messages of linear layers that are dropped, others weigh
            1 / (1 - dropout). Every step has messages of its own: a weight that were dropped at all steps at
            once would count twice on a way that passes it twice, and the mean would not be the relevance.
    """

    name = "Layer-wise relevance"

    def __init__(self, epsilon: float = 0.0, dropout: float = 0.0, seed: int = 0) -> None:
        self.epsilon, self.dropout = epsilon, dropout
        self.seed, self.layer, self.place = seed, 0, 0

    def elementwise(self, function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor | Plain:
        """X times the held f(x) / (x + epsilon sign x)."""
        nothing = torch.zeros((), dtype=x.dtype, device=x.device)
        if function in (torch.reciprocal, torch.exp) or bool(function(nothing) != 0):
            raise self.refuse("a function that is not 0 at 0")
        held = x.detach()
        small = held.abs() < 1e-6
        safe = torch.where(small, torch.full_like(held, 1e-6), held)
        slope = function(safe) / (safe + self.epsilon * safe.sign())
        # The value stays the network's own, whatever the denominator took away.
        passed = x * slope
        return function(held) + passed - passed.detach()

    def sigmoid(self, x: torch.Tensor) -> Plain:
        """A gate gets nothing."""
        return Plain(torch.sigmoid(x))

    def softmax(self, x: torch.Tensor, dim: int) -> Plain:
        """Attention gets nothing."""
        return Plain(x.softmax(dim))

    def product(self, first: torch.Tensor, second: torch.Tensor, times: Callable[..., torch.Tensor]) -> torch.Tensor:
        """Refused: neither of them is a gate."""
        raise self.refuse("a product of two signals")

    def step_begins(self, place: int) -> None:
        """Messages of this step are drawn next."""
        self.place = place

    def linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """X W^T + b; a bias keeps the relevance that it gets."""
        if not self.dropout:
            return functional.linear(x, weight, bias)
        if self.place < 0:
            self.layer += 1
        # What a mask follows from is where it is used, so padding and other patients change no draw.
        entropy = np.random.SeedSequence((self.seed, self.layer, self.place + 1))
        drawn = np.random.default_rng(entropy).random(tuple(weight.shape), np.float32)
        kept = torch.from_numpy(drawn).to(weight) >= self.dropout
        passed = functional.linear(x, weight * (kept / (1 - self.dropout)).to(weight))
        return functional.linear(x.detach(), weight, bias) + passed - passed.detach()


def relevance(question: Question, rule: Relevance) -> Embedded:
    """Relevance per unit of the embeddings, shaped as they are.

    Raises:
        UserError: another baseline than the empty record, which relevance does not know, or a probability, whose
            softmax is a gate to it.
    """
    if question.target.kind == PROBABILITY:
        raise UserError("A probability is not handed back: use the target logit or log_odds.")
    if question.given.embedded:
        raise UserError("Relevance is not told against a baseline: use the baseline 'empty'.")
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in question.embedded.items()}
    with torch.enable_grad():
        score = question.scored_under(rule, leaves)  # [patient]
        held = score.detach()
        stable = held + rule.epsilon * torch.where(held < 0, -1.0, 1.0)
        seed = torch.where(held == 0, torch.zeros_like(held), held / stable)
        found = torch.autograd.grad(score, list(leaves.values()), seed, materialize_grads=True)
    return dict(zip(leaves, found, strict=True))


def bias_share(question: Question, total: torch.Tensor) -> torch.Tensor:
    """The share of the score that no value got: the biases', and epsilon's [patient] float64."""
    score = question.score.double()
    return torch.where(score == 0, torch.zeros_like(score), 1 - total / score)


@method(
    "relevance",
    "the score handed back layer by layer, nothing to gates; biases keep a share, which is told",
    laws={"linearity", "zero_on_padding", "alone_equals_batched", "dummy", "symmetry"},
)
def layerwise_relevance(question: Question, *, epsilon: float = 0.0) -> Explanation:
    """Each value's relevance to the explained number: an output, or any unit at any step (target "unit:K@STEP").

    A value that only opens a gate gets exactly 0, although removing it moves the score.

    Args:
        epsilon: of the epsilon rule, in units of the sums that it stabilises.
    """
    if epsilon < 0:
        raise UserError("epsilon is a small number of at least 0: give e.g. epsilon=0.001.")
    found = question.contributions(relevance(question, Relevance(epsilon)))
    notes: dict[str, Any] = {"bias_share": bias_share(question, question.totals(found))}
    return Explanation(found, question.evaluations(1), notes=notes)
