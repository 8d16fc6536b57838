"""How fast attributions become a store beside DuckDB and dask.dataframe, in how much memory; and how it answers then."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.attributions import write_attributions
from benchmarks.coverage import EFFECTIVE, covered
from whenwhy.store import Store, open_store

#: A whole `whenwhy aggregate` by two workers: seconds, and the most memory that the process held.
AGGREGATE = """
import json, sys, threading, time
from pathlib import Path
import psutil
from whenwhy.statistics import aggregate_cells
from whenwhy.store import publish_store

attributions, store = Path(sys.argv[1]), Path(sys.argv[2])
peak, stop = [0], threading.Event()

def watch():
    me = psutil.Process()
    while not stop.wait(0.02):
        told = me.memory_info()
        peak[0] = max(peak[0], told.rss - told.shared)

threading.Thread(target=watch, daemon=True).start()
begin = time.monotonic()
cells = aggregate_cells([attributions], store, workers=2)
summed = time.monotonic() - begin
publish_store(store, cells, [attributions])
print(json.dumps({"seconds": time.monotonic() - begin, "summed": summed, "peak": peak[0]}))
"""

#: The same cells, and no more: no store of rows, nothing decided about who may see what.
DUCKDB = """
import json, sys, time
from pathlib import Path
import duckdb
from replicas.cells_by_duckdb import cells_by_duckdb
from whenwhy.shards import StageDirectory

run = StageDirectory.open(Path(sys.argv[1]))
words = run.read("about", "feature_values").select(["feature_value_id", "code", "parents"])
files = [[run.file(name, table) for name in run.shards] for table in ("attributions", "predictions")]
begin = time.monotonic()
with duckdb.connect(config={"threads": 2, "memory_limit": "8GB", "temp_directory": sys.argv[2]}) as db:
    cells_by_duckdb(db, *files, words, int(sys.argv[3]), int(sys.argv[4]))
    [(cells,)] = db.execute("select count(*) from cells_found").fetchall()
print(json.dumps({"seconds": time.monotonic() - begin, "cells": cells}))
"""

#: The same by dask.dataframe: a groupby of patients within cells, and one of cells, for each of the six margins.
DASK = """
import json, sys, time
from pathlib import Path
import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
from whenwhy.shards import StageDirectory

run = StageDirectory.open(Path(sys.argv[1]))
width, bins = int(sys.argv[3]), int(sys.argv[4])
words = run.read("about", "feature_values").select(["feature_value_id", "code", "parents"]).to_pandas()
words["group"] = words.pop("parents").map(lambda of: of[0] if len(of) else None)  # here each code has one
predictions = pd.concat([run.read(name, "predictions").to_pandas() for name in run.shards])
right = np.where(predictions["predicted"] == predictions["label"], "yes", "no")
strata = [
    ["all", *(f"{k}={v}" for k, v in of), f"predicted={p}", f"correct={r}"]
    for of, p, r in zip(predictions["strata"], predictions["predicted"], right)
]
people = predictions[["prediction_id", "subject_id", "split"]].assign(
    stratum=strata, label=[["all", label] for label in predictions["label"]]
).explode("stratum").explode("label")

def entries(part):
    part = part.merge(words, on="feature_value_id").merge(people, on="prediction_id")
    part["s"] = part["attribution"].astype(np.float64)
    part["square"], part["size"] = part["s"] ** 2, part["s"].abs()
    part["bin"] = (part["minutes"] // (60 * width)).clip(upper=bins - 1)
    return part

begin = time.monotonic()
files = [run.file(name, "attributions") for name in run.shards]
rows = dd.read_parquet([str(file) for file in files], columns=["prediction_id", "feature_value_id", "minutes", "attribution"])
rows = rows.map_partitions(entries)
count = 0
for feature in ("feature_value_id", "code", "group"):
    for time_bin in (["bin"], []):
        keys = [feature, "split", "label", "stratum", *time_bin]
        patients = rows.groupby([*keys, "subject_id"]).agg({"s": ["sum", "count"], "size": "sum", "square": "sum"})
        patients.columns = ["s", "n", "size", "square"]
        patients = patients.reset_index()
        for name, one, other in (("ss", "s", "s"), ("sn", "s", "n"), ("nn", "n", "n")):
            patients[name] = patients[one] * patients[other]
        for name, one, other in (("sss", "ss", "s"), ("ssn", "ss", "n"), ("snn", "sn", "n"), ("nnn", "nn", "n")):
            patients[name] = patients[one] * patients[other]
        sums = ["s", "n", "size", "square", "ss", "sn", "nn", "sss", "ssn", "snn", "nnn"]
        with dask.config.set(scheduler="threads", num_workers=2):
            count += len(patients.groupby(keys)[sums].sum().compute())
print(json.dumps({"seconds": time.monotonic() - begin, "cells": count}))
"""


def measure(small: bool, folder: Path | None) -> dict[str, float | None]:
    """Rates of the whole aggregation over those of others for the same cells, and peak memory at the largest size."""
    few, some, many = (20_000, 100_000, 200_000) if small else (4_000_000, 4_000_000, 100_000_000)
    with tempfile.TemporaryDirectory() as scratch:
        place = folder or Path(scratch)

        def attributions(rows: int) -> Path:
            return write_attributions(place / f"attributions-{rows}", rows).path

        def aggregate(rows: int) -> dict[str, float]:
            store = place / f"store-{rows}"
            shutil.rmtree(store, ignore_errors=True)
            return _run(AGGREGATE, attributions(rows), store)

        told: dict[str, float | None] = {}
        for name, program, rows in (("duckdb", DUCKDB, some), ("dask_dataframe", DASK, few)):
            ours = aggregate(rows)
            axes = json.loads((place / f"store-{rows}" / "time_axes.json").read_bytes())["axes"]
            axis = axes[0]
            theirs = _run(program, attributions(rows), place / "spilled", axis["width_hours"], axis["n_bins"])
            told[f"aggregate_vs_{name}"] = theirs["seconds"] / ours["seconds"]
            told[f"cells_vs_{name}"] = theirs["seconds"] / ours["summed"]
        largest = aggregate(many)
        told |= _answers(place / f"store-{many}")
    told["peak_memory_gib"] = largest["peak"] / 2**30
    told["rows_per_second"] = many / largest["seconds"]
    return told | _coverage(100 if small else 1000)


#: Of a patient in four, who are not a stratum of the store.
COHORT = "subject_id % 4 = 1 and score > 0"


def _answers(path: Path) -> dict[str, float | None]:
    """Warm medians in milliseconds: queries that read cells, one feature over a cohort, a ranking over it, one patient."""
    store = open_store(path)
    [feature] = store.ask("top_features", top=1)["code"].to_pylist()
    [subject] = store.sql("select max(subject_id) as s from predictions")["s"].to_pylist()
    of_feature = ("feature_summary", "feature_timeline", "value_effect", "feature_heatmap")
    cells = [(name, {"feature": feature}) for name in of_feature]
    cells += [(name, {}) for name in ("top_features", "class_comparison", "feature_ranking", "number_at_risk")]
    cells += [("subgroup_disagreement", {"subgroups": "sex"})]
    asked = {
        "query_ms_cells": cells,
        "query_ms_cohort": [(name, {"feature": feature, "cohort": COHORT}) for name in of_feature],
        "ranking_ms_cohort": [("top_features", {"cohort": COHORT})],
        "patient_ms": [("patient", {"subject_id": subject})],
    }
    told = {key: float(np.median([_warm(store, *one) for one in several])) for key, several in asked.items()}
    store.close()
    return told


def _warm(store: Store, query: str, asked: dict[str, object], times: int = 7) -> float:
    """The median of some answers after the first, in milliseconds."""
    took = []
    for _ in range(times + 1):
        begin = time.perf_counter()
        store.ask(query, **asked)
        took.append((time.perf_counter() - begin) * 1000)
    median = float(np.median(took[1:]))
    print(f"{query} {asked}: {median:.0f} ms")
    return median


def _coverage(cohorts: int) -> dict[str, float | None]:
    """Of intervals over at least 60 effective patients, per event and per prediction: all kinds together, and the worst."""
    promised = []
    print("| records a patient | contributions | effective patients | cohorts | per event | per prediction |")
    print("|---|---|---|---|---|---|")
    for found in covered(cohorts):
        least, most = found.effective
        among = f"{least:.0f} to {most:.0f}" if np.isfinite(most) else f"{least:.0f} or more"
        shares = f"{found.per_event:.3f} | {found.per_prediction:.3f}"
        print(f"| {found.counts} | {found.effects} | {among} | {found.cohorts:,} | {shares} |")
        if found.effective == EFFECTIVE[-1]:
            promised.append((found.cohorts, found.per_event, found.per_prediction))
    weight, *shares = np.array(promised).T
    return {
        "interval_coverage": float(np.average(np.mean(shares, axis=0), weights=weight)),
        "interval_coverage_lowest": float(np.min(shares)),
        "interval_coverage_highest": float(np.max(shares)),
    }


def _run(program: str, *arguments: object) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[1],
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    told: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return told
