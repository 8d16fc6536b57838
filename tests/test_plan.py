"""A plan counts what a run would, and times some of it; run.json tells what a run did."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from conftest import INLINE, SmallRun
from whenwhy.attribution.attribute_shards import AttributeSettings, attribute_shards
from whenwhy.attribution.plan import foretold, plan
from whenwhy.engine import Workers, reported
from whenwhy.engine.report import note_pass
from whenwhy.errors import UserError
from whenwhy.events.sequences import PrepareSettings, prepare
from whenwhy.shards import StageDirectory


def bytes_of(stage: StageDirectory) -> int:
    """What the tables of all shards take."""
    return sum(told["bytes"] for name in stage.shards for told in stage.entry(name).files.values())


@pytest.mark.parametrize("workers", [INLINE, Workers(count=2)])
def test_a_plan_counts_what_the_run_has(
    small_run: SmallRun, tmp_path: Path, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    found = plan(small_run.sequences, small_run.model, AttributeSettings(), workers, seconds=600)  # whole shards
    made = StageDirectory.open(small_run.attributions)
    told = [made.entry(name).summary for name in made.shards]
    assert found.n_predictions == sum(one["n_predictions"] for one in told)
    assert (found.n_shards, found.n_workers) == (len(made.shards), 1 if workers.inline else 2)
    assert 0 < found.n_timed <= found.n_predictions
    assert 0 < found.once < found.seconds
    assert found.disk_bytes == pytest.approx(bytes_of(made), rel=0.25)
    assert found.worker_bytes > 50e6
    assert not list(tmp_path.iterdir())  # nothing is left


def test_a_plan_grows_with_steps_and_shrinks_with_workers_but_not_below_the_largest_shard() -> None:
    timed = [
        {"reading": 1.0, "seconds": 8.0, "steps": 80, "predictions": 8, "bytes": 800, "peak": 10**8},
        {"reading": 3.0, "seconds": 12.0, "steps": 120, "predictions": 12, "bytes": 1200, "peak": 3 * 10**8},
    ]
    shards = [{"n_steps": 90, "n_predictions": 10}] * 6 + [
        {"n_steps": 300, "n_predictions": 100},
        {"n_steps": 0, "n_predictions": 0},
    ]
    one, two, many = (foretold(timed, shards, workers, 5.0) for workers in (1, 2, 100))
    assert one.seconds == 5 + 0.1 * 1000 + 2 * 7  # a tenth of a second a step, two seconds a shard that has any
    assert two.seconds == 5 + (0.1 * 1000 + 2 * 7) / 2
    assert many.seconds == 5 + 0.1 * 400 + 2
    assert {(found.disk_bytes, found.worker_bytes, found.n_timed) for found in (one, two, many)} == {
        (10_000, 3 * 10**8, 20)
    }
    assert (one.n_predictions, one.n_shards, many.n_workers) == (160, 8, 100)


def test_a_plan_refuses_what_the_run_would(small_run: SmallRun) -> None:
    with pytest.raises(UserError, match="did you mean 'saliency'"):
        plan(small_run.sequences, small_run.model, AttributeSettings("salience"), INLINE)


def test_the_command_takes_the_options_of_attribute(small_run: SmallRun) -> None:
    command = [
        sys.executable, "-m", "whenwhy", "plan", str(small_run.sequences), "--model", str(small_run.model),
        "--method", "smooth_grad", "--option", "samples=4", "--inline",
    ]  # fmt: skip
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert told.startswith("smooth_grad of ")
    assert "1 worker: about " in told
    refused = subprocess.run([*command, "--option", "sample=4"], capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "did you mean 'samples'" in refused.stderr


def test_run_json_tells_what_each_call_did(small_run: SmallRun, tmp_path: Path) -> None:
    sequences = tmp_path / "sequences"
    settings = PrepareSettings("the outcome", strata=("age_band", "sex"), bins=4, shard_size=64)
    prepare(small_run.meds, small_run.labels, sequences, settings, INLINE)
    told = json.loads((sequences / "run.json").read_text())
    assert [one["pass"] for one in told["calls"][0]["passes"]] == ["scan", "gather", "prepare"]

    def attributed() -> dict[str, object]:
        attribute_shards(sequences, small_run.model, tmp_path / "attr", AttributeSettings(), INLINE)
        return json.loads((tmp_path / "attr" / "run.json").read_text())  # type: ignore[no-any-return]

    first = attributed()
    stage = StageDirectory.open(tmp_path / "attr")
    assert (first["stage"], first["run_id"]) == ("attribute", stage.run_id)
    assert {"python", "whenwhy", "torch", "ray"} <= set(first["versions"])
    assert first["summary"]["n_rows"] == sum(stage.entry(name).summary["n_rows"] for name in stage.shards)
    assert first["summary"]["maximum"] < 1e-4
    [call] = first["calls"]
    assert (call["ended"], call["passes"][0]["workers"]) == ("finished", "this process")
    assert call["passes"][0]["finished"] == call["passes"][0]["entries"] == len(stage.shards)
    assert call["passes"][0]["values"] == first["summary"]["n_rows"]
    before = stage.content_sha256()
    lost = stage.shards[1]
    (tmp_path / "attr" / "entries" / f"{lost}.json").unlink()
    second = attributed()
    assert [len(one["passes"]) for one in second["calls"]] == [1, 1]
    assert second["calls"][1]["passes"][0]["finished_before"] == len(stage.shards) - 1
    assert stage.content_sha256() == before
    assert attributed() == second  # nothing was to do


def test_calls_that_end_at_once_are_all_in_run_json(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"stage": "attribute", "run_id": "one"}')

    def call(number: int) -> None:
        with reported(tmp_path):
            note_pass({"number": number})

    with ThreadPoolExecutor(24) as pool:
        list(pool.map(call, range(72)))
    told = json.loads((tmp_path / "run.json").read_text())["calls"]
    assert sorted(one["passes"][0]["number"] for one in told) == list(range(72))
