"""Prefix integrated gradients: every step's values for the prediction made at that step, the whole prefix scaled.

Integrated gradients (Sundararajan, Taly and Yan 2017, equation 1) of each prefix, kept at its last step, as in the
time-forward tunnel of Enguehard, "Time interpret", arXiv 2306.02968.
"""

from __future__ import annotations

from functools import partial

import torch

from whenwhy.attribution.own_steps import own_step_gradients, step_notes
from whenwhy.attribution.paths import LADDER, gauss_legendre, mean_gradients, on_the_way
from whenwhy.attribution.question import AT_ONCE, Question
from whenwhy.attribution.quick_recurrences import QuickRecurrences
from whenwhy.attribution.registry import Explanation, method
from whenwhy.attribution.targets import has_own_step_scores
from whenwhy.events.sequence_batch import EVENTS, STATIC
from whenwhy.models.sequence_model import Embedded


@method(
    "gradients",
    "each step's values for the prediction made at that step, the whole prefix scaled: leaves out the past's share",
    laws={"zero_on_padding", "alone_equals_batched", "dummy", "symmetry"},
    measures="step_contribution",
    tells_absence=True,
)
def prefix_integrated_gradients(question: Question) -> Explanation:
    """Of the integrated gradients of the record cut after each step t, with its static values, those of step t.

    The past's share, and that of the static values, is left out, so neither a step's attributions nor a prediction's
    sum to a difference of scores; notes "step_score" and "step_baseline_score" [patient, step] are what the whole
    of each prefix's attributions would sum to the difference of, not a number in padding.

    One pass a node gives all prefixes of a causal model: at a node the prefixes of a record share their states, and
    the gradient wanted is that of each step's own cell. It needs a baseline that does not depend on where the prefix
    ends; a "reference" is aligned once, at the end of the record.

    Without completeness to check, more nodes are taken until no step's sum moves by more than the tolerance.

    Raises:
        UserError: the target is about one step.
    """
    way = question.embedded[EVENTS] - question.baseline[EVENTS]
    mean, n_nodes = torch.zeros_like(way), question.evaluations(0)
    sums = torch.full(way.shape[:2], torch.inf, dtype=torch.float64, device=way.device)  # [patient, step]
    open_rows = torch.arange(len(question), device=way.device)
    for nodes in LADDER:
        mean[open_rows] = _mean_own_gradients(question, open_rows, nodes)
        n_nodes[open_rows] = nodes
        total = (mean[open_rows].double() * way[open_rows].double()).flatten(2).sum(2)  # [row, step]
        moved = (total - sums[open_rows]).abs().amax(1)
        sums[open_rows] = total
        open_rows = open_rows[moved > question.tolerance]
        if not len(open_rows):
            break
    gradients = {EVENTS: mean, STATIC: torch.zeros_like(question.embedded[STATIC])}
    rows = torch.arange(len(question), device=way.device)
    score, baseline_score = (
        own_step_gradients(question, of, of[EVENTS].unsqueeze(0), rows)[0][0]
        for of in (question.embedded, question.baseline)
    )
    notes = step_notes(question, score, baseline_score)
    return Explanation(question.contributions(gradients), n_nodes, notes=notes, gradients=gradients)


def _prefix_scores(question: Question, embedded: Embedded, rows: torch.Tensor) -> torch.Tensor:
    """The sum of all prefixes' scores [row]; each has a gradient in its last step alone."""
    with QuickRecurrences(own_steps=True):
        scores = question.target.prefix_scores(question.model, embedded, question.told_lengths[rows])
    return (scores * question.true_steps[rows]).sum(1)


def _mean_own_gradients(question: Question, rows: torch.Tensor, nodes: int) -> torch.Tensor:
    """The mean of each step's own gradients over the path of its whole prefix [row, step, ...]."""
    if has_own_step_scores(question.model, question.target) and question.target.step is None:
        return mean_gradients(question, rows, nodes, partial(_prefix_scores, question))[EVENTS]
    record: Embedded = {name: tensor[rows] for name, tensor in question.embedded.items()}
    begin: Embedded = {name: t[rows] for name, t in question.baseline.items()} if question.given.embedded else {}
    places, shares = gauss_legendre(nodes)
    mean = torch.zeros_like(record[EVENTS])
    for first in range(0, nodes, AT_ONCE):
        at = torch.as_tensor(places[first : first + AT_ONCE])
        share = torch.as_tensor(shares[first : first + AT_ONCE])
        flat = {name: on_the_way(at, tensor, begin.get(name)).flatten(0, 1) for name, tensor in record.items()}
        _, gradients = own_step_gradients(question, flat, flat[EVENTS].unsqueeze(0), rows.repeat(len(at)))
        per_node = gradients[0].unflatten(0, (len(at), len(rows)))  # [node, row, step, ...]
        mean += torch.tensordot(share.to(per_node), per_node, dims=1)
    return mean
