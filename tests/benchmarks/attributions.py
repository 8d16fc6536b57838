"""Made-up attributions of any size, with codes as frequent as real ones are: a few everywhere, most rare (Zipf)."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa

from whenwhy.attribution.attribute_shards import AttributeSettings
from whenwhy.attribution.attribution_directory import ABOUT, PREDICTION_ROWS, ROWS, first_prediction_id
from whenwhy.events.sequence_directory import CODE_GROUPS as HIERARCHY
from whenwhy.events.sequence_directory import VOCABULARY, shard_names
from whenwhy.schema import ATTRIBUTIONS, CODE_GROUPS, FEATURE_VALUES, PREDICTIONS, RECORDED, on_grid
from whenwhy.shards import StageDirectory

ROWS_A_SHARD, ROWS_A_PATIENT = 1_000_000, 200
CODES, VALUES = 2_000, 5

#: Reach of records, in days before the prediction.
DAYS = 240


def write_attributions(out: Path, rows: int, seed: int = 1) -> StageDirectory:
    """So many rows of one run, in shards of a million; continued where an earlier call stopped."""
    random = np.random.default_rng(seed)
    shares = 1 / np.arange(1, CODES * VALUES + 1)
    shares = random.permutation(shares / shares.sum())
    vocabulary = _vocabulary(shares, rows)
    shards = shard_names(0, max(1, rows // ROWS_A_SHARD))
    stage = StageDirectory.create(
        out,
        stage="attribute",
        settings=asdict(AttributeSettings("gradient_times_input")),
        inputs={"sequences": {"sha256": "0" * 64, "rows": rows, "seed": seed}},
        besides=[ABOUT],
        shards=shards,
        code_version="benchmark",
    )
    told = {"vocabulary_sha256": "1" * 64, "outcome": "made up", "model_sha256": "2" * 64, "quality": {"folds": []}}
    stage.publish(ABOUT, {VOCABULARY: vocabulary, HIERARCHY: _hierarchy()}, told)
    for number, name in enumerate(shards):
        if not stage.has(name):
            files = _shard(np.random.default_rng([seed, number]), name, number, min(rows, ROWS_A_SHARD), shares)
            n = {"n_rows": files[ROWS].num_rows, "n_predictions": files[PREDICTION_ROWS].num_rows}
            stage.publish(name, files, n)
    return stage


def _vocabulary(shares: np.ndarray, rows: int) -> pa.Table:
    """Feature value 0 is everything absent, as in a real table; codes are of three groups."""
    made = [
        dict.fromkeys(FEATURE_VALUES.names)
        | {
            "feature_value_id": 0,
            "code": "(everything absent)",
            "kind": RECORDED,
            "parents": [],
            "groups": [],
            "n_train": 0,
        }
    ]
    for at, share in enumerate(shares):
        code, value = divmod(at, VALUES)
        made.append(
            {
                "feature_value_id": at + 1, "code": f"code-{code:05d}", "kind": RECORDED, "description": f"the code {code}",
                "unit": "1", "bin": value, "low": float(value), "high": float(value + 1), "n_train": int(share * rows),
                "n_train_patients": int(share * rows), "parents": [f"group-{code % 3}"],
                "groups": [f"group-{code % 3}"],
            }
        )  # fmt: skip
    return pa.Table.from_pylist(made, schema=FEATURE_VALUES)


def _hierarchy() -> pa.Table:
    edges = [(f"code-{code:05d}", f"group-{code % 3}") for code in range(CODES)]
    edges += [(f"group-{number}", None) for number in range(3)]
    return pa.Table.from_pylist(
        [{"code": code, "parent": parent, "description": None} for code, parent in edges], schema=CODE_GROUPS
    )


def _shard(random: np.random.Generator, name: str, number: int, rows: int, shares: np.ndarray) -> dict[str, pa.Table]:
    patients = rows // ROWS_A_PATIENT
    first = first_prediction_id(name)
    sex, age = random.integers(0, 2, patients), random.integers(2, 9, patients)
    label = random.random(patients) < 0.3
    history = (random.random(patients) * DAYS * 1440).astype(np.int32) + 1440
    row = np.sort(random.integers(0, patients, rows))
    ids = (np.searchsorted(np.cumsum(shares), random.random(rows)) + 1).clip(max=len(shares)).astype(np.int32)
    minutes = (random.random(rows) ** 2 * history[row]).astype(np.int32)
    attribution = on_grid(random.normal(np.sin(ids) * 0.05 * (1 + label[row]), 0.05))
    order = np.lexsort((row, ids))
    nothing = pa.nulls(rows, pa.float32())
    columns = {
        "prediction_id": first + row[order], "step": (minutes[order] // 1440).astype(np.int32),
        "feature_value_id": ids[order], "minutes": minutes[order], "numeric_value": nothing,
        "attribution": attribution[order], "spread": nothing, "slope": nothing, "step_minutes": pa.nulls(rows, pa.int32()),
    }  # fmt: skip
    score = np.bincount(row, weights=attribution, minlength=patients)
    split = np.array(["train", "tuning", "held_out"])[random.choice(3, patients, p=[0.7, 0.1, 0.2])]
    strata = [
        [("age_band", f"{a * 10}-{a * 10 + 9}"), ("sex", "FM"[s])]
        for a, s in zip(age.tolist(), sex.tolist(), strict=True)
    ]
    predictions = {
        "prediction_id": first + np.arange(patients), "subject_id": number * patients + np.arange(patients),
        "prediction_time": np.full(patients, np.datetime64("2020-01-01", "us")), "target": ["logit"] * patients,
        "label": np.where(label, "true", "false"), "predicted": np.where(score > 0, "true", "false"), "split": split,
        "score": score, "baseline_score": np.zeros(patients), "probability": 1 / (1 + np.exp(-score)),
        "completeness_residual": np.zeros(patients), "source": ["0"] * patients, "n_nodes": np.ones(patients, np.int32),
        "notes": [[]] * patients, "n_steps": np.full(patients, 10, np.int32),
        "n_values": np.bincount(row, minlength=patients).astype(np.int32), "history_minutes": history,
        "anchor_minutes": pa.nulls(patients, pa.int32()), "strata": strata,
    }  # fmt: skip
    return {
        ROWS: pa.table(columns).cast(ATTRIBUTIONS),
        PREDICTION_ROWS: pa.table({n: pa.array(v, PREDICTIONS.field(n).type) for n, v in predictions.items()}),
    }


if __name__ == "__main__":
    import sys

    print(json.dumps(write_attributions(Path(sys.argv[1]), int(float(sys.argv[2]))).run_id))
