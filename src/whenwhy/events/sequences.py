"""MEDS events flow in, sequences flow out: `whenwhy prepare`.

One row a prediction: the steps (distinct times) of the patient's record up to the prediction time, and the
feature values recorded at each. Nothing after the prediction time is ever read into a row.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from whenwhy import __version__
from whenwhy.engine import Workers, run
from whenwhy.errors import UserError
from whenwhy.events.feature_values import Vocabulary, fitted_feature_values
from whenwhy.events.known_events import KnownEvents, read_shard
from whenwhy.events.meds_dataset import open_meds, read_labels, split_patients
from whenwhy.schema import SEQUENCES
from whenwhy.shards import StageDirectory

VOCABULARY = "feature_values"  # the entry, and the table in it
TABLE = "sequences"


@dataclass(frozen=True)
class PrepareSettings:
    """What `prepare` may be asked.

    Attributes:
        outcome: the outcome's name for people.
        strata: cohorts to be: "age_band", or the first part of a static code ("sex" for SEX//F and SEX//M).
        without: codes that are left out, e.g. because they give the outcome away.
        bins: quantile bins of a numeric code.
        max_steps: the most recent steps that are kept; what is left out is counted.
        shard_size: predictions a shard, about.
    """

    outcome: str
    strata: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    bins: int = 10
    max_steps: int = 1000
    shard_size: int = 1024


def prepare(
    meds_path: Path, labels_path: Path, out: Path, settings: PrepareSettings, workers: Workers | None = None
) -> StageDirectory:
    """The directory of sequences: entry `feature_values` and one entry a shard.

    Raises:
        UserError: bad input, found before anything is written.

    Example: `prepare(Path("meds"), Path("meds/labels/x"), Path("seq"), PrepareSettings("x"))`
    """
    if settings.bins < 2 or settings.max_steps < 1 or settings.shard_size < 1:
        raise UserError("prepare needs at least 2 bins, 1 step and 1 prediction a shard: give larger numbers.")
    dataset, labels = open_meds(meds_path), read_labels(labels_path)
    splits = split_patients(dataset, labels["subject_id"].to_numpy())
    shards = max(1, -(-labels.num_rows // settings.shard_size))
    keys = [f"g0-{number:05d}" for number in range(shards)]
    scratch = out / "scratch"
    with KnownEvents(dataset, labels, splits, settings.without, settings.strata) as known:
        stage = StageDirectory.create(
            out,
            stage="prepare",
            settings=asdict(settings) | {"strata": list(settings.strata), "without": list(settings.without)},
            inputs={"meds": dataset.as_input(), "labels": {"sha256": table_sha256(labels)}},
            shards=keys,
            besides=[VOCABULARY],
            code_version=__version__,
        )
        if not stage.missing():
            return stage
        if not stage.has(VOCABULARY):
            table = fitted_feature_values(known.counted(), dataset.codes, settings.bins)
            stage.publish(VOCABULARY, {VOCABULARY: known.with_training_counts(table)})
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        known.write_shards(scratch, shards)
    missing = stage.missing()
    task = PrepareShard(str(out), str(scratch))
    run(task, missing, stage="prepare", unit="events", workers=workers, finished=len(stage.needs) - len(missing))
    shutil.rmtree(scratch)
    return stage


@dataclass(frozen=True)
class PrepareShard:
    """The engine's task: one shard's events, put in order, become its sequences."""

    out: str
    scratch: str

    def start(self) -> Callable[[str], int]:
        stage = StageDirectory.open(Path(self.out), "prepare")
        vocabulary = Vocabulary(stage.read(VOCABULARY, VOCABULARY))
        max_steps = int(stage.settings["max_steps"])

        def one_shard(key: str) -> int:
            number = int(key.rpartition("-")[2])
            predictions, events = read_shard(Path(self.scratch), number)
            table, summary = sequences_of(predictions, events, vocabulary, max_steps)
            stage.publish(key, {TABLE: table}, summary)
            return summary["n_events"]

        return one_shard


def sequences_of(
    predictions: pa.Table, events: pa.Table, vocabulary: Vocabulary, max_steps: int
) -> tuple[pa.Table, dict[str, int]]:
    """One shard's table (`schema.SEQUENCES`) and what was counted on the way.

    Args:
        predictions: one row a prediction, in order.
        events: columns row (of its prediction), time (null: static), code, numeric_value.
    """
    count = predictions.num_rows
    row = events["row"].to_numpy()
    value = events["numeric_value"].cast(pa.float32()).to_numpy(zero_copy_only=False).astype(np.float32)
    ids = vocabulary.ids(events["code"].combine_chunks(), value)
    static = np.asarray(events["time"].is_null())
    time = pc.fill_null(events["time"].cast(pa.int64()), 0).to_numpy()  # microseconds
    known = ids >= 0

    at = np.flatnonzero(known & ~static)
    # Canonical order within a step, so that the order of rows in the files does not matter.
    at = at[np.lexsort((value[at], ids[at], time[at], row[at]))]
    new_row = np.diff(row[at], prepend=-1) != 0
    new_step = new_row | (np.diff(time[at], prepend=0) != 0)
    step = np.cumsum(new_step) - 1  # of all steps in the shard
    n_steps = np.bincount(row[at][new_step], minlength=count)
    first_step = np.concatenate([[0], np.cumsum(n_steps)])[:-1]  # [prediction]
    step_in_row = step - first_step[row[at]]
    kept = step_in_row >= (n_steps - max_steps)[row[at]]
    n_truncated = int((~kept).sum())
    at, new_step = at[kept], new_step[kept]
    step_in_row = step_in_row[kept] - np.maximum(n_steps - max_steps, 0)[row[at]]
    n_steps = np.minimum(n_steps, max_steps)

    prediction_time = predictions["prediction_time"].cast(pa.int64()).to_numpy()
    ahead = prediction_time[row[at]] - time[at]
    assert (ahead >= 0).all(), "an event after its prediction time was read"
    minutes = (ahead // 60_000_000).astype(np.int32)

    history = np.zeros(count, dtype=np.int32)
    history[row[at][::-1]] = minutes[::-1]  # the first step's

    still = np.flatnonzero(known & static)
    still = still[np.lexsort((value[still], ids[still], row[still]))]
    events_in_row = np.bincount(row[at], minlength=count)
    static_in_row = np.bincount(row[still], minlength=count)
    table = pa.table(
        {
            **{name: predictions[name] for name in ("subject_id", "prediction_time", "label", "split", "strata")},
            "source": pa.nulls(count, pa.string()),
            "anchor_minutes": pa.nulls(count, pa.int32()),
            "history_minutes": pa.array(history, mask=n_steps == 0),
            "step_minutes": _lists(n_steps, minutes[new_step]),
            "event_step": _lists(events_in_row, step_in_row.astype(np.int32)),
            "event_id": _lists(events_in_row, ids[at]),
            "event_minutes": _lists(events_in_row, minutes),
            "event_value": _lists(events_in_row, pa.array(value[at], from_pandas=True)),
            "static_id": _lists(static_in_row, ids[still]),
            "static_value": _lists(static_in_row, pa.array(value[still], from_pandas=True)),
        }
    )
    table = table.select(SEQUENCES.names).cast(SEQUENCES)
    summary = {
        "n_predictions": count,
        "n_events": len(at),
        "n_static": len(still),
        "n_steps": int(n_steps.sum()),
        "n_unknown": int((~known).sum()),
        "n_truncated": n_truncated,
    }
    return table, summary


def _lists(lengths: np.ndarray, values: np.ndarray | pa.Array) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, pa.array(values))


def prepared_sentence(stage: StageDirectory) -> str:
    """What a complete directory of sequences holds, and what was left out, in one sentence for people."""
    told = dict.fromkeys(("n_predictions", "n_events", "n_static", "n_steps", "n_unknown", "n_truncated"), 0)
    for shard in stage.shards:
        for key, value in stage.entry(shard).summary.items():
            told[key] += value
    features = stage.entry(VOCABULARY).files[VOCABULARY]["rows"] - 1
    return (
        f"{told['n_predictions']:,} predictions, {told['n_events']:,} events in {told['n_steps']:,} steps, "
        f"{told['n_static']:,} static values, {features:,} feature values; left out {told['n_unknown']:,} values that "
        f"training patients never have and {told['n_truncated']:,} beyond the most recent steps"
    )


def table_sha256(table: pa.Table) -> str:
    """The hash of a table's rows, in order, whatever the layout of its files."""
    digest = hashlib.sha256()
    for row in zip(*(table[name].to_pylist() for name in table.column_names), strict=True):
        digest.update(repr(row).encode())
    return digest.hexdigest()
