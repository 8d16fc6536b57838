"""How often a 95 % interval over patients holds the truth, in cohorts of every kind that records come in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import duckdb
import numpy as np
import pyarrow as pa

from whenwhy.schema import CELLS, EXPOSURE, FEATURE_VALUES, RUNS
from whenwhy.store.views import define_estimates

#: Records of one feature: how many a patient has.
COUNTS = ("one each", "a few (Poisson)", "Zipf 2.5", "Zipf 2", "Zipf 1.5")
#: And what they contribute: the mean of a patient's, beside noise of 1 for each record.
EFFECTS = ("alike", "normal", "skewed (gamma 2)", "very skewed (log-normal)", "larger with more records")

HAVE_IT, MOST_RECORDS = 0.5, 200
PATIENTS = (100, 200, 400, 1500, 5000)


@dataclass(frozen=True)
class Covered:
    """A kind of cohort, and which shares of its intervals held the truth; of cohorts within bounds of effective patients."""

    counts: str
    effects: str
    effective: tuple[float, float]
    cohorts: int
    per_event: float
    per_prediction: float


#: Bounds of effective patients: below the first there is no interval, and from the second on coverage is promised.
EFFECTIVE = ((30.0, 60.0), (60.0, np.inf))


def _counts(random: np.random.Generator, kind: str, shape: tuple[int, int]) -> np.ndarray:
    if kind == "one each":
        counts = np.ones(shape)
    elif kind == "a few (Poisson)":
        counts = 1.0 + random.poisson(2, shape)
    else:
        share = np.arange(1, MOST_RECORDS + 1) ** -float(kind.split()[1])
        counts = 1.0 + np.searchsorted(np.cumsum(share / share.sum()), random.random(shape) * 0.9999999)
    return counts * (random.random(shape) < HAVE_IT)


def _sums(random: np.random.Generator, counts: np.ndarray, kind: str) -> np.ndarray:
    shape = counts.shape
    effect = {
        "alike": lambda: random.normal(0.3, 0.2, shape),
        "normal": lambda: random.normal(0.3, 1, shape),
        "skewed (gamma 2)": lambda: random.gamma(2, 0.5, shape),
        "very skewed (log-normal)": lambda: random.lognormal(0, 1, shape),
        "larger with more records": lambda: random.normal(0.3, 1, shape) + 0.3 * np.log(np.maximum(counts, 1)),
    }[kind]()
    return effect * counts + random.normal(0, 1, shape) * np.sqrt(counts)


def covered(cohorts: int, seed: int = 1) -> Iterator[Covered]:
    """Each kind of cohort, with intervals worked out by a store's own view from the sums of cells.

    Args:
        cohorts: of each kind and number of patients.
    """
    random = np.random.default_rng(seed)
    for counts_kind in COUNTS:
        for effects in EFFECTS:
            many = _counts(random, counts_kind, (4 * cohorts, 2000))
            sums = _sums(random, many, effects)
            per_event, per_prediction = sums.sum() / many.sum(), sums.mean()
            found = []
            for patients in PATIENTS:
                n = _counts(random, counts_kind, (cohorts, patients))
                low, high, low_at_risk, high_at_risk, effective = _intervals(_sums(random, n, effects), n)
                holds = (low <= per_event) & (per_event <= high)
                found.append((effective, holds, (low_at_risk <= per_prediction) & (per_prediction <= high_at_risk)))
            effective, *holds = map(np.concatenate, zip(*found, strict=True))
            for least, most in EFFECTIVE:
                among = (effective >= least) & (effective < most)
                shares = [float(of[among].mean()) if among.sum() > cohorts / 4 else np.nan for of in holds]
                yield Covered(counts_kind, effects, (least, most), int(among.sum()), *shares)


def _intervals(s: np.ndarray, n: np.ndarray) -> list[np.ndarray]:
    """Bounds per event and per prediction, and effective patients, of each cohort [cohort] as a cell of its own."""
    cohorts, patients = s.shape
    made = {
        "n_events": n.sum(1).astype(np.int64), "n_patients": (n > 0).sum(1), "sum": s.sum(1), "s_ss": (s * s).sum(1),
        "s_sn": (s * n).sum(1), "s_nn": (n * n).sum(1), "s_s_N": s.sum(1), "s_sss": (s**3).sum(1),
        "s_ssn": (s * s * n).sum(1), "s_snn": (s * n * n).sum(1), "s_nnn": (n**3).sum(1),
    }  # fmt: skip
    key = {"run_id": "r", "target": "logit", "split": "train", "class": "all", "stratum": "all"}
    axis = {"time_axis": "before_prediction"}
    same = {"level": "code", "sum_abs": 0.0, "sum_sq": 0.0} | key | axis
    columns = made | {"code": [f"{at:06d}" for at in range(cohorts)]} | {k: [v] * cohorts for k, v in same.items()}
    cells = pa.table(
        {f.name: pa.array(columns[f.name], f.type) if f.name in columns else pa.nulls(cohorts, f.type) for f in CELLS}
    )
    at_risk = {"n_predictions": patients, "n_patients": patients, "s_NN": float(patients)}
    with duckdb.connect() as db:
        db.register("given_cells", cells)
        db.register("given_exposure", pa.Table.from_pylist([key | axis | at_risk], schema=EXPOSURE))
        db.register("given_values", FEATURE_VALUES.empty_table())
        db.register("given_runs", RUNS.empty_table())
        db.execute("create table cells as from given_cells")
        db.execute("create table exposure as from given_exposure")
        db.execute("create table feature_values as select 'r' as run_id, * from given_values")
        db.execute("create table runs as from given_runs")
        db.execute("create table code_groups (run_id varchar, code varchar, description varchar)")
        db.execute("create table partitions (run_id varchar, split varchar, kind varchar, patients_recur boolean)")
        define_estimates(db, with_rows=False)
        found = db.sql(
            """select coalesce(mean_per_event_low, 'nan') as a, coalesce(mean_per_event_high, 'nan') as b,
            coalesce(mean_per_prediction_low, 'nan') as c, coalesce(mean_per_prediction_high, 'nan') as d,
            effective_patients as e from estimates order by code"""
        ).fetchnumpy()
    return [np.asarray(found[name], dtype=np.float64) for name in "abcde"]
