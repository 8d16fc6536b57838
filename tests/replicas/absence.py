"""The mean contribution of absence the slow way: every patient, step and feature value one by one, dense, in float64.

It reads what `prepare` wrote and a model's weights, averages the training records itself, and knows nothing of
gradients that are summed, of grids, or of cells.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from replicas import gradient_methods, relevance
from replicas.integrated_gradients import dense_score

Row = dict[str, Any]
Record = tuple[np.ndarray, np.ndarray]  # [step, feature value], [feature value]
Weights = dict[str, torch.Tensor]

#: Contributions of all feature values, recorded or not, of a record beside its baseline.
Explain = Callable[[Weights, Record, Record], Record]


def dense(row: Row, size: int) -> Record:
    """What each step weighs of each feature value, and the record's static ones."""
    events, static = np.zeros((len(row["step_minutes"]), size)), np.zeros(size)
    for step, value, weight in zip(row["event_step"], row["event_id"], _weights(row, "event"), strict=True):
        events[step, value] += weight
    for value, weight in zip(row["static_id"], _weights(row, "static"), strict=True):
        static[value] += weight
    return events, static


def _weights(row: Row, kind: str) -> list[float]:
    return row[f"{kind}_weight"] or [1.0] * len(row[f"{kind}_id"])


def rates(rows: Sequence[Row], size: int) -> Record:
    """What a step, and a record, of training patients weighs of each feature value on average."""
    training = [dense(row, size) for row in rows if row["split"] == "train"]
    return (
        sum(events.sum(0) for events, _ in training) / sum(len(events) for events, _ in training),
        sum(static for _, static in training) / len(training),
    )


def integrated_gradients(weights: Weights, record: Record, baseline: Record, nodes: int = 12) -> Record:
    """By Gauss-Legendre nodes on dense inputs."""
    tensors = [tuple(torch.from_numpy(part) for part in of) for of in (record, baseline)]
    score = partial(dense_score, weights)
    events, static = gradient_methods.integrated_gradients(score, tensors[0], tensors[1], nodes)  # type: ignore[arg-type]
    return events.numpy(), static.numpy()


def deep_lift(weights: Weights, record: Record, baseline: Record) -> Record:
    """By messages between single numbers: the first layer's table is a part of the cell's own input weights."""
    arrays = {name: tensor.numpy() for name, tensor in weights.items()}
    table = arrays["tables.static"]
    arrays["cell.weight_ih_l0"] = arrays["cell.weight_ih_l0"] @ arrays["tables.events"].T
    now, was = record[1] @ table, baseline[1] @ table
    events, static = relevance.deep_lift(arrays, record[0], now, (baseline[0], was), "gru")
    return events, (record[1] - baseline[1]) * (table @ (static / (now - was)))


@dataclass
class Told:
    """Of a feature value in a stream, a time bin and a cohort."""

    absent: list[float] = field(default_factory=list)
    recorded: list[float] = field(default_factory=list)
    patients: set[int] = field(default_factory=set)  # who record it


#: split, class, stratum, stream, feature value, time bin (None: all time)
Key = tuple[str, str, str, str, int, int | None]


def absence(
    rows: Sequence[Row], weights: Weights, size: int, explain: Explain, hours: int, bins: int
) -> dict[Key, Told]:
    """Every place's contributions of every feature value, by whether the place records it.

    Args:
        rows: of `prepare`, all splits.
        hours, bins: width and number of time bins, the last one open.
    """
    step_rates, static_rates = rates(rows, size)
    found: dict[Key, Told] = defaultdict(Told)
    for row in rows:
        record = dense(row, size)
        baseline = np.tile(step_rates, (len(record[0]), 1)), static_rates
        events, static = explain(weights, record, baseline)
        held = [set() for _ in row["step_minutes"]]
        for step, value in zip(row["event_step"], row["event_id"], strict=True):
            held[step].add(value)
        for step, minutes in enumerate(row["step_minutes"]):
            for time_bin in (None, min(bins - 1, minutes // (60 * hours))):
                _tell(found, row, "events", time_bin, events[step], held[step])
        _tell(found, row, "static", None, static, set(row["static_id"]))
    return found


def _tell(found: dict[Key, Told], row: Row, stream: str, time_bin: int | None, parts: np.ndarray, held: set) -> None:
    for split, label, stratum in _cohorts(row):
        for value in range(1, len(parts)):
            told = found[split, label, stratum, stream, value, time_bin]
            if value in held:
                told.recorded.append(float(parts[value]))
                told.patients.add(row["subject_id"])
            else:
                told.absent.append(float(parts[value]))


def _cohorts(row: Row) -> Iterator[tuple[str, str, str]]:
    for label in (row["label"], "all"):
        for stratum in ("all", *(f"{name}={value}" for name, value in row["strata"])):
            yield row["split"], label, stratum
