"""Files of the PhysioNet Challenge 2012 flow in; one table of stays, and who died, flow out.

    FOLDER/set-a/132539.txt ...   lines Time,Parameter,Value; 00:00 has RecordID, Age, Gender, Height, ICUType, Weight
    FOLDER/Outcomes-a.txt         RecordID,SAPS-I,SOFA,Length_of_stay,Survival,In-hospital_death
or
    FOLDER/events.parquet         record_id, minute, parameter, value
    FOLDER/outcomes.csv           record_id, in_hospital_death and others

Several sets are read as well, a .zip or .tar.gz of such a folder, and the folder of a set with the file of its
outcomes beside it, each by its name.
"""

from __future__ import annotations

import csv
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from whenwhy.errors import UserError

STAYS = pa.schema(
    [("record_id", pa.int64()), ("minute", pa.int32()), ("parameter", pa.string()), ("value", pa.float32())]
)
HEADER = "Time,Parameter,Value"
OUTCOMES = "Outcomes"


def read_stays(inputs: Iterable[Path]) -> tuple[pa.Table, dict[int, bool]]:
    """All stays (columns record_id, minute, parameter, value; by stay, in the order recorded), and who died by stay.

    Raises:
        UserError: nothing to read, a line or column that is not as the challenge has it, or a stay found twice.

    Example: `read_stays([Path("challenge-2012")])`
    """
    tables: list[pa.Table] = []
    outcomes: dict[int, bool] = {}
    with ExitStack() as opened:
        for path in inputs:
            if path.is_file() and path.name.startswith(OUTCOMES):
                outcomes |= _outcomes(path, "RecordID", "In-hospital_death")
                continue
            folder = opened.enter_context(_unpacked(path))
            table, died = _table(folder) if (folder / "events.parquet").is_file() else _text(folder, path)
            tables.append(table)
            outcomes |= died
    seen: set[int] = set()
    for table in tables:
        records = set(pc.unique(table["record_id"]).to_pylist())
        if seen & records:
            raise UserError(f"The stay {min(seen & records)} is in two of the inputs: name each set once.")
        seen |= records
    if not tables:
        raise UserError("There are outcomes without stays: name the folder of the set, e.g. set-a, as well.")
    stays = pa.concat_tables(tables)
    order = np.argsort(stays["record_id"].to_numpy(), kind="stable")
    return stays.take(order), outcomes


@contextmanager
def _unpacked(path: Path) -> Iterator[Path]:
    """A folder as it is, an archive in a folder for as long as it is read."""
    if path.is_dir():
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        try:
            if zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as packed:
                    packed.extractall(folder)
            else:
                with tarfile.open(path) as packed:
                    _extract(packed, Path(folder).resolve())
        except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
            raise UserError(
                f"{path} is no folder, .zip or .tar.gz that can be read ({error}): fetch it again."
            ) from None
        yield Path(folder)


def _extract(packed: tarfile.TarFile, folder: Path) -> None:
    """Write an archive's plain files below a folder, and nothing else; early Pythons 3.11 have no filter for it."""
    for member in packed:
        place = (folder / member.name).resolve()
        content = packed.extractfile(member) if member.isfile() else None
        if content is not None and place.is_relative_to(folder):
            place.parent.mkdir(parents=True, exist_ok=True)
            with place.open("wb") as file:
                shutil.copyfileobj(content, file)


def _table(folder: Path) -> tuple[pa.Table, dict[int, bool]]:
    file = folder / "events.parquet"
    try:
        table = pq.read_table(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{file} is no readable Parquet file ({str(error).splitlines()[0]}): fetch it again.") from None
    for name in STAYS.names:
        if name not in table.column_names:
            raise UserError(f"{file} has no column '{name}' (it has {', '.join(table.column_names)}): add it.")
    outcomes = folder / "outcomes.csv"
    died = _outcomes(outcomes, "record_id", "in_hospital_death") if outcomes.is_file() else {}
    return table.select(STAYS.names).cast(STAYS), died


def _text(folder: Path, told: Path) -> tuple[pa.Table, dict[int, bool]]:
    texts = sorted(folder.rglob("*.txt"))
    files = [file for file in texts if not file.name.startswith(OUTCOMES)]
    if not files:
        raise UserError(
            f"{told} has no stay: name a folder with set-a/*.txt and Outcomes-a.txt, or with events.parquet."
        )
    died: dict[int, bool] = {}
    for file in texts:
        if file.name.startswith(OUTCOMES):
            died |= _outcomes(file, "RecordID", "In-hospital_death")
    records: dict[int, pa.Table] = {}
    for file in files:
        record, table = _stay(file)
        if record in records:
            raise UserError(f"{file} is the stay {record} once more: keep one of its files.")
        records[record] = table
    return pa.concat_tables(records.values()), died


def _stay(file: Path) -> tuple[int, pa.Table]:
    """A stay's number and rows."""
    minutes, parameters, values = [], [], []
    record = None
    header, *lines = file.read_text().splitlines() or [""]
    if header.strip() != HEADER:
        raise UserError(f"{file} begins with '{header[:40]}', not with '{HEADER}': it is no stay of the challenge.")
    for number, line in enumerate(lines, start=2):
        if not line.strip():
            continue
        try:
            time, parameter, text = line.split(",")
            hours, minute = time.split(":")
            value = float(text)
            at = 60 * int(hours) + int(minute)
        except ValueError:
            raise UserError(f"{file}, line {number}: '{line[:60]}' is not '{HEADER}': mend it.") from None
        if parameter == "RecordID":
            record = int(value)
        elif parameter:  # a few lines of the published files name no parameter
            minutes.append(at)
            parameters.append(parameter)
            values.append(value)
    if record is None:
        raise UserError(f"{file} has no line with its RecordID: it is no stay of the challenge.")
    columns = [np.full(len(minutes), record), minutes, parameters, np.array(values, dtype=np.float32)]
    return record, pa.table(dict(zip(STAYS.names, columns, strict=True)), STAYS)


def _outcomes(file: Path, record: str, death: str) -> dict[int, bool]:
    with file.open(newline="") as opened:
        try:
            return {int(row[record]): int(row[death]) == 1 for row in csv.DictReader(opened)}
        except (KeyError, ValueError, TypeError) as error:
            raise UserError(f"{file} has no whole numbers in {record} and {death} ({error}): mend it.") from None
