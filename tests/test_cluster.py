"""The submission scripts run the commands, and refuse what is unsafe or incomplete."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from conftest import SmallRun
from whenwhy.shards import StageDirectory
from whenwhy.store import open_store

SCRIPT = Path(__file__).parents[1] / "cluster" / "slurm" / "whenwhy.sbatch"


def submit(**variables: object) -> subprocess.CompletedProcess[str]:
    """What sbatch does on the node: run the script with the exported variables."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    given = {name: str(value) for name, value in variables.items()}
    return subprocess.run(
        ["bash", str(SCRIPT)], capture_output=True, text=True, env=os.environ | {"PATH": path} | given, check=False
    )


def test_the_script_goes_from_sequences_to_a_published_store(small_run: SmallRun, tmp_path: Path) -> None:
    told = submit(
        SEQ=small_run.sequences, MODEL=small_run.model, ATTR=tmp_path / "attr", STORE=tmp_path / "store",
        SLURM_CPUS_PER_TASK=2,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    attributed = StageDirectory.open(tmp_path / "attr")
    assert attributed.content_sha256() == StageDirectory.open(small_run.attributions).content_sha256()
    assert open_store(tmp_path / "store").sql("select count(*) from rows").column(0).to_pylist()[0] > 0


def test_a_missing_directory_is_named(small_run: SmallRun) -> None:
    told = submit(SEQ=small_run.sequences, MODEL=small_run.model, ATTR="x")
    assert told.returncode == 2
    assert "needs STORE" in told.stderr


def test_ray_without_authentication_is_refused(small_run: SmallRun, tmp_path: Path) -> None:
    told = submit(
        SEQ=small_run.sequences, MODEL=small_run.model, ATTR=tmp_path / "attr", STORE=tmp_path / "store",
        RAY_AUTH_MODE="disabled",
    )  # fmt: skip
    assert told.returncode == 2
    assert "unauthenticated" in told.stderr
    assert not (tmp_path / "attr").exists()
