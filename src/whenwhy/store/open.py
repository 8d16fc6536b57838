"""A published version, opened read-only: named queries and single SELECTs, nothing else."""

from __future__ import annotations

import math
import re
import tempfile
import threading
import warnings
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any, Literal

import duckdb
import pyarrow as pa

from whenwhy.errors import UserError, unknown_name
from whenwhy.schema import STORE_FORMAT
from whenwhy.store.access_log import ACCESS_LOG_FILE, AccessLog
from whenwhy.store.publish import ROWS_FILE, current_version
from whenwhy.store.queries import named_queries
from whenwhy.store.shareable import SHAREABLE_FILE
from whenwhy.store.stop import limited

# It is known, and wanted where it is done.
warnings.filterwarnings("ignore", message="Arrow output on a DB-API result makes an extra copy")

#: analyst: rows and everything else. viewer: cells that may be shown.
Role = Literal["analyst", "viewer"]

#: Every role by its name.
ROLES: dict[str, Role] = {"analyst": "analyst", "viewer": "viewer"}

#: What an argument of this name may be, so that an unknown one is answered with the nearest known.
KNOWN_VALUES = {
    "feature": "select distinct code from cells where level = $level",
    "class": "select distinct class from cells",
    "class_a": "select distinct class from cells",
    "class_b": "select distinct class from cells",
    "stratum": "select distinct stratum from cells",
    "stratum_a": "select distinct stratum from cells",
    "stratum_b": "select distinct stratum from cells",
    "other": "select distinct code from feature_values",
    "within": "select distinct code from cells where level = 'group'",
    "subgroups": "select distinct split_part(stratum, '=', 1) from cells where stratum <> 'all'",
    "split": "select distinct split from cells",
    "level": "select distinct level from cells",
    "criterion": "select unnest(['variance', 'entropy_over_time', 'entropy_over_values'])",
    "axis": "select distinct time_axis from exposure",
    "label": "select distinct class from cells where class <> 'all'",
    "patients.order_by": "select unnest(['score', 'lowest score', 'time', 'n_values', 'subject_id'])",
    "top_features.order_by": "select unnest(['size', 'mean', 'significance'])",
    "unit": "select unnest(['year', 'month'])",
    "run": "select run_id from runs",
    "run_a": "select run_id from runs",
    "run_b": "select run_id from runs",
}


#: Arguments that count something, that are some number, and that are a predicate over predictions.
COUNTS, FROM_NONE = ("top", "min_patients", "n_bins", "sample"), ("lags", "skip")
NUMBERS = ("difference", "minimum_effect", "false_discovery_rate", "spike", "measured")
PREDICATES = ("cohort", "cohort_a", "cohort_b", "marked")
#: Whether a text is a condition is told within so long: a page waits for it. A million predictions take some milliseconds.
UNDERSTOOD_SECONDS = 0.5
#: Columns of predictions that people do not make cohorts by: what tells one from another, and how it was explained.
NOT_OF_COHORTS = (
    *("run_id", "subject_id", "prediction_id", "target", "source", "n_nodes", "notes", "baseline_score"),
    *("completeness_residual", "anchor_minutes"),
)
_MISSING_COLUMN = re.compile(r'Referenced column "([^"]*)" not found')
#: So many of them are known to be predicates without asking again.
MOST_PREDICATES = 1000


class Store:
    """One published version. Threads may share it: each gets a connection of its own. `open_store` gives one with a log.

    What is asked within `Stop.watching()` raises `Stopped` once it was stopped.

    An answer is an Arrow table: `.to_pandas()` makes it one of pandas, `polars.from_arrow(answer)` one of Polars, which
    has no type for intervals: write `epoch(...)` of one in a SELECT.

    Example: `open_store(Path("demo/store")).ask("feature_timeline", feature="hdl").to_pandas()`
    """

    def __init__(
        self,
        path: Path,
        role: Role | None = None,
        memory_limit: str = "2GB",
        seconds: float | None = None,
        access_log: AccessLog | None = None,
    ) -> None:
        self.path, self.seconds, self._log = path, seconds, access_log
        self.version = current_version(path)
        self.role: Role = role or ("analyst" if (self.version / ROWS_FILE).exists() else "viewer")
        file = self.version / (ROWS_FILE if self.role == "analyst" else SHAREABLE_FILE)
        try:
            self._database = duckdb.connect(
                str(file),
                read_only=True,
                config={
                    "memory_limit": memory_limit,
                    "temp_directory": _scratch(),
                    "autoinstall_known_extensions": "false",
                    # A name in a query never means a variable of this process.
                    "python_enable_replacements": "false",
                },
            )
            # Last, since the scratch folder cannot be named once nothing outside may be touched.
            # One process shares one instance of a file, so an earlier opening may have done it.
            if not self._database.execute("select current_setting('lock_configuration')").fetchall()[0][0]:
                self._database.execute("set enable_external_access = false")
                self._database.execute("set lock_configuration = true")
            newest = self._database.execute("select max(format_version) from runs").fetchall()[0][0]
        except duckdb.Error as error:
            raise UserError(f"{file} cannot be read ({_first_line(error)}): run `whenwhy aggregate` again.") from None
        if newest > STORE_FORMAT:
            raise UserError(f"{path} was written by a newer whenwhy (store format {newest}): upgrade whenwhy.")
        if newest < STORE_FORMAT:
            raise UserError(f"{path} was written by an older whenwhy: run `whenwhy aggregate` again.")
        self._local = threading.local()
        self._known: dict[tuple[str, str], list[str]] = {}
        self._predicates: set[str] = set()

    def close(self) -> None:
        """Let the version go, and each thread's connection as soon as its question is answered."""
        self._database.close()
        self._local = threading.local()
        if self._log is not None:
            self._log.close()

    def sql(self, text: str, arguments: dict[str, Any] | None = None) -> pa.Table:
        """The answer to one SELECT over the store's tables and named queries.

        Raises:
            UserError: not one SELECT, or one that DuckDB refuses.
        """
        told = {"sql": text} | ({"arguments": arguments} if arguments else {})
        with self._logged(told) as answer:
            table = self._answer(text, arguments)
            answer["rows"] = table.num_rows
        return table

    def _answer(self, text: str, arguments: dict[str, Any] | None = None, is_small: bool = False) -> pa.Table:
        """The same, not written down: also for what whenwhy itself wants to know.

        A small answer is planned once instead of twice, which takes longer than all else, and copied once more.
        """
        connection = self._connection()
        try:
            statements = duckdb.extract_statements(text)
        except duckdb.Error as error:
            raise UserError(f"This is not SQL ({_first_line(error)}): write one SELECT.") from None
        kinds = [statement.type for statement in statements]
        if kinds != [duckdb.StatementType.SELECT]:
            said = ", ".join(str(kind).rpartition(".")[2] for kind in kinds) or "empty"
            raise UserError(f"A store answers one SELECT and nothing else (this is {said}): write one SELECT.")
        try:
            with limited(connection, self.seconds):
                if is_small:
                    return connection.execute(text, arguments or None).to_arrow_table()
                return connection.sql(text, params=arguments or None).to_arrow_table()
        except duckdb.InterruptException:
            raise self._too_slow() from None
        except (duckdb.Error, pa.ArrowException, OverflowError) as error:
            raise UserError(
                f"The store {self.path} cannot answer this ({_first_line(error)}): "
                f"`whenwhy info {self.path}` lists its tables and columns."
            ) from None

    def runs(self) -> list[dict[str, Any]]:
        """The rows of the table `runs`, which tell of no patient."""
        return list(self._answer("from runs").to_pylist())

    def ask(self, query: str, **arguments: Any) -> pa.Table:
        """The answer of a named query.

        Raises:
            UserError: no such query or argument, or an argument's value that the store does not know.
        """
        with self._logged({"query": query, "arguments": arguments}) as answer:
            table = self._answer_of(query, arguments)
            answer["rows"] = table.num_rows
        return table

    def _logged(self, told: dict[str, Any]) -> AbstractContextManager[dict[str, Any]]:
        if self._log is None:
            return nullcontext({})
        return self._log.question(role=self.role, version=self.version.name, **told)

    def _answer_of(self, query: str, arguments: dict[str, Any]) -> pa.Table:
        known = named_queries()
        if query not in known:
            raise unknown_name("query", query, known)
        parameters, needs = known[query].parameters, known[query].needs
        if needs and needs[0] not in self._tables():
            raise UserError(f"The query {query} needs {needs[0]}, and {self.path} has none to show here: {needs[1]}")
        for name in arguments:
            if name not in parameters:
                raise unknown_name("argument", name, parameters, f"query {query}")
        for name, default in parameters.items():
            if default is None and name not in arguments:
                raise UserError(f"The query {query} needs {name}: add {name}=... to the command.")
        for name, value in arguments.items():
            if value is None and parameters[name] != "null":
                raise UserError(f"The query {query} needs a value for {name}: leave it out for its default.")
            if name in COUNTS and not (str(value).isdecimal() and int(value) > 0):
                raise UserError(f"{name} is '{value}': give a whole number of at least 1.")
            if name in FROM_NONE and not str(value).isdecimal():
                raise UserError(f"{name} is '{value}': give a whole number, 0 or more.")
            if name in NUMBERS and not _is_number(value):
                raise UserError(f"{name} is '{value}': give a number of at least 0.")
        # Defaults too: a store need not have what they name.
        literal = {name: of.strip("'") for name, of in parameters.items() if of and of.startswith("'")}
        for name, value in (literal | arguments).items():
            of = name if name in KNOWN_VALUES else f"{query}.{name}"
            if of in KNOWN_VALUES and value is not None:
                values = self._known_values(of, arguments.get("level") or "code")
                if str(value) not in values:
                    raise unknown_name(name, str(value), values, str(self.path))
        for name in PREDICATES:
            if arguments.get(name) is not None:
                self._require_predicate(name, str(arguments[name]))
        given = ", ".join(f'"{name}" := ${name}' for name in arguments)
        return self._answer(f"select * from {query}({given})", arguments, is_small=True)

    def _known_values(self, name: str, level: str) -> list[str]:
        """What an argument may be; a version does not change, so it is looked up once."""
        if (name, level) not in self._known:
            query = KNOWN_VALUES[name]
            told = self._answer(query, {"level": level} if "$level" in query else None)
            self._known[name, level] = [str(value) for value in told.column(0).to_pylist()]
        return self._known[name, level]

    def _require_predicate(self, name: str, text: str) -> None:
        """Raises `UserError` unless the text is one condition that a prediction may fulfil."""
        if self.role == "viewer":
            raise UserError(
                "A cohort of one's own needs the rows of patients, which this role does not see: choose one that is ready "
                "by class and stratum."
            )
        if text in self._predicates:
            return
        try:
            query = _counting(text)
            connection = self._connection()
            with limited(connection, self.seconds):
                connection.execute(query).fetchall()
        except duckdb.InterruptException:
            raise self._too_slow() from None
        except duckdb.Error as error:
            told = _first_line(error)
            raise UserError(
                f"{name} is no predicate over predictions ({told}): write e.g. {name}=\"sex = 'F' and score > 0\"."
            ) from None
        # A page asks many questions of one cohort; a version does not change.
        if len(self._predicates) < MOST_PREDICATES:
            self._predicates.add(text)

    def require_condition(self, text: str) -> None:
        """Nothing, where the text is one condition on predictions, as far as can be told within `UNDERSTOOD_SECONDS`.

        Raises:
            UserError: it does not; names the columns that there are.

        Example: `Store(Path("demo/store")).require_condition("sex = 'F' and score > 0")`
        """
        connection = self._connection()
        try:
            with limited(connection, UNDERSTOOD_SECONDS):
                connection.execute(_counting(text)).fetchall()
        except duckdb.InterruptException:
            return  # it is slow, and nothing speaks against it
        except duckdb.Error as error:
            missing = _MISSING_COLUMN.search(str(error))
            told = f"there is no column {missing[1]}" if missing else _first_line(error)
            known = [name for name, *_ in connection.execute("from predictions limit 0").description]
            raise UserError(
                f"'{text.strip()[:80]}' is no condition on predictions ({told}): write e.g. score > 0 and label = 'true', "
                f"by the columns {', '.join(name for name in known if name not in NOT_OF_COHORTS)}."
            ) from None

    def _too_slow(self) -> UserError:
        return UserError(
            f"The store {self.path} did not answer within {self.seconds:g} seconds: ask for less, or allow more."
        )

    def _tables(self) -> set[str]:
        return set(self._answer("select table_name from duckdb_tables()")["table_name"].to_pylist())

    def _connection(self) -> duckdb.DuckDBPyConnection:
        """This thread's connection: one shared by threads answers wrongly. Macros are temporary, so each defines its own."""
        connection: duckdb.DuckDBPyConnection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._database.cursor()
            tables = {name for (name,) in connection.execute("select table_name from duckdb_tables()").fetchall()}
            for query in named_queries().values():
                if query.needs is None or query.needs[0] in tables:
                    connection.execute(query.sql)
            self._local.connection = connection
        return connection


def open_store(
    path: Path, role: Role | None = None, seconds: float | None = None, access_log: Path | None = None
) -> Store:
    """The published version of a store, read-only; each question is written down.

    Args:
        role: "viewer" sees cells that may be shown; "analyst" rows too; None: what the files that are there allow.
        seconds: what takes longer is given up; None: nothing is.
        access_log: the file to which questions are added; None: access.jsonl of the store.

    Raises:
        UserError: no store, or a log that cannot be written to.
    """
    current_version(path)  # before a log is begun where no store is
    return Store(path, role, seconds=seconds, access_log=AccessLog(access_log or path / ACCESS_LOG_FILE))


def _scratch() -> str:
    """The folder, of this process alone, where large answers spill: never the published version."""
    return _scratch_folder().name


@cache
def _scratch_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="whenwhy-")


def _is_number(value: object) -> bool:
    try:
        return 0 <= float(str(value)) < math.inf
    except ValueError:
        return False


def _counting(text: str) -> str:
    """The SELECT that counts the predictions of a condition, in two kinds of brackets: one condition alone fits both."""
    if not text.strip():
        raise duckdb.ParserException("it is empty")
    query = f"select count([{text}\n]::boolean[]) from predictions where ({text}\n)"
    if [one.type for one in duckdb.extract_statements(query)] != [duckdb.StatementType.SELECT]:
        raise duckdb.ParserException("it is more than one statement")
    return query


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
