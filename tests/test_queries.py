"""Each named query's whole answer equals one worked out by brute force from the attribution rows."""

from __future__ import annotations

import itertools
import math
import re
import shlex
import shutil
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from pathlib import Path
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
from whenwhy.errors import UserError
from whenwhy.schema import STORE_FORMAT, TRAIN, on_grid
from whenwhy.shards import StageDirectory
from whenwhy.shipped import shipped
from whenwhy.statistics import aggregate_cells
from whenwhy.store import Store, open_store, publish_store
from whenwhy.store.queries import named_queries

WIDTH_HOURS = 24
ESTIMATE = ("mean_per_event", "mean_per_event_low", "mean_per_event_high")
PER_PREDICTION = ("mean_per_prediction", "mean_per_prediction_low", "mean_per_prediction_high")


#: Predicates over predictions, and what they say.
COHORTS: dict[str, Callable[[pd.Series], bool]] = {
    "sex = 'F' and score > 0": lambda row: "sex=F" in row["strata"] and row["score"] > 0,
    "n_steps >= 2 or label = 'false'": lambda row: row["n_steps"] >= 2 or row["label"] == "false",
    "subject_id % 3 <> 1": lambda row: row["subject_id"] % 3 != 1,
    "n_values > 20": lambda row: row["n_values"] > 20,
}


def bounds(mean: float, variance: float, skewness: float, t: float) -> tuple[float, float]:
    """Each the farther one, with Hall's correction for skewness or without."""

    def corrected(quantile: float) -> float:
        if math.isnan(skewness) or abs(skewness) < 1e-6:
            return quantile
        return float(3 / skewness * (np.cbrt(1 + skewness * (quantile - skewness / 6)) - 1))

    error = variance**0.5
    low = min(mean - t * error, mean - error * corrected(t))
    return (low, max(mean + t * error, mean - error * corrected(-t)))


class Truth:
    """A run's rows and predictions as data frames, and the design's formulas over them, one patient at a time."""

    def __init__(self, path: Path, n_bins: int) -> None:
        run = StageDirectory.open(path, "attribute")
        self.run_id, self.n_bins = run.run_id, n_bins
        self._known: dict[tuple[tuple[str, str | None], ...], pd.Series] = {}
        self.input_sha256 = run.manifest["inputs"]["sequences"]["sha256"]
        self.about = run.settings | run.entry("about").summary | {"code_version": run.manifest["code_version"]}
        predictions = pa.concat_tables([run.read(name, "predictions") for name in run.shards]).to_pylist()
        for row in predictions:
            row["strata"] = {"all", *(f"{name}={value}" for name, value in row["strata"])}
            right = "yes" if row["predicted"] == row["label"] else "no"
            row["strata"] |= {f"predicted={row['predicted']}", f"correct={right}"}
        self.predictions = pd.DataFrame(predictions)
        self.words = pd.DataFrame(run.read("about", "feature_values").to_pylist())
        rows = pa.concat_tables([run.read(name, "attributions") for name in run.shards]).to_pandas()
        own = ["prediction_id", "subject_id", "split", "label", "strata"]
        self.rows = rows.merge(self.predictions[own]).merge(self.words[["feature_value_id", "code", "parents"]])
        self.rows["attribution"] = self.rows["attribution"].astype(np.float64)
        self.rows["bin"] = (self.rows["minutes"] // (60 * WIDTH_HOURS)).clip(upper=n_bins - 1)

    def of_cohort(self, frame: pd.DataFrame, asked: dict[str, Any]) -> pd.DataFrame:
        """The rows of a split, class, stratum and predicate (or of those without it), as a query's arguments name them."""
        names = ("split", "class", "stratum", "cohort", "not_cohort")
        told = tuple((name, asked.get(name)) for name in names)
        if told not in self._known:
            self._known[told] = self._chosen(dict(told))
        return frame[frame["prediction_id"].isin(self._known[told])]

    def _chosen(self, asked: dict[str, str | None]) -> pd.Series:
        label, stratum = asked["class"] or "all", asked["stratum"] or "all"
        keep = self.predictions["split"] == (asked["split"] or "held_out")
        if label != "all":
            keep &= self.predictions["label"] == label
        keep &= self.predictions["strata"].map(lambda strata: stratum in strata)
        for name in ("cohort", "not_cohort"):
            if asked[name]:
                keep &= self.predictions.apply(COHORTS[asked[name]], axis=1) == (name == "cohort")
        return self.predictions.loc[keep, "prediction_id"]

    def at_risk(self, asked: dict[str, Any], time_bin: int | None) -> pd.DataFrame:
        """The predictions whose history reaches back to the bin; all of them for all time."""
        found = self.of_cohort(self.predictions, asked)
        return found if time_bin is None else found[found["history_minutes"] >= 60 * WIDTH_HOURS * time_bin]

    def recur(self, kind: str, split: str) -> bool:
        """Whether a patient of the split has predictions in several classes, or strata of a kind."""
        frame = self.predictions[self.predictions["split"] == split]
        of = frame["label"]
        if kind != "class":
            of = frame["strata"].map(lambda strata: next((one for one in strata if one.startswith(f"{kind}=")), None))
        return bool((of.groupby(frame["subject_id"]).nunique() > 1).any())

    def of_feature(self, feature: str, level: str) -> pd.DataFrame:
        if level == "group":
            return self.rows[self.rows["parents"].map(lambda groups: feature in groups)]
        return self.rows[self.rows["code"] == feature]

    def estimate(self, rows: pd.DataFrame, asked: dict[str, Any], time_bin: int | None) -> dict[str, Any]:
        """Counts, both means and their intervals, of rows of one cell."""
        found: dict[str, Any] = {"n_events": len(rows), "n_patients": rows["subject_id"].nunique()}
        by_patient = rows.groupby("subject_id")["attribution"]
        s, n = by_patient.sum(), by_patient.size()
        effective = n.sum() ** 2 / (n**2).sum()
        degrees = n.sum() * (n**2).sum() / (n**3).sum() - 1
        t = scipy.stats.t.ppf(0.975, degrees) if effective >= 30 else math.nan

        mean = s.sum() / n.sum()
        u = s - mean * n
        variance = (u**2 * (1 + 2 * n / n.sum())).sum() / n.sum() ** 2
        skewness = (u**3).sum() / (u**2).sum() ** 1.5 if (u**2).sum() else math.nan
        found |= zip(ESTIMATE, (mean, *bounds(mean, variance, skewness, t)), strict=True)

        risk = self.at_risk(asked, time_bin)
        at = risk.groupby("subject_id").size()
        s_of_all = s.reindex(at.index, fill_value=0.0)
        assert s.index.isin(at.index).all(), "who has an event in a bin was under observation then"
        mu = s.sum() / at.sum()
        v = s_of_all - mu * at
        variance_mu = (v**2).sum() / at.sum() ** 2 * len(at) / max(1, len(at) - 1)
        usual = (at**2).sum() / at.sum()  # as if N were the same for all
        cubes = (s**3).sum() - usual * (
            3 * mu * (s**2).sum() - 3 * mu**2 * (s_of_all * at).sum() + mu**3 * (at**2).sum()
        )
        skewness = cubes / (v**2).sum() ** 1.5 if (v**2).sum() else math.nan
        found |= zip(PER_PREDICTION, (mu, *bounds(mu, variance_mu, skewness, t)), strict=True)
        found["degrees"], found["skewness"], found["n_patients_at_risk"] = degrees, skewness, len(at)
        found["mean_abs_per_prediction"] = rows["attribution"].abs().sum() / len(risk)
        found["n_at_risk"] = len(risk)
        found["effective"], found["variance_per_prediction"] = effective, variance_mu
        return found

    def bounds(self, time_bin: int) -> dict[str, float]:
        high = math.inf if time_bin == self.n_bins - 1 else WIDTH_HOURS * (time_bin + 1.0)
        return {"time_bin": time_bin, "low_hours": WIDTH_HOURS * float(time_bin), "high_hours": high}

    def features(self, asked: dict[str, Any], level: str) -> list[tuple[dict[str, Any], pd.DataFrame]]:
        """What names each feature of a level, and its rows of the cohort."""
        rows = self.of_cohort(self.rows, asked)
        if level == "group":
            rows = rows.explode("parents").dropna(subset=["parents"])
            return [({"code": name, "feature_value_id": None}, part) for name, part in rows.groupby("parents")]
        if level == "code":
            return [({"code": name, "feature_value_id": None}, part) for name, part in rows.groupby("code")]
        parts = rows.groupby(["code", "feature_value_id"])
        return [({"code": name, "feature_value_id": number}, part) for (name, number), part in parts]

    def word(self, code: str, number: int | None) -> dict[str, Any]:
        """Description, unit, bin and edges as people see them; a code has no edges, a group no description."""
        words = self.words[self.words["code"] == code]
        if words.empty:
            return dict.fromkeys(("description", "unit", "bin", "low", "high"))
        told = words.iloc[0] if number is None else words[words["feature_value_id"] == number].iloc[0]
        edges = {name: None if number is None or pd.isna(told[name]) else told[name] for name in ("bin", "low", "high")}
        return {"description": told["description"], "unit": told["unit"], **edges}


# -- the answers, by brute force ----------------------------------------------------------------------


def enough(asked: dict[str, Any], patients: int) -> bool:
    return patients >= int(asked.get("min_patients", 11))


def top_features(truth: Truth, asked: dict[str, Any]) -> list[dict[str, Any]]:
    """Ranked by the sum of |contribution| over the number of predictions at risk; ties by code, then value."""
    found = []
    for name, rows in truth.features(asked, asked.get("level", "code")):
        cell = truth.estimate(rows, asked, None)
        if enough(asked, cell["n_patients"]):
            word = truth.word(name["code"], name["feature_value_id"])
            found.append(name | {key: word[key] for key in ("description", "unit", "low", "high")} | cell)

    def place(row: dict[str, Any]) -> float:
        low, high = row["mean_per_event_low"], row["mean_per_event_high"]
        return {
            "size": row["mean_abs_per_prediction"],
            "mean": abs(row["mean_per_event"]),
            "significance": max(low, -high) if low > 0 or high < 0 else -math.inf,
        }[asked.get("order_by", "size")]

    found.sort(key=lambda row: (-place(row), row["code"], row["feature_value_id"] or 0))
    found = found[: int(asked.get("top", 20))]
    columns = ("code", "feature_value_id", "description", "unit", "low", "high", "n_patients", "n_events")
    columns = (*columns, "mean_abs_per_prediction", *ESTIMATE)
    return [{"rank": rank} | {key: row[key] for key in columns} for rank, row in enumerate(found, 1)]


def feature_timeline(truth: Truth, asked: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a bin in which enough patients have the feature."""
    rows = truth.of_cohort(truth.of_feature(asked["feature"], asked.get("level", "code")), asked)
    found = []
    for time_bin in range(truth.n_bins):
        here = rows[rows["bin"] == time_bin]
        if len(here) and enough(asked, here["subject_id"].nunique()):
            cell = truth.estimate(here, asked, time_bin)
            columns = ("n_at_risk", "n_patients_at_risk", "n_patients", "n_events", *ESTIMATE, *PER_PREDICTION)
            found.append(truth.bounds(time_bin) | {key: cell[key] for key in columns})
    return found


def _values(truth: Truth, asked: dict[str, Any]) -> list[tuple[dict[str, Any], pd.DataFrame]]:
    rows = truth.of_cohort(truth.of_feature(asked["feature"], "code"), asked)
    found = []
    for number, part in rows.groupby("feature_value_id"):
        word = truth.word(asked["feature"], number)
        found.append(({"feature_value_id": number} | {key: word[key] for key in ("bin", "low", "high", "unit")}, part))
    return sorted(found, key=lambda pair: -1 if pair[0]["bin"] is None else pair[0]["bin"])


def value_effect(truth: Truth, asked: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a range of values, those without a number first."""
    found = []
    for name, rows in _values(truth, asked):
        cell = truth.estimate(rows, asked, None)
        if enough(asked, cell["n_patients"]):
            found.append(name | {key: cell[key] for key in ("n_patients", "n_events", *ESTIMATE)})
    return found


def feature_heatmap(truth: Truth, asked: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a range of values and a bin of time."""
    found = []
    for name, rows in _values(truth, asked):
        for time_bin in range(truth.n_bins):
            here = rows[rows["bin"] == time_bin]
            if len(here) and enough(asked, here["subject_id"].nunique()):
                cell = truth.estimate(here, asked, time_bin)
                told = {key: cell[key] for key in ("n_patients", "n_events", *ESTIMATE)}
                found.append(name | truth.bounds(time_bin) | told)
    return found


def feature_ranking(truth: Truth, asked: dict[str, Any]) -> list[dict[str, Any]]:
    """Variance over events, and how evenly |contribution| lies over all bins and known values."""

    def entropy(groups: Any, most: int) -> float | None:
        sizes = [g["attribution"].abs().sum() for _, g in groups]
        if not sizes or not sum(sizes):
            return None
        return 0.0 if most == 1 else float(scipy.stats.entropy(np.array(sizes), base=2) / math.log2(most))

    found = []
    for name, rows in truth.features(asked, "code"):
        cell = truth.estimate(rows, asked, None)
        if enough(asked, cell["n_patients"]):
            told = {key: cell[key] for key in ("n_patients", "n_events", "mean_per_event", "mean_abs_per_prediction")}
            told |= {"variance": rows["attribution"].var(ddof=0)}
            told |= {"entropy_over_time": entropy(rows.dropna(subset=["bin"]).groupby("bin"), truth.n_bins)}
            known = (truth.words["code"] == name["code"]).sum()
            told |= {"entropy_over_values": entropy(rows.groupby("feature_value_id"), known)}
            found.append({"code": name["code"], "description": truth.word(name["code"], None)["description"]} | told)
    by = asked.get("criterion", "variance")

    def place(row: dict[str, Any]) -> tuple[float, str]:
        value = row[by]
        return (math.inf if value is None else value if by != "variance" else -value), row["code"]

    return [{"rank": n} | row for n, row in enumerate(sorted(found, key=place)[: int(asked.get("top", 20))], 1)]


def percentile_bands(truth: Truth, asked: dict[str, Any]) -> list[dict[str, Any]]:
    """Percentiles of events, found in buckets of a quarter of an octave and interpolated there."""
    level, shares = asked.get("level", "code"), (0.1, 0.3, 0.5, 0.7, 0.9)
    rows = truth.of_cohort(truth.of_feature(asked["feature"], "group" if level == "group" else "code"), asked)
    parts = sorted(rows.groupby("feature_value_id")) if level == "value" else [(None, rows)]
    found = []
    for number, part in parts:
        for time_bin in range(truth.n_bins):
            here = part[part["bin"] == time_bin]
            if not len(here) or not enough(asked, here["subject_id"].nunique()):
                continue
            units = np.sort((here["attribution"] * 2**24).to_numpy().round())
            bucket = np.array([0 if u == 0 else np.sign(u) * (1 + math.floor(4 * math.log2(abs(u)))) for u in units])
            told = {}
            for share in shares:
                at = bucket[max(0, math.ceil(share * len(units)) - 1)]
                edges = sorted((2 ** ((abs(at) - 1) / 4) * np.sign(at), 2 ** (abs(at) / 4) * np.sign(at)))
                within = (share * len(units) - (bucket < at).sum()) / (bucket == at).sum()
                value = (edges[0] + (edges[1] - edges[0]) * within) / 2**24
                exact = np.quantile(units, share, method="inverted_cdf") / 2**24
                assert abs(value - exact) <= abs(edges[1] - edges[0]) / 2**24, "the bucket holds the exact one"
                told[f"p{share * 100:.0f}"] = value
            counts = {"n_patients": here["subject_id"].nunique(), "n_events": len(here)}
            found.append({"feature_value_id": number} | truth.bounds(time_bin) | counts | told)
    return found


def number_at_risk(truth: Truth, asked: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a bin, and one for everybody."""
    found = []
    for time_bin in [*range(truth.n_bins), None]:
        risk = truth.at_risk(asked, time_bin)
        bounds = {"time_bin": None, "low_hours": None, "high_hours": None}
        if time_bin is not None:
            bounds = truth.bounds(time_bin)
        counts = {"n_patients": risk["subject_id"].nunique(), "n_predictions": len(risk)}
        if counts["n_patients"] and enough(asked, counts["n_patients"]):
            found.append(bounds | counts)
    return found


def linear(truth: Truth, rows: pd.DataFrame, cohort: dict[str, Any]) -> pd.Series:
    """What each patient at risk adds to the error of a mean per prediction."""
    at = truth.at_risk(cohort, None).groupby("subject_id").size()
    s = rows.groupby("subject_id")["attribution"].sum().reindex(at.index, fill_value=0.0)
    scale = (len(at) / max(1, len(at) - 1)) ** 0.5 / max(1, at.sum())
    return (s - s.sum() / at.sum() * at) * scale


def with_q(rows: list[dict[str, Any]], asked: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows with q value, number of tests and whether it is a discovery; those first, and of each the largest difference."""
    tested = [row for row in rows if not math.isnan(row["p_value"])]
    q = scipy.stats.false_discovery_control([row["p_value"] for row in tested]) if tested else []
    rate = float(asked.get("false_discovery_rate", 0.05))
    for row in rows:
        row |= {"q_value": math.nan, "n_tested": len(tested), "is_discovery": None}
    for row, value in zip(tested, q, strict=True):
        row |= {"q_value": float(value), "is_discovery": bool(value <= rate)}
    rows.sort(
        key=lambda row: (not row["is_discovery"], -abs(row["difference"]), row["code"], row["feature_value_id"] or 0)
    )
    return [{"rank": rank} | row for rank, row in enumerate(rows[: int(asked.get("top", 20))], 1)]


def judged(difference: float, error: float, degrees: float, skewness: float, least: float, effective: float) -> tuple:
    """Bounds and p value: of Student's t, with Hall's correction or without, whichever claims less."""
    if effective < 30 or not error > 0:
        return math.nan, math.nan, math.nan
    both = bounds(difference, error**2, skewness, scipy.stats.t.ppf(0.975, degrees))
    if effective < 60:
        return *both, math.nan

    def corrected(t: float) -> float:
        turned = skewness * np.sign(difference)
        return t + turned * t**2 / 3 + turned**2 * t**3 / 27 + turned / 6

    beyond, opposite = (abs(difference) - least) / error, -(abs(difference) + least) / error
    plain = scipy.stats.t.sf(beyond, degrees) + scipy.stats.t.cdf(opposite, degrees)
    hall = scipy.stats.t.sf(corrected(beyond), degrees) + scipy.stats.t.cdf(corrected(opposite), degrees)
    return *both, min(1.0, max(plain, hall))


NOBODY = {"n_patients": 0, "mean_per_prediction": 0.0, "effective": math.inf, "degrees": math.inf, "skewness": math.nan}


def skewed(a: dict[str, Any], b: dict[str, Any], va: float, vb: float, error: float) -> float:
    """Of a difference, from those of both means."""
    parts = [0.0 if math.isnan(x["skewness"]) else x["skewness"] * v**1.5 for x, v in ((a, va), (b, vb))]
    return (parts[0] - parts[1]) / error**3 if error > 0 else math.nan


def compared(truth: Truth, asked: dict[str, Any], cohorts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Differences of the means per prediction at risk, over the sum of what each patient adds to both errors."""
    people = [set(truth.at_risk(cohort, None)["subject_id"]) for cohort in cohorts]
    if not all(people):
        return []
    # Two classes, or strata, of which a patient of any split's has one.
    apart = False
    for name in ("class", "stratum"):
        of = [cohort.get(name, "all") for cohort in cohorts]
        of = [f"class={one}" if name == "class" else one for one in of]
        kinds = {one.partition("=")[0] for one in of}
        if len(set(of)) == 2 and len(kinds) == 1 and not any(one.endswith("all") for one in of):
            apart |= not truth.recur(kinds.pop(), asked.get("split", "held_out"))
    ready = not any({"cohort", "not_cohort"} & cohort.keys() for cohort in cohorts)
    assert not (apart and ready) or not people[0] & people[1]
    # Ready cells are read where the kind's values exclude one another; rows tell whether anybody is in both.
    apart = (apart and ready) or not people[0] & people[1]
    level = asked.get("level", "code")
    sides = []
    for cohort in cohorts:
        parts = [(name, rows, truth.estimate(rows, cohort, None)) for name, rows in truth.features(cohort, level)]
        sides.append({(name["code"], name["feature_value_id"]): (rows, cell) for name, rows, cell in parts})
    found = []
    nothing = truth.rows.iloc[:0]
    for key in set(sides[0]) | set(sides[1]):
        (rows_a, a), (rows_b, b) = (side.get(key, (nothing, NOBODY)) for side in sides)
        if not enough(asked, max(a["n_patients"], b["n_patients"])):
            continue
        difference = a["mean_per_prediction"] - b["mean_per_prediction"]
        one, other = linear(truth, rows_a, cohorts[0]), linear(truth, rows_b, cohorts[1])
        va, vb = (one**2).sum(), (other**2).sum()
        error = (one.sub(other, fill_value=0.0) ** 2).sum() ** 0.5
        error = error if error**2 > 1e-12 * (va + vb) else 0.0
        degrees = min(a["degrees"], b["degrees"])
        if apart and va > 0 and vb > 0 and degrees > 0:
            degrees = (va + vb) ** 2 / (va**2 / a["degrees"] + vb**2 / b["degrees"])
        skew = skewed(a, b, va, vb, error)
        least = float(asked.get("minimum_effect", 0))
        low, high, p = judged(difference, error, degrees, skew, least, min(a["effective"], b["effective"]))
        found.append(
            {
                "code": key[0],
                "feature_value_id": key[1],
                "description": truth.word(*key)["description"],
                "n_patients_a": a["n_patients"],
                "n_patients_b": b["n_patients"],
                "mean_a": a["mean_per_prediction"],
                "mean_b": b["mean_per_prediction"],
                "difference": difference,
                "difference_low": low,
                "difference_high": high,
                "interval_of": "separate patients" if apart else "shared patients",
                "p_value": p,
            }
        )
    columns = ["interval_of", "p_value", "q_value", "n_tested", "is_discovery"]
    ranked = with_q(found, asked)
    return [{k: v for k, v in row.items() if k not in columns} | {k: row[k] for k in columns} for row in ranked]


def class_comparison(truth: Truth, asked: dict[str, Any]) -> list[dict[str, Any]]:
    """Of two classes; of a predicate in both."""
    cohorts = [
        asked | {"class": asked.get(name, default)} for name, default in (("class_a", "true"), ("class_b", "false"))
    ]
    return compared(truth, asked, cohorts)


def cohort_comparison(truth: Truth, asked: dict[str, Any]) -> list[dict[str, Any]]:
    """Of two classes, strata or predicates; of a predicate and who does not fulfil it."""
    return compared(truth, asked, sides_of(asked))


def sides_of(asked: dict[str, Any]) -> list[dict[str, Any]]:
    """The two cohorts that arguments ending in _a and _b name."""
    common = {key: value for key, value in asked.items() if key == "split"}
    cohorts = [common | {name: asked.get(f"{name}_{side}", "all") for name in ("class", "stratum")} for side in "ab"]
    for side, cohort in zip("ab", cohorts, strict=True):
        if f"cohort_{side}" in asked:
            cohort["cohort"] = asked[f"cohort_{side}"]
    if "cohort_a" in asked and "cohort_b" not in asked:
        cohorts[1]["not_cohort"] = asked["cohort_a"]
    if "cohort_b" in asked and "cohort_a" not in asked:
        cohorts[0]["not_cohort"] = asked["cohort_b"]
    return cohorts


def subgroup_disagreement(truth: Truth, asked: dict[str, Any]) -> list[dict[str, Any]]:
    """The pair of strata of a kind whose difference has the smallest p value, times the pairs that have one."""
    kind, split = asked.get("subgroups", "sex"), asked.get("split", "held_out")
    strata = sorted({one for told in truth.predictions["strata"] for one in told if one.startswith(f"{kind}=")})
    level, recur = asked.get("level", "code"), truth.recur(kind, split)
    cells: dict[Any, dict[str, dict[str, Any]]] = {}
    for stratum in strata:
        for name, rows in truth.features(asked | {"stratum": stratum}, level):
            cell = truth.estimate(rows, asked | {"stratum": stratum}, None)
            if enough(asked, cell["n_patients"]):
                cells.setdefault((name["code"], name["feature_value_id"]), {})[stratum] = cell
    found = []
    for key, of in cells.items():
        pairs = []
        for one, other in itertools.combinations(sorted(of), 2):
            a, b = of[one], of[other]
            difference = a["mean_per_prediction"] - b["mean_per_prediction"]
            va, vb = a["variance_per_prediction"], b["variance_per_prediction"]
            error, degrees = va**0.5 + vb**0.5, min(a["degrees"], b["degrees"])
            if not recur:
                error = (va + vb) ** 0.5
                degrees = (va + vb) ** 2 / (va**2 / a["degrees"] + vb**2 / b["degrees"]) if error else math.nan
            skew = skewed(a, b, va, vb, error)
            *_, p = judged(difference, error, degrees, skew, 0.0, min(a["effective"], b["effective"]))
            pairs.append((math.inf if math.isnan(p) else p, -abs(difference), one, other))
        if not pairs:
            continue
        p, _, one, other = min(pairs)
        a, b = of[one], of[other]
        tested = sum(math.isfinite(pair[0]) for pair in pairs)
        means, bounds = PER_PREDICTION[0], PER_PREDICTION[1:]
        found.append(
            {
                "code": key[0],
                "feature_value_id": key[1],
                "description": truth.word(*key)["description"],
                "n_subgroups": len(of),
                "stratum_a": one,
                "stratum_b": other,
                "n_patients_a": a["n_patients"],
                "n_patients_b": b["n_patients"],
                "mean_a": a[means],
                "mean_b": b[means],
                "difference": a[means] - b[means],
                "p_value": min(1.0, p * tested) if tested else math.nan,
                "signs_differ": any(cell[bounds[1]] < 0 for cell in of.values())
                and any(cell[bounds[0]] > 0 for cell in of.values()),
            }
        )
    return [row | {"signs_differ": row.pop("signs_differ")} for row in with_q(found, asked)]


def leak_finder(truth: Truth, asked: dict[str, Any]) -> list[dict[str, Any]]:
    """Late beside early contributions, the common mean beside the spread over ranges, and subgroups; by suspicions."""

    def late_over_early(rows: pd.DataFrame) -> float:
        late, early = (rows.loc[rows["bin"] == 0], rows.loc[rows["bin"] > 0])
        sizes = [part["attribution"].abs().mean() for part in (late, early)]
        if len(early) and sizes[1] > 0:
            return sizes[0] / sizes[1]
        return math.inf if len(late) and sizes[0] > 0 else math.nan

    every = [(name, rows, truth.estimate(rows, asked, None)) for name, rows in truth.features(asked, "code")]
    features = [one for one in every if enough(asked, one[2]["n_patients"])]
    usual = late_over_early(pd.concat([rows for _, rows, _ in every]))
    total = sum(cell["mean_abs_per_prediction"] for *_, cell in features)
    of_subgroups = {
        row["code"]: row
        for row in subgroup_disagreement(truth, {"subgroups": "(none)"} | asked | {"level": "code", "top": 10**6})
    }
    found = []
    for name, rows, cell in features:
        ranges = []
        for number, part in rows.groupby("feature_value_id"):
            if truth.word(name["code"], number)["bin"] is not None:
                ranges.append((len(part), part["attribution"].mean()))
        measured = math.nan
        if len(ranges) > 1:
            n, means = map(np.array, zip(*ranges, strict=True))
            measured = np.average(means, weights=n) ** 2 / np.average(means**2, weights=n)
        spike = late_over_early(rows) / usual
        beside = of_subgroups.get(name["code"], {"difference": math.nan, "q_value": math.nan})
        found.append(
            {
                "code": name["code"],
                "description": truth.word(name["code"], None)["description"],
                "n_patients": cell["n_patients"],
                "mean_abs_per_prediction": cell["mean_abs_per_prediction"],
                "share_of_total": cell["mean_abs_per_prediction"] / total,
                "spike": spike,
                "measured_share": float(measured),
                "subgroup_difference": beside["difference"],
                "subgroup_q": beside["q_value"],
                "spikes": bool(spike >= float(asked.get("spike", 3))),
                "counts_for_being_measured": bool(measured >= float(asked.get("measured", 0.9))),
                "differs_by_subgroup": bool(beside["q_value"] <= float(asked.get("false_discovery_rate", 0.05)))
                if "subgroups" in asked
                else None,
            }
        )
    suspicions = ("spikes", "counts_for_being_measured", "differs_by_subgroup")
    found.sort(
        key=lambda row: (-sum(bool(row[one]) for one in suspicions), -row["mean_abs_per_prediction"], row["code"])
    )
    return [{"rank": rank} | row for rank, row in enumerate(found[: int(asked.get("top", 20))], 1)]


def data_quality(truth: Truth, asked: dict[str, Any]) -> list[dict[str, Any]]:
    """Shares of patients and of events, and what stands out."""
    training = asked | {"split": TRAIN}
    at_risk = [truth.at_risk(cohort, None)["subject_id"].nunique() for cohort in (asked, training)]
    in_training = {
        name["code"]: rows["subject_id"].nunique() / at_risk[1] for name, rows in truth.features(training, "code")
    }
    found = []
    for name, rows in truth.features(asked, "code"):
        patients = rows["subject_id"].nunique()
        if not enough(asked, patients):
            continue
        words = truth.words[truth.words["code"] == name["code"]].set_index("feature_value_id")
        values = dict(list(rows.groupby("feature_value_id")))
        undated = rows["bin"].isna().mean()
        without = math.nan
        if words["bin"].notna().any():
            without = sum(len(p) for n, p in values.items() if pd.isna(words["bin"][n])) / len(rows)
        commonest = max((len(p) for p in values.values()), default=math.nan) / len(rows)
        share, beside = patients / at_risk[0], in_training.get(name["code"], math.nan)
        least = float(asked.get("difference", 0.1))
        told = {
            "more patients than in training": share - beside >= least,
            "fewer patients than in training": beside - share >= least,
            "mostly without a number": without >= 0.5,
            "partly without a time": 0 < undated < 1,
            "nearly always one value": len(words) > 1 and commonest > 0.95,
        }
        found.append(
            {
                "code": name["code"],
                "description": truth.word(name["code"], None)["description"],
                "n_patients": patients,
                "share_of_patients": share,
                "training_share": beside,
                "events_per_patient": len(rows) / patients,
                "share_undated": undated,
                "share_without_number": without,
                "n_values": len(values),
                "n_values_known": len(words),
                "share_of_commonest": commonest,
                "findings": ", ".join(finding for finding, so in told.items() if so),
            }
        )
    found.sort(key=lambda row: (row["findings"] == "", -row["n_patients"], row["code"]))
    return found[: int(asked.get("top", 1000))]


def feature_pairs(truth: Truth, asked: dict[str, Any]) -> list[dict[str, Any]]:
    """Every occurrence of a pair, one by one; a patient's sums with the other and without it, and what each adds to errors."""
    level, word = asked.get("level", "value"), "feature_value_id" if asked.get("level", "value") == "value" else "code"
    rows = truth.of_cohort(truth.rows, asked).dropna(subset=["step"])
    at: dict[tuple[int, int], dict[tuple[str, Any], float]] = {}
    subject = {}
    for row in rows.to_dict("records"):
        subject[row["prediction_id"]] = row["subject_id"]
        here = at.setdefault((row["prediction_id"], int(row["step"])), {})
        key = (row["code"], row[word])
        here[key] = here.get(key, 0.0) + row["attribution"]
    ones = [(place, key, s) for place, here in at.items() for key, s in here.items() if key[0] == asked["feature"]]
    pairs: dict[tuple, list[tuple[int, float, float, tuple]]] = {}
    for (prediction, step), key, s in ones:
        for lag in range(int(asked.get("lags", 0)) + 1):
            for other, beside in at.get((prediction, step - lag), {}).items():
                if (lag or other != key) and asked.get("other", other[0]) == other[0]:
                    told = (subject[prediction], s, beside, (prediction, step))
                    pairs.setdefault((key, other, lag), []).append(told)
    found = []
    for (key, other, lag), occurrences in pairs.items():
        patients = {told[0] for told in occurrences}
        if not enough(asked, len(patients)):
            continue
        places = {told[3] for told in occurrences}
        own = [(subject[place[0]], s, place in places) for place, one, s in ones if one == key]
        frame = pd.DataFrame(own, columns=["subject", "s", "there"])
        parts = {}
        for there, part in frame.groupby("there"):
            of = part.groupby("subject")["s"].agg(["sum", "size"])
            mean = of["sum"].sum() / of["size"].sum()
            parts[there] = (mean, (of["sum"] - mean * of["size"]) / of["size"].sum(), of["size"])
        joint = pd.DataFrame([(told[0], told[1] + told[2]) for told in occurrences], columns=["subject", "s"])
        of = joint.groupby("subject")["s"].agg(["sum", "size"])
        mean = of["sum"].sum() / of["size"].sum()
        u = of["sum"] - mean * of["size"]
        variance = (u**2 * (1 + 2 * of["size"] / len(joint))).sum() / len(joint) ** 2
        effective = len(joint) ** 2 / (of["size"] ** 2).sum()
        degrees = len(joint) * (of["size"] ** 2).sum() / (of["size"] ** 3).sum() - 1
        t = scipy.stats.t.ppf(0.975, degrees) if effective >= 30 else math.nan
        skewness = (u**3).sum() / (u**2).sum() ** 1.5 if (u**2).sum() else math.nan
        low, high = bounds(mean, variance, skewness, t)
        without, half_of_difference = math.nan, math.nan
        if False in parts:
            without = parts[False][0]
            least = min(size.sum() ** 2 / (size**2).sum() for *_, size in parts.values())
            everybody = frame["subject"].nunique()
            each = parts[True][1].sub(parts[False][1], fill_value=0.0)
            if least >= 30:
                error = ((each**2).sum() * everybody / (everybody - 1)) ** 0.5
                degrees = min(size.sum() * (size**2).sum() / (size**3).sum() for *_, size in parts.values()) - 1
                half_of_difference = scipy.stats.t.ppf(0.975, degrees) * error
        numbers = [one[1] if level == "value" else None for one in (key, other)]
        edges = [
            truth.word(one[0], number) if number is not None else {"low": None, "high": None}
            for one, number in zip((key, other), numbers, strict=True)
        ]
        difference = parts[True][0] - without
        found.append(
            {
                "total": joint["s"].sum(),
                "feature_value_id": numbers[0],
                "low": edges[0]["low"],
                "high": edges[0]["high"],
                "other": other[0],
                "other_feature_value_id": numbers[1],
                "other_low": edges[1]["low"],
                "other_high": edges[1]["high"],
                "lag": lag,
                "n_patients": len(patients),
                "n_pairs": len(occurrences),
                "mean_joint": mean,
                "mean_joint_low": low,
                "mean_joint_high": high,
                "mean_with": parts[True][0],
                "mean_without": without,
                "difference": difference,
                "difference_low": difference - half_of_difference,
                "difference_high": difference + half_of_difference,
            }
        )
    order = ("feature_value_id", "other", "other_feature_value_id", "lag")
    found.sort(key=lambda row: (-abs(row.pop("total")), *(row[name] or 0 for name in order)))
    return [{"rank": rank} | row for rank, row in enumerate(found[: int(asked.get("top", 20))], 1)]


def feature_summary(truth: Truth, asked: dict[str, Any]) -> list[dict[str, Any]]:
    """The feature's row of the ranking, without its rank; none where too few patients have it."""
    level = asked.get("level", "code")
    ranked = top_features(truth, {"top": 10**6} | asked)
    columns = ("code", "description", "unit", "n_patients", "n_events", "mean_abs_per_prediction", *ESTIMATE)
    assert level != "value"
    return [{key: row[key] for key in columns} for row in ranked if row["code"] == asked["feature"]]


def feature_bins(truth: Truth, asked: dict[str, Any]) -> list[dict[str, Any]]:
    """Every range of a feature's numbers, in order."""
    found = []
    for number in truth.words.loc[truth.words["code"] == asked["feature"], "feature_value_id"]:
        word = truth.word(asked["feature"], number)
        columns = ("bin", "low", "high", "unit", "description")
        found.append({"feature_value_id": number} | {key: word[key] for key in columns})
    return sorted(found, key=lambda row: -1 if row["bin"] is None else row["bin"])


def features(truth: Truth, asked: dict[str, Any]) -> list[dict[str, Any]]:
    """Every code that some prediction recorded, by name."""
    found = []
    for code, words in truth.words[truth.words["code"].isin(truth.rows["code"])].groupby("code"):
        word = truth.word(code, None)
        dated = truth.rows[truth.rows["code"] == code]["minutes"].notna().any()
        told = {"code": code, "description": word["description"], "unit": word["unit"], "n_values": len(words)}
        found.append(told | {"has_time": bool(dated)})
    return found


def time_bins(truth: Truth, asked: dict[str, Any]) -> list[dict[str, Any]]:
    """The bins of the axis that anybody's history reaches."""
    reached = truth.predictions["history_minutes"].max() // (60 * WIDTH_HOURS)
    return [truth.bounds(time_bin) for time_bin in range(truth.n_bins) if time_bin <= reached]


def time_axes(truth: Truth, asked: dict[str, Any]) -> list[dict[str, Any]]:
    """The one axis of a run without anchors that was asked for no other; by the bins that anybody's history reaches."""
    everybody = truth.of_cohort(truth.predictions, asked)
    reached = int(everybody["history_minutes"].max() // (60 * WIDTH_HOURS))
    last = truth.bounds(min(reached, truth.n_bins - 1))
    return [
        {
            "time_axis": "before_prediction", "n_predictions": len(everybody), "n_bins": last["time_bin"] + 1,
            "low_hours": 0.0, "high_hours": last["high_hours"],
        }
    ]  # fmt: skip


def cohorts(truth: Truth, asked: dict[str, Any]) -> list[dict[str, Any]]:
    """Every split, class and stratum of somebody with a recorded value, and how many are in it."""
    found = []
    strata = sorted(set().union(*truth.predictions["strata"]))
    for split in sorted(set(truth.predictions["split"])):
        for label in ("all", "false", "true"):
            for stratum in strata:
                cohort = {"split": split, "class": label, "stratum": stratum}
                if len(truth.of_cohort(truth.rows, cohort)):
                    risk = truth.at_risk(cohort, None)
                    counts = {"n_patients": risk["subject_id"].nunique(), "n_predictions": len(risk)}
                    found.append(cohort | counts)
    return found


def runs(truth: Truth, asked: dict[str, Any]) -> list[dict[str, Any]]:
    """How the run came to be, its residuals and its model's measurements."""
    by_prediction = truth.rows.groupby("prediction_id")["attribution"].sum()
    told = truth.predictions.set_index("prediction_id")
    residual = (by_prediction.reindex(told.index, fill_value=0.0) - (told["score"] - told["baseline_score"])).abs()
    assert np.allclose(residual, told["completeness_residual"].abs(), rtol=0, atol=1e-12)
    return [
        {
            "run_id": truth.run_id,
            **{key: truth.about[key] for key in ("outcome", "method")},
            "measures": "contribution",
            **{key: truth.about[key] for key in ("baseline", "target")},
            "precision": "float32",
            "n_predictions": len(told),
            "tolerance": truth.about["tolerance"],
            "residual_median": told["completeness_residual"].abs().median(),
            "residual_maximum": told["completeness_residual"].abs().max(),
            "n_over_tolerance": int((residual > truth.about["tolerance"]).sum()),
            "auroc": truth.about["quality"]["folds"][0]["auroc"],
            "reference_auroc": truth.about["quality"]["folds"][0]["logistic_regression_auroc"],
            "mean_auroc": np.mean([fold["auroc"] for fold in truth.about["quality"]["folds"]]),
            "mean_reference_auroc": np.mean(
                [fold["logistic_regression_auroc"] for fold in truth.about["quality"]["folds"]]
            ),
            "n_folds": len(truth.about["quality"]["folds"]),
            "code_version": truth.about["code_version"],
            "format_version": STORE_FORMAT,
            **{key: truth.about[key] for key in ("model_sha256", "vocabulary_sha256")},
            "input_sha256": truth.input_sha256,
        }
    ]


def patient(truth: Truth, asked: dict[str, Any]) -> list[dict[str, Any]]:
    """Prediction by prediction, row by row."""
    words = {word["feature_value_id"]: word for word in truth.words.to_dict("records")}
    of_patient = truth.predictions[truth.predictions["subject_id"] == asked["subject_id"]]
    found = []
    for told in of_patient.sort_values(["prediction_time", "prediction_id"], ascending=False).to_dict("records"):
        names = ("target", "label", "predicted", "split", "score", "baseline_score", "probability")
        prediction = {"prediction_time": told["prediction_time"]} | {name: told[name] for name in names}
        rows = truth.rows[truth.rows["prediction_id"] == told["prediction_id"]].to_dict("records")
        values = []
        for row in rows or [dict.fromkeys(("step", "minutes", "feature_value_id", "numeric_value", "attribution"))]:
            dated, word = not pd.isna(row["minutes"]), words.get(row["feature_value_id"], {})
            when = told["prediction_time"] - timedelta(minutes=row["minutes"]) if dated else None
            place = {
                "step": int(row["step"]) if dated else None, "time": when,
                "hours_before": row["minutes"] / 60 if dated else None,
            }  # fmt: skip
            value = {name: word.get(name) for name in ("code", "description", "unit")}
            value |= {name: row[name] for name in ("numeric_value", "feature_value_id")}
            value |= {name: word.get(name) for name in ("low", "high")} | {"contribution": row["attribution"]}
            order = (not dated, -(place["step"] or 0), row["minutes"] if dated else 0, row["feature_value_id"])
            number = row["numeric_value"]
            values.append(((*order, (number is None or math.isnan(number), number), row["attribution"]), place | value))
        found += [prediction | value for _, value in sorted(values, key=lambda one: one[0])]
    return found


#: The registry: each query, its brute force, and what it is asked. A query without an entry fails below.
WORKED: dict[str, tuple[Callable[[Truth, dict[str, Any]], list[dict[str, Any]]], list[dict[str, Any]]]] = {
    "top_features": (
        top_features,
        [
            {},
            {"level": "value", "top": 7},
            {"level": "value", "split": TRAIN, "top": 100},
            {"level": "group", "class": "true"},
            {"order_by": "mean", "split": TRAIN},
            {"order_by": "significance", "split": TRAIN, "level": "value", "top": 100},
            {"class": "false", "stratum": "sex=F", "split": TRAIN},
            {"stratum": "age_band=60-69", "split": TRAIN, "min_patients": 1},
            {"split": "tuning", "level": "value", "min_patients": 1, "top": 100},
            {"cohort": "subject_id % 3 <> 1"},
            {"cohort": "sex = 'F' and score > 0", "split": TRAIN, "level": "value", "min_patients": 1, "top": 100},
            {"cohort": "n_steps >= 2 or label = 'false'", "split": TRAIN, "level": "group", "stratum": "correct=yes"},
        ],
    ),
    "feature_timeline": (
        feature_timeline,
        [
            {"feature": "lab", "axis": "before_prediction"},
            {"feature": "drug", "split": TRAIN, "class": "true"},
            {"feature": "MEASURED", "level": "group", "split": TRAIN},
            {"feature": "BLOOD", "level": "group", "stratum": "sex=M", "min_patients": 1},
            {"feature": "mixed", "split": "tuning", "class": "false", "min_patients": 1},
            {"feature": "size"},
            {"feature": "lab", "cohort": "subject_id % 3 <> 1", "split": TRAIN},
            {"feature": "MEASURED", "level": "group", "cohort": "sex = 'F' and score > 0", "min_patients": 1},
            {
                "feature": "drug",
                "cohort": "n_steps >= 2 or label = 'false'",
                "class": "true",
                "stratum": "predicted=false",
                "min_patients": 1,
                "split": TRAIN,
            },
        ],
    ),
    "value_effect": (
        value_effect,
        [
            {"feature": "lab"},
            {"feature": "mixed", "split": TRAIN},
            {"feature": "count", "class": "true", "split": TRAIN},
            {"feature": "AGE", "min_patients": 1, "stratum": "sex=F"},
            {"feature": "tied", "split": TRAIN, "stratum": "sex=M", "min_patients": 30},
            {"feature": "SEX//F", "split": "tuning"},
            {"feature": "lab", "cohort": "sex = 'F' and score > 0", "split": TRAIN, "min_patients": 1},
        ],
    ),
    "feature_heatmap": (
        feature_heatmap,
        [
            {"feature": "lab", "axis": "before_prediction"},
            {"feature": "lab", "split": TRAIN, "class": "false"},
            {"feature": "mixed", "split": TRAIN, "min_patients": 2},
            {"feature": "drug", "split": TRAIN, "stratum": "sex=F", "min_patients": 1},
            {
                "feature": "lab",
                "split": TRAIN,
                "cohort": "n_steps >= 2 or label = 'false'",
                "stratum": "age_band=60-69",
                "min_patients": 1,
            },
        ],
    ),
    "feature_ranking": (
        feature_ranking,
        [
            {},
            {"criterion": "entropy_over_time", "split": TRAIN, "top": 3},
            {"criterion": "entropy_over_values", "split": TRAIN, "class": "true", "min_patients": 1},
            {"stratum": "sex=F", "split": TRAIN, "criterion": "variance"},
        ],
    ),
    "percentile_bands": (
        percentile_bands,
        [
            {"feature": "lab", "axis": "before_prediction"},
            {"feature": "lab", "level": "value", "split": TRAIN, "class": "false", "min_patients": 2},
            {"feature": "MEASURED", "level": "group", "split": TRAIN},
            {"feature": "drug", "split": "tuning", "min_patients": 1},
        ],
    ),
    "number_at_risk": (
        number_at_risk,
        [
            {"axis": "before_prediction"},
            {"class": "true"},
            {"split": TRAIN, "stratum": "age_band=60-69", "min_patients": 1},
            {"split": "tuning", "class": "false", "stratum": "sex=M", "min_patients": 3},
            {"cohort": "n_steps >= 2 or label = 'false'", "split": TRAIN},
        ],
    ),
    "class_comparison": (
        class_comparison,
        [
            {},
            {"split": TRAIN, "level": "value", "top": 100},
            {"split": TRAIN, "class_a": "false", "class_b": "true", "level": "group"},
            {"split": TRAIN, "stratum": "sex=F", "min_patients": 1, "top": 3},
            {"split": "tuning", "class_a": "all", "class_b": "true"},
            {"split": TRAIN, "minimum_effect": 0.001, "false_discovery_rate": 0.5},
            {"split": TRAIN, "cohort": "subject_id % 3 <> 1", "level": "value", "min_patients": 1, "top": 100},
        ],
    ),
    "cohort_comparison": (
        cohort_comparison,
        [
            {"cohort_a": "subject_id % 3 <> 1"},
            {"cohort_a": "n_steps >= 2 or label = 'false'", "split": TRAIN, "level": "value", "top": 100},
            {
                "cohort_a": "sex = 'F' and score > 0",
                "cohort_b": "n_steps >= 2 or label = 'false'",
                "split": TRAIN,
                "level": "group",
                "min_patients": 1,
            },
            {"stratum_a": "sex=F", "stratum_b": "sex=M", "split": TRAIN, "false_discovery_rate": 0.9},
            {"stratum_a": "correct=yes", "stratum_b": "correct=no", "split": TRAIN, "minimum_effect": 0.0001},
            {"stratum_a": "age_band=60-69", "class_a": "true", "class_b": "true", "split": TRAIN, "min_patients": 1},
            {"class_a": "true", "stratum_a": "sex=F", "stratum_b": "sex=M", "split": TRAIN},
            {"class_a": "true", "class_b": "false", "cohort_a": "subject_id % 3 <> 1", "split": TRAIN},
            {"cohort_b": "n_steps >= 2 or label = 'false'", "split": TRAIN, "min_patients": 1},
        ],
    ),
    "subgroup_disagreement": (
        subgroup_disagreement,
        [
            {},
            {"split": TRAIN, "level": "value", "top": 100, "false_discovery_rate": 0.9},
            {"subgroups": "age_band", "split": TRAIN, "min_patients": 1},
            {"subgroups": "correct", "split": TRAIN, "level": "group"},
            {"subgroups": "sex", "class": "true", "split": TRAIN, "min_patients": 20},
        ],
    ),
    "leak_finder": (
        leak_finder,
        [
            {},
            {"subgroups": "sex", "split": TRAIN, "spike": 1.2, "measured": 0.3, "false_discovery_rate": 0.9},
            {"subgroups": "age_band", "class": "true", "split": TRAIN, "min_patients": 2, "top": 3},
        ],
    ),
    "data_quality": (
        data_quality,
        [
            {},
            {"difference": 0.02, "class": "true", "top": 4},
            {"stratum": "sex=F", "split": "tuning", "min_patients": 1},
            {"split": TRAIN},
        ],
    ),
    "feature_pairs": (
        feature_pairs,
        [
            {"feature": "lab"},
            {"feature": "lab", "lags": 2, "level": "code", "split": TRAIN, "min_patients": 1, "top": 100},
            {"feature": "mixed", "other": "drug", "lags": 1, "split": TRAIN, "class": "false"},
            {"feature": "lab", "other": "lab", "lags": 1, "split": TRAIN, "min_patients": 2, "stratum": "sex=F"},
            {"feature": "count", "lags": 1, "cohort": "subject_id % 3 <> 1", "split": TRAIN, "top": 40},
        ],
    ),
    "feature_summary": (
        feature_summary,
        [
            {"feature": "lab"},
            {"feature": "drug", "split": TRAIN, "class": "true", "stratum": "sex=F"},
            {"feature": "MEASURED", "level": "group", "split": TRAIN},
            {"feature": "size", "split": "tuning", "stratum": "age_band=60-69"},
            {"feature": "size", "split": "tuning", "stratum": "age_band=60-69", "min_patients": 1},
            {"feature": "lab", "cohort": "subject_id % 3 <> 1"},
        ],
    ),
    "feature_bins": (feature_bins, [{"feature": "lab"}, {"feature": "mixed"}, {"feature": "drug"}, {"feature": "AGE"}]),
    "features": (features, [{}]),
    "time_bins": (time_bins, [{}, {"axis": "before_prediction"}]),
    "time_axes": (time_axes, [{}, {"split": TRAIN}]),
    "cohorts": (cohorts, [{}]),
    "runs": (runs, [{}]),
    # A patient of three predictions, and one without any event.
    "patient": (patient, [{"subject_id": 3}, {"subject_id": 42}, {"subject_id": 2}]),
}
#: Queries of stores that need what the small run lacks, worked in a file of their own.
ELSEWHERE = {
    "absence": "test_absence.py",
    "group_rollup": "test_code_groups.py",
    "drift": "test_queries.py",
    "method_agreement": "test_queries.py",
    **dict.fromkeys(
        (
            "calibration",
            "confusion",
            "contribution_profiles",
            "feature_cells",
            "feature_comparison",
            "patients",
            "predictions_over_time",
            "score_distribution",
            "sparklines",
        ),
        "test_page_queries.py",
    ),
}
CASES = [
    pytest.param(name, asked, id=f"{name}-{'-'.join(map(str, asked.values())) or 'defaults'}")
    for name, (_, several) in WORKED.items()
    for asked in several
]


@pytest.fixture(scope="module")
def two_runs(small_run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, dict[str, Truth]]:
    """A store of two runs: the small one, and one in which a patient has a single class and contributions differ."""
    folder = tmp_path_factory.mktemp("two")

    def one_class_a_patient(table: pa.Table) -> pa.Table:
        labels = pa.array(np.where(table["subject_id"].to_numpy() // 6 % 2 == 0, "true", "false"), pa.string())
        return table.set_column(table.column_names.index("label"), "label", labels)

    def doubled_and_turned(table: pa.Table) -> pa.Table:
        at = table.column_names.index("attribution")
        return table.set_column(at, "attribution", pc.multiply(table["attribution"], pa.scalar(-2.0, pa.float32())))

    other = remade(
        small_run.attributions,
        folder / "other",
        predictions=one_class_a_patient,
        rows=doubled_and_turned,
        settings={"tolerance": 0.5},
    )
    paths = [small_run.attributions, other]
    cells = aggregate_cells(paths, folder / "store", time_bin_hours=WIDTH_HOURS)
    publish_store(folder / "store", cells, paths)
    n_bins = cells.axes[0].n_bins
    return open_store(folder / "store"), {"small": Truth(paths[0], n_bins), "one class a patient": Truth(other, n_bins)}


@pytest.fixture(scope="module")
def small_store(small_run: SmallRun) -> Store:
    return open_store(small_run.store)


@pytest.fixture(scope="module")
def small_truth(small_run: SmallRun, small_store: Store) -> Truth:
    bins = small_store.sql("select max(time_bin) + 1 as n from exposure")["n"][0].as_py()
    return Truth(small_run.attributions, bins)


_FOUND: dict[tuple[Any, ...], list[dict[str, Any]]] = {}


def brute_force(query: str, truth: Truth, asked: dict[str, Any]) -> list[dict[str, Any]]:
    """What the query should answer; of the same run it is worked out once."""
    told = (query, truth.run_id, truth.n_bins, *asked.items())
    if told not in _FOUND:
        _FOUND[told] = WORKED[query][0](truth, asked)
    return _FOUND[told]


EDGES = ("low", "high", "low_hours", "high_hours", "other_low", "other_high")


def assert_answers(found: pa.Table, expected: list[dict[str, Any]]) -> None:
    """The whole answer: columns, rows and their order; counts and names exact, numbers to 1e-9, bounds to 1e-6."""
    assert found.num_rows == len(expected)
    if expected:
        assert found.column_names == list(expected[0])
    for at, (row, truth) in enumerate(zip(found.to_pylist(), expected, strict=True)):
        for name, value in truth.items():
            told = row[name]
            if value is None or (isinstance(value, float) and math.isnan(value)):
                assert told is None, (at, name, told)
            elif name in ("p_value", "q_value", "subgroup_q"):
                assert math.isclose(told, value, rel_tol=2e-6 if value > 1e-12 else 0.05), (at, name, told, value)
            elif isinstance(value, float) and name not in EDGES:
                bound = name.endswith(("_low", "_high"))
                scale = abs(truth[name.removesuffix("_low").removesuffix("_high")] - value) if bound else 0.0
                assert math.isclose(told, value, rel_tol=1e-9, abs_tol=1e-6 * scale), (at, name, told, value)
            else:
                assert told == value, (at, name, told, value)


@pytest.mark.parametrize(("query", "asked"), CASES)
def test_a_query_answers_what_brute_force_finds(
    query: str, asked: dict[str, Any], small_store: Store, small_truth: Truth
) -> None:
    """On the small run's store, whose patients are in several classes."""
    assert_answers(small_store.ask(query, **asked), brute_force(query, small_truth, asked))


@pytest.mark.parametrize("run", ["small", "one class a patient"])
@pytest.mark.parametrize(("query", "asked"), [case for case in CASES if case.values[0] != "runs"])
def test_a_run_of_several_is_answered_alone(
    query: str, asked: dict[str, Any], run: str, two_runs: tuple[Store, dict[str, Truth]]
) -> None:
    """In a store of two runs each is its own; class comparisons have intervals where classes share no patient."""
    store, truths = two_runs
    truth = truths[run]
    assert_answers(store.ask(query, run=truth.run_id, **asked), brute_force(query, truth, asked))


def test_without_a_run_the_first_is_meant(two_runs: tuple[Store, dict[str, Truth]]) -> None:
    """As the comments say: the store's first run."""
    store, truths = two_runs
    first = min(truths.values(), key=lambda truth: truth.run_id)
    for name, (_, several) in WORKED.items():
        asked = several[0]
        if name == "runs":
            assert store.ask(name)["run_id"].to_pylist() == sorted(truth.run_id for truth in truths.values())
            continue
        assert_answers(store.ask(name, **asked), store.ask(name, run=first.run_id, **asked).to_pylist())


def test_the_worked_examples_cover_what_can_go_wrong(
    small_store: Store, two_runs: tuple[Store, dict[str, Truth]]
) -> None:
    """Some intervals are there and some are not, on both sides of 30 effective patients, for every estimate."""
    for name in ("feature_timeline", "value_effect", "feature_heatmap", "top_features"):
        with_interval, without = 0, 0
        for asked in WORKED[name][1]:
            nulls = small_store.ask(name, **asked)["mean_per_event_low"].is_null().to_pylist()
            with_interval, without = with_interval + nulls.count(False), without + nulls.count(True)
        assert with_interval, name
        assert without, name
    store, truths = two_runs
    run = truths["one class a patient"].run_id
    for of, asked, told in (
        (store, {"run": run}, "separate patients"), (small_store, {}, "shared patients"),
        (small_store, {"cohort": "true"}, "shared patients"),
    ):  # fmt: skip
        found = of.ask("class_comparison", split=TRAIN, level="code", top=100, **asked)
        assert found["difference_low"].null_count < found.num_rows
        assert set(found["interval_of"].to_pylist()) == {told}


def test_a_viewer_has_the_widest_interval_where_patients_are_shared(small_run: SmallRun, small_store: Store) -> None:
    """Only rows tell the covariance of two classes' means; without them it is as bad as it can be."""
    viewer = open_store(small_run.store, "viewer")
    asked = {"split": TRAIN, "top": 100}
    exact = {row["code"]: row for row in small_store.ask("class_comparison", **asked).to_pylist()}
    found = [row for row in viewer.ask("class_comparison", **asked).to_pylist() if row["difference_low"] is not None]
    assert len(found) > 3
    for row in found:
        true = exact[row["code"]]
        assert row["difference"] == pytest.approx(true["difference"], rel=1e-9)
        assert row["interval_of"] == "at least"
        assert row["difference_low"] < true["difference_low"] < true["difference_high"] < row["difference_high"]
        assert row["p_value"] is None or row["p_value"] > true["p_value"]
    separate = viewer.ask("cohort_comparison", stratum_a="sex=F", stratum_b="sex=M", split=TRAIN)
    assert set(separate["interval_of"].to_pylist()) == {"separate patients"}
    with pytest.raises(UserError, match="A cohort of one's own needs the rows"):
        viewer.ask("cohort_comparison", cohort_a="true")
    with pytest.raises(UserError, match=r"needs rows\.duckdb, for analysts"):
        viewer.sql("select * from cohort_comparison(cohort_a := 'true')")
    viewer.close()


def test_discoveries_are_controlled_before_ranking(small_store: Store) -> None:
    """The q value of a feature does not depend on how many rows are shown, and grows with the least effect that counts."""
    asked = {"split": TRAIN, "stratum_a": "sex=F", "stratum_b": "sex=M"}
    every, few, strict = (
        {row["code"]: row for row in small_store.ask("cohort_comparison", **asked, **more).to_pylist()}
        for more in ({"top": 100}, {"top": 3}, {"top": 100, "minimum_effect": 0.002})
    )
    assert len(every) > len(few) == 3
    assert all(every[key] | {"rank": 0} == row | {"rank": 0} for key, row in few.items())
    told = [(every[key]["p_value"], strict[key]["p_value"]) for key in every if every[key]["p_value"] is not None]
    assert len(told) > 2
    assert all(less < more for less, more in told)


# -- the files themselves -----------------------------------------------------------------------------


@cache
def example_of(name: str) -> list[str]:
    """The words after `whenwhy query STORE` of the file's one Example line."""
    lines = [line for line in named_queries()[name].comment.splitlines() if line.startswith("Example: ")]
    assert len(lines) == 1, f"queries/{name}.sql needs one line `-- Example: whenwhy query STORE {name} ...`"
    words = shlex.split(lines[0].removeprefix("Example: "))
    assert words[:4] == ["whenwhy", "query", "STORE", name]
    return words[4:]


def test_every_query_file_has_a_worked_example() -> None:
    """A new file in queries/ needs an entry in WORKED."""
    files = {file.stem for file in shipped("queries").glob("*.sql")}
    assert files == set(named_queries()) == set(WORKED) | set(ELSEWHERE)
    assert all((Path(__file__).parent / file).exists() for file in ELSEWHERE.values())
    for name, (_, several) in WORKED.items():
        asked = set().union(*several) | {"run"}
        assert asked >= set(named_queries()[name].parameters), f"no worked example of {name} uses all its arguments"


@pytest.mark.parametrize("name", sorted(WORKED))
def test_the_example_of_a_query_runs(name: str, small_store: Store) -> None:
    """The Example line is an answer here too, with a feature that this cohort has."""
    arguments = dict(word.split("=", 1) for word in example_of(name))
    if "feature" in arguments:
        with pytest.raises(UserError, match=f"no feature '{arguments['feature']}'"):
            small_store.ask(name, **arguments)
        arguments["feature"] = "lab"
    assert small_store.ask(name, **arguments).num_rows > 0


@pytest.mark.parametrize("name", sorted({*WORKED, *ELSEWHERE}))
def test_a_query_file_is_one_comment_and_one_macro(name: str) -> None:
    """The comment names every argument; the statement defines the one macro of the file's name."""
    query = named_queries()[name]
    assert query.purpose
    statements = [part for part in re.sub(r"^--.*$", "", query.sql, flags=re.MULTILINE).split(";") if part.strip()]
    assert len(statements) == 1
    assert statements[0].strip().startswith(f"create or replace temp macro {name}(")
    told = query.comment.partition("Arguments:")[2]
    for argument in query.parameters:
        assert re.search(rf"\b{argument}\b", told), f"{name} does not say what {argument} is"


# -- Student's t --------------------------------------------------------------------------------------


def test_student_t_agrees_with_scipy(small_store: Store) -> None:
    """Within 1e-6 for 29 to a million degrees, whole and broken, and within 5e-4 from 5 on; no better is claimed."""
    degrees = np.concatenate([np.arange(29, 400), np.geomspace(29, 1e6, 400), np.geomspace(5, 29, 50)[:-1]])
    listed = ", ".join(f"({value!r}::double)" for value in degrees.tolist())
    answer = small_store.sql(f"select d, student_t_975(d) as t from (values {listed}) given(d)")
    expected = scipy.stats.t.ppf(0.975, answer["d"].to_numpy())
    error, few = np.abs(answer["t"].to_numpy() - expected), answer["d"].to_numpy() < 29
    assert error[~few].max() < 1e-6
    assert error[few].max() < 5e-4


def test_the_tail_of_student_t_agrees_with_scipy(small_store: Store) -> None:
    """Within a relative 1e-6 from far below 0 to where one in 10^30 lies beyond; within 1e-3 for few degrees."""
    degrees = np.concatenate([np.geomspace(29, 1e6, 40), np.geomspace(5, 28, 10)])
    degrees, t = (grid.ravel() for grid in np.meshgrid(degrees, np.linspace(-5, 12, 86)))
    listed = ", ".join(f"({d!r}::double, {x!r}::double)" for d, x in zip(degrees.tolist(), t.tolist(), strict=True))
    answer = small_store.sql(f"select d, t, student_t_tail(t, d) as tail from (values {listed}) given(d, t)")
    expected = scipy.stats.t.sf(answer["t"].to_numpy(), answer["d"].to_numpy())
    error, few = np.abs(answer["tail"].to_numpy() / expected - 1), answer["d"].to_numpy() < 29
    assert error[~few].max() < 1e-6
    assert error[few].max() < 1e-3


# -- cohorts of one's own -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("predicate", "says"),
    [
        ("sex =", "syntax error"),
        ("height > 3", 'column "height" not found'),
        ("'maybe'", "Could not convert"),
        ("true; select 1", "syntax error"),
        ("true) union select true where (true", "syntax error"),
        ("sex = 'F') or (sex = 'F'", "syntax error"),
        ("true] or [true", "syntax error"),
        ("", "it is empty"),
        ("read_text('/etc/passwd') = ''", "cohort is no predicate"),
    ],
)
def test_a_predicate_that_is_none_is_one_sentence(small_store: Store, predicate: str, says: str) -> None:
    for query in ("top_features", "value_effect"):
        feature = {} if query == "top_features" else {"feature": "lab"}
        with pytest.raises(UserError, match="cohort is no predicate over predictions") as told:
            small_store.ask(query, cohort=predicate, **feature)
        assert "\n" not in str(told.value)
        assert says.casefold() in str(told.value).casefold() or says in str(told.value)
    with pytest.raises(UserError, match=r"is no condition on predictions .*by the columns .*score.*sex") as told:
        small_store.require_condition(predicate)
    assert "\n" not in str(told.value)
    assert "subject_id" not in str(told.value)


@pytest.mark.parametrize(
    "predicate", ["true", "true -- everybody", "subject_id in (select subject_id from predictions)"]
)
def test_everybody_as_a_cohort_is_everybody(small_store: Store, predicate: str) -> None:
    ready, own = (small_store.ask("feature_timeline", feature="lab", **asked) for asked in ({}, {"cohort": predicate}))
    assert own.num_rows == ready.num_rows > 1
    for name in ready.column_names:
        np.testing.assert_allclose(own[name].to_numpy(), ready[name].to_numpy(), rtol=1e-9)


def test_an_empty_cohort_is_no_row(small_store: Store) -> None:
    assert small_store.ask("top_features", cohort="score > 1e9", min_patients=1).num_rows == 0


def test_a_viewer_has_the_cohorts_that_are_ready(small_run: SmallRun) -> None:
    viewer = open_store(small_run.store, "viewer")
    with pytest.raises(UserError, match=r"needs the rows of patients, which this role does not see"):
        viewer.ask("top_features", cohort="true")
    with pytest.raises(UserError, match=r"needs rows\.duckdb, for analysts"):
        viewer.sql("select * from top_features(cohort := 'true')")
    assert viewer.ask("top_features").num_rows > 3
    viewer.close()


def test_a_cohort_in_plain_duckdb(small_store: Store, tmp_path: Path) -> None:
    """As `duckdb rows.duckdb` and `.read queries/top_features.sql` have it."""
    shutil.copy(small_store.version / "rows.duckdb", tmp_path)
    with duckdb.connect(str(tmp_path / "rows.duckdb"), read_only=True) as db:
        db.execute(named_queries()["top_features"].sql)
        found = db.sql("from top_features(cohort := 'subject_id % 3 <> 1')").to_arrow_table()
    assert found.equals(small_store.ask("top_features", cohort="subject_id % 3 <> 1"))


def test_a_prediction_without_any_value_is_a_row(small_store: Store, tmp_path: Path) -> None:
    """Of a patient whose other predictions have some."""
    shutil.copy(small_store.version / "rows.duckdb", tmp_path)
    with duckdb.connect(str(tmp_path / "rows.duckdb")) as db:
        db.execute(named_queries()["patient"].sql)
        ids = [n for (n,) in db.execute("select prediction_id from predictions where subject_id = 42").fetchall()]
        before = db.execute("select count(*) from rows where prediction_id = ?", ids[:1]).fetchall()[0][0]
        every = db.sql("from patient(42)").to_arrow_table().num_rows
        db.execute("delete from rows_by_prediction where prediction_id = ?", ids[:1])
        found = db.sql("from patient(42)").to_arrow_table()
    assert found.num_rows == every - before + 1
    assert found["code"].null_count == 1


def test_time_since_a_code_of_a_cohort_equals_its_cells(small_run: SmallRun, tmp_path: Path) -> None:
    """On an axis that begins at each patient's first record of a code, and bins before it."""
    cells = aggregate_cells([small_run.attributions], tmp_path, time_bin_hours=48, since=["lab", "drug"])
    publish_store(tmp_path, cells, [small_run.attributions])
    store = open_store(tmp_path)
    for axis in ("since:lab", "since:drug"):
        asked = {"feature": "lab", "axis": axis, "split": TRAIN, "min_patients": 1}
        ready, own = (store.ask("feature_heatmap", **asked, **more) for more in ({}, {"cohort": "true"}))
        assert own.num_rows == ready.num_rows > 5
        for name in ready.column_names:
            one, two = own[name].to_numpy(zero_copy_only=False), ready[name].to_numpy(zero_copy_only=False)
            if one.dtype == object:
                assert (one == two).all()
            else:
                np.testing.assert_allclose(one, two, rtol=1e-9)
    assert pc.min(ready["time_bin"]).as_py() < 0
    store.close()


# -- what may go wrong in asking ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "asked", "says"),
    [
        ("feature_pairs", {"feature": "MEASURED", "level": "group"}, "level is value or code here"),
        ("feature_timeline", {"feature": "lab", "level": "value"}, "level is code or group here"),
        ("feature_summary", {"feature": "lab", "level": "value"}, "level is code or group here"),
        ("feature_pairs", {"feature": "lab", "other": "nothing"}, "no other 'nothing'"),
        ("feature_pairs", {"feature": "lab", "lags": -1}, "lags is '-1': give a whole number, 0 or more"),
        ("data_quality", {"difference": "-1"}, "difference is '-1': give a number of at least 0"),
        ("class_comparison", {"minimum_effect": "much"}, "minimum_effect is 'much': give a number of at least 0"),
        ("leak_finder", {"subgroups": "site"}, "no subgroups 'site'"),
    ],
)
def test_what_cannot_be_asked_is_said(query: str, asked: dict[str, Any], says: str, small_store: Store) -> None:
    with pytest.raises(UserError, match=says) as told:
        small_store.ask(query, **asked)
    assert "\n" not in str(told.value)


def test_defaults_must_be_there_too(small_run: SmallRun, tmp_path: Path) -> None:
    """Classes of other names are not compared as 'true' and 'false' to no row."""

    def renamed(table: pa.Table) -> pa.Table:
        labels = pa.array(["yes" if label == "true" else "no" for label in table["label"].to_pylist()])
        return table.set_column(table.column_names.index("label"), "label", labels)

    path = remade(small_run.attributions, tmp_path / "renamed", predictions=renamed)
    publish_store(tmp_path / "store", aggregate_cells([path], tmp_path / "store", time_bin_hours=WIDTH_HOURS), [path])
    store = open_store(tmp_path / "store")
    with pytest.raises(UserError, match=r"no class_a 'true' in .*: choose one of all, no, yes"):
        store.ask("class_comparison")
    assert store.ask("class_comparison", class_a="yes", class_b="no").num_rows > 3
    store.close()


def test_the_time_limit_holds_for_a_predicate_too(small_run: SmallRun) -> None:
    store = open_store(small_run.store, seconds=0.05)
    slow = "(select sum(a.score * b.score * c.score) from predictions a, predictions b, predictions c) is not null"
    with pytest.raises(UserError, match=r"did not answer within 0\.05 seconds"):
        store._require_predicate("cohort", slow)  # itself, before the question that it is for
    store.close()


def test_a_cohort_beside_itself_has_no_difference_to_test(small_store: Store) -> None:
    found = small_store.ask("cohort_comparison", cohort_a="true", cohort_b="true", split=TRAIN).to_pylist()
    assert len(found) > 3
    assert all(row["p_value"] is None and row["difference_low"] is None for row in found)


def test_what_one_cohort_alone_has_is_compared(small_store: Store) -> None:
    """Women have no record of SEX//M: it contributes 0 there, and differs most surely; a viewer cannot know that."""
    asked = {"stratum_a": "sex=F", "stratum_b": "sex=M", "split": TRAIN}
    found = {row["code"]: row for row in small_store.ask("cohort_comparison", **asked).to_pylist()}
    assert found["SEX//M"]["n_patients_a"] == found["SEX//M"]["mean_a"] == 0
    assert found["SEX//M"]["q_value"] < 1e-6


def test_what_viewers_cannot_know_of_the_records_is_missing(small_run: SmallRun, small_store: Store) -> None:
    """Where cells are hidden, shares of events would be wrong; an analyst has them all."""
    viewer = open_store(small_run.store, "viewer")
    told, true = (
        {row["code"]: row for row in store.ask("data_quality", split="tuning").to_pylist()}
        for store in (viewer, small_store)
    )
    viewer.close()
    names = ("share_undated", "n_values", "share_of_commonest")
    assert any(told[code][name] is None for code in told for name in names)
    assert all(told[code][name] in (None, pytest.approx(true[code][name])) for code in told for name in names)
    assert all(true[code][name] is not None for code in true for name in names)


# -- leaks --------------------------------------------------------------------------------------------


def test_planted_leaks_are_found(small_run: SmallRun, tmp_path: Path) -> None:
    """What spikes, what counts for being measured and what differs by sex are each found, and nothing else is suspected."""
    about = StageDirectory.open(small_run.attributions).read("about", "feature_values").to_pandas()
    ids = {code: set(part["feature_value_id"]) for code, part in about.groupby("code")}
    run = StageDirectory.open(small_run.attributions)
    sex = {
        row["prediction_id"]: dict(row["strata"])["sex"]
        for name in run.shards
        for row in run.read(name, "predictions").to_pylist()
    }

    def planted(table: pa.Table) -> pa.Table:
        rows = table.to_pandas()
        random = np.random.default_rng(5)
        value = random.normal(0, 0.01, len(rows))
        late = (rows["minutes"] < 60 * WIDTH_HOURS).to_numpy()
        of = {code: rows["feature_value_id"].isin(numbers).to_numpy() for code, numbers in ids.items()}
        by_value = rows["feature_value_id"].to_numpy() % 2 * 0.2 - 0.1
        for code in ("lab", "count", "tied", "size", "AGE"):  # they contribute by their value
            value = np.where(of[code], value + by_value, value)
        value = np.where(of["lab"] & late, value * 20, value)
        value = np.where(of["tied"] & ~late, 0, value)  # as if it had been recorded late alone
        value = np.where(of["mixed"], value + 0.3, value)
        women = rows["prediction_id"].map(sex).eq("F").to_numpy()
        value = np.where(of["AGE"] & women, value + 0.2, value)
        at = table.column_names.index("attribution")
        return table.set_column(at, "attribution", pa.array(on_grid(value), pa.float32()))

    path = remade(small_run.attributions, tmp_path / "planted", rows=planted)
    publish_store(tmp_path / "store", aggregate_cells([path], tmp_path / "store", time_bin_hours=WIDTH_HOURS), [path])
    store = open_store(tmp_path / "store")
    found = store.ask("leak_finder", subgroups="sex", split=TRAIN, false_discovery_rate=0.001).to_pylist()
    store.close()
    suspected = {
        row["code"]: [name for name in ("spikes", "counts_for_being_measured", "differs_by_subgroup") if row[name]]
        for row in found
    }
    assert {code: why for code, why in suspected.items() if why} == {
        "lab": ["spikes"],
        "tied": ["spikes"],
        "mixed": ["counts_for_being_measured"],
        "AGE": ["differs_by_subgroup"],
    }
    assert next(row["spike"] for row in found if row["code"] == "tied") == math.inf
    assert [row["code"] for row in found[:4]] == sorted(
        ("lab", "mixed", "AGE", "tied"), key=lambda code: -next(r for r in found if r["code"] == code)["share_of_total"]
    )


# -- two runs -----------------------------------------------------------------------------------------

TWO_RUNS = [
    {},
    {"level": "value", "class": "true", "top": 7, "min_patients": 2},
    {"split": TRAIN, "level": "group", "stratum": "sex=F", "class": "false"},
]


def ranked(truth: Truth, asked: dict[str, Any]) -> dict[tuple[str, int | None], dict[str, Any]]:
    """The estimates of the features that enough patients have, the largest mean |contribution| first."""
    found = {}
    for name, rows in truth.features(asked, asked.get("level", "code")):
        cell = truth.estimate(rows, asked, None)
        if enough(asked, cell["n_patients"]):
            found[name["code"], name["feature_value_id"]] = cell
    return dict(sorted(found.items(), key=lambda one: (-one[1]["mean_abs_per_prediction"], one[0][0], one[0][1] or 0)))


@pytest.mark.parametrize("asked", TWO_RUNS)
def test_drift_is_the_difference_of_two_runs(asked: dict[str, Any], two_runs: tuple[Store, dict[str, Truth]]) -> None:
    store, truths = two_runs
    one, other = truths.values()
    a, b = ranked(one, asked), ranked(other, asked)
    expected = []
    for key in set(a) & set(b):
        means = a[key]["mean_per_prediction"], b[key]["mean_per_prediction"]
        expected.append(
            {
                "code": key[0], "feature_value_id": key[1], "description": one.word(*key)["description"],
                "mean_a": means[0], "mean_b": means[1], "difference": means[0] - means[1],
                "mean_abs_a": a[key]["mean_abs_per_prediction"], "mean_abs_b": b[key]["mean_abs_per_prediction"],
                "rank_a": [*a].index(key) + 1, "rank_b": [*b].index(key) + 1,
            }
        )  # fmt: skip
    expected.sort(key=lambda row: (-abs(row["difference"]), row["code"], row["feature_value_id"] or 0))
    expected = [{"rank": rank} | row for rank, row in enumerate(expected[: asked.get("top", 20)], 1)]
    found = store.ask("drift", run_a=one.run_id, run_b=other.run_id, **asked).to_pylist()
    assert len(found) == len(expected) > 1
    for told, row in zip(found, expected, strict=True):
        for key, value in row.items():
            if isinstance(value, float):
                told_nothing = told[key] is None and math.isnan(value)  # pandas has no other word for it
                assert told_nothing or told[key] == pytest.approx(value, rel=1e-9), key
            else:
                assert told[key] == value, key


@pytest.mark.parametrize("asked", TWO_RUNS)
def test_agreement_is_that_of_ranks_signs_and_tops(
    asked: dict[str, Any], two_runs: tuple[Store, dict[str, Truth]]
) -> None:
    store, truths = two_runs
    one, other = truths.values()
    a, b = ranked(one, asked), ranked(other, asked)
    both, top = sorted(set(a) & set(b), key=str), asked.get("top", 20)
    sizes = [[of[key]["mean_abs_per_prediction"] for key in both] for of in (a, b)]
    means = [np.array([of[key]["mean_per_prediction"] for key in both]) for of in (a, b)]
    [told] = store.ask("method_agreement", run_a=one.run_id, run_b=other.run_id, **asked).to_pylist()
    assert told["n_features"] == len(both)
    assert told["rank_correlation"] == pytest.approx(scipy.stats.spearmanr(*sizes).statistic, abs=1e-9)
    assert told["correlation"] == pytest.approx(np.corrcoef(*means)[0, 1], abs=1e-9)
    assert told["same_sign"] == (np.sign(means[0]) == np.sign(means[1])).mean()
    shared = len(set([*a][:top]) & set([*b][:top]))
    assert told["shared_top"] == shared / min(top, len(a))


def test_a_run_agrees_with_itself(two_runs: tuple[Store, dict[str, Truth]]) -> None:
    store, truths = two_runs
    run = next(iter(truths.values())).run_id
    [told] = store.ask("method_agreement", run_a=run, run_b=run).to_pylist()
    assert told["n_features"] > 3
    assert (told["rank_correlation"], told["correlation"]) == (pytest.approx(1), pytest.approx(1))
    assert (told["same_sign"], told["shared_top"]) == (1, 1)
    assert not any(row["difference"] for row in store.ask("drift", run_a=run, run_b=run).to_pylist())
    with pytest.raises(UserError, match="There is no run_b 'nobody'"):
        store.ask("drift", run_a=run, run_b="nobody")
