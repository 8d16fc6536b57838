"""Labels and splits flow in; who is predicted when, and in which shard each patient lives, flows out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from whenwhy.events.hashing import GAMMA, mixed
from whenwhy.schema import TRAIN

_PATIENTS, _PREDICTIONS = "patients.npz", "predictions.arrow"


@dataclass(frozen=True)
class Cohort:
    """The patients of a prepare run, ascending by id, and their predictions.

    Attributes:
        subject_id, latest, training, shard: [patient] the id, the time of the last prediction in
            microseconds, whether the split is train, and the number of the shard.
        predictions: subject_id, prediction_time, label, split; ordered by shard, patient, time.
        offsets: [shard + 1] where each shard's predictions begin.
    """

    subject_id: np.ndarray
    latest: np.ndarray
    training: np.ndarray
    shard: np.ndarray
    predictions: pa.Table
    offsets: np.ndarray

    @property
    def shards(self) -> int:
        """The number of shards."""
        return len(self.offsets) - 1

    def patients_of(self, shard: int) -> np.ndarray:
        """Which patients live in a shard, ascending [patient]."""
        return np.flatnonzero(self.shard == shard)

    def predictions_of(self, shard: int) -> pa.Table:
        """The predictions of a shard, in order."""
        return self.predictions.slice(self.offsets[shard], self.offsets[shard + 1] - self.offsets[shard])

    def save(self, folder: Path) -> None:
        """Written so that each worker can read it again."""
        np.savez(
            folder / _PATIENTS,
            subject_id=self.subject_id,
            latest=self.latest,
            training=self.training,
            shard=self.shard,
            offsets=self.offsets,
        )
        with pa.OSFile(str(folder / _PREDICTIONS), "wb") as file, pa.ipc.new_file(file, self.predictions.schema) as out:
            out.write_table(self.predictions)

    @classmethod
    def load(cls, folder: Path) -> Cohort:
        """What `save` wrote; the predictions stay on disk until they are asked for."""
        with np.load(folder / _PATIENTS) as arrays:
            told = dict(arrays)
        predictions = pa.ipc.open_file(pa.memory_map(str(folder / _PREDICTIONS))).read_all()
        return cls(**told, predictions=predictions)


def cohort_of(labels: pa.Table, splits: pa.Table, shard_size: int) -> Cohort:
    """The cohort of these labels.

    Args:
        labels: subject_id, prediction_time, label; sorted, each prediction once.
        splits: subject_id, split: each labelled patient once.
        shard_size: predictions a shard, about.

    Example:
        >>> labels = pa.table({"subject_id": [1, 1, 2], "prediction_time": pa.array([5, 9, 7], pa.timestamp("us")),
        ...     "label": ["true", "false", "true"]})
        >>> cohort = cohort_of(labels, pa.table({"subject_id": [1, 2], "split": ["train", "held_out"]}), 8)
        >>> cohort.subject_id.tolist(), cohort.latest.tolist(), cohort.training.tolist(), cohort.shards
        ([1, 2], [9, 7], [True, False], 1)
    """
    shards = max(1, -(-labels.num_rows // shard_size))
    subject = labels["subject_id"].to_numpy()
    time = labels["prediction_time"].cast(pa.int64()).to_numpy()
    patients, first = np.unique(subject, return_index=True)
    last = np.append(first[1:], len(subject)) - 1
    splits = splits.take(pc.sort_indices(splits["subject_id"]))
    split = splits["split"].combine_chunks().dictionary_encode()
    of_label = np.searchsorted(patients, subject)
    predictions = labels.append_column("split", split.take(pa.array(of_label)))
    shard = shard_of(patients, shards)
    # Stable: within a shard the labels' own order, by patient and time, stays.
    order = np.argsort(shard[of_label], kind="stable")
    counts = np.bincount(shard, weights=np.diff(np.append(first, len(subject))), minlength=shards).astype(np.int64)
    return Cohort(
        patients,
        time[last],
        np.asarray(pc.equal(split, TRAIN)),
        shard,
        predictions.take(pa.array(order)).combine_chunks(),
        np.concatenate([[0], np.cumsum(counts)]),
    )


def shard_of(subject_id: np.ndarray, shards: int) -> np.ndarray:
    """The number of the shard that holds each patient: by a hash of the id, so a patient never moves.

    Example:
        >>> shard_of(np.array([1, 2, 3]), 8).tolist()
        [1, 6, 5]
    """
    ids = subject_id.astype(np.int64).view(np.uint64)
    return np.asarray((mixed(ids + GAMMA) % np.uint64(shards)).astype(np.int32))
