"""Integrated gradients, with as many quadrature nodes as each sequence needs.

Sundararajan, Taly and Yan, "Axiomatic attribution for deep networks", ICML 2017, equation 1.
"""

from __future__ import annotations

import torch

from whenwhy.attribution.paths import LADDER, mean_gradients
from whenwhy.attribution.question import Question
from whenwhy.attribution.registry import Explanation, method


@method(
    "gradients",
    "the gradient's mean along the way from the baseline, complete within a tolerance",
    laws={"completeness", "linearity", "zero_on_padding", "alone_equals_batched", "dummy", "symmetry"},
    tells_absence=True,
)
def integrated_gradients(question: Question) -> Explanation:
    """The gradients' mean along the straight path from the baseline to the record, times the way.

    The first layer is linear, so scaling a record's bag weights by a scales its embeddings by a, and
    the path is walked there. |sum of contributions - (score - baseline score)| is each sequence's
    residual; only those over the tolerance are done again with more nodes.
    """
    way = {name: question.embedded[name] - question.baseline[name] for name in question.embedded}
    wanted = (question.score - question.baseline_score).double()
    mean = {name: torch.zeros_like(tensor) for name, tensor in question.embedded.items()}
    n_nodes = question.evaluations(0)
    open_rows = torch.arange(len(question), device=wanted.device)
    for nodes in LADDER:
        gradients = mean_gradients(question, open_rows, nodes)
        total = torch.zeros(len(open_rows), dtype=torch.float64, device=wanted.device)
        for name, gradient in gradients.items():
            mean[name][open_rows] = gradient
            total += (gradient.double() * way[name][open_rows].double()).flatten(1).sum(1)
        n_nodes[open_rows] = nodes
        # A tenth is left for the grid that stored rows lie on.
        open_rows = open_rows[(total - wanted[open_rows]).abs() > 0.9 * question.tolerance]
        if not len(open_rows):
            break
    return Explanation(question.contributions(mean), n_nodes, gradients=mean)
