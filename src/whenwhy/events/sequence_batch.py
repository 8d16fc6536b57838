"""Shards of sequences flow in, length-bucketed batches of bags flow out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

EVENTS, STATIC = "events", "static"


@dataclass(frozen=True)
class Bags:
    """Bags of weighted feature values, what `torch.nn.functional.embedding_bag` takes.

    Attributes:
        ids: [value] int64.
        weights: [value] float32; 1 says "recorded".
        offsets: [bag] int64, where each bag begins.
        at: [value] where each value lies in the flat columns of `Sequences`.
    """

    ids: torch.Tensor
    weights: torch.Tensor
    offsets: torch.Tensor
    at: np.ndarray


@dataclass(frozen=True)
class SequenceBatch:
    """Some predictions' records, padded to a common number of steps.

    Attributes:
        streams: "events", one bag a (patient, step) in that order, and "static", one bag a patient.
        lengths: [patient] int64, true steps; steps beyond are padding with empty bags.
        n_steps: the padded number of steps.
        rows: [patient] which predictions of the table they are.
    """

    streams: dict[str, Bags]
    lengths: torch.Tensor
    n_steps: int
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)


class Sequences:
    """A table of `schema.SEQUENCES` as flat arrays.

    Example:
        >>> from whenwhy.schema import SEQUENCES
        >>> row = dict(subject_id=1, prediction_time=0, label="true", split="train", strata=[], step_minutes=[60, 0],
        ...            event_step=[0, 1, 1], event_id=[5, 6, 7], event_value=[None] * 3, static_id=[2], static_value=[None])
        >>> batch = Sequences(pa.Table.from_pylist([row], schema=SEQUENCES)).batch(np.array([0]))
        >>> batch.streams["events"].ids.tolist(), batch.streams["events"].offsets.tolist(), batch.lengths.tolist()
        ([5, 6, 7], [0, 1], [2])
    """

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        self.step_offsets, self.step_minutes = _flat(table, "step_minutes")
        self.event_offsets, self.event_id = _flat(table, "event_id")
        _, self.event_step = _flat(table, "event_step")
        _, self.event_value = _flat(table, "event_value")
        self.static_offsets, self.static_id = _flat(table, "static_id")
        _, self.static_value = _flat(table, "static_value")
        self.n_steps = np.diff(self.step_offsets)  # [prediction]

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def column(self, name: str) -> np.ndarray:
        """A plain column as an array [prediction]."""
        return np.asarray(self.table[name].to_numpy(zero_copy_only=False))

    def buckets(self, rows: np.ndarray, *, patients: int, steps: int) -> list[np.ndarray]:
        """`rows` in batches of like length: at most `patients` each, and `steps` padded steps together.

        A function of the rows alone, so that a shard always gives the same batches. A single sequence
        longer than `steps` is a batch of its own.
        """
        rows = rows[np.lexsort((rows, self.n_steps[rows]))]
        batches, begin = [], 0
        while begin < len(rows):
            end = min(begin + patients, len(rows))
            # Ascending lengths: the last row sets the padded width.
            while end > begin + 1 and (end - begin) * max(1, self.n_steps[rows[end - 1]]) > steps:
                end -= max(1, (end - begin) // 16)
            batches.append(rows[begin:end])
            begin = end
        return batches

    def batch(self, rows: np.ndarray, device: torch.device | str = "cpu") -> SequenceBatch:
        """The batch of these rows, in this order."""
        lengths = self.n_steps[rows]
        width = max(1, int(lengths.max(initial=0)))
        at, patient = _gather(self.event_offsets, rows)
        events = self._bags(self.event_id, at, patient * width + self.event_step[at], len(rows) * width, device)
        at, patient = _gather(self.static_offsets, rows)
        static = self._bags(self.static_id, at, patient, len(rows), device)
        return SequenceBatch({EVENTS: events, STATIC: static}, torch.from_numpy(lengths).to(device), width, rows)

    @staticmethod
    def _bags(ids: np.ndarray, at: np.ndarray, bag: np.ndarray, bags: int, device: torch.device | str) -> Bags:
        offsets = np.searchsorted(bag, np.arange(bags))  # bags come in order
        return Bags(
            torch.from_numpy(ids[at].astype(np.int64)).to(device),
            torch.ones(len(at), device=device),
            torch.from_numpy(offsets).to(device),
            at,
        )


def _flat(table: pa.Table, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A list column's offsets [prediction + 1] and its flat values."""
    column = table[name].combine_chunks()
    offsets = column.offsets.to_numpy().astype(np.int64) if len(column) else np.zeros(1, np.int64)
    return offsets, column.values.to_numpy(zero_copy_only=False)


def _gather(offsets: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions of all values of `rows`, and for each the place of its row in `rows`."""
    counts = offsets[rows + 1] - offsets[rows]
    patient = np.repeat(np.arange(len(rows)), counts)
    first = np.concatenate([[0], np.cumsum(counts)])[:-1]
    return (offsets[rows] - first)[patient] + np.arange(counts.sum()), patient
