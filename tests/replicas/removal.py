"""Occlusion and Shapley values the slow way: dense records, every coalition scored by itself, float64.

A record and its baseline are dense numbers of [step, feature value] and static ones of [feature value]. A player is a
set of their places, ("events", step, feature value) or ("static", 0, feature value). Imports nothing from the package.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from math import factorial

import torch

Place = tuple[str, int, int]
Dense = dict[str, torch.Tensor]
Score = Callable[[Dense], float]


def mixture(record: Dense, baseline: Dense, places: Iterable[Place]) -> Dense:
    """The baseline with the record's numbers in these places."""
    mixed = {name: tensor.clone() for name, tensor in baseline.items()}
    for name, step, value in places:
        where = (step, value) if name == "events" else (value,)
        mixed[name][where] = record[name][where]
    return mixed


def every_place(record: Dense) -> list[Place]:
    """All places of a record."""
    steps, values = record["events"].shape
    return [("events", step, value) for step in range(steps) for value in range(values)] + [
        ("static", 0, value) for value in range(len(record["static"]))
    ]


def players_of(record: Dense, baseline: Dense, kind: str) -> dict[tuple[object, ...], list[Place]]:
    """The places of each player, by a name: what is recorded goes by `kind`, what is absent stands for itself.

    Places at which record and baseline are equal are no one's.
    """
    found: dict[tuple[object, ...], list[Place]] = {}
    for name, step, value in every_place(record):
        own = record[name][step, value] if name == "events" else record[name][value]
        other = baseline[name][step, value] if name == "events" else baseline[name][value]
        if own == other:
            continue
        absent = bool(own == 0)
        of = {"cells": (step, value), "features": (value,), "events": (step,)}[kind]
        if absent:
            of = {"cells": (step,), "features": (), "events": (step,)}[kind]
        found.setdefault((name, "absent" if absent else "recorded", *of), []).append((name, step, value))
    return found


def dense_occlusion(score: Score, record: Dense, baseline: Dense, players: Sequence[Iterable[Place]]) -> list[float]:
    """What the score loses when a player's places are the baseline's, each alone."""
    whole = every_place(record)
    return [
        score(record) - score(mixture(record, baseline, [place for place in whole if place not in set(player)]))
        for player in players
    ]


def exact_shapley(score: Score, record: Dense, baseline: Dense, players: Sequence[Sequence[Place]]) -> list[float]:
    """Shapley 1953: over all coalitions without a player, |S|! (n - |S| - 1)! / n! times what it adds to them."""
    n = len(players)
    value = {
        coalition: score(mixture(record, baseline, [place for at in coalition for place in players[at]]))
        for size in range(n + 1)
        for coalition in combinations(range(n), size)
    }
    found = []
    for player in range(n):
        total = 0.0
        for coalition in value:
            if player not in coalition:
                weight = factorial(len(coalition)) * factorial(n - len(coalition) - 1) / factorial(n)
                total += weight * (value[tuple(sorted((*coalition, player)))] - value[coalition])
        found.append(total)
    return found


def dense_pruned_past(score: Score, record: Dense, baseline: Dense, tolerance: float) -> int:
    """The most first steps, fewer than all, whose exact Shapley value beside all the rest is within the tolerance."""
    whole = every_place(record)
    for steps in range(len(record["events"]) - 1, 0, -1):
        past = [place for place in whole if place[0] == "events" and place[1] < steps]
        rest = [place for place in whole if place not in set(past)]
        if abs(exact_shapley(score, record, baseline, [past, rest])[0]) <= tolerance:
            return steps
    return 0


def dense_augmented_occlusion(
    score: Score, record: Dense, other: Dense, codes: Sequence[int]
) -> dict[tuple[str, int, int], float]:
    """What the score loses when a code's values in a step are another record's, by (stream, step, code).

    Args:
        other: of the same shape, the last steps side by side.
        codes: [feature value]; -1 is a code of its own.
    """
    found = {}
    for name, step, value in every_place(record):
        own = record[name][step, value] if name == "events" else record[name][value]
        code = codes[value] if codes[value] >= 0 else len(codes) + value
        if own == 0 or (name, step, code) in found:
            continue
        same = [v for v in range(len(codes)) if (codes[v] if codes[v] >= 0 else len(codes) + v) == code]
        changed = mixture(other, record, [(name, step, v) for v in same])
        found[name, step, code] = score(record) - score(changed)
    return found
