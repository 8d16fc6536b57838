"""A model and a directory of sequences flow in, predictions flow out, a shard at a time.

`whenwhy predict` writes those of two classes in the form that the package meds-evaluation reads (its
`PredictionSchema`, version 0.0.6): MEDS labels with two more columns. That schema has no form for more classes; theirs
are MEDS labels with the predicted class and a probability a class beside them, named alike.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Sequence
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
from whenwhy.models.folds import class_index
from whenwhy.models.sequence_model import TWO_CLASSES, SequenceModel, classes_of, logits_of
from whenwhy.schema import SPLITS
from whenwhy.shards import StageDirectory

#: The split that stands for every prediction.
ALL = "all"

#: What meds-evaluation reads; a probability of one half or more predicts the later class.
PREDICTION_SCHEMA = pa.schema(
    [
        ("subject_id", pa.int64()),
        ("prediction_time", pa.timestamp("us")),
        ("boolean_value", pa.bool_()),
        ("predicted_boolean_value", pa.bool_()),
        ("predicted_boolean_probability", pa.float32()),
    ]
)


#: Of more classes, a column a class is named so, with the class behind it.
PROBABILITY_OF = "predicted_categorical_probability:"


def prediction_schema(classes: Sequence[str]) -> pa.Schema:
    """The columns of predictions: PREDICTION_SCHEMA, with the label's own name unless it is true or false.

    Example:
        >>> prediction_schema(("home", "dead", "nursing")).names[3:]  # doctest: +NORMALIZE_WHITESPACE
        ['predicted_categorical_value', 'predicted_categorical_probability:home',
         'predicted_categorical_probability:dead', 'predicted_categorical_probability:nursing']
    """
    label = ("categorical_value", pa.string())
    if len(classes) == 2:
        return pa.schema([*PREDICTION_SCHEMA, *([label] if tuple(classes) != TWO_CLASSES else [])])
    of_classes = [(f"{PROBABILITY_OF}{name}", pa.float32()) for name in classes]
    return pa.schema([*list(PREDICTION_SCHEMA)[:2], label, ("predicted_categorical_value", pa.string()), *of_classes])


@dataclass(frozen=True)
class ScoredShard:
    """The wanted predictions of one shard, in its order.

    Attributes:
        rows: [prediction] which of the sequences they are, ascending.
        classes: the model's.
        logits: [prediction, class] float64.
    """

    sequences: Sequences
    rows: np.ndarray
    classes: tuple[str, ...]
    logits: np.ndarray

    @property
    def score(self) -> np.ndarray:
        """The logit of the later of two classes [prediction] float64."""
        return np.asarray(self.logits[:, 1] - self.logits[:, 0])

    @property
    def probability(self) -> np.ndarray:
        """Of the later of two classes [prediction] float64."""
        return np.asarray(torch.sigmoid(torch.from_numpy(self.score)).numpy())

    @property
    def probabilities(self) -> np.ndarray:
        """Of the classes [prediction, class] float64."""
        if len(self.classes) == 2:
            return np.stack([1 - self.probability, self.probability], axis=1)
        return np.asarray(torch.from_numpy(self.logits).softmax(1).numpy())

    @property
    def label(self) -> np.ndarray:
        """The place of each label among the classes [prediction]; -1: it is none of them."""
        return class_index(self.column("label"), self.classes)

    def column(self, name: str) -> np.ndarray:
        """A plain column of these predictions."""
        return np.asarray(self.sequences.column(name)[self.rows])


def scored_shards(
    model: SequenceModel, directory: StageDirectory, choose: Choose | None = None, device: torch.device | str = "cpu"
) -> Iterator[ScoredShard]:
    """Every wanted prediction's logits, in order; shards without one are left out.

    The model must be in evaluation mode. Memory holds a shard or two.

    Example: `for shard in scored_shards(model, stage): print(shard.score)`
    """
    current: Sequences | None = None
    rows: list[np.ndarray] = []
    logits: list[np.ndarray] = []
    classes = classes_of(model)

    def whole(sequences: Sequences) -> ScoredShard:
        of_rows = np.concatenate(rows)
        order = np.argsort(of_rows)
        return ScoredShard(sequences, of_rows[order], classes, np.concatenate(logits)[order])

    for loaded in loaded_batches(directory, choose=choose, patients=512, steps=1 << 15, device=device):
        if current is not loaded.sequences:
            if current is not None:
                yield whole(current)
            current, rows, logits = loaded.sequences, [], []
        with torch.no_grad():
            found = logits_of(model, model.embed(loaded.batch), loaded.batch.lengths)
        rows.append(loaded.batch.rows)
        logits.append(found.double().cpu().numpy())
    if current is not None:
        yield whole(current)


def predict(sequences_path: Path, model_path: Path, out: Path, split: str = "held_out") -> int:
    """How many predictions of the split were written to the Parquet file `out`, as `prediction_schema` of the classes.

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
        with pq.ParquetWriter(temporary, prediction_schema(classes_of(model)), compression="zstd") as writer:
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
    if (shard.label < 0).any():
        raise UserError(
            f"The sequences have the label '{shard.column('label')[shard.label < 0][0]}', and the model was trained on "
            f"{', '.join(shard.classes)}: prepare labels of these classes."
        )
    schema, probabilities = prediction_schema(shard.classes), shard.probabilities
    # Ties go to the class that is named later: a probability of one half predicts the positive class.
    predicted = probabilities.shape[1] - 1 - probabilities[:, ::-1].argmax(1)
    told = {
        "subject_id": shard.sequences.table["subject_id"].take(shard.rows),
        "prediction_time": shard.sequences.table["prediction_time"].take(shard.rows),
        "boolean_value": shard.label == 1,
        "predicted_boolean_value": predicted == 1,
        "predicted_boolean_probability": probabilities[:, 1].astype(np.float32),
        "categorical_value": pa.array(shard.column("label"), pa.string()),
        "predicted_categorical_value": pa.array([shard.classes[place] for place in predicted], pa.string()),
    } | {f"{PROBABILITY_OF}{name}": probabilities[:, at].astype(np.float32) for at, name in enumerate(shard.classes)}
    return pa.table({name: told[name] for name in schema.names}, schema=schema)
