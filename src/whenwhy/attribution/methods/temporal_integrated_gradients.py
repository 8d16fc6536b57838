"""Temporal integrated gradients: what each step adds to its own prediction, the past standing as it was.

Sundararajan, Taly and Yan, "Axiomatic attribution for deep networks", ICML 2017, equation 1, for the last step of
every prefix.
"""

from __future__ import annotations

import torch

from whenwhy.attribution.own_steps import own_step_gradients, step_notes
from whenwhy.attribution.paths import LADDER, gauss_legendre, on_the_way
from whenwhy.attribution.question import AT_ONCE, Question
from whenwhy.attribution.registry import Explanation, method
from whenwhy.events.sequence_batch import EVENTS, STATIC
from whenwhy.models.sequence_model import Embedded


@method(
    "gradients",
    "each step's values for the prediction made at that step, the past as it was: complete step by step",
    laws={"steps_complete", "zero_on_padding", "alone_equals_batched", "dummy", "symmetry"},
    measures="step_contribution",
    tells_absence=True,
)
def temporal_integrated_gradients(question: Question) -> Explanation:
    """Integrated gradients of the score of the record cut after step t, along a path that scales step t alone.

    With F_t(past, x_t) that score, a step's attributions sum to F_t(past, x_t) - F_t(past, baseline_t): occlusion
    of the last step. The past is not attributed, and static values are held, so a prediction's attributions do not
    sum to its score difference; notes "step_score" and "step_baseline_score" [patient, step] are the two of
    every step, not a number in padding.

    The states of the past do not change along the path, so a causal model needs one step of its cell a node.

    Raises:
        UserError: the target is about one step.
    """
    before, record = question.embedded, question.embedded[EVENTS]
    way = record - question.baseline[EVENTS]
    patients = torch.arange(len(question), device=record.device)
    ends = torch.stack([record, question.baseline[EVENTS]])  # [end, patient, step, ...]
    scores, _ = own_step_gradients(question, before, ends, patients)  # [end, patient, step]
    wanted = (scores[0] - scores[1]).double()
    mean, n_nodes, open_rows = torch.zeros_like(record), question.evaluations(0), patients
    for nodes in LADDER:
        mean[open_rows] = _mean_own_gradients(question, open_rows, nodes)
        n_nodes[open_rows] = nodes
        total = (mean[open_rows].double() * way[open_rows].double()).flatten(2).sum(2)  # [row, step]
        open_rows = open_rows[(total - wanted[open_rows]).abs().amax(1) > question.tolerance]
        if not len(open_rows):
            break
    gradients = {EVENTS: mean, STATIC: torch.zeros_like(before[STATIC])}
    notes = step_notes(question, scores[0], scores[1])
    return Explanation(question.contributions(gradients), n_nodes, notes=notes, gradients=gradients)


def _mean_own_gradients(question: Question, rows: torch.Tensor, nodes: int) -> torch.Tensor:
    """The mean of each step's own gradients over the path of that step alone [row, step, ...]."""
    before: Embedded = {name: tensor[rows] for name, tensor in question.embedded.items()}
    begin = question.baseline[EVENTS][rows] if question.given.embedded else None
    places, shares = gauss_legendre(nodes)
    mean = torch.zeros_like(before[EVENTS])
    for first in range(0, nodes, AT_ONCE):
        at = torch.as_tensor(places[first : first + AT_ONCE])
        share = torch.as_tensor(shares[first : first + AT_ONCE])
        _, gradients = own_step_gradients(question, before, on_the_way(at, before[EVENTS], begin), rows)
        mean += torch.tensordot(share.to(gradients), gradients, dims=1)
    return mean
