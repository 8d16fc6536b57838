"""What viewers are shown: no small cell, no line that gives one away, nothing that published margins can be solved for."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from attack import FEWEST, KEY, NONE, Attack, Line, Published, effective, keyed, keys_of, lines_of, published
from cohort import write_cohort
from conftest import INLINE, Command, SmallRun, one_sentence
from replicas.cells import Axis, RunReplica, remade
from replicas.cells import cohorts as replica_cohorts
from whenwhy.attribution.attribute_shards import AttributeSettings, attribute_shards
from whenwhy.events.sequences import PrepareSettings, prepare
from whenwhy.models.training import TrainSettings, train
from whenwhy.schema import CELLS, EXPOSURE
from whenwhy.shards import StageDirectory
from whenwhy.statistics import aggregate_cells
from whenwhy.store import Store, open_store, publish_store
from whenwhy.store.lines import Lines
from whenwhy.store.suppression import EXPOSURE_KEYS, shown_cells, shown_exposure


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
def beginnings(small_run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with three axes: before the prediction, after an anchor (the first "drug"), since the first "lab"."""
    folder = tmp_path_factory.mktemp("beginnings")
    stage = StageDirectory.open(small_run.attributions, "attribute")
    words = stage.read("about", "feature_values").to_pylist()
    drugs = [word["feature_value_id"] for word in words if word["code"] == "drug"]
    first: dict[int, int] = {}
    for shard in stage.shards:
        rows = stage.read(shard, "attributions").to_pandas()
        rows = rows[rows["feature_value_id"].isin(drugs)]
        first |= rows.groupby("prediction_id")["minutes"].max().astype(int).to_dict()

    def anchored(table: pa.Table) -> pa.Table:
        minutes = pa.array([first.get(number) for number in table["prediction_id"].to_pylist()], pa.int32())
        return table.set_column(table.column_names.index("anchor_minutes"), "anchor_minutes", minutes)

    path = remade(small_run.attributions, folder / "attributions", predictions=anchored)
    cells = aggregate_cells([path], folder / "store", time_bin_hours=96, since=["lab"])
    publish_store(folder / "store", cells, [path])
    return folder / "store"


@pytest.fixture(scope="module")
def stores(small_run: SmallRun, one_class: Path, tiny: Path, beginnings: Path) -> dict[str, Path]:
    return {"small": small_run.store, "one class": one_class, "tiny": tiny, "beginnings": beginnings}


@pytest.fixture(scope="module")
def everything(stores: dict[str, Path]) -> dict[str, Published]:
    """Cells and exposure of the small run, of variants with separate classes and with more axes, of the tiny cohort."""
    return {
        name: published(name, store, {"after_anchor": "drug"} if name == "beginnings" else None)
        for name, store in stores.items()
    }


# -- the rules ----------------------------------------------------------------------------------------


def assert_rules_hold(cells: pd.DataFrame, shown: np.ndarray, lines: list[Line]) -> None:
    """No small or dominated cell; in a line with a shown margin none is hidden, or two and eleven patients."""
    patients, events = cells["n_patients"].to_numpy(), cells["n_events"].to_numpy()
    assert patients[shown].min(initial=FEWEST) >= FEWEST
    assert effective(cells)[shown].min(initial=FEWEST) >= FEWEST
    for line in lines:
        if shown[line.margin]:
            hidden = [child for child in line.children if not shown[child]]
            seen = [child for child in line.children if shown[child]]
            beyond = events[line.children].sum() < events[line.margin]
            if hidden:
                word = line.kind, cells.loc[line.margin, KEY].to_list()
                assert len(hidden) + beyond >= 2, word
                assert max(patients[hidden].sum(), patients[line.margin] - patients[seen].sum()) >= FEWEST, word


def test_published_stores_keep_the_rules(everything: dict[str, Published]) -> None:
    """In every store much is hidden, something is shown, and every line is safe."""
    for of in everything.values():
        assert len(of.lines) > 1000, of.name
        assert 0.001 < of.shown.mean() < 0.5, of.name
        assert_rules_hold(of.cells, of.shown, of.lines)
    assert {line.kind for line in everything["beginnings"].lines} >= {"time after_anchor", "time since:lab", "correct"}


def test_whole_splits_of_few_patients_are_hidden(tiny: Path) -> None:
    """Of ten tuning patients a viewer sees neither a cell nor a row of exposure."""
    viewer = open_store(tiny, "viewer")
    for table in ("cells", "exposure"):
        assert set(viewer.sql(f"select distinct split from {table}")["split"].to_pylist()) == {"train", "held_out"}
    viewer.close()


def test_training_counts_and_edges_go_with_their_cells(stores: dict[str, Path]) -> None:
    """n_train is shown where the training cell is and counts no few more; an edge where the cells on both its sides are."""
    hidden = 0
    for path in stores.values():
        viewer, analyst = open_store(path, "viewer"), open_store(path)
        told = {row["feature_value_id"]: row for row in viewer.sql("select * from feature_values").to_pylist()}
        true = {row["feature_value_id"]: row for row in analyst.sql("select * from feature_values").to_pylist()}
        training = viewer.sql(
            """select feature_value_id, n_events, n_patients from cells where level = 'value' and split = 'train' and class = 'all'
            and stratum = 'all' and time_bin is null"""
        )
        seen = {row["feature_value_id"]: (row["n_events"], row["n_patients"]) for row in training.to_pylist()}
        assert set(told) == set(true)
        for number, row in told.items():
            counts = ("n_train", "n_train_patients")
            whole = [true[number][name] for name in counts]
            beside = [abs(count - of) for count, of in zip(whole, seen.get(number, (0, 0)), strict=True)]
            told_few = any(0 < difference < FEWEST for difference in beside)
            assert [row[name] for name in counts] == (whole if number in seen and not told_few else [None, None])
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


# -- the threshold ------------------------------------------------------------------------------------


def test_the_threshold_is_an_option(small_run: SmallRun, tmp_path: Path, whenwhy: Command) -> None:
    """Viewers see cells of as many patients as asked; fewer than eleven only with a flag, which the store tells of."""
    store = tmp_path / "store"
    aggregate = ("aggregate", small_run.attributions, "--out", store, "--time-bin-hours", 96, "--workers", 1)
    said = one_sentence(whenwhy(*aggregate, "--min-patients", 5))
    assert "--allow-small-cells" in said
    assert not store.exists()
    versions = set()
    for options, fewest in (
        (("--min-patients", 5, "--allow-small-cells"), 5),
        (("--min-patients", 20), 20),
        ((), 20),  # as the store has it
    ):
        assert whenwhy(*aggregate, *options)[0] == 0
        for role in ("analyst", "viewer"):
            opened = open_store(store, role)
            told = opened.sql("select * from privacy").to_pylist()
            assert told == [{"min_patients": fewest, "small_cells_allowed": fewest < FEWEST}]
            shown = opened.sql("select min(n_patients) as n from cells")["n"][0].as_py()
            assert shown == 1 if role == "analyst" else fewest <= shown < 2 * fewest
            versions.add(opened.version.name)
            opened.close()
        assert f"at least {fewest} patients" in whenwhy("info", store)[1]
    assert len(versions) == 2
    said = one_sentence(whenwhy(*aggregate, "--min-patients", 0, "--allow-small-cells"))
    assert "at least 1" in said


# -- the rules, line by line --------------------------------------------------------------------------


@pytest.mark.parametrize(("of_margin", "hidden"), [(40, [1]), (60, [])])
def test_what_a_margin_has_beyond_its_cells_is_a_hidden_cell(of_margin: int, hidden: list[int]) -> None:
    """Three events beyond two cells of 20 patients are subtracted from nothing, unless 20 more patients have them."""
    patients, events = np.array([of_margin, 20, 22]), np.array([103, 50, 50])
    lines = Lines(np.zeros(3, dtype=bool), patients, events, n_cells=3, threshold=FEWEST)
    lines.add(np.array([1, 2]), np.array([0, 0]))
    assert np.flatnonzero(lines.hidden()).tolist() == hidden


def test_bounds_from_crossing_lines_pin_nothing() -> None:
    """Every row and column is safe by itself, and yet together they would leave a hidden count within 1 to 10."""
    cells = np.array([[0, 6, 6, 0], [5, 8, 0, 11], [4, 11, 7, 0]])
    rows, columns = cells.shape
    numbers = np.concatenate([cells.sum(axis=1), cells.sum(axis=0), cells.ravel()])
    there = np.flatnonzero(cells.ravel())
    lines = Lines(numbers < FEWEST, numbers, numbers, n_cells=len(numbers), threshold=FEWEST)
    lines.add(rows + columns + there, there // columns)
    lines.add(rows + columns + there, rows + there % columns)
    hidden = lines.hidden()
    sums = np.zeros((rows + columns, len(numbers)))
    sums[np.arange(rows + columns), np.arange(rows + columns)] = -1
    sums[there // columns, rows + columns + there] = 1
    sums[rows + there % columns, rows + columns + there] = 1
    unknown = np.flatnonzero(hidden)
    right = -sums[:, ~hidden] @ numbers[~hidden]
    for place in np.flatnonzero((numbers[unknown] > 0) & (numbers[unknown] < FEWEST)):
        goal = np.eye(len(unknown))[place]
        low, high = (linprog(sign * goal, A_eq=sums[:, unknown], b_eq=right) for sign in (1, -1))
        assert low.fun < 1 - 1e-6 or high.status == 3 or -high.fun >= FEWEST - 1e-6, numbers[unknown[place]]


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
    exposure = pa.Table.from_pylist(
        [row | {"n_patients": 10**6, "n_predictions": 10**6} for row in at_risk], schema=EXPOSURE
    )
    shown = shown_cells(table, exposure, np.ones(exposure.num_rows, dtype=bool), parents)
    cells = keyed(table)
    assert_rules_hold(cells, shown, lines_of(cells, PARENTS, "t"))
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
    assert_rules_hold(rows, shown, lines_of(rows, {}, "t"))
    for _, series in rows[shown & (rows["time_bin"] != NONE)].groupby(["class", "stratum"]):
        ended = -np.diff(series.sort_values("time_bin")["n_patients"])
        assert not ((ended > 0) & (ended < FEWEST)).any()


# -- the attack by linear programmes ------------------------------------------------------------------

#: Parts that tell much in little time; the whole is `full`.
TELLING = {
    "one class": ["exposure", "AGE", "SEX"],
    "beginnings": ["exposure", "drug"],
    "tiny": ["exposure", "AGE"],
}


def test_linear_programmes_pin_no_small_count(everything: dict[str, Published]) -> None:
    """All that is shown, as equations and bounds: nobody hidden must be somebody and at most ten."""
    tried = 0
    for name, wanted in TELLING.items():
        for part in everything[name].parts():
            if part.name.partition(": ")[2] in wanted:
                attack = Attack(part, part.shown)
                assert attack.solved() == [], part.name
                tried += len(attack.suspects)
    assert tried > 3000


@pytest.mark.full
def test_linear_programmes_pin_no_small_count_of_any_part(everything: dict[str, Published]) -> None:
    """The same of every code and group of every store."""
    for of in everything.values():
        for part in of.parts():
            assert Attack(part, part.shown).solved() == [], part.name


def test_no_sum_of_few_patients_follows(everything: dict[str, Published]) -> None:
    """Sums of contributions and of their squares add up like events: of no hidden cell of few patients do they follow."""
    for of in everything.values():
        assert Attack(of, of.shown).sums_that_follow() == [], of.name


def test_the_attacks_work(everything: dict[str, Published]) -> None:
    """Were small cells hidden alone, without complements, the same attacks would find them."""
    for name, of in everything.items():
        assert len(Attack(of, ~of.few).sums_that_follow()) > 5, name
    exposure = next(everything["one class"].parts())
    assert len(Attack(exposure, ~exposure.few).solved(most=8)) > 5


def test_how_often_a_class_is_taken_for_another_does_not_follow(everything: dict[str, Published]) -> None:
    """Two classes, two predictions, and how often they agree give all four counts: right of all goes with right of each."""
    for of in everything.values():
        shown = dict(zip(keys_of(of.cells), of.shown, strict=True))
        for (split, label, stratum, *rest), is_shown in shown.items():
            if stratum == "correct=yes" and label != "all" and not is_shown:
                assert not shown[split, "all", stratum, *rest], (of.name, split, rest)


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
            join exposure b using (run_id, target, split, class, stratum, time_axis)
            where a.time_bin is null and b.time_bin = 0 and a.n_patients - b.n_patients between 1 and {FEWEST - 1}"""
        )
        assert found.to_pylist() == [], name


def test_neighbouring_bins_differ_by_no_small_count_of_predictions(viewers: dict[str, Store]) -> None:
    """n_predictions of neighbouring bins gives away as much as n_patients does."""
    for name, viewer in viewers.items():
        found = viewer.sql(
            f"""select * from (
                select split, class, stratum, time_bin, lag(n_predictions) over (
                    partition by run_id, target, split, class, stratum, time_axis order by time_bin) - n_predictions as ended
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


def test_what_a_line_hides_belongs_to_enough_patients(small_run: SmallRun, everything: dict[str, Published]) -> None:
    """The hidden cells of a line with a shown margin hold eleven different patients, whose sum subtraction gives."""
    of = everything["small"]
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
            patients[told["split"], label, stratum, *feature, "before_prediction", time_bin].add(told["subject_id"])
    keys = keys_of(of.cells)
    few = defaultdict(int)
    for line in of.lines:
        hidden = [child for child in line.children if not of.shown[child]]
        if of.shown[line.margin] and hidden and keys[line.margin][3] != "exposure":
            assert all(len(patients[keys[child]]) == of.cells["n_patients"][child] for child in hidden)
            few[line.kind] += len(set().union(*(patients[keys[child]] for child in hidden))) < FEWEST
    assert sum(few.values()) == 0, dict(few)
