"""Methods of the gradient family the slow way: one dense record, one draw, one node, one step at a time, float64.

Saliency (Simonyan et al. 2014), SmoothGrad (Smilkov et al. 2017), expected gradients (Erion et al. 2021, equation 3),
TIMING (Jang et al. 2025) and integrated gradients (Sundararajan et al. 2017, equation 1) of last steps and prefixes.
A score takes events [step, feature value] and static [feature value]. Imports nothing from the package.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

Record = tuple[torch.Tensor, torch.Tensor]
Score = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def gradients(score: Score, record: Record) -> Record:
    """Of both parts of a record."""
    events, static = (part.detach().clone().requires_grad_() for part in record)
    found = torch.autograd.grad(score(events, static), [events, static], materialize_grads=True)
    return found[0], found[1]


def between(begin: Record, end: Record, place: float) -> Record:
    """A place on the straight way."""
    return begin[0] + place * (end[0] - begin[0]), begin[1] + place * (end[1] - begin[1])


def expected_gradients(score: Score, record: Record, references: Sequence[Record], places: Sequence[float]) -> Record:
    """One reference and one place a draw."""
    events, static = torch.zeros_like(record[0]), torch.zeros_like(record[1])
    for reference, place in zip(references, places, strict=True):
        slope = gradients(score, between(reference, record, place))
        events += (record[0] - reference[0]) * slope[0] / len(places)
        static += (record[1] - reference[1]) * slope[1] / len(places)
    return events, static


def smooth_grad(score: Score, record: Record, baseline: Record, noises: Sequence[Record]) -> Record:
    """Noise in every feature value of every step."""
    events, static = torch.zeros_like(record[0]), torch.zeros_like(record[1])
    for noise in noises:
        slope = gradients(score, (record[0] + noise[0], record[1] + noise[1]))
        events += (record[0] - baseline[0]) * slope[0] / len(noises)
        static += (record[1] - baseline[1]) * slope[1] / len(noises)
    return events, static


def stays(steps: int, size: int, segments: Sequence[Sequence[float]], circle: Sequence[float], part: float) -> Record:
    """Which feature values of which step, and which static ones, are in a segment: 1 or 0.

    Args:
        segments: three numbers each in (0, 1): length, begin, and where its arc of the circle begins.
        circle: [feature value] where on it each lies.
    """
    events, static = torch.zeros(steps, size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
    for first, second, arc in segments:
        length = 1 + int(first * steps)
        begin = int(second * (steps - length + 1))
        for value in range(size):
            ahead = circle[value] - arc
            ahead += 1 if ahead < 0 else 0
            if ahead < part:
                static[value] = 1
                for step in range(begin, min(steps, begin + length)):
                    events[step, value] = 1
    return events, static


def timing(score: Score, record: Record, baseline: Record, masks: Sequence[Record]) -> Record:
    """Each draw's midpoint of the path; what its mask holds stays at the record and does not count in its mean."""
    total = [torch.zeros_like(part) for part in record]
    count = [torch.zeros_like(part) for part in record]
    for draw, mask in enumerate(masks):
        place = (draw + 0.5) / len(masks)
        moved = between(baseline, record, place)
        path = tuple(torch.where(mask[at] > 0, record[at], moved[at]) for at in range(2))
        slope = gradients(score, (path[0], path[1]))
        for at in range(2):
            total[at] += (1 - mask[at]) * (record[at] - baseline[at]) * slope[at]
            count[at] += 1 - mask[at]
    return total[0] / count[0].clamp(min=1), total[1] / count[1].clamp(min=1)


def temporal_integrated_gradients(score: Score, record: Record, baseline: Record, nodes: int) -> torch.Tensor:
    """Of every step's own prediction, with the past as it was [step, feature value]."""
    events, static = record
    found = torch.zeros_like(events)
    for step in range(len(events)):
        for place, share in zip(*np.polynomial.legendre.leggauss(nodes), strict=True):
            path = events[: step + 1].clone()
            path[step] = baseline[0][step] + (place + 1) / 2 * (events[step] - baseline[0][step])
            found[step] += (events[step] - baseline[0][step]) * gradients(score, (path, static))[0][step] * share / 2
    return found


def prefix_integrated_gradients(score: Score, record: Record, baseline: Record, nodes: int) -> torch.Tensor:
    """Of every prefix's prediction, with the whole prefix scaled, at its last step [step, feature value]."""
    events = record[0]
    found = torch.zeros_like(events)
    for step in range(len(events)):
        own, begin = (events[: step + 1], record[1]), (baseline[0][: step + 1], baseline[1])
        for place, share in zip(*np.polynomial.legendre.leggauss(nodes), strict=True):
            slope = gradients(score, between(begin, own, (place + 1) / 2))[0][step]
            found[step] += (events[step] - baseline[0][step]) * slope * share / 2
    return found


def integrated_gradients(score: Score, record: Record, baseline: Record, nodes: int) -> Record:
    """Of every feature value of every step, recorded or not, and of the static ones."""
    events, static = torch.zeros_like(record[0]), torch.zeros_like(record[1])
    for place, share in zip(*np.polynomial.legendre.leggauss(nodes), strict=True):
        slope = gradients(score, between(baseline, record, (place + 1) / 2))
        events += (record[0] - baseline[0]) * slope[0] * share / 2
        static += (record[1] - baseline[1]) * slope[1] * share / 2
    return events, static
