"""What pages draw: each query's whole answer equals one worked out by brute force from predictions and attribution rows."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import scipy.stats

from conftest import SmallRun
from replicas.cells import remade
from test_queries import (
    ESTIMATE,
    PER_PREDICTION,
    WIDTH_HOURS,
    Truth,
    assert_answers,
    bounds,
    enough,
    example_of,
    sides_of,
)
from whenwhy.errors import UserError
from whenwhy.schema import TRAIN
from whenwhy.statistics import aggregate_cells
from whenwhy.store import Store, open_store, publish_store
from whenwhy.store.queries import named_queries

# -- the answers, by brute force ----------------------------------------------------------------------


def feature_comparison(truth: Truth, asked: dict[str, Any]) -> list[dict[str, Any]]:
    """Means per event of both cohorts where both have enough patients; Welch's interval, or the widest there may be."""
    level, cohorts = asked.get("level", "code"), sides_of(asked)
    people = [set(truth.of_cohort(truth.predictions, cohort)["subject_id"]) for cohort in cohorts]
    shared = bool(people[0] & people[1])
    of_feature = truth.of_feature(asked["feature"], level)
    words = sorted(of_feature["feature_value_id"].unique()) if level == "value" else [None]
    found = []
    for number in words:
        word = dict.fromkeys(("bin", "low", "high", "unit"))
        if level != "group":
            word |= {name: truth.word(asked["feature"], number)[name] for name in word}
        parts = of_feature if number is None else of_feature[of_feature["feature_value_id"] == number]
        for time_bin in range(truth.n_bins) if asked.get("by_time", True) else [None]:
            here = parts if time_bin is None else parts[parts["bin"] == time_bin]
            sides = [truth.of_cohort(here, cohort) for cohort in cohorts]
            if not all(len(side) and enough(asked, side["subject_id"].nunique()) for side in sides):
                continue
            a, b = (moments(side) for side in sides)
            difference, effective = a["mean"] - b["mean"], min(a["effective"], b["effective"])
            low = high = math.nan
            if effective >= 30:
                variance = a["variance"] + b["variance"]
                degrees = variance**2 / (a["variance"] ** 2 / a["degrees"] + b["variance"] ** 2 / b["degrees"])
                if shared:
                    variance = (a["variance"] ** 0.5 + b["variance"] ** 0.5) ** 2
                    degrees = min(a["degrees"], b["degrees"])
                skewness = (a["third"] - b["third"]) / variance**1.5
                low, high = bounds(difference, variance, skewness, scipy.stats.t.ppf(0.975, degrees))
            place = {"time_bin": None, "low_hours": None, "high_hours": None}
            found.append(
                {"feature_value_id": number}
                | word
                | (place if time_bin is None else truth.bounds(time_bin))
                | {f"n_patients_{name}": side["subject_id"].nunique() for name, side in zip("ab", sides, strict=True)}
                | {f"n_events_{name}": len(side) for name, side in zip("ab", sides, strict=True)}
                | {"mean_a": a["mean"], "mean_b": b["mean"]}
                | {"difference": difference, "difference_low": low, "difference_high": high}
                | {"interval_of": "at least" if shared else "separate patients"}
                | {"is_different": None if math.isnan(low) else low > 0 or high < 0}
            )
    return sorted(found, key=lambda row: (-1 if row["bin"] is None else row["bin"], row["time_bin"] or 0))


def moments(rows: pd.DataFrame) -> dict[str, float]:
    """A mean per event: its variance, degrees of freedom, effective patients, and third moment."""
    by_patient = rows.groupby("subject_id")["attribution"]
    s, n = by_patient.sum(), by_patient.size()
    mean = s.sum() / n.sum()
    u = s - mean * n
    variance = (u**2 * (1 + 2 * n / n.sum())).sum() / n.sum() ** 2
    skewness = (u**3).sum() / (u**2).sum() ** 1.5 if (u**2).sum() else 0.0
    degrees = n.sum() * (n**2).sum() / (n**3).sum() - 1
    told = {"mean": mean, "variance": variance, "degrees": degrees, "third": skewness * variance**1.5}
    return told | {"effective": n.sum() ** 2 / (n**2).sum()}


def feature_cells(truth: Truth, asked: dict[str, Any]) -> list[dict[str, Any]]:
    """The feature as a whole and each of its values, for all time and in each bin, where enough patients have it."""
    found = []
    of_feature = truth.of_cohort(truth.of_feature(asked["feature"], "code"), asked)
    for number in [None, *sorted(of_feature["feature_value_id"].unique())]:
        word: dict[str, Any] = dict.fromkeys(("bin", "low", "high"))
        told = truth.word(asked["feature"], number)
        word = (
            {"level": "code" if number is None else "value", "feature_value_id": number} | word | {"unit": told["unit"]}
        )
        if number is not None:
            word |= {name: told[name] for name in ("bin", "low", "high")}
        parts = of_feature if number is None else of_feature[of_feature["feature_value_id"] == number]
        for time_bin in [None, *range(truth.n_bins)]:
            here = parts if time_bin is None else parts[parts["bin"] == time_bin]
            if not len(here) or not enough(asked, here["subject_id"].nunique()):
                continue
            place = {"time_bin": None, "low_hours": None, "high_hours": None}
            cell = truth.estimate(here, asked, time_bin)
            columns = ("n_at_risk", "n_patients_at_risk", "n_patients", "n_events", *ESTIMATE, *PER_PREDICTION)
            found.append(
                word
                | (place if time_bin is None else truth.bounds(time_bin))
                | {name: cell[name] for name in (*columns, "mean_abs_per_prediction")}
            )
    none = -1
    return sorted(
        found,
        key=lambda row: (
            row["level"],
            none if row["time_bin"] is None else row["time_bin"],
            none if row["bin"] is None else row["bin"],
        ),
    )


def sparklines(truth: Truth, asked: dict[str, Any]) -> list[dict[str, Any]]:
    """The features of most |contribution| per prediction, and their sum over those at risk in each bin."""
    every, ranked = len(truth.at_risk(asked, None)), []
    for name, rows in truth.features(asked, "code"):
        if enough(asked, rows["subject_id"].nunique()):
            ranked.append((-rows["attribution"].abs().sum() / every, name["code"], rows))
    found = []
    ranked.sort(key=lambda one: one[:2])
    for rank, (_, code, rows) in enumerate(ranked[: int(asked.get("top", 20))], 1):
        for time_bin in range(truth.n_bins):
            here, at_risk = rows[rows["bin"] == time_bin], len(truth.at_risk(asked, time_bin))
            if len(here) and enough(asked, here["subject_id"].nunique()):
                told = {"n_patients": here["subject_id"].nunique(), "n_at_risk": at_risk}
                mean = {"mean_per_prediction": here["attribution"].sum() / at_risk}
                found.append({"rank": rank, "code": code} | truth.bounds(time_bin) | told | mean)
    return found


def calibration(truth: Truth, asked: dict[str, Any]) -> list[dict[str, Any]]:
    """The n-th share of predictions in the n-th bin, equals together; Wilson's interval of effective patients."""
    people = truth.of_cohort(truth.predictions, asked).copy()
    n_bins, count = int(asked.get("n_bins", 10)), len(people)
    before = [sum(other < one for other in people["probability"]) for one in people["probability"]]
    people["in"] = [n * n_bins // count for n in before]
    found = []
    for place, (_, part) in enumerate(people.groupby("in"), 1):
        sizes = np.array(list(Counter(part["subject_id"]).values()))
        if enough(asked, len(sizes)):
            effective = sizes.sum() ** 2 / (sizes**2).sum()
            hits = (part["label"] == "true").sum() / len(part)
            wilson = scipy.stats.norm.ppf(0.975)
            # Where a share is as far from the observed one as 1.96 of its own errors.
            roots = np.roots(
                [1 + wilson**2 / effective, -2 * hits - wilson**2 / effective, hits**2]
            ).real  # (hits - p)^2 = z^2 p (1 - p) / n
            told = {"bin": place, "label": "true", "low": part["probability"].min(), "high": part["probability"].max()}
            told |= {"n_predictions": len(part), "n_patients": len(sizes), "n_effective": float(effective)}
            told |= {"mean_probability": part["probability"].mean(), "observed_share": float(hits)}
            found.append(told | {"observed_share_low": float(min(roots)), "observed_share_high": float(max(roots))})
    return found


def score_distribution(truth: Truth, asked: dict[str, Any]) -> list[dict[str, Any]]:
    """One prediction after the other into its bin."""
    people = truth.of_cohort(truth.predictions, asked)
    marked = truth.of_cohort(people, asked | {"cohort": asked["marked"]}) if "marked" in asked else people[:0]
    n_bins, lowest, highest = int(asked.get("n_bins", 40)), people["score"].min(), people["score"].max()
    edges = [lowest + at * ((highest - lowest) / n_bins) for at in range(n_bins)] + [highest]
    found = []
    for label in sorted(people["label"].unique()):
        for at, (low, high) in enumerate(itertools.pairwise(edges)):
            last = at == n_bins - 1
            here = people[(people["score"] >= low) & ((people["score"] < high) | last) & (people["label"] == label)]
            counts = {"n_predictions": len(here), "n_patients": here["subject_id"].nunique()}
            both = here[here["prediction_id"].isin(marked["prediction_id"])]
            told = both["subject_id"].nunique()
            is_told = told and enough(asked, told)
            counts |= {
                "n_marked_predictions": len(both) if is_told else None,
                "n_marked_patients": told if is_told else None,
            }
            if counts["n_patients"] and enough(asked, counts["n_patients"]):
                found.append({"label": label, "bin": at, "low": low, "high": high} | counts)
    return found


def predictions_over_time(truth: Truth, asked: dict[str, Any]) -> list[dict[str, Any]]:
    people, found = truth.of_cohort(truth.predictions, asked), []
    month = asked.get("unit") == "month"
    begins = people["prediction_time"].map(lambda time: datetime(time.year, time.month if month else 1, 1))
    for time in sorted(begins.unique()):
        then = people[begins == time]
        for label in sorted(then["label"].unique()):
            here = then[then["label"] == label]
            counts = {"n_predictions": len(here), "n_patients": here["subject_id"].nunique()}
            if enough(asked, counts["n_patients"]):
                shares = {"mean_probability": here["probability"].mean(), "observed_share": len(here) / len(then)}
                found.append({"time": time, "label": label} | counts | shares)
    return found


def confusion(truth: Truth, asked: dict[str, Any]) -> list[dict[str, Any]]:
    people, found = truth.of_cohort(truth.predictions, asked), []
    for (label, predicted), here in people.groupby(["label", "predicted"]):
        counts = {"n_predictions": len(here), "n_patients": here["subject_id"].nunique()}
        if enough(asked, counts["n_patients"]):
            found.append({"label": label, "predicted": predicted} | counts)
    return found


def patients(truth: Truth, asked: dict[str, Any]) -> list[dict[str, Any]]:
    people = truth.of_cohort(truth.predictions, asked)
    order: dict[str, Callable[[dict[str, Any]], Any]] = {
        "score": lambda row: -row["score"],
        "lowest score": lambda row: row["score"],
        "time": lambda row: -row["prediction_time"].timestamp(),
        "n_values": lambda row: -row["n_values"],
        "subject_id": lambda row: row["subject_id"],
    }
    place = order[asked.get("order_by", "score")]
    rows = sorted(
        people.to_dict("records"),
        key=lambda row: (place(row), row["subject_id"], row["prediction_time"], row["prediction_id"]),
    )
    skip, names = int(asked.get("skip", 0)), ("subject_id", "prediction_time", "label", "predicted", "score")
    found = []
    for row in rows[skip : skip + int(asked.get("top", 20))]:
        sums = truth.rows[truth.rows["prediction_id"] == row["prediction_id"]].groupby("code")["attribution"].sum()
        most = {"code": None, "contribution": None}
        if len(sums):
            code = min(sums.index, key=lambda code: (-abs(sums[code]), code))
            most = {"code": code, "contribution": sums[code]}
        found.append({name: row[name] for name in (*names, "probability", "n_values")} | most)
    return found


def contribution_profiles(truth: Truth, asked: dict[str, Any]) -> list[dict[str, Any]]:
    people = truth.of_cohort(truth.predictions, asked)
    with duckdb.connect() as db:
        hashes = {one: db.execute("select hash(?::bigint)", [one]).fetchall()[0][0] for one in people["prediction_id"]}
    kept = sorted(hashes, key=lambda one: hashes[one])[: int(asked.get("sample", 3000))]
    names, found = ("prediction_id", "subject_id", "prediction_time", "label", "score"), []
    for row in people[people["prediction_id"].isin(kept)].sort_values("prediction_id").to_dict("records"):
        sums = truth.rows[truth.rows["prediction_id"] == row["prediction_id"]].groupby("code")["attribution"].sum()
        of_codes = [{"code": code, "contribution": sums[code]} for code in sorted(sums.index)]
        nothing = [{"code": None, "contribution": None}]
        found += [{name: row[name] for name in names} | told for told in of_codes or nothing]
    return found


OWN = {"cohort": "n_steps >= 2 or label = 'false'", "split": TRAIN}
WORKED: dict[str, tuple[Callable[[Truth, dict[str, Any]], list[dict[str, Any]]], list[dict[str, Any]]]] = {
    "feature_comparison": (
        feature_comparison,
        [
            {"feature": "lab", "class_a": "true", "class_b": "false", "split": TRAIN},
            {"feature": "lab", "level": "value", "stratum_a": "sex=F", "stratum_b": "sex=M", "split": TRAIN},
            {"feature": "mixed", "level": "value", "by_time": False, "stratum_a": "sex=M", "min_patients": 3},
            {"feature": "MEASURED", "level": "group", "class_b": "true", "axis": "before_prediction", "split": TRAIN},
            {"feature": "lab", "stratum_a": "sex=F", "stratum_b": "sex=M", "split": TRAIN, "by_time": False},
            {"feature": "count", "stratum_a": "sex=F", "stratum_b": "sex=M", "split": TRAIN, "by_time": False},
            {"feature": "lab", "cohort_a": "subject_id % 3 <> 1", "split": TRAIN, "level": "value"},
            {"feature": "drug", "cohort_b": "subject_id % 3 <> 1", "split": TRAIN, "by_time": False},
            {"feature": "count", "cohort_a": "n_values > 20", "split": TRAIN, "by_time": False},
            {"feature": "lab", "cohort_a": "subject_id % 3 <> 1", "cohort_b": "n_steps >= 2 or label = 'false'"}
            | {"class_a": "true", "split": TRAIN, "min_patients": 1},
        ],
    ),
    "feature_cells": (
        feature_cells,
        [
            {"feature": "lab", "axis": "before_prediction"},
            {"feature": "mixed", "split": TRAIN, "class": "true"},
            {"feature": "AGE", "stratum": "sex=F", "min_patients": 1},
            {"feature": "lab"} | OWN,
            {"feature": "count", "cohort": "subject_id % 3 <> 1", "split": TRAIN, "min_patients": 1},
        ],
    ),
    "sparklines": (
        sparklines,
        [
            {},
            {"split": TRAIN, "class": "true", "stratum": "sex=F", "top": 6, "min_patients": 2},
            OWN | {"top": 8},
        ],
    ),
    "calibration": (
        calibration,
        [
            {"n_bins": 3},
            {"split": TRAIN, "label": "true"},
            {"split": TRAIN, "class": "false", "stratum": "sex=F", "n_bins": 4, "min_patients": 18},
            OWN | {"n_bins": 500, "min_patients": 1},
        ],
    ),
    "score_distribution": (
        score_distribution,
        [
            {"n_bins": 3},
            {"split": TRAIN, "min_patients": 2},
            {"split": TRAIN, "class": "true", "stratum": "correct=no", "n_bins": 1},
            OWN | {"n_bins": 7, "min_patients": 1},
            {"split": TRAIN, "n_bins": 4, "marked": "subject_id % 3 <> 1"},
        ],
    ),
    "predictions_over_time": (
        predictions_over_time,
        [{}, {"unit": "month", "split": TRAIN, "min_patients": 1}, OWN | {"stratum": "sex=M", "min_patients": 2}],
    ),
    "confusion": (
        confusion,
        [{}, {"split": TRAIN, "min_patients": 40}, {"stratum": "sex=F", "split": TRAIN}, OWN | {"min_patients": 1}],
    ),
    "patients": (
        patients,
        [
            {},
            {"split": TRAIN, "class": "true", "stratum": "sex=F", "order_by": "lowest score", "top": 7, "skip": 3},
            OWN | {"order_by": "time", "top": 40},
            {"split": "tuning", "order_by": "n_values", "top": 1000},
            {"order_by": "subject_id", "skip": 5},
        ],
    ),
    "contribution_profiles": (
        contribution_profiles,
        [{}, {"split": TRAIN, "class": "false", "stratum": "sex=M", "sample": 12}, OWN | {"sample": 20}],
    ),
}
CASES = [
    pytest.param(name, asked, id=f"{name}-{'-'.join(map(str, asked.values())) or 'defaults'}")
    for name, (_, several) in WORKED.items()
    for asked in several
]


@pytest.fixture(scope="module")
def store(small_run: SmallRun) -> Store:
    return open_store(small_run.store)


@pytest.fixture(scope="module")
def viewer(small_run: SmallRun) -> Store:
    return open_store(small_run.store, "viewer")


@pytest.fixture(scope="module")
def truth(small_run: SmallRun, store: Store) -> Truth:
    bins = store.sql("select max(time_bin) + 1 as n from exposure")["n"][0].as_py()
    return Truth(small_run.attributions, bins)


@pytest.mark.parametrize(("query", "asked"), CASES)
def test_a_query_answers_what_brute_force_finds(query: str, asked: dict[str, Any], store: Store, truth: Truth) -> None:
    expected = WORKED[query][0](truth, asked)
    assert expected
    assert_answers(store.ask(query, **asked), expected)


@pytest.mark.parametrize("name", sorted(WORKED))
def test_the_worked_examples_use_every_argument_and_the_comments_example_runs(name: str, store: Store) -> None:
    asked = set().union(*WORKED[name][1]) | {"run"}
    assert asked >= set(named_queries()[name].parameters)
    arguments = dict(word.split("=", 1) for word in example_of(name))
    if "feature" in arguments:
        arguments["feature"] = "lab"
    assert store.ask(name, **arguments).num_rows > 0


def test_the_worked_examples_cover_what_can_go_wrong(store: Store) -> None:
    """Intervals that exclude 0, that hold it, and that are not there; of separate patients and at least."""
    told = Counter(
        (row["interval_of"], row["is_different"])
        for asked in WORKED["feature_comparison"][1]
        for row in store.ask("feature_comparison", **asked).to_pylist()
    )
    assert set(told) == {(of, is_) for of in ("separate patients", "at least") for is_ in (True, False, None)}, told


@pytest.fixture(scope="module")
def several_runs(small_run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, dict[str, Truth]]:
    """Runs of one store: the small one, and such whose probabilities are of a class of three, or of whatever is predicted."""
    folder = tmp_path_factory.mktemp("several")

    def renamed(table: pa.Table, name: str, classes: list[str]) -> pa.Table:
        names = [classes[subject // len(classes) % len(classes)] for subject in table["subject_id"].to_pylist()]
        return table.set_column(table.column_names.index(name), name, pa.array(names))

    def of_three(table: pa.Table) -> pa.Table:
        return renamed(renamed(table, "label", ["a", "b", "c"]), "predicted", ["a", "c"])

    def never_likely(table: pa.Table) -> pa.Table:
        at = table.column_names.index("probability")
        return renamed(
            table.set_column(at, "probability", pc.divide(table["probability"], 2.1)), "predicted", ["false"]
        )

    paths = {"small": small_run.attributions} | {
        name: remade(
            small_run.attributions, folder / name, rows=lambda table: table.slice(0, 200), predictions=predictions,
            settings={"target": target},
        )
        for name, predictions, target in (
            ("named", of_three, "log_odds:b:c@-1"), ("whatever", of_three, "unit:3@-1"), ("rare", never_likely, "logit@1"),
        )
    }  # fmt: skip
    cells = aggregate_cells(list(paths.values()), folder / "store", time_bin_hours=WIDTH_HOURS)
    publish_store(folder / "store", cells, list(paths.values()))
    n_bins = cells.axes[0].n_bins
    return open_store(folder / "store"), {name: Truth(path, n_bins) for name, path in paths.items()}


@pytest.mark.parametrize("query", sorted(WORKED))
def test_a_run_of_several_is_answered_alone(query: str, several_runs: tuple[Store, dict[str, Truth]]) -> None:
    store, truths = several_runs
    run = truths["small"]
    for asked in WORKED[query][1][:2]:
        assert_answers(store.ask(query, run=run.run_id, **asked), WORKED[query][0](run, asked))


def test_probabilities_are_of_the_class_that_the_target_names(several_runs: tuple[Store, dict[str, Truth]]) -> None:
    """Or of the later of two classes, though it is never predicted; of whatever is predicted, nothing is told."""
    store, truths = several_runs
    for name, positive in (("small", "true"), ("named", "b"), ("rare", "true")):
        truth = truths[name]
        people = truth.of_cohort(truth.predictions, {"split": TRAIN})
        found = store.ask("calibration", run=truth.run_id, split=TRAIN, n_bins=1).to_pylist()
        assert [(row["label"], row["n_predictions"]) for row in found] == [(positive, len(people))]
        assert found[0]["observed_share"] == pytest.approx((people["label"] == positive).mean())
        named = store.ask("calibration", run=truth.run_id, split=TRAIN, n_bins=1, label=positive).to_pylist()
        assert named == [pytest.approx(found[0])]
        other = "a" if name == "named" else "false"
        with pytest.raises(UserError, match=f"tell the probability of {positive}, not of {other}"):
            store.ask("calibration", run=truth.run_id, label=other)
    with pytest.raises(
        UserError, match=r"of whatever class is predicted, not of one: explain a target such as logit:CLASS"
    ):
        store.ask("calibration", run=truths["whatever"].run_id)


@pytest.mark.parametrize("asked", [{}, {"stratum": "sex=F"}, {"cohort": "n_values > 20", "min_patients": 1}])
def test_every_pair_of_label_and_predicted_class_is_counted(
    asked: dict[str, Any], several_runs: tuple[Store, dict[str, Truth]]
) -> None:
    """Of three labels, of which two are predicted."""
    store, truths = several_runs
    truth, asked = truths["named"], asked | {"split": TRAIN}
    expected = confusion(truth, asked)
    assert [(row["label"], row["predicted"]) for row in expected] == list(itertools.product("abc", "ac"))
    assert_answers(store.ask("confusion", run=truth.run_id, **asked), expected)


def test_wilsons_interval_of_effective_patients_holds() -> None:
    """In 95 % of cohorts, of few or many patients of several predictions each, whether their labels recur or not."""
    random = np.random.default_rng(4)
    rows, true = [], {}
    for patients, rate, recurs in itertools.product((15, 60), (0.02, 0.1, 0.5), (False, True)):
        for _ in range(100):
            sizes = random.geometric(0.3, patients)
            probability = rate + len(true) * 1e-7  # by which the bin is known: equals lie in one
            true[len(true)] = (patients, rate, recurs)
            hits = [random.random(1 if recurs else size) < rate for size in sizes]
            labels = np.concatenate([np.resize(hit, size) for hit, size in zip(hits, sizes, strict=True)])
            who = np.repeat(np.arange(patients), sizes)
            rows.append(pd.DataFrame({"subject_id": who, "probability": probability, "is_true": labels}))
    predictions = pd.concat(rows, ignore_index=True)
    with duckdb.connect() as db:
        db.register("given", pa.Table.from_pandas(predictions))
        db.execute("create table runs as select 'one' as run_id, 'logit:true' as target")
        db.execute(
            """create table predictions as select 'one' as run_id, subject_id, probability, 'true' as predicted,
            case when is_true then 'true' else 'false' end as label from given"""
        )
        db.execute("create macro predictions_for(run, split, class, stratum, cohort) as table from predictions")
        db.execute(named_queries()["calibration"].sql)
        found = db.sql(f"from calibration(n_bins := {len(predictions)})").to_arrow_table().to_pylist()
    assert len(found) == len(true)
    held = Counter()
    for row in found:
        of = min((0.02, 0.1, 0.5), key=lambda rate: abs(rate - row["low"]))
        held[of] += row["observed_share_low"] <= row["low"] <= row["observed_share_high"]
    assert all(count >= 0.93 * 400 for count in held.values()), held


# -- viewers ------------------------------------------------------------------------------------------


def keyed(rows: list[dict[str, Any]]) -> dict[tuple[Any, ...], dict[str, Any]]:
    names = ("code", "feature_value_id", "time_bin", "label", "predicted")
    return {tuple(row.get(name) for name in names): row for row in rows}


@pytest.mark.parametrize(
    ("query", "asked"),
    [
        ("feature_comparison", {"feature": "lab", "class_a": "true", "class_b": "false"}),
        ("feature_comparison", {"feature": "lab", "level": "value", "stratum_a": "sex=F", "stratum_b": "sex=M"}),
        ("sparklines", {"class": "false"}),
        ("confusion", {}),
    ],
)
def test_a_viewer_has_the_cells_that_may_be_shown(
    query: str, asked: dict[str, Any], store: Store, viewer: Store
) -> None:
    """The same numbers, perhaps of fewer cells, none of fewer than 11 patients, whatever is asked for."""
    asked = asked | {"split": TRAIN, "min_patients": 1}
    every, shown = (keyed(one.ask(query, **asked).to_pylist()) for one in (store, viewer))
    assert 0 < len(shown) <= len(every)
    for key, row in shown.items():
        assert {k: v for k, v in row.items() if k not in ("rank", "low", "high")} == pytest.approx(
            {k: v for k, v in every[key].items() if k not in ("rank", "low", "high")}, nan_ok=True
        )
        assert all(value >= 11 for name, value in row.items() if name.startswith("n_patients"))


def test_a_viewer_is_refused_what_only_rows_tell(viewer: Store) -> None:
    for query, asked in (
        ("sparklines", {"cohort": "true"}),
        ("feature_comparison", {"cohort_a": "true", "feature": "lab"}),
    ):
        with pytest.raises(UserError, match="A cohort of one's own needs the rows"):
            viewer.ask(query, **asked)
    for sql in ("sparklines(cohort := 'true')", "feature_comparison('lab', cohort_a := 'true')"):
        with pytest.raises(UserError, match=r"needs rows\.duckdb, for analysts"):
            viewer.sql(f"from {sql}")
    with pytest.raises(UserError, match=r"beside what is predicted needs rows\.duckdb, for analysts"):
        viewer.ask("confusion", stratum="sex=F")
    for query in ("calibration", "score_distribution", "predictions_over_time", "patients", "contribution_profiles"):
        with pytest.raises(UserError, match=r"for analysts\."):
            viewer.ask(query)


# -- what may go wrong in asking ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "asked", "says"),
    [
        ("patients", {"order_by": "weight"}, "no order_by 'weight'"),
        ("patients", {"skip": -1}, "skip is '-1': give a whole number, 0 or more"),
        ("predictions_over_time", {"unit": "day"}, "no unit 'day'"),
        ("calibration", {"n_bins": 0}, "n_bins is '0': give a whole number of at least 1"),
        ("calibration", {"label": "maybe"}, "no label 'maybe'"),
        ("contribution_profiles", {"sample": "all"}, "sample is 'all': give a whole number of at least 1"),
        ("feature_comparison", {"feature": "lab", "class_b": "maybe"}, "no class_b 'maybe'"),
        ("feature_comparison", {"feature": "lab", "cohort_b": "height > 3"}, "cohort_b is no predicate"),
        ("feature_comparison", {"feature": "lab", "by_time": "often"}, "Could not convert string 'often' to BOOL"),
    ],
)
def test_what_cannot_be_asked_is_said(query: str, asked: dict[str, Any], says: str, store: Store) -> None:
    with pytest.raises(UserError, match=says) as told:
        store.ask(query, **asked)
    assert "\n" not in str(told.value)


def test_an_empty_cohort_is_no_row(store: Store) -> None:
    for query in WORKED:
        who = "cohort_a" if query == "feature_comparison" else "cohort"
        feature = {"feature": "lab"} if query.startswith("feature_") else {}
        assert store.ask(query, **{who: "score > 1e9"}, **feature).num_rows == 0, query


def test_a_prediction_without_any_value_is_a_row(store: Store) -> None:
    """Somebody without any event, whose static values are struck out."""
    with duckdb.connect() as db:
        for name in ("predictions", "prediction_codes", "codes", "runs"):
            db.register(
                "given", store.sql(f"from {name}" + (" where subject_id <= 42" if name == "predictions" else ""))
            )
            db.execute(f"create table {name} as from given")
        db.execute(
            "delete from prediction_codes where prediction_id in (select prediction_id from predictions where subject_id = 42)"
        )
        db.execute("create macro predictions_for(run, split, class, stratum, cohort) as table from predictions")
        for name, more in (("patients", "top := 1000"), ("contribution_profiles", "")):
            db.execute(named_queries()[name].sql)
            found = {row["subject_id"]: row for row in db.sql(f"from {name}({more})").to_arrow_table().to_pylist()}
            assert found[42]["code"] is found[42]["contribution"] is None
            assert found[41]["code"] is not None
