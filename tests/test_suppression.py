"""What viewers are shown: no small cell, no line that gives one away, nothing that published margins can be solved for."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from cohort import write_cohort
from conftest import INLINE, SmallRun
from replicas.cells import Axis, RunReplica, remade
from replicas.cells import cohorts as replica_cohorts
from whenwhy.attribution.attribute_shards import AttributeSettings, attribute_shards
from whenwhy.events.sequences import PrepareSettings, prepare
from whenwhy.models.training import TrainSettings, train
from whenwhy.schema import CELLS, EXPOSURE
from whenwhy.statistics import aggregate_cells
from whenwhy.store import Store, open_store, publish_store
from whenwhy.store.suppression import EXPOSURE_KEYS, shown_cells, shown_exposure

KEY = ["split", "class", "stratum", "level", "code", "feature_value_id", "time_bin"]
NONE = -1

#: Cells of 1 to 10 patients are never shown.
FEWEST = 11


class Line(NamedTuple):
    """A margin and the cells that add up to it, by row."""

    kind: str
    margin: int
    children: list[int]


@dataclass
class Published:
    """Every true cell, which of them is shown, and the lines among them."""

    name: str
    cells: pd.DataFrame
    shown: np.ndarray
    lines: list[Line]


def keyed(table: pa.Table) -> pd.DataFrame:
    """The table with -1 for all time and for features above the level of values; exposure has one feature."""
    frame = table.to_pandas()
    for name, without in (("level", "exposure"), ("code", ""), ("feature_value_id", NONE)):
        if name not in frame:
            frame[name] = without
    for name in ("feature_value_id", "time_bin"):
        frame[name] = frame[name].fillna(NONE).astype(int)
    return frame


def lines_of(cells: pd.DataFrame, parents: dict[str, list[str]], kinds: tuple[str, ...]) -> list[Line]:
    """Every line of these kinds, found from the meaning of the keys alone."""
    row_of = {key: at for at, key in enumerate(cells[KEY].itertuples(index=False, name=None))}
    children: dict[tuple, list[int]] = defaultdict(list)
    for key, at in row_of.items():
        split, label, stratum, level, code, number, time_bin = key
        if time_bin != NONE:
            children["time", split, label, stratum, level, code, number, NONE].append(at)
        if label != "all":
            children["class", split, "all", stratum, level, code, number, time_bin].append(at)
        if stratum != "all":
            of = stratum.partition("=")[0]
            children[f"stratum {of}", split, label, "all", level, code, number, time_bin].append(at)
        if level == "value":
            children["value", split, label, stratum, "code", code, NONE, time_bin].append(at)
        for group in parents.get(code, []) if level == "code" else []:
            children["group", split, label, stratum, "group", group, NONE, time_bin].append(at)
    return [
        Line(key[0], row_of[key[1:]], rows)
        for key, rows in children.items()
        if key[0].partition(" ")[0] in kinds and key[1:] in row_of
    ]


CELL_KINDS = ("time", "class", "stratum", "value", "group")
EXPOSURE_KINDS = ("class", "stratum")


def published_cells(name: str, store: Path) -> Published:
    """A store's true cells beside its shareable file."""
    analyst, viewer = open_store(store), open_store(store, "viewer")
    cells, shown = (keyed(opened.sql("select * exclude (histogram) from cells")) for opened in (analyst, viewer))
    words = analyst.sql("select code, any_value(parents) as parents from feature_values group by code").to_pylist()
    known = set(shown[KEY].itertuples(index=False, name=None))
    is_shown = np.array([key in known for key in cells[KEY].itertuples(index=False, name=None)])
    assert is_shown.sum() == len(shown)
    parents = {word["code"]: word["parents"] for word in words}
    analyst.close()
    viewer.close()
    return Published(name, cells, is_shown, lines_of(cells, parents, CELL_KINDS))


def published_exposure(name: str, store: Path) -> Published:
    """The same of the exposure table."""
    analyst, viewer = open_store(store), open_store(store, "viewer")
    rows, shown = (keyed(opened.sql("select * from exposure")) for opened in (analyst, viewer))
    rows["n_events"] = rows["n_predictions"]
    known = set(shown[KEY].itertuples(index=False, name=None))
    is_shown = np.array([key in known for key in rows[KEY].itertuples(index=False, name=None)])
    analyst.close()
    viewer.close()
    return Published(name, rows, is_shown, lines_of(rows, {}, EXPOSURE_KINDS))


@pytest.fixture(scope="module")
def one_class(small_run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which a patient's predictions are of one class, so that classes share no patient."""
    folder = tmp_path_factory.mktemp("one-class")

    def labelled(table: pa.Table) -> pa.Table:
        labels = pa.array(np.where(table["subject_id"].to_numpy() // 6 % 3 == 0, "true", "false"), pa.string())
        return table.set_column(table.column_names.index("label"), "label", labels)

    path = remade(small_run.attributions, folder / "attributions", predictions=labelled)
    publish_store(folder / "store", aggregate_cells([path], folder / "store", time_bin_hours=24), [path])
    return folder / "store"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of sixty patients, where whole splits and classes are too small to be shown."""
    root = tmp_path_factory.mktemp("tiny")
    write_cohort(root / "meds", patients=60, seed=7)
    asked = PrepareSettings("the outcome", strata=("age_band", "sex"), bins=4, shard_size=128)
    prepare(root / "meds", root / "meds" / "labels" / "outcome", root / "sequences", asked, INLINE)
    train(root / "sequences", root / "model", TrainSettings(hidden=8, epochs=1), INLINE)
    attribute_shards(root / "sequences", root / "model", root / "attributions", AttributeSettings(), INLINE)
    paths = [root / "attributions"]
    publish_store(root / "store", aggregate_cells(paths, root / "store", time_bin_hours=48), paths)
    return root / "store"


@pytest.fixture(scope="module")
def stores(small_run: SmallRun, one_class: Path, tiny: Path) -> dict[str, Path]:
    return {"small": small_run.store, "one class": one_class, "tiny": tiny}


@pytest.fixture(scope="module")
def everything(stores: dict[str, Path]) -> list[Published]:
    """Cells and exposure of the small run, of its variant with separate classes, and of the tiny cohort."""
    cells = [published_cells(f"cells of {name}", store) for name, store in stores.items()]
    return cells + [published_exposure(f"exposure of {name}", store) for name, store in stores.items()]


# -- the rules ----------------------------------------------------------------------------------------


def effective(cells: pd.DataFrame) -> np.ndarray:
    """n^2 / S_nn: how many patients stand behind a cell in effect; exposure rows are judged by their patients."""
    return (cells["n_events"] ** 2 / cells["s_nn"]).to_numpy() if "s_nn" in cells else cells["n_patients"].to_numpy()


def assert_rules_hold(cells: pd.DataFrame, shown: np.ndarray, lines: list[Line]) -> None:
    """No small or dominated cell; in a line with a shown margin none is hidden, or two and eleven patients."""
    patients = cells["n_patients"].to_numpy()
    assert patients[shown].min(initial=FEWEST) >= FEWEST
    assert effective(cells)[shown].min(initial=FEWEST) >= FEWEST
    for line in lines:
        if shown[line.margin]:
            hidden = [child for child in line.children if not shown[child]]
            if hidden:
                assert len(hidden) >= 2, (line.kind, cells.loc[line.margin, KEY].to_list())
                assert patients[hidden].sum() >= FEWEST, (line.kind, cells.loc[line.margin, KEY].to_list())


def test_published_stores_keep_the_rules(everything: list[Published]) -> None:
    """In every published table much is hidden, something is shown, and every line is safe."""
    for published in everything:
        assert len(published.lines) > 20, published.name
        assert published.shown.any(), published.name
        assert not published.shown.all(), published.name
        assert_rules_hold(published.cells, published.shown, published.lines)


def test_whole_splits_of_few_patients_are_hidden(tiny: Path) -> None:
    """Of ten tuning patients a viewer sees neither a cell nor a row of exposure."""
    viewer = open_store(tiny, "viewer")
    for table in ("cells", "exposure"):
        assert set(viewer.sql(f"select distinct split from {table}")["split"].to_pylist()) == {"train", "held_out"}
    viewer.close()


def test_training_counts_and_edges_go_with_their_cells(stores: dict[str, Path]) -> None:
    """n_train is shown where the training cell is; an inner edge where the cells on both its sides are."""
    hidden = 0
    for path in stores.values():
        viewer, analyst = open_store(path, "viewer"), open_store(path)
        told = {row["feature_value_id"]: row for row in viewer.sql("select * from feature_values").to_pylist()}
        true = {row["feature_value_id"]: row for row in analyst.sql("select * from feature_values").to_pylist()}
        seen = viewer.sql(
            """select feature_value_id as f from cells where level = 'value' and split = 'train' and class = 'all'
            and stratum = 'all' and time_bin is null"""
        )["f"].to_pylist()
        assert set(told) == set(true)
        for number, row in told.items():
            counts = ("n_train", "n_train_patients")
            assert [row[name] for name in counts] == [true[number][name] if number in seen else None for name in counts]
            for mine, theirs in (("low", "high"), ("high", "low")):
                edge = true[number][mine]
                if edge is None or np.isinf(edge):
                    assert row[mine] == edge
                    continue
                beside = [n for n, other in true.items() if other["code"] == row["code"] and other[theirs] == edge]
                both = number in seen and all(other in seen for other in beside)
                assert row[mine] == (edge if both else None)
                hidden += not both
        viewer.close()
        analyst.close()
    assert hidden > 0


# -- the rules, on tables of any shape ----------------------------------------------------------------

CLASSES, SEXES, BANDS, BINS, CODES, VALUES = 2, 2, 3, 3, 2, 2
PARENTS = {"code0": ["group"], "code1": ["group"]}


def made_up_cells(seed: int, mean: float, empty: float, heavy: float) -> pa.Table:
    """Cells with all margins of random patients: `empty`, the share of none; `heavy`, of one with many events."""
    random = np.random.default_rng(seed)
    shape = (CLASSES, SEXES, BANDS, BINS, CODES, VALUES)
    patients = random.poisson(mean, shape) * (random.random(shape) >= empty)
    extra = np.where(random.random(shape) < heavy, random.integers(1, 300, shape), 0) * (patients > 0)
    sums = {"n_patients": patients, "n_events": patients + extra, "s_nn": patients + 2 * extra + extra**2}
    every = slice(None)
    labels = [("all", every), *((f"class{i}", i) for i in range(CLASSES))]
    strata = [("all", every, every), *((f"sex={i}", i, every) for i in range(SEXES))]
    strata += [(f"band={i}", every, i) for i in range(BANDS)]
    times = [(None, every), *((i, i) for i in range(BINS))]
    features = [("group", "group", None, every, every)]
    features += [("code", f"code{i}", None, i, every) for i in range(CODES)]
    features += [("value", f"code{i}", i * VALUES + j, i, j) for i in range(CODES) for j in range(VALUES)]
    rows = []
    for label, (stratum, sex, band), (time_bin, at), (level, code, number, i, j) in itertools.product(
        [*labels], [*strata], [*times], [*features]
    ):
        told = {name: int(values[label[1], sex, band, at, i, j].sum()) for name, values in sums.items()}
        if told["n_patients"]:
            key = {"split": "train", "class": label[0], "stratum": stratum, "level": level, "code": code}
            whole = {
                "run_id": "r",
                "target": "logit",
                "time_axis": "t",
                "time_bin": time_bin,
                "feature_value_id": number,
            }
            rows.append(key | whole | told)
    return pa.Table.from_pylist(rows, schema=CELLS)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 2**32),
    st.sampled_from([0.3, 1, 3, 8, 15, 40]),
    st.sampled_from([0, 0.3, 0.8]),
    st.sampled_from([0, 0.1]),
)
def test_any_table_keeps_the_rules(seed: int, mean: float, empty: float, heavy: float) -> None:
    """Sparse or full, dominated or even: no small cell, no weak line."""
    table = made_up_cells(seed, mean, empty, heavy)
    if not table.num_rows:
        return
    parents = pa.table({"code": list(PARENTS), "parents": list(PARENTS.values())})
    # So many are at risk that those without a feature are never few.
    at_risk = table.group_by(EXPOSURE_KEYS).aggregate([]).to_pylist()
    exposure = pa.Table.from_pylist([row | {"n_patients": 10**6} for row in at_risk], schema=EXPOSURE)
    shown = shown_cells(table, exposure, parents)
    cells = keyed(table)
    assert_rules_hold(cells, shown, lines_of(cells, PARENTS, CELL_KINDS))
    fine = (cells["n_patients"].min() >= FEWEST) and effective(cells).min() >= FEWEST
    assert not fine or shown.all(), "where every cell may be shown every cell is"


def made_up_exposure(seed: int, mean: float) -> pa.Table:
    """Exposure with all margins of patients of one prediction each, whose histories end in some bin."""
    random = np.random.default_rng(seed)
    ends = random.poisson(mean, (CLASSES, SEXES, BANDS, 6))
    reaching = ends[..., ::-1].cumsum(axis=-1)[..., ::-1]
    every = slice(None)
    strata = [("all", every, every), *((f"sex={i}", i, every) for i in range(SEXES))]
    strata += [(f"band={i}", every, i) for i in range(BANDS)]
    rows = []
    for (label, of_class), (stratum, sex, band), time_bin in itertools.product(
        [("all", every), *((f"class{i}", i) for i in range(CLASSES))], strata, [None, *range(6)]
    ):
        n = int(reaching[of_class, sex, band, time_bin or 0].sum())
        key = {"run_id": "r", "target": "logit", "split": "train", "class": label, "stratum": stratum}
        if n:
            rows.append(key | {"time_axis": "t", "time_bin": time_bin, "n_patients": n, "n_predictions": n})
    return pa.Table.from_pylist(rows, schema=EXPOSURE)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([0.3, 1, 3, 8, 15, 40]))
def test_any_exposure_keeps_the_rules(seed: int, mean: float) -> None:
    """No small row, no weak line, and no two bins shown in a row that differ by 1 to 10 patients."""
    table = made_up_exposure(seed, mean)
    if not table.num_rows:
        return
    shown = shown_exposure(table)
    rows = keyed(table)
    assert_rules_hold(rows, shown, lines_of(rows, {}, EXPOSURE_KINDS))
    for _, series in rows[shown & (rows["time_bin"] != NONE)].groupby(["class", "stratum"]):
        ended = -np.diff(series.sort_values("time_bin")["n_patients"])
        assert not ((ended > 0) & (ended < FEWEST)).any()


# -- attack by subtraction ----------------------------------------------------------------------------


def narrowed(
    true: np.ndarray, known: np.ndarray, most: np.ndarray, lines: list[Line], adds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The least and the most that each number can be, given the known ones: subtraction along all lines, repeated.

    Where a line `adds` up the margin is the sum of its children, else at least the largest and at most the sum.
    """
    low, high = np.where(known, true, 0.0), np.where(known, true, most)
    margin = np.array([line.margin for line in lines])
    child = np.concatenate([line.children for line in lines])
    line = np.repeat(np.arange(len(lines)), [len(one.children) for one in lines])
    count = len(lines)
    while True:
        before = low.copy(), high.copy()
        least = np.bincount(line, low[child], count)
        open_ended = np.isinf(high[child])
        finite = np.where(open_ended, 0.0, high[child])
        unbounded = np.bincount(line, open_ended, count)
        largest = np.where(unbounded > 0, np.inf, np.bincount(line, finite, count))
        others = np.where(unbounded[line] - open_ended > 0, np.inf, np.bincount(line, finite, count)[line] - finite)
        np.minimum.at(high, margin, largest)
        np.maximum.at(low, margin[adds], least[adds])
        np.maximum.at(low, margin[line], low[child])
        np.minimum.at(high, child, high[margin][line] - np.where(adds[line], least[line] - low[child], 0.0))
        np.maximum.at(low, child, np.where(np.isinf(others), 0.0, low[margin][line] - others))
        if np.array_equal(low, before[0]) and np.array_equal(high, before[1]):
            assert ((low <= true) & (true <= high)).all(), "the attack itself is sound"
            return low, high


def pinned(published: Published, shown: np.ndarray) -> int:
    """How many hidden cells subtraction shows to have 1 to 10 events or 1 to 10 patients."""
    cells = published.cells
    events = cells["n_events"].to_numpy(dtype=float)
    patients = cells["n_patients"].to_numpy(dtype=float)
    everywhere = np.full(len(cells), np.inf)
    # A static value has no time: only where the parts are the whole do events add up.
    adds = np.array([events[line.children].sum() == events[line.margin] for line in published.lines])
    assert adds.mean() > 0.95
    low, high = narrowed(events, shown, everywhere, published.lines, adds)
    disjoint = np.array(
        [
            line.kind.partition(" ")[0] in ("class", "stratum")
            and patients[line.children].sum() == patients[line.margin]
            for line in published.lines
        ]
    )
    assert disjoint.any()
    low_patients, high_patients = narrowed(patients, shown, high, published.lines, disjoint)
    found = (low >= 1) & (high < FEWEST) | (low_patients >= 1) & (high_patients < FEWEST)
    return int((found & ~shown).sum())


def test_subtraction_recovers_no_small_count(everything: list[Published]) -> None:
    """Over all margins at once, of events everywhere and of patients where they are disjoint."""
    for published in everything:
        assert pinned(published, published.shown) == 0, published.name


def test_the_attack_by_subtraction_works(everything: list[Published]) -> None:
    """Were small cells hidden alone, without complements, the same attack would find them."""
    for published in everything:
        alone = (published.cells["n_patients"].to_numpy() >= FEWEST) & (effective(published.cells) >= FEWEST)
        assert pinned(published, alone) > 5, published.name


# -- attack by linear programming ---------------------------------------------------------------------


def small_examples(everything: list[Published]) -> Iterator[tuple[str, pd.DataFrame, np.ndarray, list[Line]]]:
    """Tables of a few dozen cells, class by stratum for all time, in which patients are disjoint."""
    for published in everything:
        for (split, level, code, number), part in published.cells[published.cells["time_bin"] == NONE].groupby(
            ["split", "level", "code", "feature_value_id"]
        ):
            if level == "value" or (level == "group" and code != "BLOOD"):
                continue
            cells = part.reset_index(drop=True)
            shown = published.shown[part.index]
            if shown.any() and not shown.all():
                name = f"{published.name} {split} {level} {code} {number}"
                yield name, cells, shown, lines_of(cells, {}, ("class", "stratum"))


def extremes(true: np.ndarray, shown: np.ndarray, lines: list[Line]) -> tuple[np.ndarray, np.ndarray]:
    """The least and the most of each hidden count >= 0 that the shown ones allow [hidden]: a linear programme each."""
    hidden = np.flatnonzero(~shown)
    column = {at: number for number, at in enumerate(hidden)}
    equations, known = [], []
    for line in lines:
        if true[line.children].sum() != true[line.margin]:
            continue  # patients are in several of these
        row, right = np.zeros(len(hidden)), 0.0
        for at, sign in [(line.margin, 1.0), *((child, -1.0) for child in line.children)]:
            if shown[at]:
                right -= sign * true[at]
            else:
                row[column[at]] = sign
        if row.any():
            equations.append(row)
            known.append(right)
    if not equations:
        return np.zeros(len(hidden)), np.full(len(hidden), np.inf)
    least, most = [], []
    for number in range(len(hidden)):
        goal = np.zeros(len(hidden))
        goal[number] = 1.0
        for sign, into in ((1.0, least), (-1.0, most)):
            solved = linprog(sign * goal, A_eq=np.array(equations), b_eq=np.array(known), bounds=(0, None))
            assert solved.status in (0, 3), solved.message
            into.append(np.inf if solved.status == 3 else sign * solved.fun)
    return np.array(least), np.array(most)


def small_counts_solved(everything: list[Published], primary_only: bool) -> tuple[int, int]:
    """How many hidden counts of patients the programmes pin within 1 to 10, and how many they were run for."""
    found = tried = 0
    examples = [
        example for example in small_examples(everything) if "held_out" in example[0] or "exposure" in example[0]
    ]
    for _, cells, shown, lines in examples:
        patients = cells["n_patients"].to_numpy(dtype=float)
        if primary_only:
            shown = (patients >= FEWEST) & (effective(cells) >= FEWEST)
        least, most = extremes(patients, shown, lines)
        true = patients[~shown]
        assert ((least - 1e-6 <= true) & (true <= most + 1e-6)).all(), "the attack itself is sound"
        found += int(((least > 0.5) & (most < FEWEST - 0.5)).sum())
        tried += len(true)
    return found, tried


def test_linear_programmes_pin_no_small_count(everything: list[Published]) -> None:
    """Class by stratum, published margins as equalities: no hidden count of patients must lie within 1 to 10."""
    separate = [published for published in everything if "one class" in published.name]
    found, tried = small_counts_solved(separate, primary_only=False)
    assert tried > 100
    assert found == 0


def test_the_attack_by_linear_programmes_works(everything: list[Published]) -> None:
    """Were small cells hidden alone the same programmes would pin them."""
    separate = [published for published in everything if published.name == "exposure of one class"]
    assert small_counts_solved(separate, primary_only=True)[0] > 5


# -- ways around the lines ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def viewers(stores: dict[str, Path]) -> Iterator[dict[str, Store]]:
    opened = {name: open_store(path, "viewer") for name, path in stores.items()}
    yield opened
    for store in opened.values():
        store.close()


def test_all_time_less_the_first_bin_is_no_small_count(viewers: dict[str, Store]) -> None:
    """The all-time row is judged like a bin before the first: whose history reaches no bin is counted by subtraction."""
    for name, viewer in viewers.items():
        found = viewer.sql(
            f"""select a.split, a.class, a.stratum, a.n_patients - b.n_patients as n from exposure a
            join exposure b using (run_id, target, split, class, stratum)
            where a.time_bin is null and b.time_bin = 0 and a.n_patients - b.n_patients between 1 and {FEWEST - 1}"""
        )
        assert found.to_pylist() == [], name


def test_neighbouring_bins_differ_by_no_small_count_of_predictions(viewers: dict[str, Store]) -> None:
    """n_predictions of neighbouring bins gives away as much as n_patients does."""
    for name, viewer in viewers.items():
        found = viewer.sql(
            f"""select * from (
                select split, class, stratum, time_bin, lag(n_predictions) over (
                    partition by run_id, target, split, class, stratum order by time_bin) - n_predictions as ended
                from exposure where time_bin is not null
            ) where ended between 1 and {FEWEST - 1}"""
        )
        assert found.to_pylist() == [], name


def test_patients_at_risk_less_those_with_a_code_is_no_small_hidden_cell(stores: dict[str, Path]) -> None:
    """A hidden cell of one static code does not follow from its shown counterpart and the exposure."""
    recovered = []
    for name, path in stores.items():
        viewer, analyst = open_store(path, "viewer"), open_store(path)
        beside = (
            "select c.*, e.n_patients as at_risk from cells c join exposure e using (run_id, split, class, stratum)"
        )
        static = (
            f"{beside} where c.level = 'code' and c.time_bin is null and e.time_bin is null and c.code like 'SEX//%'"
        )
        seen = {
            (row["split"], row["class"], row["stratum"], row["code"]): row for row in viewer.sql(static).to_pylist()
        }
        for row in analyst.sql(static).to_pylist():
            cohort = (row["split"], row["class"], row["stratum"])
            other = seen.get((*cohort, {"SEX//F": "SEX//M", "SEX//M": "SEX//F"}[row["code"]]))
            if (
                other
                and (*cohort, row["code"]) not in seen
                and other["at_risk"] - other["n_patients"] == row["n_patients"]
            ):
                recovered += [(name, *cohort, row["code"], row["n_patients"])] * (row["n_patients"] < FEWEST)
        viewer.close()
        analyst.close()
    assert recovered == []


def test_the_predictions_of_a_hidden_split_do_not_follow_from_the_run(viewers: dict[str, Store], tiny: Path) -> None:
    """The number of a run's predictions is a margin over splits."""
    viewer, analyst = viewers["tiny"], open_store(tiny)
    whole = viewer.sql("select n_predictions from runs")["n_predictions"][0].as_py()
    everybody = "select split, n_patients, n_predictions from exposure where class = 'all' and stratum = 'all' and time_bin is null"
    shown = {row["split"]: row["n_predictions"] for row in viewer.sql(everybody).to_pylist()}
    hidden = [row for row in analyst.sql(everybody).to_pylist() if row["split"] not in shown]
    analyst.close()
    assert [row["n_patients"] for row in hidden] == [10]
    assert whole is None or whole - sum(shown.values()) != hidden[0]["n_predictions"]


def test_the_positives_of_a_hidden_class_do_not_follow_from_the_quality(viewers: dict[str, Store], tiny: Path) -> None:
    """What training measured holds counts of a cohort, and goes with the cohort."""
    viewer, analyst = viewers["tiny"], open_store(tiny)
    quality = json.loads(viewer.sql("select quality from runs")["quality"][0].as_py() or "{}")
    positives = """select n_patients, n_predictions as n from exposure where split = 'held_out' and class = 'true'
        and stratum = 'all' and time_bin is null"""
    (true,) = analyst.sql(positives).to_pylist()
    analyst.close()
    assert true["n_patients"] < FEWEST
    assert viewer.sql(positives).num_rows == 0
    assert true["n"] not in [fold.get("n_positive") for fold in quality.get("folds", [])]


def test_what_a_line_hides_belongs_to_enough_patients(small_run: SmallRun, everything: list[Published]) -> None:
    """The hidden cells of a line with a shown margin hold eleven different patients, whose sum subtraction gives."""
    published = everything[0]
    width, bins = (
        open_store(small_run.store)
        .sql("select max(low_hours / time_bin)::integer as w, max(time_bin) + 1 as n from exposure where time_bin > 0")
        .to_pylist()[0]
        .values()
    )
    replica = RunReplica(small_run.attributions, Axis("before_prediction", width, bins))
    patients: dict[tuple, set[int]] = defaultdict(set)
    for row in replica.rows:
        told = replica.predictions[row["prediction_id"]]
        word = replica.vocabulary[row["feature_value_id"]]
        features = [("value", word["code"], row["feature_value_id"]), ("code", word["code"], NONE)]
        features += [("group", group, NONE) for group in word["parents"]]
        times = [NONE] if row["minutes"] is None else [NONE, replica.axes[0].bin_of(row["minutes"])]
        strata = sorted({stratum for *_, stratum in replica_cohorts(told)})
        for label, stratum, feature, time_bin in itertools.product(("all", told["label"]), strata, features, times):
            patients[told["split"], label, stratum, *feature, time_bin].add(told["subject_id"])
    keys = list(published.cells[KEY].itertuples(index=False, name=None))
    few = defaultdict(int)
    for line in published.lines:
        hidden = [child for child in line.children if not published.shown[child]]
        if published.shown[line.margin] and hidden:
            assert all(len(patients[keys[child]]) == published.cells["n_patients"][child] for child in hidden)
            few[line.kind] += len(set().union(*(patients[keys[child]] for child in hidden))) < FEWEST
    assert sum(few.values()) == 0, dict(few)
