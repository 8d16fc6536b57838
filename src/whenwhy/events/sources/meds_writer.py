"""A source's tables flow in, a MEDS 0.4 data set flows out: one folder layout and one order for every source."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import meds
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from whenwhy import __version__
from whenwhy.engine import Progress
from whenwhy.engine.progress import console
from whenwhy.schema import HELD_OUT, TRAIN, TUNING

EVENTS = pa.schema(
    [
        pa.field("subject_id", pa.int64(), nullable=False),
        ("time", pa.timestamp("us")),
        pa.field("code", pa.string(), nullable=False),
        ("numeric_value", pa.float32()),
    ]
)

SPLITS = pa.schema([pa.field("subject_id", pa.int64(), nullable=False), pa.field("split", pa.string(), nullable=False)])


class Code(NamedTuple):
    """What is said of a code: a description, the unit of its numbers, and the groups it belongs to."""

    description: str | None = None
    unit: str | None = None
    parents: tuple[str, ...] = ()


@dataclass
class MedsWriter:
    """A MEDS data set that grows in a folder, file by file.

    Attributes:
        folder: an empty folder, renamed to its place by `import_source` once the source has returned.
        progress: `progress.expect(files)` says how many files of events there will be.

    Example:
        >>> import tempfile
        >>> with Progress("import", total=1, unit="events") as progress:
        ...     writer = MedsWriter(Path(tempfile.mkdtemp()), progress)
        ...     writer.codes({"HR": Code("heart rate", "/min", ("VITALS",))})
        ...     writer.events("0", meds_rows(np.array([7, 7]), None, "HR", np.array([80.0, 72.0])))
        >>> pq.read_table(writer.folder / "data" / "0.parquet")["numeric_value"].to_pylist()
        [72.0, 80.0]
    """

    folder: Path
    progress: Progress
    about: dict[str, Any] = field(default_factory=dict)

    def describe(self, name: str, version: str, licence: str) -> None:
        """The data set's name, version and licence, as dataset.json will say."""
        self.about |= {"dataset_name": name, "dataset_version": version, "license": licence}

    def say(self, sentence: str) -> None:
        """Tells the person who watches, on standard error."""
        console.print(f"import: {sentence}", soft_wrap=True)

    def events(self, name: str, table: pa.Table) -> None:
        """data/NAME.parquet: whole subjects, put in MEDS order (undated rows first, then by time)."""
        ascending = [(column, "ascending", "at_start") for column in EVENTS.names]
        table = table.select(EVENTS.names).cast(EVENTS)
        write_events(self.folder, name, table.sort_by(ascending))
        self.progress.advance(f"{name}.parquet", table.num_rows)

    def codes(self, codes: Mapping[str, Code]) -> None:
        """metadata/codes.parquet, in the order given."""
        table = pa.table(
            {
                "code": pa.array(list(codes), pa.string()),
                "description": pa.array([code.description for code in codes.values()], pa.string()),
                "unit": pa.array([code.unit for code in codes.values()], pa.string()),
                "parent_codes": pa.array([list(code.parents) for code in codes.values()], pa.list_(pa.string())),
            }
        )
        pq.write_table(table, _file(self.folder, meds.code_metadata_filepath))

    def splits(self, parts: Iterable[tuple[np.ndarray, np.ndarray]]) -> None:
        """metadata/subject_splits.parquet, from parts of successive subjects: subjects and their splits, [subject]."""
        with pq.ParquetWriter(_file(self.folder, meds.subject_splits_filepath), SPLITS) as file:
            for subject, split in parts:
                order = np.argsort(subject)
                columns = {"subject_id": subject[order], "split": pa.array(split[order], pa.string())}
                file.write_table(pa.table(columns, SPLITS))

    def labels(self, task: str, subject: np.ndarray, time: np.ndarray, value: np.ndarray) -> None:
        """labels/TASK/0.parquet: yes or no at a prediction time, by subject; the arrays are [prediction]."""
        write_labels(self.folder, task, "0", subject, time, value)

    def finish(self, settings: Mapping[str, Any]) -> None:
        """metadata/dataset.json, the last file: who has it has a whole data set."""
        about = {"etl_version": __version__, "meds_version": meds.__version__, **self.about, **settings}
        _file(self.folder, meds.dataset_metadata_filepath).write_text(json.dumps(about, indent=2) + "\n")


def write_events(folder: Path, name: str, table: pa.Table) -> None:
    """data/NAME.parquet of rows that are in MEDS order; a worker process writes its own."""
    # Without the Arrow schema inside, a column of dictionary codes is read back as the plain text that MEDS asks for.
    pq.write_table(
        table,
        _file(folder, f"data/{name}.parquet"),
        store_schema=False,
        use_dictionary=["subject_id", "code", "numeric_value"],
        compression="zstd",
        compression_level=1,
    )


def write_labels(folder: Path, task: str, name: str, subject: np.ndarray, time: np.ndarray, value: np.ndarray) -> None:
    """labels/TASK/NAME.parquet, by subject and prediction time; a worker process writes its own."""
    table = pa.table(
        {
            "subject_id": pa.array(subject, pa.int64()),
            "prediction_time": pa.array(time, pa.timestamp("us")),
            "boolean_value": pa.array(value, pa.bool_()),
        }
    )
    table = table.sort_by([("subject_id", "ascending"), ("prediction_time", "ascending")])
    pq.write_table(meds.LabelSchema.align(table), _file(folder, f"labels/{task}/{name}.parquet"))


def meds_rows(
    subject: np.ndarray, time: np.ndarray | None, code: str | np.ndarray, value: np.ndarray | None = None
) -> pa.Table:
    """MEDS rows of one kind; no time: undated, no value: none. The arrays are [row]."""
    count = len(subject)
    return pa.table(
        {
            "subject_id": pa.array(subject, pa.int64()),
            "time": pa.nulls(count, pa.timestamp("us")) if time is None else pa.array(time, pa.timestamp("us")),
            "code": pa.array(np.full(count, code) if isinstance(code, str) else code, pa.string()),
            "numeric_value": pa.nulls(count, pa.float32())
            if value is None
            else pa.array(value.astype(np.float32), from_pandas=True),
        },
        EVENTS,
    )


def fifths(count: int, seed: int) -> np.ndarray:
    """A split for each of `count` subjects: of five equal groups the first is held out, an eighth of the rest tunes.

    Example:
        >>> [(str(name), int(n)) for name, n in zip(*np.unique(fifths(400, 1), return_counts=True))]
        [('held_out', 80), ('train', 280), ('tuning', 40)]
    """
    group = np.random.default_rng(seed).permutation(count) % 40
    return np.where(group < 8, HELD_OUT, np.where(group < 12, TUNING, TRAIN))


def _file(folder: Path, name: str) -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    return file
