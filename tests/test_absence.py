"""What absence adds, by cohort: the store's answer equals a dense brute force over patients, steps and feature values."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cohort import write_cohort
from conftest import INLINE, Command, SmallRun, one_sentence
from method_laws.test_laws import cohort, everything, model_of, population
from replicas import absence as replica
from replicas.cells import remade
from test_cells import CELL_KEY, EXPOSURE_KEY, assert_same, keyed, replica_of
from whenwhy.attribution import attribute
from whenwhy.attribution.attribute_shards import AttributeSettings, attribute_shards
from whenwhy.attribution.attribution_table import attribution_tables
from whenwhy.errors import UserError
from whenwhy.events.sequence_batch import Sequences
from whenwhy.events.sequences import TABLE, VOCABULARY, PrepareSettings, prepare
from whenwhy.forget import forget
from whenwhy.models.checkpoint import load_model
from whenwhy.models.training import TrainSettings, train
from whenwhy.schema import ATTRIBUTIONS, FIRST_LAYER, GRADIENTS, RECORDED_PLACES, SEQUENCES
from whenwhy.shards import StageDirectory
from whenwhy.statistics import Cells, aggregate_cells
from whenwhy.store import open_store, publish_store

METHODS = ("integrated_gradients", "deep_lift")
HOURS = 24
Row = dict[str, Any]


@dataclass(frozen=True)
class Told:
    """A cohort whose runs tell absence, and the store of them all."""

    sequences: Path
    model: Path
    runs: dict[str, Path]
    store: Path
    cells: Cells

    @property
    def rows(self) -> list[Row]:
        stage = StageDirectory.open(self.sequences)
        return [row for shard in stage.shards for row in stage.read(shard, TABLE).to_pylist()]

    @property
    def names(self) -> list[Row]:
        return StageDirectory.open(self.sequences).read(VOCABULARY, VOCABULARY).to_pylist()

    def run_id(self, method: str) -> str:
        return StageDirectory.open(self.runs[method]).run_id


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """Visits that last over the borders of time bins, repeats within them, numbers as weights, strata, empty bins."""
    root = tmp_path_factory.mktemp("absence")
    write_cohort(root / "meds", 48, seed=11)
    settings = PrepareSettings(
        "the outcome", strata=("sex",), bins=3, shard_size=16, steps="visit", visit_gap_hours=9,
        numbers=("lab",), rare_below=2,
    )  # fmt: skip
    prepare(root / "meds", root / "meds" / "labels" / "outcome", root / "sequences", settings, INLINE)
    learning = TrainSettings(hidden=6, epochs=3, batch=16, learning_rate=0.05, dropout=0.0, patience=9)
    train(root / "sequences", root / "model", learning, INLINE)
    runs = {}
    for method in METHODS:
        asked = AttributeSettings(method, "rates", tolerance=1e-6, absence=True)
        runs[method] = attribute_shards(root / "sequences", root / "model", root / method, asked, INLINE).path
    cells = aggregate_cells(list(runs.values()), root / "store", time_bin_hours=HOURS)
    publish_store(root / "store", cells, list(runs.values()))
    return Told(root / "sequences", root / "model", runs, root / "store", cells)


@pytest.fixture(scope="module", params=METHODS)
def dense(request: pytest.FixtureRequest, told: Told) -> tuple[str, dict[replica.Key, replica.Told]]:
    """A method, and its brute force over the whole cohort."""
    weights = load_model(StageDirectory.open(told.model, "train")).double().state_dict()
    explain = getattr(replica, request.param)
    bins = told.cells.axes[0].n_bins
    return request.param, replica.absence(told.rows, weights, len(told.names), explain, HOURS, bins)


# -- the answer ---------------------------------------------------------------------------------------


def test_the_query_answers_what_brute_force_finds(told: Told, dense: tuple[str, dict]) -> None:
    """Every split, class, stratum, stream, feature value and time bin: counts exact, means to 1e-5 of the largest."""
    method, slow = dense
    store, run = open_store(told.store), told.run_id(method)
    known = {key for key, of in slow.items() if any(of.absent) or any(of.recorded)}
    largest = max(abs(number) for key in known for number in slow[key].absent)
    cohorts = sorted({key[:3] for key in slow})
    assert {label for _, label, _ in cohorts} == {"all", "true", "false"}
    assert {stratum.partition("=")[0] for *_, stratum in cohorts} == {"all", "sex"}
    seen: set[replica.Key] = set()
    for split, label, stratum in cohorts:
        asked = {"split": split, "class": label, "stratum": stratum, "run": run, "min_patients": 1}
        for row in store.ask("absence", **asked).to_pylist():
            key = split, label, stratum, row["stream"], row["feature_value_id"], row["time_bin"]
            of = slow[key]
            seen.add(key)
            assert row["n_absent"] == len(of.absent), key
            assert row["n_patients_recorded"] == len(of.patients), key
            assert row["n_recorded"] == len(of.recorded), key
            for name, parts in (("mean_absent", of.absent), ("mean_recorded", of.recorded)):
                if parts:
                    assert row[name] == pytest.approx(np.mean(parts), abs=1e-5 * largest), (key, name)
                else:
                    assert row[name] is None, (key, name)
    # What is left out has no rate: absence of what no training patient records adds nothing.
    assert not any(any(slow[key].absent) for key in set(slow) - seen)
    store.close()


def test_the_cohort_has_what_could_go_wrong(told: Told, dense: tuple[str, dict]) -> None:
    """Steps that share no bin with an event of theirs, repeats, places without a value, values everywhere or nowhere."""
    rows = [row for row in told.rows if row["event_id"]]
    bin_of = lambda minutes: minutes // (60 * HOURS)  # noqa: E731
    straddling = [
        (row["subject_id"], step)
        for row in rows
        for step, minutes in zip(row["event_step"], row["event_minutes"], strict=True)
        if bin_of(minutes) != bin_of(row["step_minutes"][step])
    ]
    repeats = [
        row for row in rows if len(set(zip(row["event_step"], row["event_id"], strict=True))) < len(row["event_id"])
    ]
    assert len(straddling) > 20
    assert len(repeats) > 20
    assert any(row["event_weight"] and set(row["event_weight"]) != {1.0} for row in rows)
    assert any(not row["step_minutes"] for row in told.rows)
    slow = dense[1].values()
    assert any(of.recorded and not of.absent for of in slow)
    assert any(of.absent and not of.recorded for of in slow)
    exposure = open_store(told.store).sql("select n_places, n_patients from exposure where time_bin is not null")
    assert 0 in exposure["n_places"].to_pylist(), "a bin in which nobody who is under observation has a step"


def test_all_places_and_feature_values_sum_to_the_scores(told: Told, dense: tuple[str, dict]) -> None:
    """Presence and absence together are what the predictions of a cohort differ from their baseline by."""
    method = dense[0]
    store, run = open_store(told.store), told.run_id(method)
    for split in ("train", "held_out"):
        answer = store.ask("absence", split=split, run=run, min_patients=1).to_pandas()
        whole = answer[answer.time_bin.isna()]
        parts = (whole.mean_absent * whole.n_absent).sum() + (whole.mean_recorded * whole.n_recorded).sum()
        scores = store.sql(
            "select sum(score - baseline_score) as s, count(*) as n from predictions where run_id = $run and split = $split",
            {"run": run, "split": split},
        )
        # A feature value that no training patient records is in no answer, and adds what it adds when recorded.
        missing = store.sql(
            "select coalesce(sum(sum), 0) as s from recorded_places p where run_id = $run and split = $split "
            "and class = 'all' and stratum = 'all' and time_bin is null and not exists (select 1 from first_layer f "
            "where f.run_id = p.run_id and f.feature_value_id = p.feature_value_id and f.stream = p.stream)",
            {"run": run, "split": split},
        )["s"][0].as_py()
        assert parts + missing == pytest.approx(scores["s"][0].as_py(), abs=2e-5 * scores["n"][0].as_py())


def test_one_feature_and_enough_patients_are_asked_for(told: Told) -> None:
    store = open_store(told.store)
    every = store.ask("absence", split="train").to_pylist()
    assert min(row["n_patients"] for row in every) >= 11
    lab = store.ask("absence", split="train", feature="lab").to_pylist()
    assert lab == [row for row in every if row["code"] == "lab"]
    assert {row["stream"] for row in lab} == {"events"}
    assert {row["time_bin"] for row in every if row["code"] == "size"} == {None}
    assert store.ask("absence", split="train", run=min(map(told.run_id, METHODS))).to_pylist() == every
    assert store.ask("absence", split="train", min_patients=10**6).num_rows == 0


def test_a_likelier_outcome_is_protected_from_by_absence(tmp_path: Path) -> None:
    """A high lab makes this outcome likelier, a low one less likely: lacking the one protects, lacking the other not."""
    write_cohort(tmp_path / "meds", 240, seed=5)
    settings = PrepareSettings("the outcome", bins=3)
    prepare(tmp_path / "meds", tmp_path / "meds" / "labels" / "outcome", tmp_path / "seq", settings, INLINE)
    learning = TrainSettings(hidden=8, epochs=8, batch=32, learning_rate=0.01, pooling="mean")
    train(tmp_path / "seq", tmp_path / "model", learning, INLINE)
    asked = AttributeSettings(baseline="rates", absence=True)
    attribute_shards(tmp_path / "seq", tmp_path / "model", tmp_path / "attr", asked, INLINE)
    publish_store(tmp_path / "store", aggregate_cells([tmp_path / "attr"], tmp_path / "store"), [tmp_path / "attr"])
    answer = open_store(tmp_path / "store").ask("absence", feature="lab").to_pandas()
    by_bin = answer[answer.time_bin.isna()].set_index("bin")
    assert by_bin.mean_absent[2] < 0 < by_bin.mean_absent[0]
    assert by_bin.mean_recorded[2] > 0 > by_bin.mean_recorded[0]


# -- what is stored -----------------------------------------------------------------------------------


def test_a_run_keeps_gradients_slopes_and_the_first_layer(told: Told) -> None:
    """By the contract, each place once, and the slopes are the first layer's rows times the gradients."""
    run = StageDirectory.open(told.runs["deep_lift"])
    layer = run.read("first_layer", "first_layer")
    assert layer.schema.equals(FIRST_LAYER)
    weights = {(row["stream"], row["feature_value_id"]): np.array(row["weights"]) for row in layer.to_pylist()}
    assert {stream for stream, _ in weights} == {"events", "static"}
    sequences = StageDirectory.open(told.sequences)
    for shard in run.shards:
        rows, gradients = run.read(shard, "attributions"), run.read(shard, "gradients")
        assert rows.schema.equals(ATTRIBUTIONS)
        assert gradients.schema.equals(GRADIENTS)
        steps = sequences.read(shard, TABLE)["step_minutes"].to_pylist()
        assert gradients.num_rows == sum(len(minutes) + 1 for minutes in steps)
        at = {(row["prediction_id"], row["step"]): row for row in gradients.to_pylist()}
        assert len(at) == gradients.num_rows
        told_once: set[tuple] = set()
        for row in rows.to_pylist():
            place = at[row["prediction_id"], row["step"]]
            assert row["step_minutes"] == place["minutes"]
            key = row["prediction_id"], row["step"], row["feature_value_id"]
            assert (row["slope"] is None) == (key in told_once or row["feature_value_id"] == 0)
            told_once.add(key)
            own = weights.get(("static" if row["step"] is None else "events", row["feature_value_id"]))
            if row["slope"] is not None and own is not None:
                assert row["slope"] == pytest.approx(own @ place["gradient"], abs=1e-6)


def test_a_slope_is_told_once_a_place() -> None:
    """Of repeats in a step, and of a value that a record holds both undated and at its first step."""
    records = cohort(4, patients=60).table.to_pylist()
    timed = [row | {"event_minutes": [row["step_minutes"][step] for step in row["event_step"]]} for row in records]
    sequences = Sequences(pa.Table.from_pylist(timed, schema=SEQUENCES))
    batch, of = everything(sequences), population()
    found = attribute(model_of(4), batch, method="deep_lift", baseline="rates", population=of, absence=True)
    rows, _, gradients = attribution_tables(sequences, 0, "logit", [(batch, found)])
    assert gradients is not None
    places, both = set(), 0
    for at, row in enumerate(records):
        events = set(zip(row["event_step"], row["event_id"], strict=True))
        places |= {(at, step, value) for step, value in events} | {(at, None, value) for value in row["static_id"]}
        both += len({value for step, value in events if step == 0} & set(row["static_id"]))
    told = [row for row in rows.to_pylist() if row["slope"] is not None]
    assert both > 3
    assert len(told) == len(places) < rows.num_rows
    assert {(row["prediction_id"], row["step"], row["feature_value_id"]) for row in told} == places


def test_cells_and_exposure_equal_the_replica(told: Told) -> None:
    """sum_gradient and the sums of gradients, in every row, to the last bit of a double."""
    for path in told.runs.values():
        slow = replica_of(path, told.cells.axes)
        for table, names, expected in (("cells", CELL_KEY, slow.cells()), ("exposure", EXPOSURE_KEY, slow.exposure())):
            rows = [row for row in told.cells.table(table).to_pylist() if row["run_id"] == slow.run_id]
            found = keyed(rows, names)
            assert_same(found, expected)
            # Beyond 1e-12: these are sums of whole units, whatever their size.
            for name in {"sum_gradient", "n_places", "sum_gradient_vector", "sum_static_gradient_vector"} & set(
                rows[0]
            ):
                assert {key: row[name] for key, row in found.items()} == {
                    key: row[name] for key, row in expected.items()
                }


def test_the_sums_over_recorded_places_are_the_rows_own(told: Told) -> None:
    """Whatever the time bin, all time of a value in a stream is the sum of its rows."""
    store = open_store(told.store)
    assert told.cells.table("recorded_places").schema.equals(RECORDED_PLACES)
    of_rows = store.sql(
        """select r.run_id, r.feature_value_id, case when r.step is null then 'static' else 'events' end as stream,
            p.split, count(r.slope) as n_places, count(distinct subject_id) as n_patients,
            sum(r.attribution::double) as sum, sum(r.slope::double) as sum_gradient
        from rows r join predictions p using (run_id, prediction_id) where r.feature_value_id <> 0 group by all order by all"""
    )
    columns = ", ".join(of_rows.column_names)
    all_time = store.sql(
        f"select {columns} from recorded_places where time_bin is null and class = 'all' and stratum = 'all' order by all"
    )
    assert all_time.to_pylist() == of_rows.to_pylist()


# -- the same whatever the circumstances --------------------------------------------------------------


def test_a_run_that_goes_on_ends_with_the_same_bytes(told: Told, tmp_path: Path) -> None:
    path = tmp_path / "attr"
    shutil.copytree(told.runs["integrated_gradients"], path)
    before = StageDirectory.open(path).content_sha256()
    for name in ("first_layer", StageDirectory.open(path).shards[-1]):
        (path / "entries" / f"{name}.json").unlink()
    asked = AttributeSettings("integrated_gradients", "rates", tolerance=1e-6, absence=True)
    again = attribute_shards(told.sequences, told.model, path, asked, INLINE)
    assert again.content_sha256() == before


def test_neither_workers_nor_order_change_a_bit(told: Told, tmp_path: Path) -> None:
    """Rows, predictions and gradients shuffled, shards backwards, other numbers of workers and memory."""
    random = np.random.default_rng(3)

    def shuffled(table: pa.Table) -> pa.Table:
        return table.take(random.permutation(table.num_rows))

    runs = [
        remade(
            path, tmp_path / method, rows=shuffled, predictions=shuffled, gradients=shuffled,
            shards=lambda names: names[::-1],
        )
        for method, path in told.runs.items()
    ]  # fmt: skip
    again = aggregate_cells(runs, tmp_path / "store", time_bin_hours=HOURS, workers=3, memory_limit="300MB")
    assert again.content_sha256() == told.cells.content_sha256()


def test_batches_change_nothing_but_rounding(told: Told, tmp_path: Path) -> None:
    """A prediction's gradients are its own, whoever shares its batch."""
    asked = AttributeSettings("deep_lift", "rates", tolerance=1e-6, absence=True, batch_patients=3)
    other = attribute_shards(told.sequences, told.model, tmp_path / "attr", asked, INLINE)
    run = StageDirectory.open(told.runs["deep_lift"])
    for shard in run.shards:
        one, two = (stage.read(shard, "gradients") for stage in (run, other))
        assert one.drop_columns("gradient").equals(two.drop_columns("gradient"))
        first, second = (table["gradient"].combine_chunks().flatten().to_numpy() for table in (one, two))
        np.testing.assert_allclose(first, second, atol=1e-5)


# -- privacy, and what cannot be asked ----------------------------------------------------------------


def test_a_viewer_sees_no_gradient_and_is_told_so(told: Told) -> None:
    viewer = open_store(told.store, "viewer")
    assert viewer.sql("select count(sum_gradient) as n from cells")["n"].to_pylist() == [0]
    counts = viewer.sql(
        "select count(n_places), count(sum_gradient_vector), count(sum_static_gradient_vector) from exposure"
    )
    assert list(counts.to_pylist()[0].values()) == [0, 0, 0]
    tables = viewer.sql("show tables")["name"].to_pylist()
    assert not {"first_layer", "recorded_places"} & set(tables)
    with pytest.raises(UserError, match=r"absence needs first_layer.*rows\.duckdb alone has it, for analysts\.$"):
        viewer.ask("absence")
    assert viewer.ask("runs").num_rows == len(METHODS), "the other queries are there"


def test_a_store_without_such_a_run_says_how_to_make_one(small_run: SmallRun) -> None:
    store = open_store(small_run.store)
    with pytest.raises(UserError, match=r"needs first_layer.*whenwhy attribute --baseline rates --absence"):
        store.ask("absence")
    assert store.sql("select count(slope) + count(step_minutes) as n from rows")["n"].to_pylist() == [0]


def test_of_several_runs_the_one_that_tells_absence_is_meant(told: Told, tmp_path: Path) -> None:
    asked = AttributeSettings("deep_lift", "rates")
    plain = attribute_shards(told.sequences, told.model, tmp_path / "attr", asked, INLINE)
    both = [plain.path, told.runs["deep_lift"]]
    publish_store(tmp_path / "store", aggregate_cells(both, tmp_path / "store", time_bin_hours=HOURS), both)
    store = open_store(tmp_path / "store")
    assert store.ask("absence").equals(open_store(told.store).ask("absence", run=told.run_id("deep_lift")))
    assert store.ask("absence", run=plain.run_id).num_rows == 0


def test_a_patient_who_withdrew_leaves_the_gradients_too(told: Told, tmp_path: Path) -> None:
    attr = tmp_path / "attr"
    shutil.copytree(told.runs["deep_lift"], attr)
    subject = next(
        row["subject_id"] for row in told.rows if row["split"] == "held_out" and len(row["step_minutes"]) > 2
    )
    steps = {
        kept: sum(len(row["step_minutes"]) for row in told.rows if kept or row["subject_id"] == subject)
        for kept in (True, False)
    }
    forget({subject}, [attr])
    run = StageDirectory.open(attr)
    ids = {i for shard in run.shards for i in run.read(shard, "predictions")["prediction_id"].to_pylist()}
    assert {i for shard in run.shards for i in run.read(shard, "gradients")["prediction_id"].to_pylist()} == ids
    exposure = aggregate_cells([attr], tmp_path / "store", time_bin_hours=HOURS).table("exposure").to_pylist()
    everybody = [row for row in exposure if row["class"] == row["stratum"] == "all" and row["time_bin"] is None]
    assert sum(row["n_places"] for row in everybody) == steps[True] - steps[False]


def test_the_command_keeps_it_and_the_query_answers(told: Told, tmp_path: Path, whenwhy: Command) -> None:
    run = ("attribute", told.sequences, "--model", told.model, "--inline")
    asked = ("--baseline", "rates", "--absence", "--tolerance", "1e-6")
    status, _, said = whenwhy(*run, "--out", tmp_path / "attr", *asked)
    assert status == 0, said
    made, same = (StageDirectory.open(path) for path in (tmp_path / "attr", told.runs["integrated_gradients"]))
    assert made.content_sha256() == same.content_sha256()
    status, printed, said = whenwhy("query", told.store, "absence", "feature=lab", "min_patients=1", "--format", "csv")
    assert status == 0, said
    assert printed.startswith('"code","description","unit","feature_value_id"')
    assert len(printed.splitlines()) > 4


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (("--baseline", "rates", "--method", "occlusion"), "'occlusion' does not tell what the absence"),
        (("--baseline", "rates", "--method", "timing"), "one gradient a step: use one of deep_lift"),
        (("--baseline", "rates", "--method", "amortised_mask"), "'amortised_mask' does not tell"),
        ((), "baseline 'empty' does not say how much of each feature value a step lacks"),
        (("--baseline", "carried_forward"), "use the baseline 'rates'"),
    ],
)
def test_absence_asked_in_vain_is_one_sentence(
    told: Told, tmp_path: Path, whenwhy: Command, asked: tuple[str, ...], sentence: str
) -> None:
    out = tmp_path / "attr"
    told_so = whenwhy("attribute", told.sequences, "--model", told.model, "--out", out, "--absence", "--inline", *asked)
    assert sentence in one_sentence(told_so)
    assert not out.exists()
