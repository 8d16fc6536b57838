"""Whole sums of disjoint patients flow in, their sum flows out; and at last divided, as tables of the contract.

Integers add in any order to the same number, and what was added can be taken away again: a new generation of
patients, or one who withdrew, does not need the others' rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import duckdb
import pyarrow as pa

from whenwhy.schema import (
    ATTRIBUTION_UNITS,
    CELL_SUMS,
    CELLS,
    EXPOSURE,
    EXPOSURE_SUMS,
    HISTOGRAMS,
    PLACE_SUMS,
    RECORDED_PLACES,
)
from whenwhy.statistics.time_axis import TimeAxis

CELL_ROWS, EXPOSURE_ROWS, PLACE_ROWS, HISTOGRAM_ROWS = "cells", "exposure", "recorded_places", "histograms"

#: The tables of sums, each with how many of its columns tell a row from the others, and the one that counts them.
SUMS = {
    CELL_ROWS: (CELL_SUMS, 9, "n_events"),
    HISTOGRAM_ROWS: (HISTOGRAMS, 10, "n_events"),
    EXPOSURE_ROWS: (EXPOSURE_SUMS, 6, "n_predictions"),
    PLACE_ROWS: (PLACE_SUMS, 8, "n_patients"),
}


#: In which order the rows of a table of the contract lie: what a question names comes first, so that others are passed over.
ORDER = {
    CELL_ROWS: "level, split, class, stratum, time_axis, code, feature_value_id, time_bin",
    EXPOSURE_ROWS: "time_axis, split, class, stratum, time_bin",
    PLACE_ROWS: "feature_value_id, stream, split, class, stratum, time_bin",
}


def merged(name: str, tables: Sequence[pa.Table]) -> pa.Table:
    """The sums of all tables' patients together, in the order of their keys; what nobody is left in is not there.

    Args:
        name: which of `SUMS`.
        tables: of patients who are in one of them alone.

    Example:
        >>> key = dict(target="logit", split="train", stratum="all", level="code", code="hdl") | {"class": "all"}
        >>> one = pa.Table.from_pylist([key | {"quarter_octave": 3, "n_events": 2}], schema=HISTOGRAMS)
        >>> merged("histograms", [one, one])["n_events"].to_pylist()
        [4]
        >>> merged("histograms", [one, negated("histograms", one)]).num_rows
        0
    """
    schema = SUMS[name][0]
    with duckdb.connect() as db:
        for at, table in enumerate(tables):
            db.register(f"given_{at}", table)
        parts = " union all ".join(f"select * from given_{at}" for at in range(len(tables)))
        return db.sql(merged_sql(name, parts)).to_arrow_table().cast(schema)


def merged_sql(name: str, rows: str) -> str:
    """The SQL of the same: `rows` is a query for the rows of all tables."""
    schema, n_keys, counts = SUMS[name]
    keys = ", ".join(f'"{key}"' for key in schema.names[:n_keys])
    vectors = [field.name for field in schema if pa.types.is_list(field.type)]
    sums = [
        f'sum("{field.name}"){"::bigint" if pa.types.is_int64(field.type) else ""} as "{field.name}"'
        for field in schema
        if field.name not in (*schema.names[:n_keys], *vectors)
    ]
    order = keys.replace('"time_bin"', '"time_bin" nulls last')
    query = f"select {keys}, {', '.join(sums)} from rows group by {keys} having sum({counts}) <> 0"
    joins = ""
    for vector in vectors:
        equal = " and ".join(f's."{key}" is not distinct from {vector}."{key}"' for key in schema.names[:n_keys])
        joins += f""" left join (
            select {keys}, list(total order by place)::bigint[] as "{vector}" from (
                select {keys}, place, sum(number) as total from (
                    select {keys}, unnest("{vector}") as number, generate_subscripts("{vector}", 1) as place from rows)
                group by {keys}, place) group by {keys}) {vector} on {equal}"""
    columns = ", ".join(f'{field.name if pa.types.is_list(field.type) else "s"}."{field.name}"' for field in schema)
    ordered = ", ".join(f"s.{key.strip()}" for key in order.split(","))
    return f"with rows as ({rows}) select {columns} from ({query}) s{joins} order by {ordered}"


def negated(name: str, table: pa.Table) -> pa.Table:
    """The sums that take these patients away when they are added."""
    schema, n_keys, _ = SUMS[name]
    with duckdb.connect() as db:
        db.register("given", table)
        columns = [f'"{key}"' for key in schema.names[:n_keys]]
        for field in schema:
            if field.name in schema.names[:n_keys]:
                continue
            if pa.types.is_list(field.type):
                columns.append(f'list_transform("{field.name}", lambda x: -x) as "{field.name}"')
            else:
                columns.append(f'-"{field.name}" as "{field.name}"')
        return db.sql(f"select {', '.join(columns)} from given").to_arrow_table().cast(schema)


def bounds_of(axes: Sequence[TimeAxis]) -> pa.Table:
    """Columns time_axis, time_bin, low_hours, high_hours: of every bin."""
    rows = [(axis.name, b, *axis.bounds(b)) for axis in axes for b in range(axis.first_bin, axis.last_bin + 1)]
    name, time_bin, low, high = zip(*rows, strict=True)
    return pa.table(
        {
            "time_axis": pa.array(name, pa.string()),
            "time_bin": pa.array(time_bin, pa.int32()),
            "low_hours": pa.array(low, pa.float64()),
            "high_hours": pa.array(high, pa.float64()),
        }
    )


def finished_sql(name: str, run_id: str, sums: str, histograms: str = "") -> str:
    """The SQL of a run's table of the contract (cells, exposure, recorded_places) from its sums.

    Args:
        sums: a table or query of them; `bounds` (`bounds_of`) is there.
        histograms: of the cells.
    """
    schema = {CELL_ROWS: CELLS, EXPOSURE_ROWS: EXPOSURE, PLACE_ROWS: RECORDED_PLACES}[name]
    columns = ", ".join(f'{_divided(name, field)} as "{field.name}"' for field in schema)
    joins = "left join bounds b on b.time_axis = s.time_axis and b.time_bin = s.time_bin"
    if name == CELL_ROWS:
        keys = ", ".join(f'"{key}"' for key in HISTOGRAMS.names[:9])
        equal = " and ".join(f's."{key}" is not distinct from h."{key}"' for key in HISTOGRAMS.names[:9])
        joins += f""" left join (
            select {keys}, map_from_entries(list(struct_pack(k := quarter_octave, v := n_events) order by quarter_octave)) as histogram
            from ({histograms}) group by {keys}) h on {equal}"""
    return f"select {columns} from (select '{run_id}' as run_id, * from ({sums})) s {joins}"


#: What each sum is a multiple of: this power of a unit.
_POWERS = {
    "sum": 1, "sum_abs": 1, "sum_sq": 2, "s_ss": 2, "s_sn": 1, "s_nn": 0, "s_s_N": 1, "s_sss": 3, "s_ssn": 2, "s_snn": 1,
    "s_nnn": 0, "sum_gradient": 1, "s_NN": 0,
}  # fmt: skip


def _divided(name: str, field: pa.Field) -> str:
    if field.name in ("low_hours", "high_hours"):
        return f"b.{field.name}"
    if field.name == "histogram":
        return "h.histogram"
    if pa.types.is_list(field.type):
        return f'list_transform(s."{field.name}", lambda x: x::double / {float(ATTRIBUTION_UNITS)})'
    if field.name not in _POWERS:
        return f's."{field.name}"'
    divided = f's."{field.name}"::double / {float(ATTRIBUTION_UNITS ** _POWERS[field.name])}'
    if name == CELL_ROWS and field.name in ("s_sss", "s_ssn", "s_snn", "s_nnn"):
        return f"case when s.n_beyond = 0 then {divided} end"
    if name == CELL_ROWS and field.name == "sum_gradient":
        return f"case when s.n_slopes > 0 then {divided} end"
    return divided
