"""Cells and exposure equal a slow replica in every row and column, whatever the workers, memory and order."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from distributed import LocalCluster
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import SmallRun
from replicas.cells import Axis, CellKey, ExposureKey, Row, RunReplica, remade
from replicas.cells_by_duckdb import cells_by_duckdb
from whenwhy.errors import UserError
from whenwhy.events.out_of_core import connect
from whenwhy.schema import ATTRIBUTION_UNITS, CELL_SUMS, CELLS, EXPOSURE, EXPOSURE_SUMS, on_grid
from whenwhy.shards import StageDirectory
from whenwhy.statistics import BEFORE_PREDICTION, Cells, aggregate_cells
from whenwhy.statistics.cells import cell_sums
from whenwhy.statistics.cohorts import define_cohorts, exposure_sums
from whenwhy.statistics.sums import merged, negated
from whenwhy.statistics.time_axis import (
    MOST_BINS,
    SPANNED,
    WIDTHS,
    TimeAxis,
    readable_axis,
    readable_two_sided_axis,
)
from whenwhy.statistics.whole_numbers import decimals, limbs, limbs_of_decimals, product, total
from whenwhy.store import open_store

CELL_KEY = ("target", "split", "class", "stratum", "level", "feature_value_id", "code", "time_axis", "time_bin")
EXPOSURE_KEY = ("target", "split", "class", "stratum", "time_axis", "time_bin")
BEFORE = BEFORE_PREDICTION


def keyed(rows: list[Row], names: tuple[str, ...]) -> dict[tuple, Row]:
    """The rows by their key; each key once."""
    found = {tuple(row.pop(name) for name in names): row for row in rows}
    assert len(found) == len(rows)
    return found


def replica_of(attributions: Path, axes: Sequence[TimeAxis]) -> RunReplica:
    return RunReplica(attributions, *(Axis(a.name, a.width_hours, a.n_bins, a.first_bin) for a in axes))


def assert_same(found: dict[tuple, Row], expected: dict[tuple, Row]) -> None:
    """No row missing, none extra; integers and text exact, floats to 1e-12 of themselves."""
    assert not set(expected) - set(found), "rows are missing"
    assert not set(found) - set(expected), "rows are extra"
    for key, row in expected.items():
        assert set(row) == set(found[key])
        for name, value in row.items():
            told = found[key][name]
            if isinstance(value, float) and math.isfinite(value):
                assert type(told) is float, (key, name)
                assert abs(told - value) <= 1e-12 * abs(value), (key, name, told, value)
            else:
                assert told == value, (key, name, told, value)


@pytest.fixture(scope="module")
def daily(small_run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Cells:
    """The small run's cells by days, made with one worker in a folder of their own."""
    out = tmp_path_factory.mktemp("daily")
    return aggregate_cells([small_run.attributions], out, time_bin_hours=24, since=["lab"], workers=1)


@pytest.fixture(scope="module")
def replica(small_run: SmallRun, daily: Cells) -> tuple[dict[CellKey, Row], dict[ExposureKey, Row]]:
    """The replica's cells and exposure by days."""
    slow = replica_of(small_run.attributions, daily.axes)
    return slow.cells(), slow.exposure()


# -- every row and column -----------------------------------------------------------------------------


def test_every_cell_equals_the_replica(daily: Cells, replica: tuple) -> None:
    """All cells of the small run: every level, margin, stratum, time bin and histogram."""
    table = daily.table("cells")
    assert table.schema.equals(CELLS)
    assert_same(keyed(table.to_pylist(), CELL_KEY), replica[0])


def test_every_exposure_row_equals_the_replica(daily: Cells, replica: tuple) -> None:
    """All exposure rows of the small run."""
    table = daily.table("exposure")
    assert table.schema.equals(EXPOSURE)
    assert_same(keyed(table.to_pylist(), EXPOSURE_KEY), replica[1])


def test_the_published_store_holds_the_same_cells_and_exposure(small_run: SmallRun, replica: tuple) -> None:
    """What SQL users read are these very rows; this store was not asked for a time since a code."""
    store = open_store(small_run.store)
    for table, names, expected in (("cells", CELL_KEY, replica[0]), ("exposure", EXPOSURE_KEY, replica[1])):
        found = keyed(store.sql(f"select * from {table}").to_pylist(), names)
        assert_same(found, {key: row for key, row in expected.items() if key[-2] == BEFORE})
    store.close()


def test_another_width_of_bins_equals_the_replica(small_run: SmallRun, tmp_path: Path) -> None:
    """Bins of 60 hours: another number of bins, another last one."""
    stage = aggregate_cells([small_run.attributions], tmp_path, time_bin_hours=60)
    slow = replica_of(small_run.attributions, stage.axes)
    assert_same(keyed(stage.table("cells").to_pylist(), CELL_KEY), slow.cells())
    assert_same(keyed(stage.table("exposure").to_pylist(), EXPOSURE_KEY), slow.exposure())


def test_time_after_an_anchor_equals_the_replica(small_run: SmallRun, tmp_path: Path) -> None:
    """Anchors within, at the ends of and beyond the records; some predictions have none."""
    random = np.random.default_rng(5)

    def anchored(table: pa.Table) -> pa.Table:
        history = table["history_minutes"].fill_null(0).to_numpy()
        minutes = (history * random.choice([0, 0.3, 1, 1.5], table.num_rows)).astype(np.int32)
        column = pa.array(minutes, pa.int32(), mask=random.random(table.num_rows) < 0.2)
        return table.set_column(table.column_names.index("anchor_minutes"), "anchor_minutes", column)

    run = remade(small_run.attributions, tmp_path / "anchored", predictions=anchored)
    cells = aggregate_cells([run], tmp_path / "store", time_bin_hours=100)
    assert [axis.name for axis in cells.axes] == [BEFORE, "after_anchor"]
    assert cells.axes[1].first_bin < 0 < cells.axes[1].last_bin
    slow = replica_of(run, cells.axes)
    assert_same(keyed(cells.table("cells").to_pylist(), CELL_KEY), slow.cells())
    assert_same(keyed(cells.table("exposure").to_pylist(), EXPOSURE_KEY), slow.exposure())


def test_contributions_of_any_size_equal_the_replica(small_run: SmallRun, tmp_path: Path) -> None:
    """A score of thousands, as of a regression; a patient's sum beyond 1,024 leaves its cells without third powers."""

    def large(table: pa.Table) -> pa.Table:
        scale = np.where(np.arange(table.num_rows) % 50 == 0, 1e6, 300.0)
        column = pa.array(on_grid(table["attribution"].to_numpy() * scale))
        return table.set_column(table.column_names.index("attribution"), "attribution", column)

    run = remade(small_run.attributions, tmp_path / "large", rows=large)
    cells = aggregate_cells([run], tmp_path / "store", time_bin_hours=240)
    found = keyed(cells.table("cells").to_pylist(), CELL_KEY)
    assert_same(found, replica_of(run, cells.axes).cells())
    assert {row["s_sss"] is None for row in found.values()} == {True, False}


def test_every_cell_equals_those_of_duckdb_alone(small_run: SmallRun, daily: Cells) -> None:
    """Two levels of GROUP BY over all rows at once, with every margin a grouping set or a repeated row."""
    run = StageDirectory.open(small_run.attributions)
    words = run.read("about", "feature_values").select(["feature_value_id", "code", "parents"])
    files = [[run.file(name, table) for name in run.shards] for table in ("attributions", "predictions")]
    [[part]] = daily.parts.values()
    sums = [part.read(name, "cells") for name in part.shards if "cells" in part.entry(name).files]
    with duckdb.connect() as db:
        cells_by_duckdb(db, *files, words, daily.axes[0].width_hours, daily.axes[0].n_bins)
        db.register("ours", pa.concat_tables(sums))
        columns = ", ".join(f'"{name}"' for name in CELL_SUMS.names if name != "time_axis")
        first = f"select {columns} from ours where time_axis = '{BEFORE}'"
        second = f"select {columns} from cells_found"
        counts = db.execute(f"select (select count(*) from ({first})), (select count(*) from ({second}))").fetchall()
        assert counts[0][0] == counts[0][1] > 10_000
        assert db.execute(f"select count(*) from ({first} except {second})").fetchall() == [(0,)]


def test_the_replica_saw_every_kind_of_row(replica: tuple) -> None:
    """The small run exercises what the comparison is about: margins, levels, groups, ties, repeated patients."""
    cells, exposure = replica
    assert {key[4] for key in cells} == {"value", "code", "group"}
    assert {key[6] for key in cells if key[4] == "group"} == {"BLOOD", "MEASURED"}
    assert {key[2] for key in cells} == {"all", "true", "false"} == {key[2] for key in exposure}
    assert {key[1] for key in cells} == {"train", "tuning", "held_out"}
    assert {key[3].partition("=")[0] for key in cells} == {"all", "sex", "age_band", "predicted", "correct"}
    assert {(key[-2], key[-1] is None) for key in cells} == {(BEFORE, True), (BEFORE, False), ("since:lab", False)}
    assert any(key[-2] == "since:lab" and key[-1] is not None and key[-1] < 0 for key in cells)
    assert any(row["n_predictions"] > row["n_patients"] for row in exposure.values())
    everybody = exposure["logit", "train", "all", "all", BEFORE, None]
    assert everybody["n_patients"] > exposure["logit", "train", "all", "all", BEFORE, 0]["n_patients"], (
        "some without steps"
    )


def test_classes_and_strata_that_share_patients_do_not_add_up(replica: tuple) -> None:
    """Margins are rows of their own: patients and squares of the classes are not those of all."""
    cells, _ = replica
    whole, true, false = (
        cells["logit", "train", label, "all", "code", None, "lab", BEFORE, None] for label in ("all", "true", "false")
    )
    assert whole["n_events"] == true["n_events"] + false["n_events"]
    assert whole["sum"] == true["sum"] + false["sum"]
    assert whole["n_patients"] < true["n_patients"] + false["n_patients"]
    assert whole["s_nn"] > true["s_nn"] + false["s_nn"]


# -- the same whatever the circumstances --------------------------------------------------------------


def test_processes_leave_the_content_hash(small_run: SmallRun, daily: Cells, tmp_path: Path) -> None:
    """Dask's processes, and a scheduler's workers by its address, write the same bytes."""
    asked = {"time_bin_hours": 24, "since": ["lab"]}
    again = aggregate_cells([small_run.attributions], tmp_path / "a", **asked, workers=2, scheduler="processes")
    assert again.content_sha256() == daily.content_sha256()
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None, memory_limit=0) as cluster:
        address = cluster.scheduler_address
        again = aggregate_cells([small_run.attributions], tmp_path / "b", **asked, scheduler=address)
    assert again.content_sha256() == daily.content_sha256()


@pytest.mark.parametrize(("workers", "memory"), [(2, "1GB"), (1, "120MB"), (4, "300MB")])
def test_workers_and_memory_leave_the_content_hash(
    small_run: SmallRun, daily: Cells, tmp_path: Path, workers: int, memory: str
) -> None:
    """One, two or four workers, and other memory limits, write the same bytes."""
    again = aggregate_cells(
        [small_run.attributions], tmp_path, time_bin_hours=24, since=["lab"], workers=workers, memory_limit=memory
    )
    assert again.content_sha256() == daily.content_sha256()
    assert [part.path.name for [part] in again.parts.values()] == [part.path.name for [part] in daily.parts.values()]


def test_how_much_is_fetched_at_once_leaves_the_content_hash(
    small_run: SmallRun, daily: Cells, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred patients' sums at once, or ten: features and bins are fetched one by one then."""
    monkeypatch.setattr("whenwhy.statistics.cells.FETCHED_AT_ONCE", 100)
    monkeypatch.setattr("whenwhy.statistics.cells.ROWS_AT_ONCE", 10)
    found = aggregate_cells([small_run.attributions], tmp_path, time_bin_hours=24, since=["lab"])
    assert found.content_sha256() == daily.content_sha256()


def test_the_order_of_shards_leaves_the_content_hash(small_run: SmallRun, daily: Cells, tmp_path: Path) -> None:
    """Shards listed backwards give the same cells, and the same run id."""
    backwards = remade(small_run.attributions, tmp_path / "backwards", shards=lambda names: names[::-1])
    assert StageDirectory.open(backwards).shards == StageDirectory.open(small_run.attributions).shards[::-1]
    again = aggregate_cells([backwards], tmp_path / "out", time_bin_hours=24, since=["lab"])
    assert again.content_sha256() == daily.content_sha256()


def test_the_order_of_rows_leaves_the_cells(small_run: SmallRun, daily: Cells, tmp_path: Path) -> None:
    """Rows and predictions shuffled within their shards give the same bytes of cells."""
    random = np.random.default_rng(3)

    def shuffled(table: pa.Table) -> pa.Table:
        return table.take(random.permutation(table.num_rows))

    again = aggregate_cells(
        [remade(small_run.attributions, tmp_path / "shuffled", rows=shuffled, predictions=shuffled)],
        tmp_path / "out",
        time_bin_hours=24,
        since=["lab"],
    )
    assert again.content_sha256() == daily.content_sha256()


def test_a_removed_entry_is_made_again_alone(small_run: SmallRun, daily: Cells, tmp_path: Path) -> None:
    """Resuming makes what is missing, nothing else, and ends at the same hash."""
    [[made]] = daily.parts.values()
    shutil.copytree(made.path.parent.parent, tmp_path, dirs_exist_ok=True)
    folder = tmp_path / "cells" / made.path.name
    for name in (made.shards[0], made.shards[-1]):
        (folder / "entries" / f"{name}.json").unlink()
        for told in made.entry(name).files.values():
            (folder / "data" / told["file"]).unlink()
    kept = {file.name: file.stat().st_mtime_ns for file in (folder / "data").iterdir()}
    again = aggregate_cells([small_run.attributions], tmp_path)
    [[remade_part]] = again.parts.values()
    assert remade_part.path == folder
    assert again.content_sha256() == daily.content_sha256()
    assert not remade_part.missing()
    assert not list(folder.rglob(".tmp*"))
    assert not (folder / "scratch").exists()
    after = {file.name: file.stat().st_mtime_ns for file in (folder / "data").iterdir()}
    assert {name: after[name] for name in kept} == kept


# -- sums of disjoint patients ------------------------------------------------------------------------


def sums_of(run: StageDirectory, shards: Sequence[str], axes: Sequence[TimeAxis], scratch: Path) -> dict[str, pa.Table]:
    """The tables of sums of some shards' patients."""
    rows, predictions = ([run.file(shard, name) for shard in shards] for name in ("attributions", "predictions"))
    words = run.read("about", "feature_values")
    with connect("1GB", scratch) as db:
        define_cohorts(db, predictions, rows, axes, words)
        cells, histograms = cell_sums(db, rows, words.select(["feature_value_id", "code"]), "code", axes)
        return {"cells": cells, "histograms": histograms, "exposure": exposure_sums(db, axes)}


@pytest.fixture(scope="module")
def by_shard(small_run: SmallRun, daily: Cells, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, pa.Table]]:
    """A patient lies in one shard: the sums of each."""
    run = StageDirectory.open(small_run.attributions)
    return [sums_of(run, [name], daily.axes, tmp_path_factory.mktemp("scratch")) for name in run.shards]


@pytest.fixture(scope="module")
def all_at_once(small_run: SmallRun, daily: Cells, tmp_path_factory: pytest.TempPathFactory) -> dict[str, pa.Table]:
    run = StageDirectory.open(small_run.attributions)
    tables = sums_of(run, run.shards, daily.axes, tmp_path_factory.mktemp("scratch"))
    return {name: merged(name, [table]) for name, table in tables.items()}


@settings(max_examples=12, deadline=None)
@given(st.randoms(use_true_random=False))
@pytest.mark.parametrize("name", ["cells", "histograms", "exposure"])
def test_sums_of_disjoint_patients_merge_in_any_order_and_grouping(
    by_shard: list[dict[str, pa.Table]], all_at_once: dict[str, pa.Table], name: str, random
) -> None:
    """Any two are merged, and the result with any other: always the sums of all patients at once."""
    parts = [tables[name] for tables in by_shard]
    random.shuffle(parts)
    while len(parts) > 1:
        at = random.randrange(len(parts) - 1)
        pair = parts[at : at + 2]
        parts[at : at + 2] = [merged(name, pair if random.random() < 0.5 else pair[::-1])]
    assert parts[0].equals(all_at_once[name])


@settings(max_examples=12, deadline=None)
@given(st.data())
@pytest.mark.parametrize("name", ["cells", "histograms", "exposure"])
def test_patients_who_leave_are_taken_away_exactly(
    by_shard: list[dict[str, pa.Table]], name: str, data: st.DataObject
) -> None:
    """What was added is taken away again, and nothing of it stays, not even an empty row."""
    tables = [one[name] for one in by_shard]
    left = data.draw(st.sets(st.sampled_from(range(len(tables)))))
    kept = [table for at, table in enumerate(tables) if at not in left]
    gone = [negated(name, table) for at, table in enumerate(tables) if at in left]
    expected = merged(name, kept) if kept else tables[0].slice(0, 0)
    assert merged(name, [*tables, *gone]).equals(expected)


def vector_table(draw: st.DrawFn, keys: list[int]) -> pa.Table:
    numbers = st.integers(-(2**40), 2**40)
    rows = [
        {
            "target": "logit", "split": "train", "class": "all", "stratum": "all", "time_axis": BEFORE, "time_bin": key,
            "n_predictions": draw(st.integers(1, 9)), "n_patients": 1, "s_NN": 1, "n_places": 2,
            "sum_gradient_vector": draw(st.lists(numbers, min_size=3, max_size=3)),
            "sum_static_gradient_vector": None,
        }
        for key in keys
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=EXPOSURE_SUMS)


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_vectors_merge_number_by_number(data: st.DataObject) -> None:
    tables = [vector_table(data.draw, data.draw(st.lists(st.integers(0, 3), unique=True))) for _ in range(3)]
    expected: dict[int, list[int]] = {}
    for row in (row for table in tables for row in table.to_pylist()):
        into = expected.setdefault(row["time_bin"], [0, 0, 0])
        expected[row["time_bin"]] = [a + b for a, b in zip(into, row["sum_gradient_vector"], strict=True)]
    found = {row["time_bin"]: row["sum_gradient_vector"] for row in merged("exposure", tables).to_pylist()}
    assert found == expected
    assert merged("exposure", [merged("exposure", tables[:2]), tables[2]]).equals(merged("exposure", tables[::-1]))


# -- sums on the grid ---------------------------------------------------------------------------------

CONTRIBUTIONS = st.lists(st.floats(-1000, 1000, allow_nan=False), min_size=1, max_size=60)


@given(CONTRIBUTIONS, st.randoms(use_true_random=False))
def test_sums_on_the_grid_do_not_depend_on_order(values: list[float], random) -> None:
    """Any order and any grouping of partial sums gives the same bits, those of the exact integers."""
    grid = on_grid(np.array(values)).astype(np.float64)
    exact = sum(int(value * ATTRIBUTION_UNITS) for value in grid)
    parts = list(grid)
    random.shuffle(parts)
    one_by_one = 0.0
    for part in parts:
        one_by_one += part
    while len(parts) > 1:  # merge any two, as workers or generations may
        at = random.randrange(len(parts) - 1)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    assert parts[0] == one_by_one == exact / ATTRIBUTION_UNITS


@given(st.lists(st.floats(-1e4, 1e4, allow_nan=False), min_size=1))
def test_the_grid_is_near_and_stays(values: list[float]) -> None:
    """Rounding moves a contribution by half a unit, or float32's half spacing; a second time by nothing."""
    grid = on_grid(np.array(values))
    assert grid.dtype == np.float32
    allowed = 0.5 / ATTRIBUTION_UNITS + 0.5 * np.spacing(np.abs(grid)).astype(np.float64)
    assert (np.abs(grid.astype(np.float64) - values) <= allowed).all()
    assert (on_grid(grid) == grid).all()
    units = grid.astype(np.float64) * ATTRIBUTION_UNITS
    assert (units == np.rint(units)).all()


# -- time axes ----------------------------------------------------------------------------------------

#: Up to the longest life, in minutes: beyond, no width fits.
HISTORIES = st.lists(st.integers(0, 115 * 8766 * 60), min_size=1, max_size=200)


@given(HISTORIES)
def test_a_readable_axis_has_few_bins_and_spans_most_histories(minutes: list[int]) -> None:
    """A width of the list, at most 24 bins, 95 % of the histories within them; no narrower width does."""
    histories = np.array(minutes)
    axis = readable_axis(histories)
    assert axis.width_hours in WIDTHS
    assert 1 <= axis.n_bins <= MOST_BINS
    assert (histories < 60 * axis.width_hours * axis.n_bins).mean() >= SPANNED
    for narrower in (width for width in WIDTHS if width < axis.width_hours):
        assert (histories < 60 * narrower * MOST_BINS).mean() < SPANNED


@given(st.lists(st.integers(0, 2**31 - 1), max_size=60), st.integers(1, 10_000))
def test_a_given_width_is_kept_and_bins_are_equal_and_gapless(minutes: list[int], width: int) -> None:
    """Each bin begins where the one before ends; the last is open and somebody reaches it."""
    axis = readable_axis(np.array(minutes, dtype=np.int64), width)
    assert axis.width_hours == width
    at = 0.0
    for time_bin in range(min(axis.n_bins, 2000)):
        low, high = axis.bounds(time_bin)
        assert low == at
        at = high
        assert high == (low + width if time_bin < axis.n_bins - 1 else math.inf)
    if minutes:
        assert max(minutes) >= 60 * axis.bounds(axis.n_bins - 1)[0]


def test_where_no_width_fits_the_widest_is_taken() -> None:
    """A history longer than the list foresees (a wrong date) still gets an axis."""
    assert readable_axis(np.array([2**31 - 1])).width_hours == WIDTHS[-1]
    assert readable_axis(np.array([], dtype=np.int64)) == TimeAxis("before_prediction", 1, 1)


@given(
    st.lists(st.none() | st.integers(-5000, 5000), min_size=1, max_size=30),
    st.integers(1, 30),
    st.integers(1, 6),
    st.integers(-5, 0),
)
def test_minutes_fall_into_the_bin_whose_bounds_hold_them(
    minutes: list[int | None], width: int, bins: int, first: int
) -> None:
    """low_hours <= hours < high_hours for every bin that SQL computes; no minutes, no bin."""
    axis = TimeAxis("after_anchor", width, bins - first, first)
    with connect("200MB", Path("unused")) as db:
        db.register("given", pa.table({"minutes": pa.array(minutes, pa.int32())}))
        found = db.sql(f"select {axis.bin_of('minutes')} as b from given").to_arrow_table()["b"].to_pylist()
    for at, time_bin in zip(minutes, found, strict=True):
        assert (at is None) == (time_bin is None)
        if at is not None:
            low, high = axis.bounds(time_bin)
            assert low <= max(at / 60, -math.inf if first < 0 else 0) < high


@given(
    st.lists(st.integers(0, 10**6), min_size=1, max_size=50), st.lists(st.integers(0, 10**6), min_size=1, max_size=50)
)
def test_a_two_sided_axis_has_few_bins_and_spans_both_sides(before: list[int], after: list[int]) -> None:
    axis = readable_two_sided_axis("after_anchor", np.array(before), np.array(after))
    assert axis.width_hours in WIDTHS
    assert 1 <= axis.n_bins <= MOST_BINS
    assert (axis.first_bin < 0) == any(before)
    assert axis.last_bin >= 0
    assert (np.array(before) <= 60 * -axis.first_bin * axis.width_hours).mean() >= SPANNED
    assert (np.array(after) < 60 * (axis.last_bin + 1) * axis.width_hours).mean() >= SPANNED


# -- whole numbers ------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(-(2**40), 2**40), st.integers(-(2**20), 2**20)), min_size=1, max_size=50))
def test_products_and_sums_of_limbs_are_exact(pairs: list[tuple[int, int]]) -> None:
    a, b = (limbs(np.array(numbers, dtype=np.int64)) for numbers in zip(*pairs, strict=True))
    found = product(product(a, a), b)
    exact = [x * x * y for x, y in pairs]
    assert [int(number) for number in decimals(found).to_pylist()] == exact
    assert [int(number) for number in decimals(limbs_of_decimals(decimals(found))).to_pylist()] == exact
    assert [int(n) for n in decimals([limb.sum(keepdims=True) for limb in found]).to_pylist()] == [sum(exact)]
    both = [x * x * y + x for x, y in pairs]
    assert [int(number) for number in decimals(total(found, a)).to_pylist()] == both


# -- bad input ----------------------------------------------------------------------------------------


def test_a_run_given_twice_is_refused(small_run: SmallRun, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"given twice.*once"):
        aggregate_cells([small_run.attributions, small_run.attributions], tmp_path)


def test_unfinished_attributions_are_refused(small_run: SmallRun, tmp_path: Path) -> None:
    """The sentence says where, how much is missing, and what to run."""
    copy = tmp_path / "unfinished"
    shutil.copytree(small_run.attributions, copy)
    (copy / "entries" / f"{StageDirectory.open(copy).shards[1]}.json").unlink()
    with pytest.raises(UserError, match=r"unfinished is unfinished \(1 of 6 .*whenwhy attribute") as told:
        aggregate_cells([copy], tmp_path / "out")
    assert "\n" not in str(told.value)
    assert not (tmp_path / "out" / "cells").exists()


def test_runs_of_other_feature_values_are_refused(small_run: SmallRun, tmp_path: Path) -> None:
    other = remade(
        small_run.attributions,
        tmp_path / "other",
        vocabulary=lambda table: table.slice(0),
        about={"vocabulary_sha256": "0" * 64},
        settings={"tolerance": 0.5},
    )
    with pytest.raises(UserError, match=r"different feature values.*a store of its own"):
        aggregate_cells([small_run.attributions, other], tmp_path / "out")


def test_a_scheduler_that_is_not_there_is_one_sentence(small_run: SmallRun, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"No Dask scheduler answers at tcp://127.0.0.1:1") as told:
        aggregate_cells([small_run.attributions], tmp_path / "out", scheduler="tcp://127.0.0.1:1")
    assert "\n" not in str(told.value)


def test_an_unknown_code_to_count_time_from_is_refused(small_run: SmallRun, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"There is no code 'labb'.*did you mean 'lab'\?"):
        aggregate_cells([small_run.attributions], tmp_path / "out", since=["labb"])
    assert not (tmp_path / "out" / "cells").exists()


def test_a_directory_of_another_stage_is_refused(small_run: SmallRun, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="whenwhy prepare"):
        aggregate_cells([small_run.sequences], tmp_path)


@pytest.mark.parametrize(
    ("given_settings", "said"),
    [({"time_bin_hours": 0}, "--time-bin-hours"), ({"memory_limit": "a lot"}, "--memory-limit 'a lot'")],
)
def test_impossible_settings_are_one_sentence(
    small_run: SmallRun, tmp_path: Path, given_settings: dict, said: str
) -> None:
    with pytest.raises(UserError, match=said) as told:
        aggregate_cells([small_run.attributions], tmp_path, **given_settings)
    assert "\n" not in str(told.value)


def test_a_damaged_shard_is_refused_by_name(small_run: SmallRun, tmp_path: Path) -> None:
    """One flipped byte of one data file: the sentence names the file and what to remove."""
    copy = tmp_path / "damaged"
    shutil.copytree(small_run.attributions, copy)
    run = StageDirectory.open(copy)
    file = copy / "data" / run.entry(run.shards[2]).files["attributions"]["file"]
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=rf"{file.name} is damaged.*{run.shards[2]}\.json"):
        aggregate_cells([copy], tmp_path / "out", time_bin_hours=24)
