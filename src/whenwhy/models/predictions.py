"""A model and a directory of sequences flow in, predictions flow out, a shard at a time.

`whenwhy predict` writes them in the form that the package meds-evaluation reads (its `PredictionSchema`, version
0.0.6): MEDS labels with two more columns.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from whenwhy.errors import UserError, unknown_name
from whenwhy.events.sequence_batch import Sequences
from whenwhy.events.sequence_loader import Choose, loaded_batches
from whenwhy.models.checkpoint import load_model, require_same_vocabulary
from whenwhy.models.sequence_model import SequenceModel
from whenwhy.schema import SPLITS
from whenwhy.shards import StageDirectory

#: The split that stands for every prediction.
ALL = "all"

#: What meds-evaluation reads; a probability of one half or more predicts the positive class.
PREDICTION_SCHEMA = pa.schema(
    [
        ("subject_id", pa.int64()),
        ("prediction_time", pa.timestamp("us")),
        ("boolean_value", pa.bool_()),
        ("predicted_boolean_value", pa.bool_()),
        ("predicted_boolean_probability", pa.float32()),
    ]
)


@dataclass(frozen=True)
class ScoredShard:
    """The wanted predictions of one shard, in its order.

    Attributes:
        rows: [prediction] which of the sequences they are, ascending.
        score: [prediction] float64, logits.
    """

    sequences: Sequences
    rows: np.ndarray
    score: np.ndarray

    @property
    def probability(self) -> np.ndarray:
        """Of the positive class [prediction] float64."""
        return np.asarray(torch.sigmoid(torch.from_numpy(self.score)).numpy())

    def column(self, name: str) -> np.ndarray:
        """A plain column of these predictions."""
        return np.asarray(self.sequences.column(name)[self.rows])


def scored_shards(
    model: SequenceModel, directory: StageDirectory, choose: Choose | None = None, device: torch.device | str = "cpu"
) -> Iterator[ScoredShard]:
    """Every wanted prediction's score, in order; shards without one are left out.

    The model must be in evaluation mode. Memory holds a shard or two.

    Example: `for shard in scored_shards(model, stage): print(shard.score)`
    """
    current: Sequences | None = None
    rows: list[np.ndarray] = []
    score: list[np.ndarray] = []

    def whole(sequences: Sequences) -> ScoredShard:
        of_rows = np.concatenate(rows)
        order = np.argsort(of_rows)
        return ScoredShard(sequences, of_rows[order], np.concatenate(score)[order])

    for loaded in loaded_batches(directory, choose=choose, patients=512, steps=1 << 15, device=device):
        if current is not loaded.sequences:
            if current is not None:
                yield whole(current)
            current, rows, score = loaded.sequences, [], []
        with torch.no_grad():
            found = model.score(model.embed(loaded.batch), loaded.batch.lengths)
        rows.append(loaded.batch.rows)
        score.append(found.double().cpu().numpy())
    if current is not None:
        yield whole(current)


def predict(sequences_path: Path, model_path: Path, out: Path, split: str = "held_out") -> int:
    """How many predictions of the split were written to the Parquet file `out`, as `PREDICTION_SCHEMA`.

    The split is the data set's own; "all" takes every prediction. The file is written beside `out` and
    renamed, so it is there as a whole or not at all.

    Raises:
        UserError: no such split; no prediction in it; or a model of other feature values.

    Example: `predict(Path("seq"), Path("model"), Path("predictions.parquet"))`
    """
    if split not in (*SPLITS, ALL):
        raise unknown_name("split", split, (*SPLITS, ALL))
    if out.is_dir():
        raise UserError(f"{out} is a directory: give --out the name of a Parquet file.")
    sequences = StageDirectory.open(sequences_path, "prepare").require_complete()
    checkpoint = StageDirectory.open(model_path, "train").require_complete()
    require_same_vocabulary(checkpoint, sequences)
    model = load_model(checkpoint)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}-{uuid.uuid4().hex}")
    written = 0
    try:
        with pq.ParquetWriter(temporary, PREDICTION_SCHEMA, compression="zstd") as writer:
            for shard in scored_shards(model, sequences, _choose(split)):
                writer.write_table(_table(shard))
                written += len(shard.rows)
        if not written:
            raise UserError(f"{sequences.path} has no prediction of split '{split}': name another --split, or all.")
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)
    return written


def _choose(split: str) -> Choose | None:
    if split == ALL:
        return None
    return lambda sequences: np.flatnonzero(sequences.column("split") == split)


def _table(shard: ScoredShard) -> pa.Table:
    probability = shard.probability
    return pa.table(
        {
            "subject_id": shard.sequences.table["subject_id"].take(shard.rows),
            "prediction_time": shard.sequences.table["prediction_time"].take(shard.rows),
            "boolean_value": shard.column("label") == "true",
            "predicted_boolean_value": probability >= 0.5,
            "predicted_boolean_probability": probability.astype(np.float32),
        },
        schema=PREDICTION_SCHEMA,
    )
