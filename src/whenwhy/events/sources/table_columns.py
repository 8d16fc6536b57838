"""A table's file and the name of a column flow in; the SQL that reads it as text, time, number or truth flows out."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path

import duckdb

from whenwhy.errors import UserError, unknown_name
from whenwhy.events.out_of_core import literal

SUFFIXES = (".parquet", ".csv", ".csv.gz")
MICROSECONDS = {"seconds": 10**6, "minutes": 60 * 10**6, "hours": 3600 * 10**6, "days": 86400 * 10**6}
INTEGERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT")
NUMBERS = (*INTEGERS, *(f"U{name}" for name in INTEGERS), "FLOAT", "DOUBLE", "DECIMAL")
TRUE, FALSE = ("true", "t", "yes", "y", "1", "1.0"), ("false", "f", "no", "n", "0", "0.0")


@dataclass(frozen=True)
class Clock:
    """How a column says the time: a timestamp or ISO text, text in a format, or a number of units since an origin."""

    unit: str | None = None
    origin: str = "2000-01-01"
    format: str | None = None

    def checked(self) -> Clock:
        """Itself.

        Raises:
            UserError: no such unit, or an origin that is no date.
        """
        if self.unit is not None and self.unit not in MICROSECONDS:
            raise unknown_name("unit of time", self.unit, MICROSECONDS)
        if self.unit is not None and self.format is not None:
            raise UserError("A time is either a number (--time-unit) or text (--time-format): give one of the two.")
        try:
            datetime.fromisoformat(self.origin)
        except ValueError:
            raise UserError(f"--origin is '{self.origin}', which is no date: write it like 2000-01-31.") from None
        return self


@dataclass(frozen=True)
class TableFile:
    """A CSV or Parquet file, its columns looked up by name.

    Example: `TableFile(db, Path("events.csv")).number("value")`
    """

    db: duckdb.DuckDBPyConnection
    path: Path

    @cached_property
    def relation(self) -> str:
        """What SQL selects from."""
        name = literal(str(self.path))
        if self.path.name.endswith(".parquet"):
            return f"read_parquet({name}, hive_partitioning = false)"
        # As text, so that the mapping decides what is a number, and a bad one can be shown.
        return f"read_csv({name}, header = true, all_varchar = true, hive_partitioning = false)"

    @cached_property
    def types(self) -> dict[str, str]:
        """The columns with their SQL types.

        Raises:
            UserError: it is no table that can be read.
        """
        try:
            return {row[0]: row[1] for row in self.db.execute(f"describe select * from {self.relation}").fetchall()}
        except duckdb.Error as error:
            raise unreadable(self.path, error) from None

    def column(self, name: str) -> str:
        """The column, quoted.

        Raises:
            UserError: there is none; the sentence has the nearest.
        """
        if name not in self.types:
            raise unknown_name("column", name, self.types, str(self.path))
        return '"' + name.replace('"', '""') + '"'

    def text(self, name: str) -> str:
        """The column as text; empty text is null."""
        return f"nullif(trim({self.column(name)}::varchar), '')"

    def number(self, name: str) -> str:
        """The column as a double; null where it is no finite number."""
        number = f"try_cast({self.column(name)} as double)"
        return f"case when isfinite({number}) then {number} end"

    def truth(self, name: str) -> str:
        """The column as a boolean; null where it is neither yes nor no."""
        text = f"lower({self.text(name)})"
        return f"case when {text} in {TRUE} then true when {text} in {FALSE} then false end"

    def time(self, name: str, clock: Clock) -> str:
        """The column as a timestamp, in UTC where it names an offset from it; null where it cannot be read.

        Raises:
            UserError: it holds numbers, and no unit is given.
        """
        column, kind = self.column(name), self.types[name]
        if kind.startswith(("TIMESTAMP", "DATE")):
            return f"make_timestamp(epoch_us({column}))"
        if clock.unit is not None:
            passed = f"try_cast(round(try_cast({column} as double) * {MICROSECONDS[clock.unit]}) as bigint)"
            return f"timestamp {literal(clock.origin)} + to_microseconds({passed})"
        if kind.startswith(NUMBERS):
            raise UserError(
                f"{self.path}: column '{name}' holds numbers ({kind}): say --time-unit {', '.join(MICROSECONDS)}, "
                "and --origin where they do not count from 2000-01-01."
            )
        if clock.format is not None:
            return f"make_timestamp(epoch_us(try_strptime({self.text(name)}, {literal(clock.format)})))"
        return f"make_timestamp(epoch_us(try_cast({self.text(name)} as timestamptz)))"


def table_files(db: duckdb.DuckDBPyConnection, path: Path) -> list[TableFile]:
    """The file itself, or every CSV and Parquet file below a folder, by name.

    Raises:
        UserError: there is none.
    """
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    found = [TableFile(db, file) for file in files if file.name.endswith(SUFFIXES)]
    if not found:
        raise UserError(f"{path} is no table: name a file, or a folder of files, that end in {', '.join(SUFFIXES)}.")
    return found


def unreadable(path: Path, error: Exception) -> UserError:
    """The sentence for a file that DuckDB cannot read."""
    return UserError(f"{path} cannot be read as a table ({str(error).splitlines()[0].rstrip('.')}): mend it.")
