"""The scripts of cluster/ by themselves: they run the commands, and refuse what is unsafe or incomplete."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer.main

from conftest import SmallRun
from whenwhy.cli import app
from whenwhy.shards import StageDirectory
from whenwhy.store import open_store

ROOT = Path(__file__).parents[1]
SLURM = ROOT / "cluster" / "slurm"
BATCH = [SLURM / "whenwhy.sbatch", SLURM / "whenwhy-array.sbatch"]

#: Every script of this repository.
SCRIPTS = sorted(
    path
    for folder in (ROOT / "cluster", ROOT / "tests" / "cluster")
    for path in folder.rglob("*")
    if path.is_file() and re.match(rb"#!.*sh\b", path.read_bytes())
)

#: In the place of whenwhy: notes how it was called, its token, and any command line of the machine that holds it.
STAND_IN = """#!/bin/sh
echo "$*" >>"$NOTES/calls"
echo "$RAY_AUTH_MODE $RAY_AUTH_TOKEN ${RAY_AUTH_TOKEN_PATH:-}" >>"$NOTES/tokens"
for line in /proc/[0-9]*/cmdline; do
  case "$(tr '\\0' ' ' <"$line" 2>/dev/null)" in *"$RAY_AUTH_TOKEN"*) echo "$line" >>"$NOTES/seen" ;; esac
done
"""


#: A script, variables, and how it then calls whenwhy.
CALLS = [
    pytest.param(
        "whenwhy.sbatch",
        {"SLURM_CPUS_PER_TASK": 8},
        [
            "attribute q --model m --out a --method integrated_gradients --workers 8",
            "aggregate a --out s",
        ],
        id="cores",
    ),
    pytest.param(
        "whenwhy.sbatch",
        {
            "SLURM_CPUS_PER_TASK": 8, "SLURM_GPUS_ON_NODE": 2, "METHOD": "shapley", "GPUS_PER_WORKER": 0.5,
            "THREADS": 2, "ATTRIBUTE_OPTIONS": "--option samples=9 --seed 3", "AGGREGATE_OPTIONS": "--time-bin-hours 6",
        },
        [
            "attribute q --model m --out a --method shapley --gpus-per-worker 0.5 --threads 2 --option samples=9 --seed 3",
            "aggregate a --out s --time-bin-hours 6",
        ],
        id="GPUs and options",
    ),
    pytest.param(
        "whenwhy-array.sbatch",
        {"SLURM_ARRAY_JOB_ID": 7, "SLURM_ARRAY_TASK_ID": 2, "SLURM_ARRAY_TASK_COUNT": 3},
        ["attribute q --model m --out a --method integrated_gradients --inline --part 2/3"],
        id="a part",
    ),
    pytest.param(
        "whenwhy-array.sbatch",
        {"SLURM_ARRAY_JOB_ID": 7, "SLURM_ARRAY_TASK_ID": 5, "SLURM_ARRAY_TASK_COUNT": 1, "PARTS": 8, "THREADS": 4},
        ["attribute q --model m --out a --method integrated_gradients --inline --threads 4 --part 5/8"],
        id="one part again",
    ),
    pytest.param(
        "whenwhy-array.sbatch",
        {"METHOD": "occlusion", "ATTRIBUTE_OPTIONS": "--seed 3"},
        [
            "attribute q --model m --out a --method occlusion --inline --seed 3",
            "aggregate a --out s",
        ],
        id="the end of an array",
    ),
]  # fmt: skip


def submit(script: Path, *path: Path, **variables: object) -> subprocess.CompletedProcess[str]:
    """What sbatch does on the node: run the script with the exported variables."""
    given = {name: str(value) for name, value in variables.items()}
    places = [*map(str, path), str(Path(sys.executable).parent), os.environ["PATH"]]
    environment = os.environ | {"SLURM_JOB_ID": "7", "PATH": os.pathsep.join(places)} | given
    return subprocess.run(["bash", str(script)], capture_output=True, text=True, env=environment, check=False)


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """A folder with a stand-in for whenwhy, and what it notes."""
    (tmp_path / "whenwhy").write_text(STAND_IN)
    (tmp_path / "whenwhy").chmod(0o755)
    return tmp_path


def checked(*scripts: Path) -> subprocess.CompletedProcess[str]:
    """What shellcheck says of scripts."""
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    command = shutil.which("shellcheck", path=places)
    assert command is not None, "shellcheck is in the extra `test`"
    return subprocess.run([command, *map(str, scripts)], capture_output=True, text=True, check=False)


def test_shellcheck_has_nothing_against_the_scripts(tmp_path: Path) -> None:
    assert set(BATCH) < set(SCRIPTS)
    told = checked(*SCRIPTS)
    assert told.returncode == 0, told.stdout
    for script in BATCH:
        (tmp_path / script.name).write_text(script.read_text().replace('"${aggregate[@]}"', "${aggregate[@]}"))
        assert "SC2068" in checked(tmp_path / script.name).stdout


def test_the_script_goes_from_sequences_to_a_published_store(small_run: SmallRun, tmp_path: Path) -> None:
    told = submit(
        BATCH[0], SEQ=small_run.sequences, MODEL=small_run.model, ATTR=tmp_path / "attr", STORE=tmp_path / "store",
        SLURM_CPUS_PER_TASK=2,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    attributed = StageDirectory.open(tmp_path / "attr")
    assert attributed.content_sha256() == StageDirectory.open(small_run.attributions).content_sha256()
    assert open_store(tmp_path / "store").sql("select count(*) from rows").column(0).to_pylist()[0] > 0


@pytest.mark.parametrize(("script", "variables", "calls"), CALLS)
def test_variables_become_options(notes: Path, script: str, variables: dict[str, object], calls: list[str]) -> None:
    told = submit(SLURM / script, notes, SEQ="q", MODEL="m", ATTR="a", STORE="s", NOTES=notes, **variables)
    assert told.returncode == 0, told.stderr
    assert (notes / "calls").read_text().splitlines() == calls


def test_options_are_those_of_the_commands() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for name, *words in (call.split() for case in CALLS for call in case.values[2]):
        known = {option for parameter in commands[name].params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known


@pytest.mark.parametrize("script", BATCH, ids=lambda path: path.name)
def test_each_job_has_a_token_of_its_own_that_no_command_line_shows(notes: Path, script: Path) -> None:
    for _ in range(2):
        told = submit(
            script, notes, SEQ="q", MODEL="m", ATTR="a", STORE="s", NOTES=notes, RAY_AUTH_TOKEN="known to all",
            RAY_AUTH_TOKEN_PATH="/nowhere",
        )  # fmt: skip
        assert told.returncode == 0, told.stderr
    tokens = [line.split() for line in (notes / "tokens").read_text().splitlines()]
    assert all(mode == "token" and re.fullmatch("[0-9a-f]{64}", token) for mode, token in tokens)
    assert tokens[0] == tokens[1] != tokens[2] == tokens[3]  # attribute and aggregate, twice
    assert not (notes / "seen").exists()


@pytest.mark.parametrize("script", [*BATCH, SLURM / "submit-array.sh"], ids=lambda path: path.name)
@pytest.mark.parametrize("missing", ["SEQ", "MODEL", "ATTR", "STORE"])
def test_a_missing_directory_is_named(notes: Path, script: Path, missing: str) -> None:
    given = {name: "x" for name in ("SEQ", "MODEL", "ATTR", "STORE") if name != missing}
    arguments = ["bash", str(script), *(["2"] if script.suffix == ".sh" else [])]
    own = {name: value for name, value in os.environ.items() if name != missing}
    told = subprocess.run(arguments, capture_output=True, text=True, env=own | given, cwd=notes, check=False)
    assert told.returncode == 2
    assert told.stderr == f"{script.name} needs {missing}: export {missing}=PATH, then submit it again.\n"


@pytest.mark.parametrize("script", BATCH, ids=lambda path: path.name)
@pytest.mark.parametrize("mode", ["disabled", "k8s", "TOKEN"])
def test_ray_without_authentication_is_refused(notes: Path, script: Path, mode: str) -> None:
    told = submit(script, notes, SEQ="q", MODEL="m", ATTR="a", STORE="s", NOTES=notes, RAY_AUTH_MODE=mode)
    assert told.returncode == 2
    assert "unauthenticated" in told.stderr
    assert told.stderr.count("\n") == 1
    assert not (notes / "calls").exists()


@pytest.mark.parametrize("variables", [{"SLURM_ARRAY_TASK_ID": 0}, {"SLURM_ARRAY_TASK_ID": 4}, {"PARTS": 1}], ids=str)
def test_a_task_that_is_no_part_is_refused(notes: Path, variables: dict[str, object]) -> None:
    array = {"SLURM_ARRAY_JOB_ID": 7, "SLURM_ARRAY_TASK_ID": 2, "SLURM_ARRAY_TASK_COUNT": 3}
    told = submit(BATCH[1], notes, SEQ="q", MODEL="m", ATTR="a", STORE="s", NOTES=notes, **array | variables)
    assert told.returncode == 2
    assert "is none of" in told.stderr
    assert not (notes / "calls").exists()


@pytest.mark.parametrize("parts", ["", "0", "-1", "1.5", "eight"])
def test_a_number_of_parts_that_is_none_is_refused(notes: Path, parts: str) -> None:
    arguments = ["bash", str(SLURM / "submit-array.sh"), parts]
    told = subprocess.run(arguments, capture_output=True, text=True, cwd=notes, check=False)
    assert told.returncode == 2
    assert told.stderr == "submit-array.sh needs the number of parts: cluster/slurm/submit-array.sh 8\n"


def test_the_status_of_whenwhy_is_that_of_the_job(notes: Path) -> None:
    """Whichever of the two commands fails; and nothing comes after it."""
    for script in BATCH:
        for failing, calls in (("attribute", 1), ("aggregate", 2)):
            (notes / "calls").unlink(missing_ok=True)
            (notes / "whenwhy").write_text(f'{STAND_IN}[ "$1" != {failing} ] || exit 5\n')
            told = submit(script, notes, SEQ="q", MODEL="m", ATTR="a", STORE="s", NOTES=notes)
            assert told.returncode == 5, told.stderr
            assert len((notes / "calls").read_text().splitlines()) == calls


#: In the place of whenwhy: works until it is told to stop.
WORKING = """#!/bin/sh
trap 'exit 143' TERM
touch "$NOTES/started"
while :; do sleep 0.05; done
"""

#: In the place of scontrol: tells a job's state, and notes what is to be requeued.
SCONTROL = """#!/bin/sh
if [ "$1" = requeue ]; then echo "$2" >>"$NOTES/requeued"; else echo "JobId=7 JobState=$STATE Restarts=0"; fi
"""


@pytest.mark.parametrize(
    ("state", "restarts", "requeued"),
    [("RUNNING", "0", True), ("RUNNING", "20", False), ("COMPLETING", "0", False), ("CANCELLED", "0", False)],
)
@pytest.mark.parametrize(
    ("script", "array", "job"),
    [
        (BATCH[0], {}, "7"),
        (BATCH[1], {}, "7"),
        (BATCH[1], {"SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_COUNT": "3"}, "5_2"),
    ],
    ids=["whenwhy", "the end of an array", "a task of an array"],
)
def test_a_stopped_job_is_queued_again_while_it_is_its_turn(
    notes: Path, script: Path, array: dict[str, str], job: str, state: str, restarts: str, requeued: bool
) -> None:
    """SIGTERM comes to the script alone; Slurm itself requeues what it preempts, and a cancelled job is not wanted."""
    for name, text in (("whenwhy", WORKING), ("scontrol", SCONTROL)):
        (notes / name).write_text(text)
        (notes / name).chmod(0o755)
    given = {"SEQ": "q", "MODEL": "m", "ATTR": "a", "STORE": "s", "SLURM_JOB_ID": "7", "NOTES": str(notes)} | array
    given |= {"STATE": state, "SLURM_RESTART_COUNT": restarts, "PATH": f"{notes}{os.pathsep}{os.environ['PATH']}"}
    with subprocess.Popen(["bash", str(script)], stderr=subprocess.PIPE, text=True, env=os.environ | given) as running:
        while not (notes / "started").exists():
            assert running.poll() is None
            time.sleep(0.01)
        running.send_signal(signal.SIGTERM)
        _, told = running.communicate()
    assert running.returncode == 143
    assert ("Queued again" in told) == requeued
    found = (notes / "requeued").read_text().split() if (notes / "requeued").exists() else []
    assert found == ([job] if requeued else [])
