"""The players of TimeSHAP, and the past that becomes one of them because it hardly matters.

Bento, Saleiro, Cruz, Figueiredo and Bizarro, "TimeSHAP: explaining recurrent models through sequence perturbations",
KDD 2021: its events, features and cells, and its temporal coalition pruning.
"""

from __future__ import annotations

import torch

from whenwhy.attribution.players import CELL, FEATURE_VALUE, STEP, Players, rows_at_once
from whenwhy.attribution.question import Question
from whenwhy.errors import UserError, unknown_name
from whenwhy.events.sequence_batch import EVENTS

#: The units of players by the names that TimeSHAP gives them.
PLAYERS = {"events": STEP, "features": FEATURE_VALUE, "cells": CELL}


def players_named(question: Question, name: str, past: torch.Tensor | None) -> Players:
    """The players "events", "features" or "cells", the first `past` steps of each record [patient] being one.

    Raises:
        UserError: no such players.
    """
    if name not in PLAYERS:
        raise unknown_name("players", name, PLAYERS)
    return Players(question, PLAYERS[name], past)


def pruned_past(question: Question, tolerance: float) -> tuple[torch.Tensor | None, torch.Tensor]:
    """The most first steps of each record whose joint Shapley value is within the tolerance, and the evaluations it took.

    The game has two players, the past and all the rest of the record, static values included, so its Shapley value is
    exact: the mean of what the past adds to the baseline and to the rest. The past is tried from all steps but the last
    down to the first step alone.

    Args:
        tolerance: in units of the score; 0: nothing is pruned, and None is told.

    Returns:
        [patient] steps, 0 where no past is within the tolerance; [patient] evaluations.

    Raises:
        UserError: a tolerance under 0.
    """
    evaluations = torch.zeros_like(question.lengths)
    if tolerance < 0:
        raise UserError(f"A past is pruned if its Shapley value is within a tolerance: {tolerance} is under 0.")
    if tolerance == 0:
        return None, evaluations
    found = torch.zeros_like(question.lengths)
    at_once = max(1, rows_at_once(question) // 2)
    for rows in torch.arange(len(question), device=found.device).split(at_once):
        steps = question.lengths[rows] - 1
        while len(rows := rows[steps > 0]):
            steps = steps[steps > 0]
            value = _value_of_past(question, rows, steps)
            evaluations[rows] += 2
            within = value.abs() <= tolerance
            found[rows[within]] = steps[within]
            rows, steps = rows[~within], steps[~within] - 1
    return found, evaluations


def _value_of_past(question: Question, rows: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """The Shapley value of the first steps, of two players [row]."""
    past, rest = {}, {}
    for name, record in question.embedded.items():
        own, theirs = record[rows], question.baseline[name][rows]
        if name != EVENTS:
            past[name], rest[name] = theirs, own
            continue
        before = torch.arange(record.shape[1], device=rows.device) < steps.unsqueeze(1)  # [row, step]
        before = before.view(*before.shape, *[1] * (record.ndim - 2))
        past[name], rest[name] = torch.where(before, own, theirs), torch.where(before, theirs, own)
    both = {name: torch.cat([past[name], rest[name]]) for name in past}
    of_past, of_rest = question.score_of(both, rows.repeat(2)).double().chunk(2)
    alone, joining = of_past - question.baseline_score[rows], question.score[rows] - of_rest
    return (alone + joining) / 2
