"""TimeSHAP over events the slow way: one dense sequence at a time, least squares over sampled coalitions of its steps.

Bento et al., KDD 2021. For benchmarks where the package itself is not installed. Imports nothing from whenwhy.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

#: Scores [sample, 1] of dense sequences [sample, step, feature].
Forward = Callable[[np.ndarray], np.ndarray]


def pruned_past(forward: Forward, sequence: np.ndarray, baseline: np.ndarray, tolerance: float) -> int:
    """The most first steps, fewer than all, whose exact Shapley value of two players is within the tolerance."""
    empty = np.broadcast_to(baseline, sequence.shape)
    for steps in range(len(sequence) - 1, 0, -1):
        past, rest = empty.copy(), empty.copy()
        past[:steps], rest[steps:] = sequence[:steps], sequence[steps:]
        nothing, of_past, of_rest, whole = forward(np.stack([empty, past, rest, sequence]))[:, 0]
        if abs(((of_past - nothing) + (whole - of_rest)) / 2) <= tolerance:
            return steps
    return 0


def event_values(
    forward: Forward,
    sequence: np.ndarray,
    baseline: np.ndarray,
    past: int,
    samples: int,
    random: np.random.Generator,
) -> np.ndarray:
    """The Shapley values of the pruned past (where there is one), then of every later step.

    Args:
        sequence: [step, feature]; baseline: [feature].
        samples: coalitions, each with its complement.
    """
    first = np.arange(past, len(sequence))
    players = [np.arange(past)] * (past > 0) + [np.array([step]) for step in first]
    count = len(players)
    empty = np.broadcast_to(baseline, sequence.shape)
    nothing, whole = forward(np.stack([empty, sequence]))[:, 0]
    if count == 1:
        return np.array([whole - nothing])
    sizes = np.arange(1, count)
    kernel = 1 / (sizes * (count - sizes))
    members = np.zeros((samples, count), bool)
    for at in range(0, samples, 2):
        chosen = random.choice(count, random.choice(sizes, p=kernel / kernel.sum()), replace=False)
        members[at, chosen] = True
        members[at + 1] = ~members[at]
    there = np.zeros((samples, len(sequence)), bool)
    for number, steps in enumerate(players):
        there[:, steps] = members[:, [number]]
    gains = forward(np.where(there[:, :, None], sequence, baseline))[:, 0] - nothing
    last = members[:, -1].astype(float)
    found = np.linalg.lstsq(members[:, :-1] - last[:, None], gains - last * (whole - nothing), rcond=None)[0]
    return np.append(found, whole - nothing - found.sum())
