"""Made-up patients: the truth beside them follows from their events, whoever writes them and however many there are."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from replicas.synthetic_truth import true_contribution, true_logit
from source_inputs import (
    SYNTHETIC,
    contents,
    events_of,
)
from whenwhy.events.sources import import_source


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2,000 made-up patients, the first with 5,000 events."""
    folder = tmp_path_factory.mktemp("synthetic") / "made"
    import_source("synthetic", folder, **SYNTHETIC)
    return folder


def history(made: Path, patients: int) -> dict[int, list[tuple[datetime | None, str, float | None]]]:
    events = events_of(made)
    chosen = events[events.subject_id <= patients]
    found: dict[int, list[tuple[datetime | None, str, float | None]]] = {}
    for row in chosen.itertuples():
        when = None if pd.isna(row.time) else row.time.to_pydatetime()
        number = None if np.isnan(row.numeric_value) else float(row.numeric_value)
        found.setdefault(row.subject_id, []).append((when, row.code, number))
    return found


def test_the_truth_follows_from_the_events(made: Path) -> None:
    truth = json.loads((made / "truth.json").read_text())
    told = pq.read_table(made / "truth").to_pandas().set_index("subject_id")
    hit = dict.fromkeys((effect["name"] for effect in truth["effects"]), 0)
    for subject, events in history(made, 1000).items():
        row = told.loc[subject]
        prediction = row.prediction_time.to_pydatetime()
        assert true_logit(truth, events, prediction) == pytest.approx(row.logit, abs=1e-9)
        for effect in truth["effects"]:
            here = true_contribution(effect, events, prediction)
            assert here == pytest.approx(row[effect["name"]], abs=1e-9), (subject, effect)
            hit[effect["name"]] += here != 0
    assert min(hit.values()) >= 20, hit  # every effect was put to the test


def test_outcomes_are_drawn_from_the_truth(made: Path) -> None:
    truth = json.loads((made / "truth.json").read_text())
    told = pq.read_table(made / "truth").to_pandas()
    labels = pq.read_table(made / "labels" / truth["task"]).to_pandas()
    assert (labels.subject_id == told.subject_id).all()
    assert (labels.prediction_time == told.prediction_time).all()
    assert truth["prevalence"] == labels.boolean_value.mean()
    assert 0.10 < truth["prevalence"] < 0.20
    assert truth["bayes_auroc"] == pytest.approx(roc_auc_score(labels.boolean_value, told.logit), abs=5e-4)
    probability = 1 / (1 + np.exp(-told.logit))
    spread = np.sqrt((probability * (1 - probability)).sum())
    assert abs(labels.boolean_value.sum() - probability.sum()) < 4 * spread
    # Not only on the whole: the likely half of the patients has what it should have as well.
    likely = probability > probability.median()
    assert abs(labels.boolean_value[likely].sum() - probability[likely].sum()) < 4 * spread


def test_distractor_and_leak_deceive(made: Path) -> None:
    folder = made
    truth = json.loads((folder / "truth.json").read_text())
    labels = pq.read_table(folder / "labels" / truth["task"]).to_pandas().set_index("subject_id")
    events = events_of(folder).join(labels, on="subject_id")
    known = events[events.time <= events.prediction_time]
    [distractor], [leak] = truth["distractors"], truth["leaks"]

    def has(code: str) -> pd.Series:
        return pd.Series(labels.index.isin(known.subject_id[known.code == code]), index=labels.index)

    assert has(distractor["code"]).corr(has(distractor["follows"])) > 0.3
    assert (
        labels.boolean_value[has(distractor["code"])].mean()
        > 1.4 * labels.boolean_value[~has(distractor["code"])].mean()
    )
    assert distractor["code"] not in {effect["code"] for effect in truth["effects"]}
    shares = has(leak["code"]).groupby(labels.boolean_value).mean()
    assert shares[True] > 0.6
    assert shares[False] < 0.03
    ago = (known.prediction_time - known.time)[known.code == leak["code"]]
    assert ago.max() <= pd.Timedelta(days=3)
    for after in truth["after_the_prediction"]:  # an honest reader never sees these
        rows = events[events.code == after["code"]]
        assert len(rows) > 50
        assert (rows.time > rows.prediction_time).all()
        assert rows.boolean_value.all()


def test_records_look_like_records(made: Path) -> None:
    events = events_of(made)
    length = events.groupby("subject_id").size()
    assert length[1] == 5000  # the longest, as asked
    assert 80 < length[2:].mean() < 130
    assert length.quantile(0.99) > 5 * length.median()  # heavy tail
    codes = events.code.value_counts()
    diagnoses = codes[codes.index.str.startswith("DX//")]
    assert diagnoses.iloc[0] > 20 * diagnoses.iloc[100]
    described = pq.read_table(made / "metadata" / "codes.parquet").to_pandas().set_index("code")
    assert len(described) > 1000
    assert all(len(parents) for parents in described.parent_codes[diagnoses.index.drop("DX//CARDIAC_ARREST")])
    sodium = events[events.code == "LAB//SODIUM"]
    assert described.unit["LAB//SODIUM"] == "mmol/L"
    assert (sodium.numeric_value == sodium.numeric_value.round()).all()
    own = sodium[sodium.subject_id > 1].groupby("subject_id").numeric_value
    assert own.mean()[own.size() > 4].std() > 0.5 * sodium.numeric_value.std()  # patients have levels of their own
    sites = events[events.code.str.startswith("SITE//")]
    assert sites.time.isna().all()
    assert len(sites) == 2000
    splits = pq.read_table(made / "metadata" / "subject_splits.parquet").to_pandas().split
    assert splits.value_counts(normalize=True).round(1).to_dict() == {"train": 0.7, "held_out": 0.2, "tuning": 0.1}


def test_the_same_bytes_whatever_the_number_of_workers(made: Path, tmp_path: Path) -> None:
    import_source("synthetic", tmp_path / "two", **SYNTHETIC, workers=2)
    assert contents(tmp_path / "two") == contents(made)
    import_source("synthetic", tmp_path / "other", **SYNTHETIC | {"seed": 4})
    assert contents(tmp_path / "other")["data/00000.parquet"] != contents(made)["data/00000.parquet"]


def peak_bytes(out: Path, patients: int) -> int:
    program = (
        "import resource, sys; from pathlib import Path; from whenwhy.events.sources import import_source\n"
        "import_source('synthetic', Path(sys.argv[1]), patients=int(sys.argv[2]), patients_per_file=500, workers=1)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    asked = [sys.executable, "-c", program, str(out), str(patients)]
    return int(subprocess.run(asked, capture_output=True, text=True, check=True).stdout)


def test_ten_times_the_patients_need_no_more_memory(tmp_path: Path) -> None:
    assert peak_bytes(tmp_path / "many", 20_000) < 1.3 * peak_bytes(tmp_path / "few", 2000)
