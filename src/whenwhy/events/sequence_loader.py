"""A directory of sequences flows in, batches flow out, read from its shards in the background.

Memory holds a few shards whatever their number, and a model never waits for the disk.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from whenwhy.events.sequence_batch import SequenceBatch, Sequences
from whenwhy.events.sequence_directory import TABLE
from whenwhy.shards import StageDirectory

#: Batches that wait ready.
PREFETCH = 8

#: Shards whose sequences are shuffled together, so that a batch mixes patients of several.
SHARDS_TOGETHER = 4

#: Which rows of a shard are wanted; the default is all.
Choose = Callable[[Sequences], np.ndarray]

#: What a model reads; the numbers and exact times of events are for attribution rows alone.
COLUMNS = [
    "subject_id", "prediction_time", "label", "split",
    "step_minutes", "event_step", "event_id", "event_weight", "static_id", "static_weight",
]  # fmt: skip


@dataclass(frozen=True)
class LoadedBatch:
    """A batch and the sequences that its `rows` count in."""

    batch: SequenceBatch
    sequences: Sequences

    def column(self, name: str) -> np.ndarray:
        """A plain column of the batch's own rows [patient]."""
        return np.asarray(self.sequences.column(name)[self.batch.rows])


def loaded_batches(
    directory: StageDirectory,
    *,
    choose: Choose | None = None,
    patients: int = 128,
    steps: int = 1 << 15,
    random: np.random.Generator | None = None,
    shards: Sequence[str] | None = None,
    device: torch.device | str = "cpu",
) -> Iterator[LoadedBatch]:
    """Every wanted prediction once, in batches of like length.

    Args:
        choose: the wanted rows of some sequences, e.g. those of one split.
        patients, steps: the most predictions, and padded steps together, of a batch.
        random: shuffles shards, batches, and neighbours of like length; None keeps the directory's order.
        shards: of these alone.

    Example: `for loaded in loaded_batches(stage): model(loaded.batch)`
    """
    names = list(shards if shards is not None else directory.shards)
    if random is not None:
        names = [names[i] for i in random.permutation(len(names))]
    together = SHARDS_TOGETHER if random is not None else 1

    def made() -> Iterator[LoadedBatch]:
        for begin in range(0, len(names), together):
            tables = [directory.read(name, TABLE, COLUMNS) for name in names[begin : begin + together]]
            sequences = Sequences(pa.concat_tables(tables))
            rows = np.arange(len(sequences)) if choose is None else choose(sequences)
            buckets = sequences.buckets(rows, patients=patients, steps=steps, random=random)
            for bucket in buckets:
                yield LoadedBatch(sequences.batch(bucket, device), sequences)

    return in_background(made(), PREFETCH)


def in_background(source: Iterator[Any], ahead: int) -> Iterator[Any]:
    """The same items, made by a thread that stays `ahead` of the reader; its errors are raised here.

    Example:
        >>> list(in_background(iter([1, 2, 3]), 2))
        [1, 2, 3]
    """
    ready: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=ahead)
    stopped = threading.Event()

    def put(item: tuple[str, Any]) -> None:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.1)
            except queue.Full:
                continue
            return

    def make() -> None:
        try:
            for item in source:
                put(("item", item))
                if stopped.is_set():
                    return
            put(("end", None))
        except BaseException as error:
            put(("error", error))

    thread = threading.Thread(target=make, daemon=True, name="whenwhy-reader")
    thread.start()
    try:
        while True:
            kind, item = ready.get()
            if kind == "end":
                return
            if kind == "error":
                raise item
            yield item
    finally:
        stopped.set()
        thread.join()
