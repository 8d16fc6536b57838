"""Predictions: what the model says of every asked prediction, in the form that meds-evaluation reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from meds_evaluation.schema import PredictionSchema

from conftest import SmallRun
from whenwhy.errors import UserError
from whenwhy.models.checkpoint import load_model
from whenwhy.models.predictions import predict, scored_shards
from whenwhy.models.training import load_sequences
from whenwhy.schema import SPLITS
from whenwhy.shards import StageDirectory

#: `meds_evaluation.schema.PredictionSchema` of version 0.0.6, written down.
MEDS_EVALUATION = {
    "subject_id": pa.int64(),
    "prediction_time": pa.timestamp("us"),
    "boolean_value": pa.bool_(),
    "predicted_boolean_value": pa.bool_(),
    "predicted_boolean_probability": pa.float32(),
}


def test_held_out_predictions_are_those_that_training_measured(small_run: SmallRun, tmp_path: Path) -> None:
    written = predict(small_run.sequences, small_run.model, tmp_path / "new" / "predictions.parquet")
    table = pq.read_table(tmp_path / "new" / "predictions.parquet")
    told = StageDirectory.open(small_run.model).read("fold-1", "predictions")
    assert written == table.num_rows == told.num_rows
    assert dict(zip(table.schema.names, table.schema.types, strict=True)) == MEDS_EVALUATION
    for name in ("subject_id", "prediction_time"):
        assert table[name].to_pylist() == told[name].to_pylist()
    assert table["boolean_value"].to_pylist() == [label == "true" for label in told["label"].to_pylist()]
    probability = told["probability"].to_numpy()
    np.testing.assert_array_equal(table["predicted_boolean_probability"].to_numpy(), probability.astype(np.float32))
    assert table["predicted_boolean_value"].to_pylist() == (probability >= 0.5).tolist()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["predictions.parquet"]


def test_splits_are_parts_of_all(small_run: SmallRun, tmp_path: Path) -> None:
    def predicted(split: str) -> dict[tuple, float]:
        predict(small_run.sequences, small_run.model, tmp_path / split, split)
        rows = pq.read_table(tmp_path / split).to_pylist()
        found = {(r["subject_id"], r["prediction_time"]): r["predicted_boolean_probability"] for r in rows}
        assert len(found) == len(rows)
        return found

    parts, everything = [predicted(split) for split in SPLITS], predicted("all")
    assert all(parts)
    assert sum(map(len, parts)) == len(everything)
    assert parts[0] | parts[1] | parts[2] == pytest.approx(everything, abs=1e-6)


def test_meds_evaluation_takes_them(small_run: SmallRun, tmp_path: Path) -> None:
    predict(small_run.sequences, small_run.model, tmp_path / "predictions.parquet", "all")
    PredictionSchema.validate(pq.read_table(tmp_path / "predictions.parquet"))


def test_scores_come_in_order_a_shard_at_a_time(small_run: SmallRun) -> None:
    source, model = StageDirectory.open(small_run.sequences), load_model(StageDirectory.open(small_run.model))
    sequences = load_sequences(source)
    wanted = lambda s: np.flatnonzero(s.column("subject_id") % 3 == 0)  # noqa: E731
    shards = list(scored_shards(model, source, wanted))
    assert len(shards) == len(source.shards) > 1
    assert (
        np.concatenate([s.column("subject_id") for s in shards]) == sequences.column("subject_id")[wanted(sequences)]
    ).all()
    batch = sequences.batch(wanted(sequences))
    with torch.no_grad():
        expected = model.score(model.embed(batch), batch.lengths).numpy()
    np.testing.assert_allclose(np.concatenate([s.score for s in shards]), expected, atol=1e-5)
    assert list(scored_shards(model, source, lambda s: np.arange(0))) == []


@pytest.mark.parametrize("split", ["heldout", "test"])
def test_unknown_splits_are_refused(small_run: SmallRun, tmp_path: Path, split: str) -> None:
    with pytest.raises(UserError, match=f"There is no split '{split}'"):
        predict(small_run.sequences, small_run.model, tmp_path / "predictions.parquet", split)


def test_nothing_is_left_by_a_failure(small_run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "predictions.parquet").write_bytes(b"before")

    def fails(*_: object, **__: object) -> object:
        raise OSError("disk full")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", fails)
    with pytest.raises(OSError, match="disk full"):
        predict(small_run.sequences, small_run.model, tmp_path / "predictions.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.parquet"]
    assert (tmp_path / "predictions.parquet").read_bytes() == b"before"


def test_a_directory_is_no_file_to_write(small_run: SmallRun, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a directory"):
        predict(small_run.sequences, small_run.model, tmp_path)
