"""The attribute stage: killed and resumed, by Ray or inline, it writes the same bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import whenwhy
from conftest import INLINE, SmallRun
from whenwhy.attribution import attribute
from whenwhy.attribution.attribute_shards import AttributeSettings, attribute_shards
from whenwhy.attribution.attribution_directory import FITTED, PREDICTION_ROWS, ROWS, read_fitted
from whenwhy.attribution.population import POPULATION
from whenwhy.attribution.run_summary import fitted_sentence, residual_sentence, residual_summary
from whenwhy.engine import Workers
from whenwhy.errors import UserError
from whenwhy.events.sequence_batch import Sequences
from whenwhy.events.sequences import TABLE, PrepareSettings, prepare
from whenwhy.information import information
from whenwhy.models.checkpoint import load_model
from whenwhy.models.training import TrainSettings, train
from whenwhy.schema import ATTRIBUTION_UNITS, ATTRIBUTIONS, PREDICTIONS
from whenwhy.shards import StageDirectory
from whenwhy.statistics.aggregate import aggregate_cells
from whenwhy.store import open_store, publish_store


def test_ray_and_inline_write_the_same_bytes(small_run: SmallRun, tmp_path: Path) -> None:
    by_ray = attribute_shards(
        small_run.sequences, small_run.model, tmp_path / "attr", AttributeSettings(), Workers(count=2)
    )
    inline = StageDirectory.open(small_run.attributions)
    assert by_ray.run_id == inline.run_id
    assert by_ray.content_sha256() == inline.content_sha256()


@pytest.mark.parametrize("finished", [pytest.param(1, marks=pytest.mark.full), 3])
def test_killed_half_way_it_continues_to_the_same_bytes(tmp_path: Path, small_run: SmallRun, finished: int) -> None:
    """The command is killed by SIGKILL once some shards are there, and started again."""
    sequences = tmp_path / "sequences"
    settings = PrepareSettings("the outcome", strata=("age_band", "sex"), bins=4, shard_size=32)
    prepare(small_run.meds, small_run.labels, sequences, settings, INLINE)
    train(sequences, tmp_path / "model", TrainSettings(hidden=8, epochs=1), INLINE)
    undisturbed = attribute_shards(
        sequences, tmp_path / "model", tmp_path / "undisturbed", AttributeSettings(), INLINE
    ).content_sha256()
    command = [
        sys.executable, "-m", "whenwhy", "attribute", str(sequences), "--model", str(tmp_path / "model"),
        "--out", str(tmp_path / "attr"), "--inline",
    ]  # fmt: skip
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    entries = tmp_path / "attr" / "entries"
    for _ in range(6000):
        if len(list(entries.glob("g0-*.json"))) >= finished:
            break
        time.sleep(0.01)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    stage = StageDirectory.open(tmp_path / "attr")
    left = len(stage.missing())
    assert 0 < left < len(stage.shards)
    before = {path: path.stat().st_mtime_ns for path in entries.glob("g0-*.json")}
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"{len(stage.shards)}/{len(stage.shards)}" in again.stderr
    assert len(again.stderr.splitlines()) == left  # finished shards are not done again
    assert all(path.stat().st_mtime_ns == modified for path, modified in before.items())
    assert stage.content_sha256() == undisturbed


def test_a_method_is_fitted_once_and_the_run_keeps_what_it_learned(small_run: SmallRun, tmp_path: Path) -> None:
    settings = AttributeSettings("amortised_mask", options={"epochs": 2, "hidden": 4, "gap_epochs": 3})
    stage = attribute_shards(small_run.sequences, small_run.model, tmp_path / "attr", settings, INLINE)
    told = stage.entry(FITTED).summary
    assert told["n_records"] > 0
    assert told["held_out"] == 1
    assert "gap" in fitted_sentence(stage)
    fitted = read_fitted(stage)
    assert fitted is not None
    # The shards are those of the tensors that were kept.
    source = Sequences(StageDirectory.open(small_run.sequences).read(stage.shards[0], TABLE))
    model = load_model(StageDirectory.open(small_run.model, "train"))
    found = attribute(
        model, source.batch(np.arange(3)), method="amortised_mask", options=stage.settings["options"], fitted=fitted
    )
    first = stage.read(stage.shards[0], ROWS).to_pandas()
    ids = stage.read(stage.shards[0], PREDICTION_ROWS)["prediction_id"].to_pylist()[:3]
    mine = first[first.prediction_id.isin(ids)].attribution.sum()
    assert abs(mine - sum(float(part.double().sum()) for part in found.streams.values())) < 1e-3
    # Killed after the fit, it is not fitted again, and a new run ends with the same bytes.
    for shard in stage.shards:
        (stage.path / "entries" / f"{shard}.json").unlink()
    kept = (stage.path / "entries" / f"{FITTED}.json").stat().st_mtime_ns
    again = attribute_shards(small_run.sequences, small_run.model, tmp_path / "attr", settings, INLINE)
    assert (stage.path / "entries" / f"{FITTED}.json").stat().st_mtime_ns == kept
    anew = attribute_shards(small_run.sequences, small_run.model, tmp_path / "anew", settings, INLINE)
    assert again.content_sha256() == anew.content_sha256()
    assert read_fitted(StageDirectory.open(small_run.attributions)) is None


def test_tables_keep_the_contract_and_add_up(small_run: SmallRun) -> None:
    stage, sequences = StageDirectory.open(small_run.attributions), StageDirectory.open(small_run.sequences)
    worst = 0.0
    for shard in stage.shards:
        rows, predictions = stage.read(shard, ROWS), stage.read(shard, PREDICTION_ROWS)
        assert rows.schema.equals(ATTRIBUTIONS)
        assert predictions.schema.equals(PREDICTIONS)
        source = sequences.read(shard, TABLE)
        assert predictions["subject_id"].equals(source["subject_id"])
        ids = rows["feature_value_id"].to_numpy()
        assert (np.diff(ids) >= 0).all()
        attribution = rows["attribution"].to_numpy().astype(np.float64)
        assert (attribution * ATTRIBUTION_UNITS % 1 == 0).all()
        frame = predictions.to_pandas().set_index("prediction_id")
        summed = rows.to_pandas().assign(attribution=attribution).groupby("prediction_id").attribution.sum()
        summed = summed.reindex(frame.index, fill_value=0.0)
        residual = summed - (frame.score - frame.baseline_score)
        assert np.allclose(residual, frame.completeness_residual, atol=1e-12)
        worst = max(worst, residual.abs().max())
        values = [
            len(e) + len(s)
            for e, s in zip(source["event_id"].to_pylist(), source["static_id"].to_pylist(), strict=True)
        ]
        assert frame.n_values.to_list() == values
        assert rows.num_rows == sum(values)
        static = rows.filter(rows["step"].is_null())
        assert static["minutes"].null_count == static.num_rows == sum(map(len, source["static_id"].to_pylist()))
        first = [minutes[0] if minutes else None for minutes in source["step_minutes"].to_pylist()]
        assert predictions["history_minutes"].to_pylist() == first
    told = residual_summary(stage)
    assert told["maximum"] == worst <= told["tolerance"]
    assert told["n_over_tolerance"] == 0


def test_a_model_of_another_vocabulary_is_refused(small_run: SmallRun, tmp_path: Path) -> None:
    other = prepare(small_run.meds, small_run.labels, tmp_path / "other", PrepareSettings("x", bins=3), INLINE)
    with pytest.raises(UserError, match="trained on other feature values"):
        attribute_shards(other.path, small_run.model, tmp_path / "attr", AttributeSettings(), INLINE)
    assert not (tmp_path / "attr").exists()


def test_unfinished_inputs_are_refused(small_run: SmallRun, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(small_run.sequences, tmp_path / "sequences")
    (tmp_path / "sequences" / "entries" / "g0-00000.json").unlink()
    with pytest.raises(UserError, match="unfinished"):
        attribute_shards(tmp_path / "sequences", small_run.model, tmp_path / "attr", AttributeSettings(), INLINE)
    assert not (tmp_path / "attr").exists()


@pytest.mark.parametrize("baseline", ["rates", "carried_forward", "reference"])
def test_absence_has_rows_where_the_baseline_records_something(
    small_run: SmallRun, tmp_path: Path, baseline: str
) -> None:
    settings = AttributeSettings(baseline=baseline)
    stage = attribute_shards(small_run.sequences, small_run.model, tmp_path / "attr", settings, INLINE)
    sequences = StageDirectory.open(small_run.sequences)
    told = residual_summary(stage)
    assert told["maximum"] <= told["tolerance"]
    some = 0
    for shard in stage.shards:
        rows, predictions = stage.read(shard, ROWS).to_pandas(), stage.read(shard, PREDICTION_ROWS).to_pandas()
        absent = rows[rows.feature_value_id == 0]
        steps = sequences.read(shard, TABLE)["step_minutes"].to_pylist()
        dated = absent[absent.step.notna()]
        assert len(absent) == len(dated) + len(predictions)
        assert dated.minutes.tolist() == [minute for minutes in steps for minute in minutes]
        assert (predictions.n_values == [len(r) for r in _values_of(sequences, shard)]).all()
        some += int((absent.attribution != 0).sum())
    assert some > 100
    cells = aggregate_cells([stage.path], tmp_path / "cells")
    assert cells.table("cells").num_rows > 0


def test_references_are_drawn_beside_the_empty_baseline_too(small_run: SmallRun, tmp_path: Path) -> None:
    """Expected gradients need the training patients whatever the baseline is called."""
    settings = AttributeSettings(method="expected_gradients", options={"samples": "2"})
    stage = attribute_shards(small_run.sequences, small_run.model, tmp_path / "attr", settings, INLINE)
    named = AttributeSettings(method="expected_gradients", options={"samples": "2"}, baseline="reference")
    same = attribute_shards(small_run.sequences, small_run.model, tmp_path / "named", named, INLINE)
    for shard in stage.shards:
        rows = stage.read(shard, ROWS)
        assert rows.equals(same.read(shard, ROWS))
        assert 0 in rows["feature_value_id"].to_pylist()
        baseline = stage.read(shard, PREDICTION_ROWS)["baseline_score"].to_numpy()
        assert len(np.unique(baseline)) > len(baseline) / 2  # not one score for all


@pytest.mark.parametrize(
    ("method", "options", "needed"),
    [("augmented_occlusion", {"samples": 2}, True), ("occlusion", {"unit": "code"}, True), ("occlusion", {}, False)],
)
def test_a_run_keeps_the_population_that_its_method_needs(
    small_run: SmallRun, tmp_path: Path, method: str, options: dict[str, Any], needed: bool
) -> None:
    settings = AttributeSettings(method=method, options=options)
    stage = attribute_shards(small_run.sequences, small_run.model, tmp_path / "attr", settings, INLINE)
    stage.require_complete()
    assert (POPULATION in stage.manifest["besides"]) == needed
    assert stage.has(POPULATION) == needed
    assert any((stage.read(shard, ROWS)["attribution"].to_numpy() != 0).any() for shard in stage.shards)


def test_attention_goes_to_the_store_as_what_it_is(small_run: SmallRun, tmp_path: Path) -> None:
    train(
        small_run.sequences, tmp_path / "model", TrainSettings(architecture="gru_attention", hidden=8, epochs=1), INLINE
    )
    settings = AttributeSettings(method="attention")
    stage = attribute_shards(small_run.sequences, tmp_path / "model", tmp_path / "attr", settings, INLINE)
    assert "not a contribution" in residual_sentence(stage)
    assert residual_summary(stage)["maximum"] is None
    predictions = stage.read(stage.shards[0], PREDICTION_ROWS)
    assert predictions["completeness_residual"].null_count == predictions.num_rows > 0
    store = tmp_path / "store"
    publish_store(store, aggregate_cells([tmp_path / "attr"], store), [tmp_path / "attr"])
    assert any("not a contribution" in line for line in information(str(store)))
    opened = open_store(store)
    [run] = opened.ask("runs").to_pylist()
    assert (run["measures"], run["baseline"], run["residual_maximum"]) == ("attention", "nothing", None)
    weight = opened.sql("select min(attribution) as low, max(attribution) as high from attributions").to_pylist()[0]
    assert 0 <= weight["low"] < weight["high"] <= 1
    opened.close()


def test_spread_and_notes_are_stored(small_run: SmallRun, tmp_path: Path) -> None:
    settings = AttributeSettings(method="relevance_dropout", options={"runs": 5})
    stage = attribute_shards(small_run.sequences, small_run.model, tmp_path / "attr", settings, INLINE)
    shard = stage.shards[0]
    rows, predictions = stage.read(shard, ROWS), stage.read(shard, PREDICTION_ROWS)
    sequences = Sequences(StageDirectory.open(small_run.sequences).read(shard, TABLE))
    model = load_model(small_run.model)
    batch = sequences.batch(np.arange(len(sequences)))
    found = attribute(model, batch, method="relevance_dropout", options={"runs": 5})
    told = np.array([dict(notes)["bias_share"] for notes in predictions["notes"].to_pylist()])
    np.testing.assert_allclose(told, found.notes["bias_share"].numpy(), rtol=1e-4, atol=1e-4)
    # Rows are in another order than the batch's values: the sorted ones are compared.
    stored = np.sort(rows["spread"].to_numpy())
    expected = np.sort(np.concatenate([spread.numpy() for spread in found.spread.values()]))
    np.testing.assert_allclose(stored, expected, rtol=1e-3, atol=1e-6)
    assert (stored > 0).mean() > 0.9
    none = StageDirectory.open(small_run.attributions)
    assert none.read(none.shards[0], ROWS)["spread"].null_count == none.read(none.shards[0], ROWS).num_rows
    assert not any(none.read(none.shards[0], PREDICTION_ROWS)["notes"].to_pylist())


def test_the_package_offers_what_people_call(small_run: SmallRun) -> None:
    sequences = whenwhy.load_sequences(small_run.sequences)
    found = whenwhy.attribute(whenwhy.load_model(str(small_run.model)), sequences.batch(np.arange(4)))
    assert float(found.residual.abs().max()) < 1e-4
    assert set(whenwhy.__all__) <= set(dir(whenwhy))
    with pytest.raises(AttributeError, match="no attribute 'atribute'"):
        _ = whenwhy.atribute  # type: ignore[attr-defined]


def _values_of(sequences: StageDirectory, shard: str) -> list[list[int]]:
    table = sequences.read(shard, TABLE)
    return [e + s for e, s in zip(table["event_id"].to_pylist(), table["static_id"].to_pylist(), strict=True)]


@pytest.mark.parametrize("target", ["probability", "log_odds:false:true", "unit:3", "unit:3@-2", "logit@1"])
def test_other_targets_are_complete(small_run: SmallRun, tmp_path: Path, target: str) -> None:
    settings = AttributeSettings(target=target, tolerance=1e-4)
    stage = attribute_shards(small_run.sequences, small_run.model, tmp_path / "attr", settings, INLINE)
    told = residual_summary(stage)
    assert told["n_over_tolerance"] == 0
    predictions = stage.read(stage.shards[0], PREDICTION_ROWS)
    assert set(predictions["target"].to_pylist()) == {target}
    assert len(set(predictions["score"].to_pylist())) > 10


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"target": "unit:9999"}, "give a unit from 0 to"),
        ({"target": "log_odds:false:truth"}, "did you mean 'true'"),
        ({"target": "log_odds:false"}, "'log_odds:false' is no target"),
        ({"target": "logit@x"}, "whole numbers"),
        ({"options": {"nodes": "3"}}, "no option 'nodes' in the method 'integrated_gradients'"),
    ],
)
def test_targets_and_options_asked_in_vain(
    small_run: SmallRun, tmp_path: Path, settings: dict[str, str], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        attribute_shards(small_run.sequences, small_run.model, tmp_path / "attr", AttributeSettings(**settings), INLINE)
