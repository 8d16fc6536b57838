"""A range of features over all shards flows in; the sums of its finished cells flow out.

A cell's patients and errors do not add up over bins, values or codes, so the margins that people ask for
are rows of their own: value and code (or code group), bin and all time, each class and all, each stratum and
all. One DuckDB finds the patients' sums of each, once for the patient's cohort; what is added up over patients,
a row's powers and products, goes to all margins of the cohort at once, by one sparse multiplication.

All sums are of integers (attributions lie on a grid), so they are exact in any order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
from scipy.sparse import csc_array

from whenwhy.schema import ATTRIBUTION_UNITS, CELL_SUMS, FARTHEST, HISTOGRAMS
from whenwhy.statistics.cohorts import ALL, list_of, position
from whenwhy.statistics.time_axis import TimeAxis
from whenwhy.statistics.whole_numbers import LARGE, Limbs, decimals, limbs, limbs_of_decimals, product, total

VALUE, CODE, GROUP = "value", "code", "group"

#: Patients' sums that are fetched together, and added up together, about, and cells that may be empty.
FETCHED_AT_ONCE, ROWS_AT_ONCE, CELLS_AT_ONCE = 1_000_000, 30_000, 200_000

#: A contribution's place in the histogram: 0, or the sign times (97 + floor(4 log2 |contribution|)), at most 256 in
#: size. Fixed edges, so that histograms merge by addition.
QUARTER_OCTAVE = (
    "(sign(units) * least(256, case when units = 0 then 0 else 1 + floor(4 * log2(abs(units))) end))::smallint"
)


def cell_sums(
    db: duckdb.DuckDBPyConnection, files: Sequence[Path], features: pa.Table, level: str, axes: Sequence[TimeAxis]
) -> tuple[pa.Table, pa.Table]:
    """Tables of `schema.CELL_SUMS` and of `schema.HISTOGRAMS` of some features; the tables of cohorts are there.

    Args:
        files: attribution shards.
        features: columns feature_value_id, code: which rows belong to which code (or group).
        level: "code" gives the levels value and code, "group" the level group.
        axes: the first has all time too.
    """
    of = _Part(db, features, level, axes)
    of.define_entries(files)
    return of.sums(), of.histograms()


@dataclass(frozen=True)
class _Patients:
    """What patients add up to in cells of one level, axis and either bins or all time, sorted by feature and bin.

    Attributes:
        who: whose margins a row counts for; feature: its number among those of the level; time_bin.
        numbers: s, n (a patient's sum and count in the cell), s_abs, slopes, n_slopes, and risk where it is not 1.
        squares: the sums of squares.
    """

    who: np.ndarray
    feature: np.ndarray
    time_bin: np.ndarray
    numbers: dict[str, np.ndarray]
    squares: pa.Array

    def quantities(self, own: slice) -> dict[str, Limbs]:
        """What is added up over some rows' patients, of the columns of `schema.CELL_SUMS`."""
        of = {name: numbers[own] for name, numbers in self.numbers.items()}
        s, n = of["s"], of["n"]
        near = np.abs(s) <= FARTHEST
        sum_, count = limbs(s), limbs(n)
        near_sum, near_count = limbs(np.where(near, s, 0)), limbs(np.where(near, n, 0))
        near_square, near_count_square = product(near_sum, near_sum), product(near_count, near_count)
        return {
            "n_events": [n],
            "n_patients": [np.ones_like(n)],
            "sum": [s],
            "sum_abs": [of["s_abs"]],
            "sum_sq": limbs_of_decimals(self.squares[own]),
            "s_ss": product(sum_, sum_),
            "s_sn": product(sum_, count),
            "s_nn": product(count, count),
            "s_s_N": product(sum_, limbs(of["risk"])) if "risk" in of else sum_,
            "n_beyond": [np.where(near, 0, 1)],
            "s_sss": product(near_square, near_sum),
            "s_ssn": product(near_square, near_count),
            "s_snn": product(near_sum, near_count_square),
            "s_nnn": product(near_count, near_count_square),
            "n_slopes": [of["n_slopes"]],
            "sum_gradient": [of["slopes"]],
        }


class _Part:
    """The features of one task, numbered: values by code and id, codes by name."""

    def __init__(self, db: duckdb.DuckDBPyConnection, features: pa.Table, level: str, axes: Sequence[TimeAxis]) -> None:
        self.db, self.level, self.axes = db, level, axes
        features = features.sort_by([("code", "ascending"), ("feature_value_id", "ascending")])
        code = features["code"].combine_chunks().dictionary_encode()
        self.codes, self.code_of_value = code.dictionary, code.indices.to_numpy()
        self.ids = features["feature_value_id"].to_numpy()
        values = np.arange(len(self.ids)) if level == CODE else self.code_of_value
        numbered = {"feature_value_id": self.ids, "value": values, "code": self.code_of_value}
        db.register("numbered", pa.table(numbered))
        self.margins = db.sql("select * from margins order by margin").to_arrow_table()
        self.margins_of = self._margins_of()
        self.several = bool(db.execute("select bool_or(risk is not null or mixed) from predictions").fetchall()[0][0])

    def _margins_of(self) -> np.ndarray:
        """The margins that each cohort, and then each margin itself, counts for [who, margins]; -1: no more."""
        n_cohorts = self.db.execute("select count(*) from cohorts").fetchall()[0][0]
        links = self.db.sql("select cohort, margin from cohort_margins order by cohort, margin").fetchnumpy()
        count = np.bincount(links["cohort"], minlength=n_cohorts)
        place = np.arange(len(links["cohort"])) - np.repeat(np.cumsum(count) - count, count)
        table = np.full((n_cohorts + self.margins.num_rows, max(1, count.max(initial=0))), -1, dtype=np.int64)
        table[links["cohort"], place] = links["margin"]
        table[n_cohorts:, 0] = np.arange(self.margins.num_rows)
        self.n_cohorts = n_cohorts
        return table

    def define_entries(self, files: Sequence[Path]) -> None:
        """Table entries: the rows of the features, with their patients, and for whom they count, and bins.

        A mixed patient's rows are there once for each margin.
        """
        bins = "".join(f", {axis.bin_of(position('a.minutes', axis))} as bin_{at}" for at, axis in enumerate(self.axes))
        self.db.execute(
            f"""create or replace temp table read as
            select p.patient, p.cohort, p.mixed{", p.risk" if self.several else ""}, f.value, f.code,
                (a.attribution::double * {ATTRIBUTION_UNITS})::bigint as units,
                (a.slope::double * {ATTRIBUTION_UNITS})::bigint as slope_units {bins}
            from read_parquet({list_of(files)}) a
            join numbered f using (feature_value_id) join predictions p using (prediction_id)
            where a.feature_value_id between {self.ids.min()} and {self.ids.max()}"""
        )
        names = ", ".join(["value", "code", "units", "slope_units", *(f"bin_{at}" for at in range(len(self.axes)))])
        risk = ", risk" if self.several else ""
        union = f"""union all select patient, {self.n_cohorts} + m.margin, {names}, m.risk
            from read e join mixed_patients m using (patient)
            join cohort_margins c on c.cohort = e.cohort and c.margin = m.margin where e.mixed"""
        self.db.execute(
            f"""create or replace temp view entries as
            select patient, cohort as who, {names}{risk} from read where not mixed {union if self.several else ""}"""
        )
        self.db.unregister("numbered")

    # -- sums ---------------------------------------------------------------------------------------

    def sums(self) -> pa.Table:
        """`schema.CELL_SUMS`."""
        tables = []
        for at, axis in enumerate(self.axes):
            self._define_patients(at, axis)
            for time_bin, where in (("time_bin", "time_bin is not null"), ("0::smallint", "true"))[: 2 - (at > 0)]:
                risk = "risk" if time_bin == "time_bin" else "risk_of_all"
                level = VALUE if self.level == CODE else GROUP
                tables.append(self._cells_of("value", level, axis, time_bin, risk, where))
                if self.level == CODE:
                    tables += self._of_codes(tables[-1], time_bin, risk, where, axis)
            self.db.execute("drop table patients")
        return pa.concat_tables(tables)

    def _define_patients(self, at: int, axis: TimeAxis) -> None:
        """Table patients: what each adds up to in each value and bin (null: no time)."""
        risk = ""
        if self.several:
            risk = f""", coalesce(any_value(risk[{at + 1}][bin_{at} - {axis.first_bin} + 1]), 1)::bigint as risk,
                coalesce(any_value(risk[{at + 1}][{axis.n_bins + 1}]), 1)::bigint as risk_of_all"""
        self.db.execute(
            f"""create or replace temp table patients as
            select patient, who, value, code, bin_{at} as time_bin, sum(units)::bigint as s, count(*) as n,
                sum(abs(units))::bigint as s_abs, sum(units::hugeint * units) as s_sq,
                sum(slope_units)::bigint as slopes, count(slope_units) as n_slopes{risk}
            from entries {"" if at == 0 else f"where bin_{at} is not null"}
            group by patient, who, value, code, bin_{at}"""
        )

    def _cells_of(self, feature: str, level: str, axis: TimeAxis, time_bin: str, risk: str, where: str) -> pa.Table:
        """`schema.CELL_SUMS` by feature ("value" or "code") and bin, or for all time; some features and bins at a time."""
        place = f"(({feature}::bigint << 16) + {time_bin} + (1 << 15))"
        counts = self.db.sql(
            f"select {place} as place, count(*) as n from patients where {where} group by 1 order by 1"
        ).fetchnumpy()
        part = np.cumsum(counts["n"]) // FETCHED_AT_ONCE
        tables = [CELL_SUMS.empty_table()]
        for number in np.unique(part):
            places = counts["place"][part == number]
            these = f"{where} and {place} between {places[0]} and {places[-1]}"
            tables.append(
                self._added_up(self._patients(feature, time_bin, risk, these), level, axis, time_bin == "time_bin")
            )
        return pa.concat_tables(tables)

    def _patients(self, feature: str, time_bin: str, risk: str, where: str) -> _Patients:
        """The patients' sums by feature and bin, or for all time."""
        told = f", {risk} as risk" if self.several else ""
        sums = "s, n, s_abs, s_sq, slopes, n_slopes"
        if (feature, time_bin) != ("value", "time_bin"):
            told = f", any_value({risk}) as risk" if self.several else ""
            sums = ", ".join(
                f"sum({name}){'::bigint' if name != 's_sq' else ''} as {name}" for name in sums.split(", ")
            )
        group = "" if (feature, time_bin) == ("value", "time_bin") else "group by patient, who, feature, 3"
        found = self.db.sql(
            f"select who, {feature} as feature, {time_bin} as time_bin, {sums}{told} from patients where {where} {group}"
        ).to_arrow_table()
        column = {name: found[name].combine_chunks() for name in found.column_names}
        feature_number, bins = column["feature"].to_numpy(), column["time_bin"].to_numpy().astype(np.int64)
        order = np.argsort((feature_number.astype(np.int64) << 16) + bins + (1 << 15))
        names = ("s", "n", "s_abs", "n_slopes", "risk")
        numbers = {name: column[name].to_numpy()[order] for name in names if name in column}
        numbers["slopes"] = column["slopes"].fill_null(0).to_numpy()[order]
        who = column["who"].to_numpy()[order]
        return _Patients(who, feature_number[order], bins[order], numbers, column["s_sq"].take(pa.array(order)))

    def _of_codes(self, values: pa.Table, time_bin: str, risk: str, where: str, axis: TimeAxis) -> Iterator[pa.Table]:
        """The cells of codes: those of their only value, or of all their values together."""
        n_values = np.bincount(self.code_of_value, minlength=len(self.codes))
        only = self.ids[n_values[self.code_of_value] == 1]
        alone = values.filter(pa.array(np.isin(values["feature_value_id"].to_numpy(), only)))
        yield _with_level(alone, CODE)
        numbers = ", ".join(map(str, np.flatnonzero(n_values > 1)))
        if numbers:
            yield self._cells_of("code", CODE, axis, time_bin, risk, f"{where} and code in ({numbers})")

    def _added_up(self, patients: _Patients, level: str, axis: TimeAxis, dated: bool) -> pa.Table:
        """`schema.CELL_SUMS` of a level and axis, in bins or for all time."""
        n_bins = axis.n_bins if dated else 1
        n_margins = self.margins.num_rows + 1  # one more takes what counts for fewer margins
        first = axis.first_bin if dated else 0
        place = (patients.feature.astype(np.int64) * n_bins + patients.time_bin - first) * n_margins
        found = [
            self._cells(added, level, axis, dated, n_bins, n_margins, first)
            for added in _blocks(patients, place, self.margins_of, n_margins)
        ]
        return pa.concat_tables(found) if found else CELL_SUMS.empty_table()

    def _cells(
        self, added: _Added, level: str, axis: TimeAxis, dated: bool, n_bins: int, n_margins: int, first: int
    ) -> pa.Table:
        place, margin = np.divmod(added.cell, n_margins)
        feature, time_bin = np.divmod(place, n_bins)
        count = len(margin)
        code = self.code_of_value[feature] if level == VALUE else feature
        columns = {name: self.margins[name].combine_chunks().take(pa.array(margin)) for name in CELL_SUMS.names[:4]}
        columns |= {
            "level": _repeated(level, count),
            "feature_value_id": pa.array(self.ids[feature], pa.int32())
            if level == VALUE
            else pa.nulls(count, pa.int32()),
            "code": self.codes.take(pa.array(code)),
            "time_axis": _repeated(axis.name, count),
            "time_bin": pa.array(time_bin + first, pa.int32()) if dated else pa.nulls(count, pa.int32()),
        }
        for field in CELL_SUMS:
            if field.name not in columns:
                parts = added.sums[field.name]
                whole = decimals(parts)
                columns[field.name] = whole if field.type == LARGE else whole.cast(field.type)
        return pa.table({field.name: columns[field.name] for field in CELL_SUMS}, schema=CELL_SUMS)

    # -- histograms ---------------------------------------------------------------------------------

    def histograms(self) -> pa.Table:
        """`schema.HISTOGRAMS`."""
        everybody = np.array(self.margins["stratum"].to_pylist()) == ALL
        who, place = np.nonzero((self.margins_of >= 0) & everybody[self.margins_of])
        links = {"who": who, "margin": self.margins_of[who, place]}
        self.db.register("classes", pa.table(links))
        levels = [(GROUP, "value")] if self.level == GROUP else [(VALUE, "value"), (CODE, "code")]
        queries = []
        for at in range(len(self.axes)):
            dated = "" if at == 0 else f"where bin_{at} is not null"
            self.db.execute(
                f"""create or replace temp table counts_{at} as
                select margin, value, code, bin_{at} as time_bin, {QUARTER_OCTAVE} as quarter_octave, count(*) as n_events
                from entries join classes using (who) {dated} group by all"""
            )
            for level, feature in levels:
                for time_bin, where in (("time_bin", "time_bin is not null"), ("null::smallint", "true"))[
                    : 2 - (at > 0)
                ]:
                    queries.append(
                        f"""select {at} as axis, '{level}' as level, margin, {feature} as feature, {time_bin} as time_bin,
                        quarter_octave, sum(n_events)::bigint as n_events from counts_{at} where {where} group by all"""
                    )
        found = self.db.sql(
            f"select * from ({' union all '.join(queries)}) order by axis, level, feature, time_bin, margin, quarter_octave"
        ).to_arrow_table()
        for at in range(len(self.axes)):
            self.db.execute(f"drop table counts_{at}")
        self.db.unregister("classes")
        margin, feature = pa.array(found["margin"].to_numpy()), found["feature"].to_numpy()
        is_value = np.array(found["level"].to_pylist()) == VALUE
        code = np.where(is_value, self.code_of_value[np.where(is_value, feature, 0)], feature)
        columns = {name: self.margins[name].combine_chunks().take(margin) for name in HISTOGRAMS.names[:4]}
        columns |= {
            "level": found["level"],
            "feature_value_id": pa.array(self.ids[np.where(is_value, feature, 0)], pa.int32(), mask=~is_value),
            "code": self.codes.take(pa.array(code)),
            "time_axis": pa.array([axis.name for axis in self.axes]).take(found["axis"].combine_chunks()),
            "time_bin": found["time_bin"].cast(pa.int32()),
            "quarter_octave": found["quarter_octave"],
            "n_events": found["n_events"],
        }
        return pa.table({field.name: columns[field.name] for field in HISTOGRAMS}).cast(HISTOGRAMS)


@dataclass(frozen=True)
class _Added:
    """Cells that somebody is in: their numbers, and of each quantity the sums of its limbs."""

    cell: np.ndarray
    sums: dict[str, Limbs]


def _blocks(patients: _Patients, place: np.ndarray, margins_of: np.ndarray, n_margins: int) -> Iterator[_Added]:
    """The sums of cells, some features at a time: of each patient's quantities, to each margin of its cohort.

    Args:
        place: the number of the first cell of a patient's feature and bin.
    """
    ends = np.append(np.flatnonzero(np.diff(patients.feature)) + 1, len(place))  # of features
    begin = 0
    while begin < len(place):
        within = ends[(ends > begin) & (ends <= begin + ROWS_AT_ONCE)]
        end = int(within[-1] if len(within) else ends[ends > begin][0])
        low = int(place[begin])
        n_cells = int(place[end - 1]) - low + n_margins
        numbers = None  # of the cells that somebody is in, where most would be empty
        if n_cells > CELLS_AT_ONCE:
            numbers = np.unique(_cells_of(patients, place - low, margins_of, slice(begin, end), n_margins))
            n_cells = len(numbers)
        sums: dict[str, Limbs] = {}
        for first in range(begin, end, ROWS_AT_ONCE):  # a feature alone may have many
            own = slice(first, min(first + ROWS_AT_ONCE, end))
            cells = _cells_of(patients, place - low, margins_of, own, n_margins)
            if numbers is not None:
                cells = np.searchsorted(numbers, cells)
            quantities = patients.quantities(own)
            added = _added(np.stack([limb for parts in quantities.values() for limb in parts], axis=1), cells, n_cells)
            at = 0
            for name, parts in quantities.items():
                now = [added[:, at + number] for number in range(len(parts))]
                sums[name] = total(sums[name], now) if name in sums else now
                at += len(parts)
        number = np.arange(n_cells) if numbers is None else numbers
        kept = np.flatnonzero((sums["n_patients"][0] > 0) & (number % n_margins != n_margins - 1))
        yield _Added(number[kept] + low, {name: [limb[kept] for limb in parts] for name, parts in sums.items()})
        begin = end


def _cells_of(patients: _Patients, place: np.ndarray, margins_of: np.ndarray, own: slice, n_margins: int) -> np.ndarray:
    """The cells of some rows' patients [row, margins]; the last of a place stands for no margin."""
    margins = margins_of[patients.who[own]]
    cells: np.ndarray = np.where(margins >= 0, margins, n_margins - 1) + place[own, None]
    return cells


def _added(quantities: np.ndarray, cells: np.ndarray, n_cells: int) -> np.ndarray:
    """The sums [cell, quantity] of int64 quantities [row, quantity], each row added to all its cells [row, margins]."""
    rows, each = cells.shape
    ones = np.ones(cells.size, dtype=np.int64)
    to_cells = csc_array((ones, cells.ravel(), np.arange(0, cells.size + 1, each)), shape=(n_cells, rows))
    return np.asarray(to_cells @ quantities)


def _repeated(text: str, count: int) -> pa.Array:
    return pa.DictionaryArray.from_arrays(np.zeros(count, dtype=np.int8), pa.array([text])).cast(pa.string())


def _with_level(table: pa.Table, level: str) -> pa.Table:
    """Cells of values as those of their codes."""
    names = table.column_names
    table = table.set_column(names.index("level"), CELL_SUMS.field("level"), _repeated(level, table.num_rows))
    nothing = pa.nulls(table.num_rows, pa.int32())
    return table.set_column(names.index("feature_value_id"), CELL_SUMS.field("feature_value_id"), nothing)
