"""A plan counts what a run would, and times some of it; run.json tells what a run did."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from conftest import INLINE, SmallRun
from whenwhy.attribution.attribute_shards import AttributeSettings, attribute_shards
from whenwhy.attribution.plan import Plan, plan
from whenwhy.engine import Workers
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
    found = plan(small_run.sequences, small_run.model, AttributeSettings(), workers, seconds=0.5)
    made = StageDirectory.open(small_run.attributions)
    told = [made.entry(name).summary for name in made.shards]
    assert found.n_predictions == sum(one["n_predictions"] for one in told)
    assert (found.n_shards, found.n_workers) == (len(made.shards), 1 if workers.inline else 2)
    assert 0 < found.n_timed <= found.n_predictions
    assert 0 < found.once < found.seconds
    assert found.disk_bytes == pytest.approx(bytes_of(made), rel=0.25)
    assert found.worker_bytes > 50e6
    assert not list(tmp_path.iterdir())  # nothing is left


def test_more_work_is_planned_longer(small_run: SmallRun, tmp_path: Path) -> None:
    """Thirty times as many draws: what passes before the first shard left aside, many times as long."""

    def busy(samples: int) -> float:
        settings = AttributeSettings("shapley", options={"samples": samples, "players": "features"})
        found: Plan = plan(small_run.sequences, small_run.model, settings, INLINE, seconds=0.2)
        return found.seconds - found.once

    assert busy(240) > 4 * busy(8)


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
