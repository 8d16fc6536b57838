"""Kernel SHAP: Shapley values as weighted least squares over sampled coalitions, with TimeSHAP's players and pruning.

Lundberg and Lee, "A unified approach to interpreting model predictions", NeurIPS 2017, theorem 2; under the constraint
of completeness, with coalitions in pairs, as in Covert and Lee, "Improving KernelSHAP", AISTATS 2021; players and
pruning as in TimeSHAP, see `pruning`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from whenwhy.attribution.players import Players, rows_at_once
from whenwhy.attribution.pruning import players_named, pruned_past
from whenwhy.attribution.question import Question
from whenwhy.attribution.registry import Explanation, method
from whenwhy.errors import UserError

#: Draws of coalitions begin at this stream.
COALITIONS = 1 << 18


@method(
    "perturbation",
    "Shapley values by least squares over sampled coalitions, as TimeSHAP estimates them: complete whatever is drawn",
    laws={"completeness", "linearity", "zero_on_padding", "alone_equals_batched", "dummy"},
)
def kernel_shap(question: Question, *, players: str = "cells", samples: int = 512, pruning: float = 0.0) -> Explanation:
    """The additive game nearest to the score over sampled coalitions, that sums to the score less the baseline's.

    Coalitions are drawn by the Shapley kernel, each with its complement; if there are no more than the samples, all are
    taken, and the values are exact. With fewer coalitions than players the solution is the shortest of many. Otherwise
    as `shapley`.

    Args:
        players: "cells", "features" or "events".
        samples: coalitions that are drawn at most, an even number of at least 2.
        pruning: the tolerance under which a past is one player; 0: none is.

    Raises:
        UserError: no such players, a number of samples that makes no pairs, or a tolerance under 0.
    """
    if samples < 2 or samples % 2:
        raise UserError(f"Coalitions are drawn with their complements: samples={samples} is not 2, 4, 6...")
    past, searched = pruned_past(question, pruning)
    game = players_named(question, players, past)
    question.require_affordable(torch.full_like(game.count, samples), "take fewer samples, or integrated_gradients")
    shares = torch.zeros(len(game), dtype=torch.float64, device=game.patient.device)
    gain = question.score.double() - question.baseline_score.double()
    evaluations = 2 + searched
    alone = torch.nonzero(game.count == 1).squeeze(1)
    shares[game.first[alone]] = gain[alone]
    by_past = torch.argsort(game.past, stable=True)  # alike ones go together, and need not be read again
    several, together = by_past[game.count[by_past] > 1], max(1, rows_at_once(question) // samples)
    for begin in range(0, len(several), together):
        patients = several[begin : begin + together]
        drawn = [_coalitions(question, patient, int(game.count[patient]), samples) for patient in patients]
        scores = _scores(question, game, patients, [members for members, _ in drawn])
        for patient, (members, weights), told in zip(patients, drawn, scores, strict=True):
            first, count = int(game.first[patient]), int(game.count[patient])
            gains = told - question.baseline_score[patient].double()
            shares[first : first + count] = constrained_least_squares(members.double(), gains, gain[patient], weights)
            evaluations[patient] += len(members)
    return Explanation(game.contributions(shares.to(question.score)), evaluations.int())


def _coalitions(
    question: Question, patient: torch.Tensor, count: int, samples: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Who is in each coalition [coalition, player] bool, and what it weighs [coalition] float64.

    All there are, by the Shapley kernel, where they are no more than the samples; else each that was drawn by
    the kernel, with its complement, as often as it was drawn.
    """
    size = torch.arange(1, count, dtype=torch.float64)
    kernel = 1 / (size * (count - size))  # of all coalitions of a size, the number left out
    if count < 32 and 2**count - 2 <= samples:
        members = torch.arange(1, 2**count - 1).unsqueeze(1) >> torch.arange(count) & 1 == 1
        sizes = members.sum(1)
        weights = kernel[sizes - 1] / torch.bincount(sizes)[sizes]
        return members.to(patient.device), weights.to(patient.device)
    row, draws = patient.unsqueeze(0), question.draws
    share = torch.cumsum(kernel, 0) / kernel.sum()
    sizes = 1 + torch.searchsorted(share, draws.uniform(COALITIONS, (1, samples // 2), row)[0])
    rank = draws.uniform(COALITIONS + 1, (1, samples // 2, count), row)[0].argsort(1).argsort(1)  # [coalition, player]
    drawn = rank < sizes.clamp(max=count - 1).unsqueeze(1)
    members, times = torch.unique(torch.cat([drawn, ~drawn]), dim=0, return_counts=True)
    return members.to(patient.device), times.double().to(patient.device)


def _scores(
    question: Question, game: Players, patients: torch.Tensor, members: list[torch.Tensor]
) -> Sequence[torch.Tensor]:
    """The scores [coalition] float64 of some patients' players beside the baseline, for each patient.

    Args:
        members: [coalition, player] for each patient.
    """
    at_once = rows_at_once(question)
    rows = torch.cat([patient.expand(len(who)) for patient, who in zip(patients, members, strict=True)])
    moves, before = [], 0
    for patient, who in zip(patients, members, strict=True):
        row, player = torch.nonzero(who, as_tuple=True)
        moves.append(torch.stack([row + before, player + game.first[patient]]))
        before += len(who)
    row, player = torch.cat(moves, dim=1)  # [move], rows ascending
    found = []
    for begin in range(0, len(rows), at_once):
        some = rows[begin : begin + at_once]
        embedded = {name: tensor[some] for name, tensor in question.baseline.items()}
        here = (row >= begin) & (row < begin + len(some))
        game.move(embedded, row[here] - begin, player[here], 1)
        stops, own_row, own_player = game.stops(some), row[here] - begin, player[here]
        marks = [torch.zeros_like(some).index_add_(0, own_row, game.marks(own_player, stop)) for stop in stops]
        found.append(game.score_of(embedded, some, stops, marks).double())
    scores: Sequence[torch.Tensor] = torch.cat(found).split([len(who) for who in members])
    return scores


def constrained_least_squares(
    members: torch.Tensor, gains: torch.Tensor, gain: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """The shares [player] that sum to `gain` and whose sums over members are nearest to the coalitions' gains.

    Args:
        members: [coalition, player] 0 or 1; gains, weights: [coalition].

    Example:
        >>> members = torch.tensor([[1.0, 0], [0, 1]], dtype=torch.float64)
        >>> gains, gain = torch.tensor([1.0, 4]).double(), torch.tensor(9.0).double()
        >>> constrained_least_squares(members, gains, gain, torch.ones(2).double()).round(decimals=6)
        tensor([3., 6.], dtype=torch.float64)
    """
    # The last player takes what the others leave, so the constraint is gone.
    last = members[:, -1]
    others, wanted = members[:, :-1] - last.unsqueeze(1), gains - last * gain
    root = weights.sqrt()
    solution = torch.linalg.pinv(root.unsqueeze(1) * others) @ (root * wanted)
    return torch.cat([solution, (gain - solution.sum()).unsqueeze(0)])
