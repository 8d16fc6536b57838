"""A store flows in; what is inside, in lines of 80 columns for somebody who was handed it, flows out: `whenwhy info`.

All of it comes from small tables and from the counts that DuckDB keeps of large ones: no row of a patient is read.
"""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from whenwhy.attribution.registry import MEASURES
from whenwhy.schema import HELD_OUT
from whenwhy.statistics.cohorts import ALL
from whenwhy.statistics.time_axis import BEFORE_PREDICTION
from whenwhy.store.open import Store
from whenwhy.store.publish import ROWS_FILE
from whenwhy.store.shareable import SHAREABLE_FILE

FILES = {ROWS_FILE: "patients' rows and all else, for analysts", SHAREABLE_FILE: "cells that may be shown to viewers"}

#: Values of a stratum that a line shows.
MOST_VALUES = 12

#: Hours.
UNITS_OF_TIME = ((8_766, "year"), (24, "day"), (1, "hour"))

UNITS = ("B", "kB", "MB", "GB", "TB")

Row = dict[str, Any]


def store_lines(path: Path) -> list[str]:
    """What a store holds, and how to ask it; less of it where there is no rows.duckdb.

    Raises:
        UserError: there is no store, or it cannot be read.

    Example: `store_lines(Path("demo/store"))[0]`
    """
    store = Store(path)
    files = [store.version / name for name in FILES if (store.version / name).exists()]
    runs = store.sql("select * from runs order by run_id").to_pylist()
    built = datetime.fromtimestamp(files[0].stat().st_mtime, UTC)
    lines = [
        f"{path}: a store, published version {store.version.name}",
        f"  built {built:%Y-%m-%d %H:%M} UTC by whenwhy {runs[0]['code_version']}, format {runs[0]['format_version']}",
        *(f"  {file.name:<16} {_size(file.stat().st_size):>9}  {FILES[file.name]}" for file in files),
        "",
        *(line for run in runs for line in _run(run)),
        *_patients(store, runs),
        *_time(store),
        *_cohorts(store),
        *_contents(store, {file.name for file in files}),
        *_tables(store),
        *_asking(store),
    ]
    store.close()
    return lines


def _run(run: Row) -> list[str]:
    numbers = {"nothing": "against nothing"}.get(run["baseline"], f"against the {run['baseline']} baseline")
    return [
        f"Run {run['run_id']}",
        *_wrapped(f"{run['method']} of '{run['outcome']}' ({run['target']}), {numbers}; {summed(run)}"),
        "",
    ]


def summed(run: Mapping[str, Any]) -> str:
    """How far contributions miss the scores; or what a run's numbers are that do not add up to them."""
    if run["residual_maximum"] is None:
        return f"a number tells {MEASURES[run['measures']]}"
    over = "" if run["n_over_tolerance"] is None else f", {run['n_over_tolerance']:,} over it"
    return f"largest residual {run['residual_maximum']:.1e}, tolerance {run['tolerance']:.0e}{over}"


def _patients(store: Store, runs: list[Row]) -> list[str]:
    """Patients and predictions by split and class; once for runs that share them."""
    counted = store.sql(
        """select run_id, split, class, n_patients, n_predictions from exposure
        where stratum = 'all' and time_axis = $axis and time_bin is null order by split, class <> 'all', class""",
        {"axis": BEFORE_PREDICTION},
    ).to_pylist()
    runs_of: dict[tuple[tuple[Any, ...], ...], list[str]] = {}
    for run in runs:
        rows = tuple(tuple(row.values())[1:] for row in counted if row["run_id"] == run["run_id"])
        runs_of.setdefault(rows, []).append(run["run_id"])
    lines = []
    for rows, names in runs_of.items():
        of = "" if len(runs_of) == 1 else f" (run {', '.join(names)})"
        lines.append(f"Patients and predictions{of}")
        lines.append(f"  {'split':<12}{'class':<24}{'patients':>12}{'predictions':>14}")
        if store.role == "analyst":  # nobody is in two splits
            everybody = [row for row in rows if row[1] == ALL]
            n_patients, n_predictions = (sum(row[at] for row in everybody) for at in (2, 3))
            lines.append(f"  {'all':<12}{'all':<24}{n_patients:>12,}{n_predictions:>14,}")
        for split, label, n_patients, n_predictions in rows:
            lines.append(f"  {split:<12}{_short(label, 22):<24}{n_patients:>12,}{n_predictions:>14,}")
        if store.role == "viewer":
            lines += _wrapped("Counts of fewer patients than are shown, and those that would tell them, are left out.")
        lines.append("")
    return lines


def _time(store: Store) -> list[str]:
    lines = ["Time"]
    for name, width, n_bins, first in (
        tuple(row.values()) for row in store.sql("select * from axes order by time_axis").to_pylist()
    ):
        low, high = first * width, (first + n_bins - 1) * width
        begins = f"before {_hours(low + width)}" if first < 0 else f"from {_hours(low)}"
        lines += _wrapped(f"{name}: {n_bins} bins of {_hours(width)}, {begins} to {_hours(high)} and beyond")
    return [*lines, ""]


def _cohorts(store: Store) -> list[str]:
    values: dict[str, list[str]] = {}
    for stratum in store.sql(
        "select distinct stratum from exposure where stratum <> 'all' and time_bin is null order by 1"
    )["stratum"].to_pylist():
        name, _, value = stratum.partition("=")
        values.setdefault(name, []).append(value)
    lines: list[str] = []
    for name, several in values.items():
        more = f", ... ({len(several):,})" if len(several) > MOST_VALUES else ""
        lines += _wrapped(f"{name}: {', '.join(several[:MOST_VALUES])}{more}")
    return ["Strata", *lines, ""]


def _contents(store: Store, files: set[str]) -> list[str]:
    [features] = store.sql(
        """select count(distinct feature_value_id) as n_values, count(distinct code) as n_codes,
            (select count(distinct parent) from code_groups) as n_groups
        from feature_values where feature_value_id > 0"""
    ).to_pylist()
    lines = [
        f"  {features['n_values']:,} feature values of {features['n_codes']:,} codes in {features['n_groups']:,} groups",
    ]
    if store.role == "analyst":
        lines.append(f"  {_count(store, 'rows'):,} contributions")
    [privacy] = store.sql("select * from privacy").to_pylist()
    allowed = " (small cells were allowed)" if privacy["small_cells_allowed"] else ""
    lines.append(f"  viewers see cells of at least {privacy['min_patients']} patients{allowed}")
    cells = f"  {_count(store, 'cells'):,} cells"
    if store.role == "viewer":
        cells += " that may be shown"
    elif SHAREABLE_FILE in files:
        viewer = Store(store.path, "viewer")
        shown, every = _count(viewer, "cells"), _count(store, "cells")
        viewer.close()
        cells += f", of which viewers see {shown:,} ({shown / max(1, every):.0%})"
    return ["Contents", *lines, cells, ""]


def _tables(store: Store) -> list[str]:
    columns: dict[str, list[str]] = {}
    for row in store.sql(
        """select table_name, column_name from duckdb_columns() where not internal and schema_name = 'main'
        and database_name = current_database() order by table_name, column_index"""
    ).to_pylist():
        columns.setdefault(row["table_name"], []).append(row["column_name"])
    lines = ["Tables"]
    for name, names in columns.items():
        lines += _wrapped(f"{name}: {', '.join(names)}")
    return [*lines, ""]


def _asking(store: Store) -> list[str]:
    known = store.sql("select distinct split from exposure order by 1")["split"].to_pylist()
    split = f" split={known[0]}" if known and HELD_OUT not in known else ""
    place = shlex.quote(str(store.path))
    return [
        "Ask",
        f"  whenwhy query {place} top_features{split}  # which features carry the predictions",
        f'  whenwhy sql {place} "select * from estimates limit 5"',
        "  whenwhy info queries  # lists all questions",
    ]


def _count(store: Store, table: str) -> int:
    return int(store.sql(f'select count(*) as n from "{table}"')["n"][0].as_py())


def _wrapped(text: str) -> Iterable[str]:
    return textwrap.wrap(text, 80, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)


def _short(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."


def _size(n: int) -> str:
    """Bytes for people.

    Example:
        >>> _size(12_300_000)
        '12.3 MB'
    """
    power = min(len(UNITS) - 1, (len(str(n)) - 1) // 3)
    return f"{n / 1000**power:.{min(power, 1)}f} {UNITS[power]}"


def _hours(hours: int) -> str:
    """A length of time, in the longest of years (of 365.25 days), days and hours that is whole.

    Example:
        >>> _hours(8766), _hours(720), _hours(6), _hours(0)
        ('1 year', '30 days', '6 hours', '0')
    """
    if hours == 0:
        return "0"
    length, unit = next((length, unit) for length, unit in UNITS_OF_TIME if hours % length == 0)
    number = hours // length
    return f"{number:,} {unit}{'' if abs(number) == 1 else 's'}"
