"""Kernel SHAP: Shapley values as weighted least squares over sampled coalitions, with TimeSHAP's players and pruning.

Lundberg and Lee, "A unified approach to interpreting model predictions", NeurIPS 2017, theorem 2; under the constraint
of completeness, with coalitions in pairs, as in Covert and Lee, "Improving KernelSHAP", AISTATS 2021; players and
pruning as in TimeSHAP, see `pruning`.
"""

from __future__ import annotations

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

    Coalitions are drawn by the Shapley kernel, so that all weigh the same in the squares, each with its complement.
    With fewer than about as many coalitions as players the solution is the shortest of many. Otherwise as `shapley`.

    Args:
        players: "cells", "features" or "events".
        samples: coalitions, an even number of at least 2.
        pruning: the tolerance under which a past is one player; 0: none is.

    Raises:
        UserError: no such players, a number of samples that makes no pairs, or a tolerance under 0.
    """
    if samples < 2 or samples % 2:
        raise UserError(f"Coalitions are drawn with their complements: samples={samples} is not 2, 4, 6...")
    past, searched = pruned_past(question, pruning)
    game = players_named(question, players, past)
    shares = torch.zeros(len(game), dtype=torch.float64, device=game.patient.device)
    gain = question.score.double() - question.baseline_score.double()
    alone = torch.nonzero(game.count == 1).squeeze(1)
    shares[game.first[alone]] = gain[alone]
    for patients in torch.nonzero(game.count > 1).squeeze(1).split(max(1, rows_at_once(question) // samples)):
        members = [_coalitions(question, patient, int(game.count[patient]), samples) for patient in patients]
        scores = _scores(question, game, patients, members) - question.baseline_score[patients].double().unsqueeze(1)
        for patient, who, gains in zip(patients, members, scores, strict=True):
            first, count = int(game.first[patient]), int(game.count[patient])
            shares[first : first + count] = constrained_least_squares(who.double(), gains, gain[patient])
    evaluations = samples * (game.count > 1) + 2 + searched
    return Explanation(game.contributions(shares.to(question.score)), evaluations.int())


def _coalitions(question: Question, patient: torch.Tensor, count: int, samples: int) -> torch.Tensor:
    """Who is in each [coalition, player] bool, each drawn one followed by its complement."""
    row, size = question.random_rows(patient.unsqueeze(0)), torch.arange(1, count, dtype=torch.float64)
    kernel = torch.cumsum(1 / (size * (count - size)), 0)  # of all coalitions of a size, the number left out
    which, who = question.draws, (1, samples // 2, count)
    sizes = 1 + torch.searchsorted(kernel / kernel[-1], which.uniform(COALITIONS, (1, samples // 2), row)[0])
    rank = which.uniform(COALITIONS + 1, who, row)[0].argsort(1).argsort(1)  # [coalition, player]
    members = (rank < sizes.clamp(max=count - 1).unsqueeze(1)).to(patient.device)
    return torch.stack([members, ~members], dim=1).flatten(0, 1)


def _scores(question: Question, game: Players, patients: torch.Tensor, members: list[torch.Tensor]) -> torch.Tensor:
    """The score of each coalition of some patients' players beside the baseline [patient, coalition] float64.

    Args:
        members: [coalition, player] for each patient; all have as many coalitions.
    """
    samples, at_once = len(members[0]), rows_at_once(question)
    rows = patients.repeat_interleave(samples)
    moves = []
    for at, (patient, who) in enumerate(zip(patients, members, strict=True)):
        row, player = torch.nonzero(who, as_tuple=True)
        moves.append(torch.stack([row + at * samples, player + game.first[patient]]))
    row, player = torch.cat(moves, dim=1)  # [move], rows ascending
    found = []
    for begin in range(0, len(rows), at_once):
        some = rows[begin : begin + at_once]
        embedded = {name: tensor[some] for name, tensor in question.baseline.items()}
        here = (row >= begin) & (row < begin + len(some))
        game.move(embedded, row[here] - begin, player[here], 1)
        found.append(question.score_of(embedded, some).double())
    return torch.cat(found).view(len(patients), samples)


def constrained_least_squares(members: torch.Tensor, gains: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    """The shares [player] that sum to `gain` and whose sums over members are nearest to the coalitions' gains.

    Args:
        members: [coalition, player] 0 or 1, gains: [coalition].

    Example:
        >>> members = torch.tensor([[1.0, 0], [0, 1]], dtype=torch.float64)
        >>> constrained_least_squares(members, torch.tensor([1.0, 4]).double(), torch.tensor(9.0).double())
        tensor([3., 6.], dtype=torch.float64)
    """
    # The last player takes what the others leave, so the constraint is gone.
    last = members[:, -1]
    others, wanted = members[:, :-1] - last.unsqueeze(1), gains - last * gain
    solution = torch.linalg.pinv(others) @ wanted
    return torch.cat([solution, (gain - solution.sum()).unsqueeze(0)])
