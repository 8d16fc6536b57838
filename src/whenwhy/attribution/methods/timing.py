"""TIMING: integrated gradients along paths on which random segments of the record stay.

Jang, Kim and Yang, "TIMING: temporality-aware integrated gradients for time series explanation", ICML 2025,
section 4.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from whenwhy.attribution.averages import Average
from whenwhy.attribution.contributions import PerValue
from whenwhy.attribution.question import Question
from whenwhy.attribution.registry import Explanation, method
from whenwhy.errors import UserError
from whenwhy.events.hashing import GAMMA, mixed
from whenwhy.events.sequence_batch import EVENTS
from whenwhy.models.sequence_model import Embedded


@method(
    "gradients",
    "integrated gradients along paths on which random segments of time and features stay: not complete",
    laws={"linearity", "zero_on_padding", "alone_equals_batched", "dummy"},
)
def timing(question: Question, *, samples: int = 50, segments: int = 8, features: float = 0.125) -> Explanation:
    """The way times the gradient's mean over path and segments, of those draws in which the value itself moves.

    In every draw `segments` segments stay at the record, each a random range of steps of a random length and a
    random part of all feature values, and the rest is a place on the way from the baseline; the places of all draws
    are the path's midpoints, each with segments of its own. A value's mean is over the draws in which it is in no
    segment. Static values are at no step: a segment holds them
    by their feature value. What is absent always moves.

    The paper's segments are of one dimension each; of thousands of feature values one would hardly ever be met, so
    a segment here holds a part of them, `features`. The spread has the path's own bend in it, so it overstates.

    Values that play the same part get equal shares in expectation only, since segments tell them apart.

    Args:
        samples: draws; a value that stays in all of them gets 0.
        features: the part of the feature values that a segment holds.

    Raises:
        UserError: no samples, fewer than 0 segments, or a part outside 0 to 1.
    """
    if samples < 1 or segments < 0 or not 0 <= features <= 1:
        raise UserError(
            f"timing needs at least 1 of samples, 0 of segments, and features from 0 to 1, not {samples}, {segments} "
            f"and {features:g}."
        )
    average = Average()
    moving = [
        moves_of(question, drawn, sample, features) for sample, drawn in enumerate(_drawn(question, samples, segments))
    ]
    for gradients, moves in zip(question.gradients_along(_on_paths(question, moving)), moving, strict=True):
        average.add(question.contributions(gradients), moves)
    return Explanation(average.mean, question.evaluations(samples), spread=average.standard_error)


def _drawn(question: Question, samples: int, segments: int) -> tuple[torch.Tensor, ...]:
    """Random numbers of each sample [patient, segment, 3]: a segment's length, begin and feature values."""
    drawn = question.draws.uniform(0, (len(question), samples, segments, 3)).to(question.lengths.device)
    return drawn.unbind(1)


def moves_of(question: Question, drawn: torch.Tensor, sample: int, features: float) -> PerValue:
    """True for each value that is in no segment of a sample [value] a stream.

    Feature values lie on a circle in an order that is random and new in each sample; a segment holds an arc of it.
    """
    length = 1 + (drawn[:, :, 0] * question.lengths.unsqueeze(1)).long()  # [patient, segment]
    begin = (drawn[:, :, 1] * (question.lengths.unsqueeze(1) - length + 1)).long()
    circle = _circle(question.model.vocabulary_size, sample).to(drawn)  # [feature value]
    found = {}
    for name, values in question.values.items():
        stays = torch.zeros_like(values.step, dtype=torch.bool)
        for segment in range(drawn.shape[1]):
            arc = drawn[values.patient, segment, 2]
            inside = torch.remainder(circle[values.id] - arc, 1) < features
            if name == EVENTS:
                since = values.step - begin[values.patient, segment]
                inside &= (since >= 0) & (since < length[values.patient, segment])
            stays |= inside
        found[name] = ~stays
    return found


def _circle(size: int, sample: int) -> torch.Tensor:
    """Where on a circle of length 1 each feature value lies, a hash of itself and the sample [feature value]."""
    with np.errstate(over="ignore"):
        hashed = mixed(mixed(np.arange(1, size + 1, dtype=np.uint64)) + GAMMA * np.uint64(sample + 1))
    return torch.from_numpy((hashed >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def _on_paths(question: Question, moving: list[PerValue]) -> Iterator[Embedded]:
    """Each sample's place: what stays is the record's, the rest has come as far as the sample's midpoint."""
    for sample, moves in enumerate(moving):
        place = (sample + 0.5) / len(moving)
        shares = {name: torch.where(moved, place, 1.0) for name, moved in moves.items()}
        absent = {
            name: tensor.new_full(tensor.shape[: 2 if name == EVENTS else 1], place)
            for name, tensor in question.embedded.items()
        }
        yield question.at(shares, absent)
