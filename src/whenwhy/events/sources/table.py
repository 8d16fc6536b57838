"""A user's own tables of events, CSV or Parquet, as MEDS; read out of core by DuckDB, in bounded memory."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import duckdb
import meds
import numpy as np
import pyarrow.parquet as pq
from typer import Option

from whenwhy.errors import UserError
from whenwhy.events.out_of_core import literal
from whenwhy.events.sources.meds_writer import Code, MedsWriter
from whenwhy.events.sources.registry import NOT_RECORDED, source
from whenwhy.events.sources.table_columns import Clock, TableFile, table_files, unreadable

EVENTS_A_FILE = 1_000_000
NAMES = "metadata/subject_ids.parquet"


@source("table", "your own events: CSV or Parquet files with a column each for subject, time, code and value")
def table(
    writer: MedsWriter,
    inputs: tuple[Path, ...],
    *,
    subject: Annotated[str, Option(help="Column of the patient: whole numbers, or any text.")] = "subject_id",
    time: Annotated[str, Option(help="Column of the time; where it is empty, the event is static.")] = "time",
    code: Annotated[str, Option(help="Column of what was recorded.")] = "code",
    value: Annotated[str | None, Option(help="Column of the number; without it, events have none.")] = None,
    unit: Annotated[str | None, Option(help="Column of the number's unit.")] = None,
    code_prefix: Annotated[str, Option(help="Put before each code, e.g. LAB//.")] = "",
    text_values: Annotated[
        bool, Option("--text-values", help="A value that is no number becomes CODE//VALUE.")
    ] = False,
    time_unit: Annotated[str | None, Option(help="Times are numbers of days, hours, minutes or seconds.")] = None,
    origin: Annotated[str, Option(help="The date from which numbers of --time-unit count.")] = "2000-01-01",
    time_format: Annotated[str | None, Option(help="Times are text, e.g. %d.%m.%Y %H:%M; by default ISO 8601.")] = None,
    static_table: Annotated[Path | None, Option(help="A table with a row a patient: each column is static.")] = None,
    birth: Annotated[str | None, Option(help="The date of birth in --static-table.")] = None,
    labels: Annotated[Path | None, Option(help="A table of outcomes, a row a prediction.")] = None,
    label: Annotated[str, Option(help="Column of the outcome in --labels: yes/no, true/false or 1/0.")] = "label",
    label_time: Annotated[str, Option(help="Column of the prediction's time in --labels.")] = "prediction_time",
    label_subject: Annotated[
        str | None, Option(help="Column of the patient in --labels; by default --subject.")
    ] = None,
    task: Annotated[str | None, Option(help="The labels' name; by default that of the file.")] = None,
    memory_limit: Annotated[str, Option(help="Of DuckDB."), NOT_RECORDED] = "1GB",
) -> None:
    """Writes the events, and the labels if there are any; prepare splits the patients by a hash.

    Subjects that are not all whole numbers are numbered in the order of their names, and
    metadata/subject_ids.parquet says who is who. What cannot be read as a time or number is refused.
    """
    scratch = writer.folder / "scratch"
    scratch.mkdir()
    settings: dict[str, Any] = {
        "memory_limit": memory_limit,
        "temp_directory": str(scratch),
        "autoinstall_known_extensions": "false",
    }
    try:
        db = duckdb.connect(scratch / "events.duckdb", config=settings | {"preserve_insertion_order": "false"})
    except duckdb.Error as error:
        raise UserError(
            f"--memory-limit is '{memory_limit}' ({str(error).splitlines()[0]}): write it like 2GB."
        ) from None
    with db:
        db.execute("set TimeZone = 'UTC'")  # a time without an offset is what it says, wherever this runs
        tables = Tables(db, writer, Clock(time_unit, origin, time_format).checked(), scratch)
        tables.read_events(inputs, EventColumns(subject, time, code, value, unit, code_prefix, text_values))
        if static_table is not None:
            tables.read_static(static_table, subject, birth)
        elif birth is not None:
            raise UserError(f"--birth '{birth}' is a column of --static-table: give that table too.")
        tables.number_subjects()
        if labels is not None:
            name = task or labels.name.split(".")[0]
            tables.write_labels(labels, name, label_subject or subject, label_time, label)
        tables.write_events(has_units=unit is not None)
    shutil.rmtree(scratch)
    writer.describe(inputs[0].name.split(".")[0], "1", "as the tables it was made from")


@dataclass(frozen=True)
class EventColumns:
    """Which column of an event table holds what."""

    subject: str
    time: str
    code: str
    value: str | None
    unit: str | None
    prefix: str
    text_values: bool


@dataclass(frozen=True)
class Tables:
    """What was read, in a database on disk.

    Tables of `db`: events (subject as text, time, code, value, unit, and what could not be read: bad_time,
    bad_value), subjects (subject, subject_id, part: the file that will hold it).
    """

    db: duckdb.DuckDBPyConnection
    writer: MedsWriter
    clock: Clock
    scratch: Path

    def read_events(self, inputs: tuple[Path, ...], columns: EventColumns) -> None:
        """Fills the table of events.

        Raises:
            UserError: a file or column that is not there, or a row that cannot be read.
        """
        self.db.execute(
            "create table events (subject varchar, time timestamp, code varchar, value float, unit varchar, "
            "bad_time varchar, bad_value varchar)"
        )
        text_values = 0
        for file in [file for path in inputs for file in table_files(self.db, path)]:
            begin = self._one("select count(*) from events")
            number = "null::double" if columns.value is None else file.number(columns.value)
            text = "null::varchar" if columns.value is None else file.text(columns.value)
            unit = "null::varchar" if columns.unit is None else file.text(columns.unit)
            words = f"{number} is null and {text} is not null and lower({text}) <> 'nan'"
            code = f"{literal(columns.prefix)} || {file.text(columns.code)}"
            code_told = f"{code} || case when {words} then '//' || {text} else '' end" if columns.text_values else code
            self._insert(
                file,
                f"""select {file.text(columns.subject)}, {file.time(columns.time, self.clock)}, {code_told}, {number},
                {unit}, case when {file.time(columns.time, self.clock)} is null then {file.text(columns.time)} end,
                case when {words} then {text} end from {file.relation}""",
            )
            text_values += self._refuse(file, columns, begin)
        if not self._one("select count(*) from events"):
            raise UserError(f"{inputs[0]} has no row: give at least one event.")
        if text_values:
            self.writer.say(f"{text_values:,} values are no numbers and became part of their codes (CODE//VALUE).")
        if columns.value is None:
            self.writer.say("no --value was given, so no event has a number.")

    def _refuse(self, file: TableFile, columns: EventColumns, begin: int) -> int:
        """How many values of the rows that were just read are text."""
        rows, no_subject, no_code, times, time, values, value = self.db.execute(
            """select count(*), count(*) filter (subject is null), count(*) filter (code is null), count(bad_time),
            min(bad_time), count(bad_value), min(bad_value) from events where rowid >= ?""",
            [begin],
        ).fetchall()[0]
        for count, column in ((no_subject, columns.subject), (no_code, columns.code)):
            if count:
                raise UserError(f"{file.path}: {count:,} of {rows:,} rows have no {column}: fill or remove them.")
        if times:
            how = "numbers" if self.clock.unit else f"like {self.clock.format}" if self.clock.format else "ISO 8601"
            raise UserError(
                f"{file.path}: {times:,} of {rows:,} times in '{columns.time}' are not {how}, such as '{time}': mend "
                "them, or say what they are by --time-unit or --time-format."
            )
        if values and not columns.text_values:
            raise UserError(
                f"{file.path}: {values:,} of {rows:,} values in '{columns.value}' are no numbers, such as '{value}': "
                "mend them, or make them part of the code by --text-values."
            )
        return int(values)

    def read_static(self, path: Path, subject: str, birth: str | None) -> None:
        """Adds a static event for each column of a table with a row a subject, and births."""
        for file in table_files(self.db, path):
            who = file.text(subject)
            if birth is not None:
                time, text = file.time(birth, self.clock), file.text(birth)
                bad = self.db.execute(
                    f"select count(*), min({text}) from {file.relation} where {time} is null and {text} is not null"
                ).fetchall()[0]
                if bad[0]:
                    raise UserError(
                        f"{file.path}: {bad[0]:,} of '{birth}' are no dates, such as '{bad[1]}': mend them."
                    )
                self._insert(
                    file,
                    f"""select {who}, {time}, '{meds.birth_code}', null, null, null, null from {file.relation}
                    where {time} is not null""",
                )
            for column in file.types:
                if column in (subject, birth):
                    continue
                text, number = file.text(column), file.number(column)
                words = self._one(f"select count(*) from {file.relation} where {text} is not null and {number} is null")
                name = literal(column)
                told = f"{name} || '//' || {text}, null" if words else f"{name}, {number}"
                self._insert(
                    file, f"select {who}, null, {told}, null, null, null from {file.relation} where {text} is not null"
                )
            if self._one("select count(*) from events where subject is null"):
                raise UserError(f"{file.path}: a row has no {subject}: fill or remove it.")

    def number_subjects(self) -> None:
        """Fills the table of subjects, and writes who is who where they are not whole numbers."""
        whole = "coalesce(bool_and(try_cast(subject as bigint)::varchar = subject), false)"
        numbered = self._one(f"select {whole} from events")
        number = "subject::bigint" if numbered else "row_number() over (order by subject)"
        self.db.execute(
            f"""create table subjects as
            select subject, subject_id, ((sum(n) over (order by subject_id) - n) // {EVENTS_A_FILE})::integer as part
            from (select subject, {number} as subject_id, n from (select subject, count(*) as n from events group by 1))"""
        )
        if not numbered:
            names = self.db.sql("select subject_id, subject as source_id from subjects order by 1").to_arrow_table()
            (self.writer.folder / NAMES).parent.mkdir(exist_ok=True)
            pq.write_table(names, self.writer.folder / NAMES)
            self.writer.say(f"{names.num_rows:,} patients were numbered in the order of their names, see {NAMES}.")

    def write_labels(self, path: Path, task: str, subject: str, time: str, label: str) -> None:
        """Writes labels/TASK.

        Raises:
            UserError: a label or time that cannot be read, or no label of anyone who has an event.
        """
        parts = []
        for file in table_files(self.db, path):
            self.db.execute(
                f"""create or replace temp table found as select subject_id, {file.text(subject)} as subject,
                {file.time(time, self.clock)} as time, {file.truth(label)} as label, {file.text(time)} as time_text,
                {file.text(label)} as label_text from {file.relation} left join subjects
                on subjects.subject = {file.text(subject)}"""
            )
            for column, what, name in (("time", "a time", time), ("label", "yes/no, true/false or 1/0", label)):
                bad, example = self.db.execute(
                    f"select count(*), min({column}_text) from found where {column} is null"
                ).fetchall()[0]
                if bad:
                    shown = "empty" if example is None else f"such as '{example}'"
                    raise UserError(f"{file.path}: {bad:,} rows of '{name}' are not {what}, {shown}: mend them.")
            strangers = self._one("select count(*) from found where subject_id is null")
            if strangers:
                self.writer.say(f"{strangers:,} labels in {file.path} are of patients without any event: left out.")
            parts.append(self.db.sql("select * from found where subject_id is not null").to_arrow_table())
        columns = [
            np.concatenate([part[name].to_numpy() for part in parts]) for name in ("subject_id", "time", "label")
        ]
        if not len(columns[0]):
            raise UserError(f"{path} has no label of a patient with events: check that '{subject}' means the same ids.")
        self.writer.labels(task, columns[0], columns[1], columns[2].astype(bool))

    def write_events(self, has_units: bool) -> None:
        """Writes a file for each part of the subjects, and the codes with their most frequent unit."""
        codes = self.db.execute(
            """select code, arg_max(unit, (n, unit)) filter (unit is not null), count(unit) from
            (select code, unit, count(*) as n from events group by all) group by code order by code"""
        ).fetchall()
        self.writer.codes({code: Code(None, unit) for code, unit, _ in codes})
        mixed = sum(units > 1 for _, _, units in codes)
        if has_units and mixed:
            self.writer.say(f"{mixed:,} codes have several units; codes.parquet names the most frequent one.")
        parts = self.scratch / "parts"
        self.db.execute(
            f"""copy (select subject_id, time, code, value as numeric_value, part from events join subjects using (subject))
            to {literal(str(parts))} (format parquet, partition_by (part))"""
        )
        folders = sorted(parts.glob("part=*"), key=lambda folder: int(folder.name.partition("=")[2]))
        self.writer.progress.expect(len(folders))
        for folder in folders:
            number = int(folder.name.partition("=")[2])
            self.writer.events(f"{number:05d}", pq.read_table(folder, partitioning=None))
            shutil.rmtree(folder)

    def _insert(self, file: TableFile, query: str) -> None:
        try:
            self.db.execute(f"insert into events {query}")
        except duckdb.OutOfMemoryException:
            raise UserError("DuckDB has too little memory for these tables: give a larger --memory-limit.") from None
        except duckdb.Error as error:
            raise unreadable(file.path, error) from None

    def _one(self, query: str) -> Any:
        return self.db.execute(query).fetchall()[0][0]
