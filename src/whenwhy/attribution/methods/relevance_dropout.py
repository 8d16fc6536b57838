"""Layer-wise relevance with backward Monte-Carlo dropout: how sure the relevance is.

Cho et al., "Interpretation of deep temporal representations by selective visualization of internally activated
nodes", arXiv 2004.12538: the forward pass is left alone, backward messages are dropped at random, many times.
"""

from __future__ import annotations

import torch

from whenwhy.attribution.contributions import Contributions
from whenwhy.attribution.methods.layerwise_relevance import Relevance, bias_share, relevance
from whenwhy.attribution.question import Question
from whenwhy.attribution.registry import Explanation, method
from whenwhy.errors import UserError


@method(
    "relevance",
    "layer-wise relevance, its mean and spread when backward messages are dropped at random",
    laws={"linearity", "zero_on_padding", "alone_equals_batched", "dummy", "symmetry"},
)
def relevance_dropout(question: Question, *, runs: int = 20, dropout: float = 0.2, epsilon: float = 0.0) -> Explanation:
    """The mean relevance over the runs, and as spread its standard deviation from run to run.

    Messages through the weights of linear and recurrent layers are dropped, the same for every patient; those
    from embeddings to feature values are not. The mean tends to the plain relevance.
    """
    if runs < 2 or not 0 < dropout < 1 or epsilon < 0:
        raise UserError("relevance_dropout needs at least 2 runs, a dropout between 0 and 1 and an epsilon from 0.")
    names = list(question.weights)
    sums = {name: torch.zeros_like(question.weights[name], dtype=torch.float64) for name in names}
    squares = {name: torch.zeros_like(tensor) for name, tensor in sums.items()}
    for run in range(runs):
        rule = Relevance(epsilon, dropout, seed=question.seed * 1_000_003 + run)
        found = question.contributions(relevance(question, rule))
        for name in names:
            told = found.values[name].double()
            sums[name] += told
            squares[name] += told.square()
    mean = {name: total / runs for name, total in sums.items()}
    spread = {
        name: ((squares[name] / runs - mean[name].square()).clamp(min=0) * runs / (runs - 1)).sqrt() for name in names
    }
    contributions = Contributions({name: tensor.to(question.weights[name]) for name, tensor in mean.items()}, {})
    notes = {"bias_share": bias_share(question, question.totals(contributions))}
    return Explanation(contributions, question.evaluations(runs), Contributions(spread, {}), notes)
