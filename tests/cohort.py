"""A small made-up cohort in MEDS form, written file by file as a stranger's would be."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

EVENTS = pa.schema(
    [("subject_id", pa.int64()), ("time", pa.timestamp("us")), ("code", pa.string()), ("numeric_value", pa.float32())]
)
LABELS = pa.schema([("subject_id", pa.int64()), ("prediction_time", pa.timestamp("us")), ("boolean_value", pa.bool_())])
START = datetime(2020, 1, 1)


def write_cohort(folder: Path, patients: int, seed: int) -> None:
    """Patients with 0 to 40 events over ten days, 1 to 3 predictions each, some events after every prediction.

    A high "lab" makes the outcome likelier. "count" has few distinct values, "drug" no number, "mixed"
    sometimes one; "size" is static; two patients have no event at all.
    """
    random = np.random.default_rng(seed)
    events, labels, splits = [], [], []
    for subject in range(1, patients + 1):
        level = random.normal()
        sex = "F" if random.random() < 0.5 else "M"
        born = START - timedelta(days=int(random.integers(20, 95) * 365.25 + 5))
        rows = [(None, f"SEX//{sex}", None), (born, "MEDS_BIRTH", None)]
        if random.random() < 0.7:
            rows.append((None, "size", float(np.float32(random.normal(170, 10)))))
        for _ in range(int(random.integers(0, 41)) if subject > 2 else 0):
            time = START + timedelta(hours=int(random.integers(0, 240)), minutes=int(random.integers(0, 3)) * 20)
            code = random.choice(["lab", "count", "drug", "mixed", "tied"])
            value = {
                "lab": float(np.float32(level + random.normal())),
                "count": float(random.integers(0, 3)),
                "drug": None,
                "mixed": float(np.float32(random.normal())) if random.random() < 0.5 else None,
                "tied": float(np.float32(round(random.exponential(), 1))),
            }[code]
            rows.append((time, str(code), value))
        rows.sort(key=lambda row: (row[0] is not None, row[0] or START))
        events += [(subject, *row) for row in rows]
        hours = np.sort(random.choice(np.arange(100, 260), size=int(random.integers(1, 4)), replace=False))
        labels += [
            (subject, START + timedelta(hours=int(h)), bool(random.random() < 1 / (1 + np.exp(1 - 2 * level))))
            for h in hours
        ]
        splits.append((subject, ["train", "train", "train", "tuning", "held_out", "held_out"][subject % 6]))
    for part in ("data/a", "data/b", "metadata", "labels/outcome"):
        (folder / part).mkdir(parents=True)
    middle = patients // 2
    for name, chosen in (("a/0", [e for e in events if e[0] <= middle]), ("b/1", [e for e in events if e[0] > middle])):
        pq.write_table(_table(chosen, EVENTS), folder / "data" / f"{name}.parquet")
    pq.write_table(_table(labels, LABELS), folder / "labels" / "outcome" / "0.parquet")
    pq.write_table(
        _table(splits, pa.schema([("subject_id", pa.int64()), ("split", pa.string())])),
        folder / "metadata" / "subject_splits.parquet",
    )
    codes = [
        ("lab", "a laboratory value", "mg/dL", ["BLOOD", "MEASURED"]),
        ("count", "a small count", None, ["MEASURED"]),
        ("drug", "a drug", None, []),
        ("mixed", "sometimes a number", None, ["BLOOD"]),
    ]
    schema = pa.schema(
        [
            ("code", pa.string()),
            ("description", pa.string()),
            ("unit", pa.string()),
            ("parent_codes", pa.list_(pa.string())),
        ]
    )
    pq.write_table(_table(codes, schema), folder / "metadata" / "codes.parquet")
    (folder / "metadata" / "dataset.json").write_text(json.dumps({"dataset_name": "made up", "meds_version": "0.4.1"}))


#: The outcomes of `write_cohort_of_three`, and the code that makes each likelier.
CAUSES = {"home": "walked", "nursing": "fell", "dead": "bled"}


def write_cohort_of_three(folder: Path, patients: int, seed: int, column: str = "categorical_value") -> None:
    """Patients with one prediction of three outcomes, each made likelier by events of one code; others do nothing.

    The log-odds of an outcome grow by 2 with every event of its cause. As `integer_value` the outcomes are 2, 9 and 10.
    """
    random = np.random.default_rng(seed)
    names = list(CAUSES)
    values = names if column == "categorical_value" else [2, 9, 10]
    events, labels, splits = [], [], []
    when = START + timedelta(hours=240)
    for subject in range(1, patients + 1):
        counts = random.poisson(0.8, 3)
        codes = [CAUSES[name] for name, n in zip(names, counts, strict=True) for _ in range(n)]
        codes += [f"noise-{int(at)}" for at in random.integers(0, 4, int(random.integers(0, 7)))]
        times = sorted(START + timedelta(hours=int(h)) for h in random.choice(240, len(codes), replace=False))
        events += [
            (subject, time, str(code), None) for time, code in zip(times, random.permutation(codes), strict=True)
        ]
        odds = np.exp(2.0 * counts)
        labels.append((subject, when, values[int(random.choice(3, p=odds / odds.sum()))]))
        splits.append((subject, ["train", "train", "train", "tuning", "held_out", "held_out"][subject % 6]))
    for part in ("data", "metadata", "labels/outcome"):
        (folder / part).mkdir(parents=True)
    kind = pa.string() if column == "categorical_value" else pa.int64()
    schema = pa.schema([*list(LABELS)[:2], (column, kind)])
    pq.write_table(_table(events, EVENTS), folder / "data" / "0.parquet")
    pq.write_table(_table(labels, schema), folder / "labels" / "outcome" / "0.parquet")
    pq.write_table(
        _table(splits, pa.schema([("subject_id", pa.int64()), ("split", pa.string())])),
        folder / "metadata" / "subject_splits.parquet",
    )
    (folder / "metadata" / "dataset.json").write_text(json.dumps({"dataset_name": "three", "meds_version": "0.4.1"}))


def _table(rows: list[tuple], schema: pa.Schema) -> pa.Table:
    return pa.Table.from_pylist([dict(zip(schema.names, row, strict=True)) for row in rows], schema=schema)
