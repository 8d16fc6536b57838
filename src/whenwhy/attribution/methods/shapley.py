"""Shapley values by sampled permutations, with TimeSHAP's players and pruning.

Castro, Gomez and Tejada, "Polynomial calculation of the Shapley value based on sampling", Computers and Operations
Research 2009; antithetic pairs as in Mitchell, Cooper, Frank and Holmes, "Sampling permutations for Shapley value
estimation", JMLR 2022; players and pruning as in TimeSHAP, see `pruning`.
"""

from __future__ import annotations

import math

import torch

from whenwhy.attribution.players import Players, rows_at_once
from whenwhy.attribution.pruning import players_named, pruned_past
from whenwhy.attribution.question import Question
from whenwhy.attribution.registry import Explanation, method
from whenwhy.errors import UserError

#: Draws of permutations begin at this stream.
PERMUTATIONS = 1 << 16


@method(
    "perturbation",
    "sampled Shapley values over cells, feature values or steps: complete whatever is drawn, with standard errors",
    laws={"completeness", "linearity", "zero_on_padding", "alone_equals_batched", "dummy"},
)
def shapley(question: Question, *, players: str = "cells", samples: int = 32, pruning: float = 0.0) -> Explanation:
    """The mean, over orders in which the players come to the baseline, of what each adds to the score when it comes.

    In every order that sums to the score less the baseline's score. A player's total is shared equally among its
    values. What is absent, where the baseline records it, is a player of its own. The spread is the standard
    error of the mean over pairs of an order and its reverse.

    Args:
        players: "cells", a feature value's records in a step; "features", its records in the whole sequence;
            "events", all that a step records, and all static values.
        samples: orders, an even number of at least 4.
        pruning: the longest past whose exact Shapley value, against the rest of the record as the one other
            player, is within this many units of the score is one player; 0: none is.

    Raises:
        UserError: no such players, a number of samples that makes no pairs, or a tolerance under 0.
    """
    if samples < 4 or samples % 2:
        raise UserError(f"Shapley values are drawn in pairs, at least two of them: samples={samples} is not 4, 6, 8...")
    past, searched = pruned_past(question, pruning)
    game = players_named(question, players, past)
    question.require_affordable(
        samples * game.count, "take fewer samples, players=features, a pruning, or the method kernel_shap"
    )
    total, square = (torch.zeros(len(game), dtype=torch.float64, device=game.patient.device) for _ in range(2))
    n_pairs = samples // 2
    at_once = max(1, rows_at_once(question) // 2)  # pairs
    # Records whose pasts are alike go together, so that a model that restarts need not read much of them again.
    for alike in torch.argsort(game.past, stable=True).split(max(1, at_once // n_pairs)):
        chosen = alike[torch.argsort(game.count[alike], descending=True, stable=True)]
        together = max(1, at_once // len(chosen))
        for first in range(0, n_pairs, together):
            added = _added(question, game, chosen, range(first, min(n_pairs, first + together)))
            there = torch.arange(added.shape[2], device=chosen.device) < game.count[chosen].unsqueeze(1)
            player = (game.first[chosen].unsqueeze(1) + torch.arange(added.shape[2], device=chosen.device))[there]
            total[player] += added.sum(1)[there]
            square[player] += added.square().sum(1)[there]
    mean = total / n_pairs
    variance = (square / n_pairs - mean.square()).clamp(min=0) * n_pairs / (n_pairs - 1)
    error = (variance / n_pairs).sqrt()
    evaluations = samples * (game.count - 1).clamp(min=0) + 2 + searched
    return Explanation(
        game.contributions(mean.to(question.score)),
        evaluations.int(),
        spread=game.contributions(error.to(question.score)),
    )


def _added(question: Question, game: Players, patients: torch.Tensor, pairs: range) -> torch.Tensor:
    """What each player adds, the mean of an order and its reverse [patient, pair, player of the patient] float64.

    Args:
        patients: those with most players first.
        pairs: which orders are drawn.
    """
    count, most = game.count[patients], int(game.count[patients].max())
    shape = (len(patients), most)
    drawn = torch.stack([question.draws.uniform(PERMUTATIONS + pair, shape, patients) for pair in pairs], dim=1).to(
        count.device
    )  # [patient, pair, player]
    position = torch.arange(most, device=count.device)
    drawn = drawn.masked_fill(position >= count.view(-1, 1, 1), math.inf)  # players that there are not come last
    order = torch.argsort(drawn, dim=2)
    turned = (count.unsqueeze(1) - 1 - position).where(position < count.unsqueeze(1), position)
    reverse = order.gather(2, turned.unsqueeze(1).expand_as(order))
    orders = torch.stack([order, reverse], dim=2).flatten(0, 2)  # [row, position]; a row is (patient, pair, direction)
    rows = patients.repeat_interleave(2 * len(pairs))
    added = marginals(question, game, rows, orders)
    by_player = torch.zeros_like(added).scatter_(1, orders, added)
    return by_player.view(len(patients), len(pairs), 2, most).mean(2)


def marginals(question: Question, game: Players, rows: torch.Tensor, orders: torch.Tensor) -> torch.Tensor:
    """What the score gains as each player comes to the baseline, in these orders [row, position] float64.

    Args:
        rows: [row] whose each order is; those with most players first.
        orders: [row, position], players of the patient, from 0; after as many as it has, anything.
    """
    here = {name: tensor[rows] for name, tensor in question.baseline.items()}
    before, whole = question.baseline_score[rows].double(), question.score[rows].double()
    count, past = game.count[rows], game.common_past(rows)
    stops = [past] if past else []
    marks = torch.zeros_like(rows)
    found = torch.zeros(orders.shape, dtype=torch.float64, device=rows.device)
    row = torch.arange(len(rows), device=rows.device)
    for position in range(orders.shape[1]):
        coming, open_rows = int((count > position).sum()), int((count > position + 1).sum())
        after = whole.clone()  # when the last one has come, the record is whole
        if open_rows:
            here = {name: tensor[:open_rows] for name, tensor in here.items()}
            player = game.first[rows[:open_rows]] + orders[:open_rows, position]
            game.move(here, row[:open_rows], player, 1)
            marks = marks[:open_rows] + game.marks(player, past)
            after[:open_rows] = game.score_of(here, rows[:open_rows], stops, [marks] * len(stops)).double()
        found[:coming, position] = (after - before)[:coming]
        before = after
    return found
