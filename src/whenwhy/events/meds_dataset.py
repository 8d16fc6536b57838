"""A MEDS data set on disk, checked before any work: events, labels, splits and code descriptions."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import meds
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from whenwhy.errors import UserError
from whenwhy.schema import HELD_OUT, SPLITS, TRAIN, TUNING
from whenwhy.shards import Json, canonical, content_sha256

#: The type of outcome that cannot be explained yet, and why, by MEDS label column.
UNSUPPORTED_OUTCOMES = {
    "float_value": "a continuous or survival outcome",
    "integer_value": "an integer outcome (more than two classes, ordinal or a count)",
    "categorical_value": "an outcome of several classes",
}


@dataclass(frozen=True)
class MedsDataset:
    """A checked MEDS data set.

    Attributes:
        files: the Parquet files below data/, in order of their names.
        codes: columns code, description, unit, parents; empty where the data set describes none.
        splits: columns subject_id, split; None where the data set has none.
    """

    path: Path
    files: tuple[Path, ...]
    codes: pa.Table
    splits: pa.Table | None

    def as_input(self) -> Json:
        """What a stage records of this data set: a hash over every file that was read."""
        read = [*self.files, *(f for f in (self.path / "metadata").glob("*.parquet"))]
        contents = {str(file.relative_to(self.path)): content_sha256(file) for file in sorted(read)}
        return {"path": str(self.path.resolve()), "sha256": hashlib.sha256(canonical(contents)).hexdigest()}


def open_meds(path: Path) -> MedsDataset:
    """The MEDS data set in a folder.

    Raises:
        UserError: it is missing, or a file has a wrong column or type.

    Example: `open_meds(Path("demo/meds")).files`
    """
    if not path.is_dir():
        raise UserError(f"{path} does not exist: name the folder of a MEDS data set, or make one by `whenwhy import`.")
    files = tuple(sorted((path / "data").rglob("*.parquet")))
    if not files:
        raise UserError(f"{path} is no MEDS data set: there is no Parquet file below {path / 'data'}.")
    wanted = {"subject_id": pa.int64(), "time": pa.timestamp("us"), "code": pa.string(), "numeric_value": pa.float32()}
    for file in files:
        _check_columns(file, wanted, optional={"numeric_value"})
    splits_file = path / meds.subject_splits_filepath
    splits = None
    if splits_file.exists():
        _check_columns(splits_file, {"subject_id": pa.int64(), "split": pa.string()})
        splits = pq.read_table(splits_file, columns=["subject_id", "split"])
        strange = set(pc.unique(splits["split"]).to_pylist()) - set(SPLITS)
        if strange:
            raise UserError(f"{splits_file} has the split '{min(strange)}': use {', '.join(SPLITS)}.")
    return MedsDataset(path, files, _read_codes(path / meds.code_metadata_filepath), splits)


def read_labels(path: Path) -> pa.Table:
    """Columns subject_id, prediction_time, label ('true' or 'false'), sorted; one row a prediction.

    Args:
        path: a MEDS label file, or a folder of them.

    Raises:
        UserError: it is missing, empty, of one class only, or of an outcome that is not supported yet.

    Example: `read_labels(Path("demo/meds/labels/death_within_five_years"))`
    """
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    if not files or not files[0].exists():
        raise UserError(f"{path} has no labels: name a MEDS label file (Parquet) or a folder of them.")
    tables = []
    for file in files:
        names = _read_schema(file).names
        for column, outcome in UNSUPPORTED_OUTCOMES.items():
            if column in names and "boolean_value" not in names:
                raise UserError(f"{file} has {column}: {outcome} is not supported yet; give a yes/no boolean_value.")
        _check_columns(
            file, {"subject_id": pa.int64(), "prediction_time": pa.timestamp("us"), "boolean_value": pa.bool_()}
        )
        tables.append(pq.read_table(file, columns=["subject_id", "prediction_time", "boolean_value"]))
    table = pa.concat_tables(tables)
    if table.num_rows == 0:
        raise UserError(f"{path} is empty: there is no prediction to explain; give labels with at least one row.")
    for column in table.column_names:
        if table[column].null_count:
            raise UserError(f"{path} has {table[column].null_count:,} rows without {column}: remove them.")
    repeated = table.num_rows - table.group_by(["subject_id", "prediction_time"]).aggregate([]).num_rows
    if repeated:
        raise UserError(
            f"{path} has {repeated:,} predictions twice (same subject_id and prediction_time): keep one of each."
        )
    classes = pc.unique(table["boolean_value"]).to_pylist()
    if len(classes) < 2:
        raise UserError(
            f"{path} has labels of one class only (all {str(classes[0]).lower()}): a model needs both classes."
        )
    label = pc.if_else(table["boolean_value"], "true", "false")
    table = table.drop_columns(["boolean_value"]).append_column("label", label)
    return table.sort_by([("subject_id", "ascending"), ("prediction_time", "ascending")])


def split_patients(dataset: MedsDataset, subjects: np.ndarray) -> pa.Table:
    """Columns subject_id, split for the unique `subjects` [patient]: the data set's own, else 70/10/20 by a hash.

    Raises:
        UserError: a subject has no split, or a split has no subject.
    """
    subjects = np.unique(subjects)
    if dataset.splits is None:
        share = np.array([int(hashlib.md5(f"split {s}".encode()).hexdigest()[:8], 16) for s in subjects]) / 2**32
        split = np.where(share < 0.2, HELD_OUT, np.where(share < 0.3, TUNING, TRAIN))
        return pa.table({"subject_id": subjects, "split": split})
    wanted = dataset.splits.filter(pc.is_in(dataset.splits["subject_id"], pa.array(subjects)))
    missing = len(subjects) - wanted.num_rows
    if missing:
        raise UserError(
            f"{dataset.path / meds.subject_splits_filepath} does not name each labelled patient once "
            f"({len(subjects):,} patients, {wanted.num_rows:,} splits): mend it, or remove it to split by a hash."
        )
    return wanted


def _read_codes(file: Path) -> pa.Table:
    if not file.exists():
        names = ["code", "description", "unit"]
        return pa.table(
            {name: pa.array([], pa.string()) for name in names} | {"parents": pa.array([], pa.list_(pa.string()))}
        )
    _check_columns(file, {"code": pa.string()})
    table = pq.read_table(file)
    count = table.num_rows

    def column(name: str, kind: pa.DataType) -> pa.Array:
        return table[name].cast(kind) if name in table.column_names else pa.nulls(count, kind)

    return pa.table(
        {
            "code": table["code"].cast(pa.string()),
            "description": column("description", pa.string()),
            "unit": column("unit", pa.string()),
            "parents": column("parent_codes", pa.list_(pa.string())),
        }
    )


def _read_schema(file: Path) -> pa.Schema:
    try:
        return pq.read_schema(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{file} is no readable Parquet file ({str(error).splitlines()[0]}): write it again.") from None


def _check_columns(file: Path, wanted: dict[str, pa.DataType], optional: set[str] | None = None) -> None:
    schema = _read_schema(file)
    for name, kind in wanted.items():
        if name not in schema.names:
            if name in (optional or set()):
                continue
            raise UserError(f"{file} has no column '{name}' (it has {', '.join(schema.names)}): MEDS 0.4 asks for it.")
        found = schema.field(name).type
        if pa.types.is_dictionary(found):
            found = found.value_type
        same_text = pa.types.is_string(kind) and (pa.types.is_large_string(found) or pa.types.is_string_view(found))
        if found != kind and not same_text:
            raise UserError(f"{file}: column '{name}' is {found}, not {kind} as MEDS 0.4 asks: convert it.")
