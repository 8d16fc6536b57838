"""Shards of sequences flow in, length-bucketed batches of bags flow out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import torch

from whenwhy.events.hashing import GAMMA, mixed

EVENTS, STATIC = "events", "static"


@dataclass(frozen=True)
class Bags:
    """Bags of weighted feature values, what `torch.nn.functional.embedding_bag` takes.

    Attributes:
        ids: [value] int32.
        weights: [value] float32; 1 says "recorded", of a number how many spreads it is from the middle.
        offsets: [bag] int32, where each bag begins.
        at: [value] where each value lies in the flat columns of `Sequences`.
    """

    ids: torch.Tensor
    weights: torch.Tensor
    offsets: torch.Tensor
    at: np.ndarray

    def to(self, device: torch.device) -> Bags:
        """The same on this device."""
        return Bags(self.ids.to(device), self.weights.to(device), self.offsets.to(device), self.at)

    @property
    def sizes(self) -> torch.Tensor:
        """How many values each bag holds [bag] int64."""
        return torch.diff(self.offsets, append=self.offsets.new_tensor([len(self.ids)])).long()

    @property
    def bag(self) -> torch.Tensor:
        """Which bag each value lies in [value] int64."""
        return torch.repeat_interleave(torch.arange(len(self.offsets), device=self.offsets.device), self.sizes)


@dataclass(frozen=True)
class SequenceBatch:
    """Some predictions' records, padded to a common number of steps.

    Attributes:
        streams: "events", one bag a (patient, step) in that order, and "static", one bag a patient.
        hours: [patient, step] float32, hours from each step to the prediction; 0 in padding.
        lengths: [patient] int64, true steps; steps beyond are padding with empty bags.
        n_steps: the padded number of steps.
        rows: [patient] which predictions of the table they are.
        keys: [patient] uint64, a hash of patient and time: what tells a prediction from all others.
    """

    streams: dict[str, Bags]
    hours: torch.Tensor
    lengths: torch.Tensor
    n_steps: int
    rows: np.ndarray
    keys: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def true_steps(self) -> torch.Tensor:
        """Which steps are the records' own, and no padding [patient, step] bool."""
        return torch.arange(self.n_steps, device=self.lengths.device) < self.lengths.unsqueeze(1)

    def to(self, device: torch.device) -> SequenceBatch:
        """The same on this device.

        Example: `batch.to(torch.device("cuda"))`
        """
        streams = {name: bags.to(device) for name, bags in self.streams.items()}
        lengths = self.lengths.to(device)
        return SequenceBatch(streams, self.hours.to(device), lengths, self.n_steps, self.rows, self.keys)


class Sequences:
    """A table of `schema.SEQUENCES` as flat arrays.

    Example:
        >>> from whenwhy.schema import SEQUENCES
        >>> row = dict(subject_id=1, prediction_time=0, label="true", split="train", strata=[], step_minutes=[60, 0],
        ...            event_step=[0, 1, 1], event_id=[5, 6, 7], event_value=[None] * 3, static_id=[2], static_value=[None])
        >>> batch = Sequences(pa.Table.from_pylist([row], schema=SEQUENCES)).batch(np.array([0]))
        >>> batch.streams["events"].ids.tolist(), batch.streams["events"].offsets.tolist(), batch.hours.tolist()
        ([5, 6, 7], [0, 1], [[1.0, 0.0]])
    """

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        self.step_offsets, self.step_minutes = _flat(table, "step_minutes")
        self.event_offsets, event_id = _flat(table, "event_id")
        self.event_id = _narrow(event_id)
        _, self.event_step = _flat(table, "event_step")
        self.static_offsets, static_id = _flat(table, "static_id")
        self.static_id = _narrow(static_id)
        self.event_weight, self.static_weight = (_weights(table, f"{name}_weight") for name in ("event", "static"))
        self.n_steps = np.diff(self.step_offsets)  # [prediction]

    def __len__(self) -> int:
        return int(self.table.num_rows)

    # What only the rows of attributions need is not unpacked for training.

    @cached_property
    def event_minutes(self) -> np.ndarray:
        """Whole minutes from each value to the prediction [value]."""
        return _flat(self.table, "event_minutes")[1]

    @cached_property
    def event_value(self) -> np.ndarray:
        """The number of each value, NaN where it has none [value]."""
        return _flat(self.table, "event_value")[1]

    @cached_property
    def static_value(self) -> np.ndarray:
        """The number of each static value, NaN where it has none [value]."""
        return _flat(self.table, "static_value")[1]

    @cached_property
    def keys(self) -> np.ndarray:
        """A hash of patient and time [prediction] uint64."""
        subject = self.table["subject_id"].to_numpy().astype(np.int64).view(np.uint64)
        time = self.table["prediction_time"].cast(pa.int64()).to_numpy().view(np.uint64)
        return mixed(mixed(subject + GAMMA) + time)

    def column(self, name: str) -> np.ndarray:
        """A plain column as an array [prediction]."""
        return np.asarray(self.table[name].to_numpy(zero_copy_only=False))

    def buckets(
        self, rows: np.ndarray, *, patients: int, steps: int, random: np.random.Generator | None = None
    ) -> list[np.ndarray]:
        """`rows` in batches of like length: at most `patients` each, and `steps` padded steps together.

        Without `random` a function of the rows alone, so that a shard always gives the same batches; with
        it, other neighbours of like length every time, and the batches in any order. A single sequence
        longer than `steps` is a batch of its own.
        """
        if random is None:
            rows = rows[np.lexsort((rows, self.n_steps[rows]))]
        else:
            # Lengths within a tenth of each other count as alike.
            length = self.n_steps[rows] + 1
            rows = rows[np.argsort(np.log(length) / np.log(1.1) + 2 * random.random(len(rows)), kind="stable")]
        batches, begin = [], 0
        while begin < len(rows):
            end = min(begin + patients, len(rows))
            while end > begin + 1 and (end - begin) * max(1, self.n_steps[rows[begin:end]].max()) > steps:
                end -= max(1, (end - begin) // 16)
            batches.append(rows[begin:end])
            begin = end
        return batches if random is None else [batches[i] for i in random.permutation(len(batches))]

    def batch(self, rows: np.ndarray, device: torch.device | str = "cpu") -> SequenceBatch:
        """The batch of these rows, in this order."""
        lengths = self.n_steps[rows]
        width = max(1, int(lengths.max(initial=0)))
        at, patient = _gather(self.event_offsets, rows)
        bag = patient * width + self.event_step[at]
        events = self._bags(self.event_id, self.event_weight, at, bag, len(rows) * width, device)
        at, patient = _gather(self.static_offsets, rows)
        static = self._bags(self.static_id, self.static_weight, at, patient, len(rows), device)
        hours = np.zeros((len(rows), width), dtype=np.float32)
        at, patient = _gather(self.step_offsets, rows)
        hours[patient, at - self.step_offsets[rows][patient]] = self.step_minutes[at] / np.float32(60)
        return SequenceBatch(
            {EVENTS: events, STATIC: static},
            torch.from_numpy(hours).to(device),
            torch.from_numpy(lengths).to(device),
            width,
            rows,
            self.keys[rows],
        )

    @staticmethod
    def _bags(
        ids: np.ndarray,
        weight: np.ndarray | None,
        at: np.ndarray,
        bag: np.ndarray,
        bags: int,
        device: torch.device | str,
    ) -> Bags:
        offsets = np.concatenate([[0], np.cumsum(np.bincount(bag, minlength=bags))])[:-1]  # bags come in order
        return Bags(
            torch.from_numpy(ids[at].astype(np.int32)).to(device),
            torch.ones(len(at), device=device) if weight is None else torch.from_numpy(weight[at]).to(device),
            torch.from_numpy(offsets.astype(np.int32)).to(device),
            at,
        )


def _flat(table: pa.Table, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A list column's offsets [prediction + 1] and its flat values."""
    column = table[name].combine_chunks()
    offsets = column.offsets.to_numpy().astype(np.int64) if len(column) else np.zeros(1, np.int64)
    return offsets, column.values.to_numpy(zero_copy_only=False)


def _weights(table: pa.Table, name: str) -> np.ndarray | None:
    """A column of weights, flat [value] float32; None where all are 1."""
    if table[name].null_count == table.num_rows:
        return None
    return _flat(table, name)[1]


def _narrow(ids: np.ndarray) -> np.ndarray:
    """The ids in 16 bits where they fit: half the memory of a shard."""
    return ids.astype(np.uint16) if len(ids) == 0 or ids.max() <= np.iinfo(np.uint16).max else ids


def _gather(offsets: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions of all values of `rows`, and for each the place of its row in `rows`."""
    counts = offsets[rows + 1] - offsets[rows]
    patient = np.repeat(np.arange(len(rows)), counts)
    first = np.concatenate([[0], np.cumsum(counts)])[:-1]
    return (offsets[rows] - first)[patient] + np.arange(counts.sum()), patient
