"""A MEDS data set on disk, its layout and types checked before any work: events, labels, splits, descriptions."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import meds
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from whenwhy.errors import UserError
from whenwhy.events.code_groups import without_cycles
from whenwhy.events.findings import RINGS, Finding, found, require_sound
from whenwhy.events.parquet_files import converted, parquet_files, read_columns, read_schema
from whenwhy.manifests import canonical
from whenwhy.schema import HELD_OUT, SPLITS, TRAIN, TUNING
from whenwhy.shards import Json, content_sha256

EVENT_COLUMNS = {
    "subject_id": pa.int64(),
    "time": pa.timestamp("us"),
    "code": pa.string(),
    "numeric_value": pa.float32(),
}
#: Columns that may be missing in every row, which other tools write as the type null.
MAY_BE_EMPTY = ("time", "numeric_value")

LABEL_COLUMNS = {"subject_id": pa.int64(), "prediction_time": pa.timestamp("us")}

#: The MEDS columns whose values name classes; where several have values, the first of them counts.
OUTCOME_COLUMNS = {"boolean_value": pa.bool_(), "categorical_value": pa.string(), "integer_value": pa.int64()}
CONTINUOUS_OUTCOME = "float_value"

#: The most classes of an outcome: beyond, it is a count or a measurement.
MOST_CLASSES = 100

#: What stands for all classes in a store, and the characters that targets are written with.
ALL_CLASSES, NOT_IN_CLASSES = "all", ":@"


@dataclass(frozen=True)
class MedsDataset:
    """A data set whose layout and types were checked; its rows are checked when they are scanned.

    Attributes:
        files: the Parquet files below data/, in order of their names.
        codes: columns code, description, unit, parents (none below its own code); None where the data set has no
            codes.parquet.
        splits: columns subject_id, split; None where the data set has none.
        findings: what is wrong with types and layout.
        mended: whether `files` are a copy that lies elsewhere, in which each row names its source.
    """

    path: Path
    files: tuple[Path, ...]
    codes: pa.Table | None
    splits: pa.Table | None
    findings: tuple[Finding, ...]
    mended: bool = False

    @cached_property
    def names(self) -> list[str]:
        """The name of each file's shard: its path below data/ without the extension."""
        return [str(file.relative_to(self.path / "data").with_suffix("")) for file in self.files]

    def told_name(self, file: int) -> str:
        """A file's name for people, below the data set."""
        return "the mended copy" if self.mended else str(self.files[file].relative_to(self.path))

    def as_input(self) -> Json:
        """What a stage records of this data set: a hash over every file that was read."""
        read = [*self.files, *parquet_files(self.path / "metadata")]
        contents = {str(file.relative_to(self.path)): content_sha256(file) for file in sorted(read)}
        return {"path": str(self.path.resolve()), "sha256": hashlib.sha256(canonical(contents)).hexdigest()}

    def described(self) -> pa.Table:
        """Columns code, description, unit, parents; without rows where nothing is described."""
        return _NO_CODES if self.codes is None else self.codes


def open_meds(path: Path) -> MedsDataset:
    """The MEDS data set in a folder; `findings` names each file whose types would have to be converted.

    Raises:
        UserError: it is missing, or a file lacks a column or cannot be read or converted.

    Example: `open_meds(Path("demo/meds")).files`
    """
    if not path.is_dir():
        raise UserError(f"{path} does not exist: name the folder of a MEDS data set, or make one by `whenwhy import`.")
    files = tuple(parquet_files(path / "data"))
    if not files:
        raise UserError(f"{path} is no MEDS data set: there is no Parquet file below {path / 'data'}.")
    findings = []
    for file in files:
        findings += _type_findings(file, path, EVENT_COLUMNS, optional=("numeric_value",), empty=MAY_BE_EMPTY)
    if not (path / meds.dataset_metadata_filepath).exists():
        findings.append(Finding(str(meds.dataset_metadata_filepath), "is missing, though MEDS 0.4 asks for it"))
    codes, splits = _read_codes(path / meds.code_metadata_filepath), _read_splits(path / meds.subject_splits_filepath)
    if codes is not None:
        codes, rings = without_cycles(codes)
        if rings:
            findings.append(found(str(meds.code_metadata_filepath), RINGS, len(rings)))
    return MedsDataset(path, files, codes, splits, tuple(findings))


def sound_types(dataset: MedsDataset) -> MedsDataset:
    """Itself, if no file's types would have to be converted.

    Raises:
        UserError: one would have to be.
    """
    require_sound(dataset.findings, dataset.path)
    return replace(dataset, findings=tuple(f for f in dataset.findings if not f.refused))


def read_labels(path: Path, repair: bool = False) -> pa.Table:
    """Columns subject_id, prediction_time, label, sorted; one row a prediction.

    A label is the name of a class: 'true' or 'false', a categorical value, or a whole number's digits.

    Args:
        path: a MEDS label file, or a folder of them.
        repair: convert types, and keep one of equal rows.

    Raises:
        UserError: it is missing, empty, of one class only, of a continuous outcome, or a class has a name that
            something else has.

    Example: `read_labels(Path("demo/meds/labels/death_within_five_years"))`
    """
    files = parquet_files(path) if path.is_dir() else [path]
    if not files or not files[0].exists():
        raise UserError(f"{path} has no labels: name a MEDS label file (Parquet) or a folder of them.")
    outcome = _outcome_column(files)
    wanted = LABEL_COLUMNS | {outcome: OUTCOME_COLUMNS[outcome]}
    tables = []
    for file in files:
        findings = _type_findings(file, file.parent, wanted)
        if not repair:
            require_sound(findings, file.parent, whole=False)
        tables.append(_as_wanted(file, wanted))
    table = pa.concat_tables(tables)
    if repair:
        table = table.group_by(table.column_names).aggregate([])
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
    # A dictionary: a million labels are some words.
    label = table[outcome].cast(pa.string())
    _require_classes(pc.unique(label).to_pylist(), path, outcome)
    table = table.drop_columns([outcome]).append_column("label", label.dictionary_encode())
    return table.sort_by([("subject_id", "ascending"), ("prediction_time", "ascending")])


def _outcome_column(files: Sequence[Path]) -> str:
    """The column that says the outcome in all of these label files.

    Raises:
        UserError: there is none, or it is continuous.
    """
    names = {file: read_schema(file).names for file in files}
    present = [name for name in OUTCOME_COLUMNS if any(name in of_file for of_file in names.values())]
    if len(present) > 1:  # MEDS has a column for each type of outcome, and those of other types may be empty
        filled = [name for name in present if any(_has_values(file, name) for file in files if name in names[file])]
        present = filled or present
    if present:
        return present[0]
    continuous = next((file for file, of_file in names.items() if CONTINUOUS_OUTCOME in of_file), None)
    if continuous:
        raise UserError(
            f"{continuous} has {CONTINUOUS_OUTCOME}: a continuous or survival outcome is not supported yet; give classes, as "
            f"{', '.join(OUTCOME_COLUMNS)}."
        )
    raise UserError(f"{files[0]} has no column of an outcome: MEDS 0.4 asks for one of {', '.join(OUTCOME_COLUMNS)}.")


def _has_values(file: Path, name: str) -> bool:
    column = read_columns(file, [name])[name]
    return bool(column.null_count < len(column))


def _require_classes(classes: list[str], path: Path, outcome: str) -> None:
    """Raises `UserError` unless there are some classes, and their names are free."""
    if len(classes) < 2:
        raise UserError(f"{path} has labels of one class only (all {classes[0]}): a model needs two classes or more.")
    if len(classes) > MOST_CLASSES:
        raise UserError(
            f"{path} has {len(classes):,} different labels in {outcome}, more than {MOST_CLASSES} classes: join them into fewer."
        )
    for name in classes:
        if not name.strip() or name == ALL_CLASSES or any(character in name for character in NOT_IN_CLASSES):
            raise UserError(
                f"{path} has a class named '{name}': a class needs a name other than '{ALL_CLASSES}', without "
                f"{' and '.join(NOT_IN_CLASSES)}, which targets such as logit:CLASS@STEP are written with; rename it."
            )


def split_patients(dataset: MedsDataset, subjects: np.ndarray) -> pa.Table:
    """Columns subject_id, split for the unique `subjects` [patient]: the data set's own, else 70/10/20 by a hash.

    Raises:
        UserError: a subject has no split, or more than one.
    """
    subjects = np.unique(subjects)
    if dataset.splits is None:
        share = np.array([int(hashlib.md5(f"split {s}".encode()).hexdigest()[:8], 16) for s in subjects]) / 2**32
        split = np.where(share < 0.2, HELD_OUT, np.where(share < 0.3, TUNING, TRAIN))
        return pa.table({"subject_id": subjects, "split": split})
    wanted = dataset.splits.filter(pc.is_in(dataset.splits["subject_id"], pa.array(subjects)))
    named = pc.count_distinct(wanted["subject_id"]).as_py()
    if named != len(subjects) or named != wanted.num_rows:
        raise UserError(
            f"{dataset.path / meds.subject_splits_filepath} does not name each labelled patient once "
            f"({len(subjects):,} patients, {named:,} of them in {wanted.num_rows:,} rows): mend it, or remove it to "
            "split by a hash."
        )
    return wanted


def _as_wanted(file: Path, wanted: dict[str, pa.DataType]) -> pa.Table:
    """These columns of a file, which `_type_findings` has seen, in these types."""
    table = read_columns(file, list(wanted))
    return pa.table({name: converted(table, name, kind, file) for name, kind in wanted.items()})


def _read_splits(file: Path) -> pa.Table | None:
    if not file.exists():
        return None
    wanted = {"subject_id": pa.int64(), "split": pa.string()}
    _type_findings(file, file.parent, wanted)
    splits = _as_wanted(file, wanted)
    strange = {str(name) for name in pc.unique(splits["split"]).to_pylist()} - set(SPLITS)
    if strange:
        raise UserError(f"{file} has the split '{min(strange)}': use {', '.join(SPLITS)}.")
    return splits


def _read_codes(file: Path) -> pa.Table | None:
    if not file.exists():
        return None
    _type_findings(file, file.parent, {"code": pa.string()})
    schema, wanted = read_schema(file), ("code", "description", "unit", "parent_codes")
    for name in wanted:
        _require_single(file, schema, name)
    table = read_columns(file, [name for name in wanted if name in schema.names])
    count = table.num_rows

    def column(name: str, kind: pa.DataType) -> pa.Array:
        try:
            return table[name].cast(kind) if name in table.column_names else pa.nulls(count, kind)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            raise UserError(f"{file}: column '{name}' is {table[name].type}, not {kind}: convert it.") from None

    codes = pa.table(
        {
            "code": table["code"].cast(pa.string()),
            "description": column("description", pa.string()),
            "unit": column("unit", pa.string()),
            "parents": column("parent_codes", pa.list_(pa.string())),
        }
    )
    twice = count - pc.count_distinct(codes["code"], mode="all").as_py()
    if twice:
        raise UserError(f"{file} describes {twice:,} codes more than once: keep one row of each.")
    return codes


_NO_CODES = pa.table(
    {name: pa.array([], pa.string()) for name in ("code", "description", "unit")}
    | {"parents": pa.array([], pa.list_(pa.string()))}
)


def _require_single(file: Path, schema: pa.Schema, name: str) -> None:
    if schema.names.count(name) > 1:
        raise UserError(f"{file} has the column '{name}' {schema.names.count(name)} times: keep one.")


def _type_findings(
    file: Path,
    below: Path,
    wanted: dict[str, pa.DataType],
    optional: Collection[str] = (),
    empty: Collection[str] = (),
) -> list[Finding]:
    """The columns that are of another type than MEDS 0.4 asks, but can be converted.

    Args:
        optional: columns that the file need not have.
        empty: columns that may be of the type null.

    Raises:
        UserError: a column is missing, or cannot be converted.
    """
    schema = read_schema(file)
    findings = []
    for name, kind in wanted.items():
        if name not in schema.names:
            if name in optional:
                continue
            raise UserError(f"{file} has no column '{name}' (it has {', '.join(schema.names)}): MEDS 0.4 asks for it.")
        _require_single(file, schema, name)
        found = schema.field(name).type
        if pa.types.is_dictionary(found):
            found = found.value_type
        if (
            found == kind
            or (pa.types.is_string(kind) and _is_text(found))
            or (pa.types.is_null(found) and name in empty)
        ):
            continue
        if not _convertible(found, kind):
            raise UserError(f"{file}: column '{name}' is {found}, not {kind} as MEDS 0.4 asks: convert it.")
        what = f"column '{name}' is {found}, not {kind}"
        findings.append(Finding(str(file.relative_to(below)), what, None, "converted", True))
    return findings


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _convertible(found: pa.DataType, kind: pa.DataType) -> bool:
    if pa.types.is_timestamp(kind):
        return bool(pa.types.is_timestamp(found) or pa.types.is_date(found))
    if pa.types.is_integer(kind):
        return bool(pa.types.is_integer(found))
    if pa.types.is_floating(kind):
        return bool(pa.types.is_floating(found) or pa.types.is_integer(found) or pa.types.is_decimal(found))
    return False
