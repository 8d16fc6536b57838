"""How much faster shards on disk become batches than a GRU takes them: `python tests/benchmarks/reader.py [--small]`.

Both rates are of true steps a second, on the same core (a fold trains on one) and the same batches, in turns
within one run: the median over repeats of reading everything that `loaded_batches` delivers, shuffled, over the
median of a GRU of width 128 doing forward, backward and optimiser step on some of those batches.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from whenwhy.events.sequence_loader import LoadedBatch, loaded_batches
from whenwhy.events.sequences import TABLE
from whenwhy.models.fitting import loss_of
from whenwhy.models.recurrent import RecurrentClassifier
from whenwhy.schema import SEQUENCES
from whenwhy.shards import StageDirectory

VOCABULARY_SIZE, HIDDEN, BATCH = 2000, 128, 128


def measure(small: bool = False) -> dict[str, Any]:
    """The two rates and their ratio, `reader_vs_gru`, which should be 5 at least.

    Args:
        small: fewer predictions and repeats, for a test.
    """
    predictions, shards, repeats, trained = (1024, 4, 3, 3) if small else (8192, 8, 5, 8)
    with one_core(), tempfile.TemporaryDirectory() as folder:
        stage = write_sequences(Path(folder) / "sequences", predictions, shards)
        model = RecurrentClassifier(VOCABULARY_SIZE, HIDDEN, dropout=0.0)
        optimizer = torch.optim.AdamW(model.parameters())
        read, consumed = [], []
        for repeat in range(repeats + 1):
            begun, steps, kept = time.perf_counter(), 0, []
            for loaded in loaded_batches(stage, patients=BATCH, random=np.random.default_rng(repeat)):
                steps += int(loaded.batch.lengths.sum())
                if len(kept) < trained:
                    kept.append(loaded)
            read.append(steps / (time.perf_counter() - begun))
            consumed.append(_consumed(model, optimizer, kept))
    # The first turn warms caches: checksums, kernels, files.
    reader, gru = median(read[1:]), median(consumed[1:])
    return {
        "reader_vs_gru": reader / gru,
        "reader_steps_per_second": reader,
        "gru_steps_per_second": gru,
        "gru_hidden": HIDDEN,
        "cores": 1,
        "n_predictions": predictions,
        "repeats": repeats,
    }


@contextmanager
def one_core() -> Iterator[None]:
    """This process and its threads on a single core, and torch with a single thread, as `whenwhy train` has it."""
    threads, cores = torch.get_num_threads(), os.sched_getaffinity(0) if hasattr(os, "sched_setaffinity") else None
    torch.set_num_threads(1)
    if cores:
        os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        if cores:
            os.sched_setaffinity(0, cores)


def write_sequences(path: Path, predictions: int, shards: int) -> StageDirectory:
    """A directory of made-up sequences: 20 to 180 steps of 1 to 7 values, as `whenwhy prepare` lays them out."""
    random = np.random.default_rng(0)
    names = [f"g0-{number:05d}" for number in range(shards)]
    stage = StageDirectory.create(path, stage="prepare", settings={}, inputs={}, shards=names, code_version="0")
    for number, name in enumerate(names):
        rows = []
        for subject in range(number, predictions, shards):
            steps = int(random.integers(20, 181))
            at = np.repeat(np.arange(steps), random.integers(1, 8, steps))
            minutes = np.arange(steps, 0, -1) * 60
            rows.append(
                {
                    "subject_id": subject, "prediction_time": 0, "label": "true" if subject % 5 == 0 else "false",
                    "split": "train", "strata": [], "step_minutes": minutes, "event_step": at,
                    "event_id": random.integers(1, VOCABULARY_SIZE, len(at)), "event_minutes": minutes[at],
                    "event_value": random.random(len(at), dtype=np.float32),
                    "static_id": random.integers(1, VOCABULARY_SIZE, 3), "static_value": np.zeros(3, np.float32),
                }
            )  # fmt: skip
        stage.publish(name, {TABLE: pa.Table.from_pylist(rows, schema=SEQUENCES)})
    return stage


def _consumed(model: RecurrentClassifier, optimizer: torch.optim.Optimizer, batches: list[LoadedBatch]) -> float:
    """True steps a second of training on some batches."""
    truth = [torch.from_numpy((loaded.column("label") == "true").astype(np.int64)) for loaded in batches]
    begun = time.perf_counter()
    for loaded, labels in zip(batches, truth, strict=True):
        optimizer.zero_grad()
        loss_of(model, loaded.batch, labels, (1.0, 1.0), every_step=False).backward()
        optimizer.step()
    return sum(int(loaded.batch.lengths.sum()) for loaded in batches) / (time.perf_counter() - begun)


if __name__ == "__main__":
    print(json.dumps(measure("--small" in sys.argv), indent=2))
