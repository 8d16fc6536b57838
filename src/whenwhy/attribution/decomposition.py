"""Contextual decomposition: the part of the score that a group of feature values makes, alone and through its context.

Murdoch, Liu and Yu, "Beyond word importance: contextual decomposition to extract interactions from LSTMs", ICLR 2018,
equations 8 to 24; for networks around the cells Singh, Murdoch and Yu, "Hierarchical interpretations for neural network
predictions", ICLR 2019, equations 3 to 7. The form for a GRU is this project's own, with the same linearisation.

A state is beta + gamma, what the group makes and all the rest. Only beta is computed, beside the network's own state,
since gamma is the difference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.nn import functional

from whenwhy.attribution.question import Question
from whenwhy.attribution.recurrences import GRU, LSTM, STEPS, CellWeights, RecurrentCall, unrolled
from whenwhy.attribution.signals import Plain, TwoPasses, plain
from whenwhy.attribution.targets import PROBABILITY
from whenwhy.errors import UserError
from whenwhy.events.sequence_batch import EVENTS

#: Padded steps of all groups that are decomposed together.
ROWS_TIMES_STEPS = 1 << 17

#: The parts of phi(a + b + c) that belong to a, to b and to the constant c.
Parts = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def three_parts(
    phi: Callable[[torch.Tensor], torch.Tensor], a: torch.Tensor, b: torch.Tensor, constant: torch.Tensor
) -> Parts:
    """phi(a + b + c) as a's part, b's part, and phi(c); the parts are Shapley values beside the constant.

    Example:
        >>> parts = three_parts(torch.tanh, torch.tensor(1.0), torch.tensor(-2.0), torch.tensor(0.5))
        >>> bool(torch.isclose(sum(parts), torch.tanh(torch.tensor(-0.5))))
        True
    """
    alone, first, second, whole = phi(constant), phi(a + constant), phi(b + constant), phi(a + b + constant)
    return (first - alone + whole - second) / 2, (second - alone + whole - first) / 2, alone


class Decomposition(TwoPasses):
    """The rule of contextual decomposition: first notes the network's own numbers, then carries beta beside them.

    Args:
        shares: [row, step] the share of each step's values that are in the group.
    """

    name = "Contextual decomposition"

    def __init__(self, shares: torch.Tensor) -> None:
        super().__init__()
        self.shares = shares
        self.order: torch.Tensor | None = None

    def elementwise(self, function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        """Beta's part; of what bends at 0 alone (ReLU), the function of beta itself."""
        (whole,) = self.note(x)
        if self.first:
            return function(x)
        if function in (torch.exp, torch.reciprocal):
            raise self.refuse("a function that is not 0 at 0")
        if function is torch.relu:
            return function(x)
        return three_parts(function, x, whole - x, torch.zeros_like(x))[0]

    def sigmoid(self, x: torch.Tensor) -> Plain:
        """A gate outside a cell is not decomposed."""
        return Plain(torch.sigmoid(self.note(x)[0]))

    def softmax(self, x: torch.Tensor, dim: int) -> Plain:
        """Attention is not decomposed."""
        return Plain(self.note(x)[0].softmax(dim))

    def product(self, first: torch.Tensor, second: torch.Tensor, times: Callable[..., torch.Tensor]) -> torch.Tensor:
        """Refused."""
        raise self.refuse("a product of two signals")

    def linear(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """A bias belongs to neither part."""
        return functional.linear(x, weight, bias if self.first else None)

    def plus_constant(self, x: torch.Tensor, constant: torch.Tensor | float) -> torch.Tensor:
        """A constant belongs to neither part."""
        return x + constant if self.first else x

    def maximum(self, x: torch.Tensor, dim: int) -> torch.Tensor:
        """Beta of what is the largest."""
        (whole,) = self.note(x)
        return x.gather(dim, whole.argmax(dim, keepdim=True)).squeeze(dim)

    def constant(self, given: torch.Tensor) -> torch.Tensor:
        """A constant belongs to neither part."""
        return given if self.first else torch.zeros_like(given)

    def rows_chosen(self, rows: torch.Tensor) -> None:
        """The order in which packing puts the rows; putting them back is none."""
        if self.order is None or not torch.equal(rows, torch.argsort(self.order)):
            self.order = rows

    def steps_moved(self, operation: str) -> None:
        """Refused: a cell's share of its step's biases follows the record's steps."""
        raise self.refuse(f"a {operation} of steps")

    def begin_second(self) -> None:
        """The first way is done."""
        super().begin_second()
        self.order = None

    def recurrence(self, call: RecurrentCall) -> tuple[Any, ...]:
        """Every cell's own equations on the first way, beta's on the second."""
        place = 0

        def begins(at: int) -> None:
            nonlocal place
            place = at

        def step(cell: CellWeights, projected: torch.Tensor, states: tuple[torch.Tensor, ...]) -> tuple[Any, ...]:
            own = projected - cell.input_bias
            noted, *whole = self.note(own, *states)
            if self.first:
                return STEPS[cell.kind](cell, projected, states)
            shares = self.shares[self.order] if call.packed and self.order is not None else self.shares
            rest = tuple(all_of - beta for all_of, beta in zip(whole, states, strict=True))
            share = shares[: len(own), place].unsqueeze(1).to(own)
            return BETA[cell.kind](cell, (own, noted - own), states, rest, share)

        bare = replace(call, steps=[plain(given) for given in call.steps], start=tuple(plain(of) for of in call.start))
        return unrolled(bare, step, begins)


def _gru(
    cell: CellWeights,
    own: tuple[torch.Tensor, torch.Tensor],
    beta_before: tuple[torch.Tensor, ...],
    gamma_before: tuple[torch.Tensor, ...],
    share: torch.Tensor,
) -> tuple[torch.Tensor, ...]:
    """Beta of a GRU's next state."""
    (beta,), (gamma,) = beta_before, gamma_before
    x_a, x_b = (part.chunk(3, dim=1) for part in own)
    h_a, h_b = (functional.linear(part, cell.states).chunk(3, dim=1) for part in (beta, gamma))
    b_x, b_h = cell.input_bias.chunk(3), cell.state_bias.chunk(3)
    reset_a, _, reset_c = three_parts(torch.sigmoid, x_a[0] + h_a[0], x_b[0] + h_b[0], b_x[0] + b_h[0])
    reset = torch.sigmoid(x_a[0] + h_a[0] + x_b[0] + h_b[0] + b_x[0] + b_h[0])
    update_a, _, update_c = three_parts(torch.sigmoid, x_a[1] + h_a[1], x_b[1] + h_b[1], b_x[1] + b_h[1])
    new_a_in = reset_a * (h_a[2] + b_h[2]) + reset_c * h_a[2]
    new_c_in = reset_c * b_h[2]
    new_b_in = reset * (h_a[2] + h_b[2] + b_h[2]) - new_a_in - new_c_in
    new_a, _, new_c = three_parts(torch.tanh, x_a[2] + new_a_in, x_b[2] + new_b_in, b_x[2] + new_c_in)
    left_a, left_c = -update_a, 1 - update_c  # of 1 - update
    after = left_a * (new_a + new_c) + left_c * new_a + share * left_c * new_c + (update_a + update_c) * beta
    return (after,)


def _lstm(
    cell: CellWeights,
    own: tuple[torch.Tensor, torch.Tensor],
    beta_before: tuple[torch.Tensor, ...],
    gamma_before: tuple[torch.Tensor, ...],
    share: torch.Tensor,
) -> tuple[torch.Tensor, ...]:
    """Beta of an LSTM's next hidden and cell states."""
    (beta, beta_cell), (gamma, gamma_cell) = beta_before, gamma_before
    a, b = (
        (part + functional.linear(state, cell.states)).chunk(4, dim=1)
        for part, state in zip(own, (beta, gamma), strict=True)
    )
    c = (cell.input_bias + cell.state_bias).chunk(4)
    input_a, _, input_c = three_parts(torch.sigmoid, a[0], b[0], c[0])
    forget_a, _, forget_c = three_parts(torch.sigmoid, a[1], b[1], c[1])
    new_a, _, new_c = three_parts(torch.tanh, a[2], b[2], c[2])
    kept = (forget_a + forget_c) * beta_cell
    beta_next = kept + input_a * (new_a + new_c) + input_c * new_a + share * input_c * new_c
    # The whole cell state: what the network itself computes.
    gate = [torch.sigmoid(a[at] + b[at] + c[at]) for at in (0, 1, 3)]
    whole = gate[1] * (beta_cell + gamma_cell) + gate[0] * torch.tanh(a[2] + b[2] + c[2])
    hidden = gate[2] * three_parts(torch.tanh, beta_next, whole - beta_next, torch.zeros_like(whole))[0]
    return hidden, beta_next


#: What a cell does to beta: (cell, the input's two parts, beta's states, gamma's, the share of the step's values).
BETA = {GRU: _gru, LSTM: _lstm}


def decomposed_scores(question: Question, groups: Sequence[Mapping[str, torch.Tensor]]) -> torch.Tensor:
    """The part of the explained number that each group of values makes [group, patient].

    The part of a group and the part of all other values do not add up to the score exactly: their interactions
    are in both, and biases in neither.

    Args:
        groups: a tensor [value] of bool a stream, true for the group's members; of every patient at once.

    Raises:
        UserError: another baseline than the empty record, a target that is no logit or unit, or a network that
            does what has no rule.
    """
    if question.given.embedded:
        raise UserError("A decomposition is not told against a baseline: use the baseline 'empty'.")
    if question.target.kind == PROBABILITY:
        raise UserError("A probability is not decomposed: use the target logit or log_odds.")
    question.require_affordable(
        torch.full_like(question.lengths, len(groups)), "decompose fewer groups (unit=feature_value), or use deep_lift"
    )
    patients, n_steps = len(question), question.batch.n_steps
    at_once = max(1, ROWS_TIMES_STEPS // max(1, patients * n_steps))
    counts = {name: _counts(question, name, None) for name in question.weights}
    found = []
    with torch.no_grad():
        for first in range(0, len(groups), at_once):
            chosen = groups[first : first + at_once]
            parts = [
                question.model.embed(question.batch, {n: question.weights[n] * group[n] for n in question.weights})
                for group in chosen
            ]
            beta = {name: torch.cat([part[name] for part in parts]) for name in question.embedded}
            whole = {
                name: tensor.repeat(len(chosen), *[1] * (tensor.ndim - 1)) for name, tensor in question.embedded.items()
            }
            shares = []
            for group in chosen:
                own = {name: _counts(question, name, group[name]) for name in counts}
                share = own[EVENTS] / counts[EVENTS].clamp(min=1)  # [patient, step]
                everything = torch.stack([(own[n] == counts[n]).flatten(1).all(1) for n in counts]).all(0)
                shares.append(torch.where(everything.unsqueeze(1), torch.ones_like(share), share))
            rule = Decomposition(torch.cat(shares).to(question.score))
            rows = torch.arange(patients, device=question.lengths.device).repeat(len(chosen))
            question.scored_under(rule, whole, rows)
            rule.begin_second()
            found.append(question.scored_under(rule, beta, rows).view(len(chosen), patients))
    return torch.cat(found) if found else question.score.new_zeros(0, patients)


def _counts(question: Question, name: str, members: torch.Tensor | None) -> torch.Tensor:
    """How many values, or members among them, events [patient, step] or static [patient, 1]."""
    values = question.values[name]
    steps = question.batch.n_steps if name == EVENTS else 1
    count = torch.zeros(len(question), steps, dtype=torch.float64, device=values.patient.device)
    ones = torch.ones(len(values.patient)).to(count) if members is None else members.to(count)
    return count.index_put_((values.patient, values.step), ones, accumulate=True)
