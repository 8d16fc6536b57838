"""The predictions that a model makes at each step of a record, and how each changes with that step alone."""

from __future__ import annotations

from functools import partial

import torch

from whenwhy.attribution.question import Question
from whenwhy.attribution.targets import has_own_step_scores
from whenwhy.errors import UserError
from whenwhy.events.sequence_batch import EVENTS
from whenwhy.models.sequence_model import Embedded, not_dense


def own_step_gradients(
    question: Question, before: Embedded, own: torch.Tensor, rows: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the prediction made at each step, what it is and how it changes with that step alone.

    A causal model that says so (`own_step_logits`) answers for all steps at once; of others each prefix is a
    record of its own.

    Args:
        before: embeddings [row, ...] whose steps, up to the one before, stand as they are.
        own: the step's own embeddings [node, row, step, ...], any number of them for the same past.
        rows: [row] whose each is.

    Returns:
        The explained number of the record cut after each step [node, row, step], 0 in padding, and its
        gradients, shaped as `own`.

    Raises:
        UserError: the target is about one step.
    """
    if question.target.step is not None:
        raise UserError(
            f"Every step's own prediction is explained here: name the target without @{question.target.step}."
        )
    reason = not_dense(question.model)
    if reason is not None:
        raise UserError(
            f"Each step's own prediction needs the record cut after it, and {reason}: explain the whole record."
        )
    lengths, true = question.lengths[rows], question.true_steps[rows]  # [row], [row, step]
    if has_own_step_scores(question.model, question.target):
        leaf = own.detach().requires_grad_()
        with torch.enable_grad():
            told = question.target.own_step_scores(question.model, before, leaf) * true
            (gradients,) = torch.autograd.grad(told.sum(), leaf)
        return told.detach(), gradients
    scores, gradients = own.new_zeros(own.shape[:3]), torch.zeros_like(own)
    for step in range(own.shape[2]):
        here = torch.nonzero(true[:, step]).squeeze(1)
        if not len(here):
            break
        prefix = {name: torch.cat([tensor[here]] * len(own)) for name, tensor in before.items()}
        last = own[:, here, step].flatten(0, 1).unsqueeze(1)  # [node * row, 1, ...]
        prefix[EVENTS] = torch.cat([prefix[EVENTS][:, :step], last], dim=1)
        cut = lengths.new_full((len(last),), step + 1)
        score, slopes = question.with_slopes(partial(question.target.score, question.model, lengths=cut), prefix)
        scores[:, here, step] = score.view(len(own), -1)
        gradients[:, here, step] = slopes[EVENTS][:, step].unflatten(0, (len(own), -1))
    return scores, gradients


def step_notes(question: Question, score: torch.Tensor, baseline_score: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a method tells of every step's own prediction, each [patient, step], not a number in padding."""
    both = {"step_score": score, "step_baseline_score": baseline_score}
    return {name: told.masked_fill(~question.true_steps, torch.nan) for name, told in both.items()}
