"""The scripts as jobs: of a Slurm without daemons that really runs them, and of the real one, on this machine."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster.slurm import DAEMONS, SCRIPTS, Slurm, fake_slurm, real_slurm, until
from cohort import write_cohort
from conftest import INLINE
from whenwhy.attribution.attribute_shards import AttributeSettings, attribute_shards
from whenwhy.events.sequences import PrepareSettings, prepare
from whenwhy.models.training import TrainSettings, train
from whenwhy.shards import StageDirectory
from whenwhy.statistics import aggregate_cells
from whenwhy.store import publish_store

#: What is asked of every job: long enough that a signal comes in its midst.
ASKED = {"METHOD": "shapley", "ATTRIBUTE_OPTIONS": "--option samples=64", "AGGREGATE_OPTIONS": "--time-bin-hours 24"}


@dataclass(frozen=True)
class Cohort:
    """Sequences in many shards, a model, and what one undisturbed process makes of them."""

    sequences: Path
    model: Path
    attributions_sha256: str
    version: str


@dataclass(frozen=True)
class Place:
    """Where a job reads and writes."""

    cohort: Cohort
    folder: Path

    @property
    def variables(self) -> dict[str, object]:
        """What a user exports."""
        return ASKED | {
            "SEQ": self.cohort.sequences, "MODEL": self.cohort.model, "ATTR": self.attributions, "STORE": self.store,
        }  # fmt: skip

    @property
    def attributions(self) -> Path:
        return self.folder / "attr"

    @property
    def store(self) -> Path:
        return self.folder / "store"

    def shards(self) -> int:
        """How many are published."""
        return len(list((self.attributions / "entries").glob("g0-*.json")))

    def calls(self) -> list[dict[str, Any]]:
        """What the calls of attribute told of themselves; one that was killed could not."""
        calls: list[dict[str, Any]] = json.loads((self.attributions / "run.json").read_text())["calls"]
        return calls

    def finished_before(self) -> int:
        """How many shards the last call of attribute found finished."""
        found: int = self.calls()[-1]["passes"][0]["finished_before"]
        return found

    def missing(self) -> int:
        """How many are not."""
        stage = StageDirectory.open(self.attributions)
        return len([name for name in stage.missing() if name in stage.shards])

    def require_as_undisturbed(self) -> None:
        """Attributions and the published store are those of the undisturbed process."""
        assert StageDirectory.open(self.attributions).content_sha256() == self.cohort.attributions_sha256
        assert (self.store / "CURRENT").read_text() == self.cohort.version


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """150 patients in about twenty shards."""
    folder = tmp_path_factory.mktemp("cohort")
    write_cohort(folder / "meds", patients=150, seed=7)
    settings = PrepareSettings("the outcome", strata=("age_band", "sex"), bins=4, shard_size=16)
    prepare(folder / "meds", folder / "meds" / "labels" / "outcome", folder / "sequences", settings, INLINE)
    train(folder / "sequences", folder / "model", TrainSettings(hidden=8, epochs=1), INLINE)
    asked = AttributeSettings("shapley", options={"samples": "64"})
    attributed = attribute_shards(folder / "sequences", folder / "model", folder / "attr", asked, INLINE)
    cells = aggregate_cells([folder / "attr"], folder / "store", time_bin_hours=24)
    publish_store(folder / "store", cells, [folder / "attr"])
    return Cohort(
        folder / "sequences",
        folder / "model",
        attributed.content_sha256(),
        (folder / "store" / "CURRENT").read_text(),
    )


@pytest.fixture
def place(cohort: Cohort, tmp_path: Path) -> Place:
    """A job's own folder."""
    return Place(cohort, tmp_path)


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """The fake Slurm."""
    with fake_slurm(tmp_path_factory.mktemp("fake")) as slurm:
        yield slurm


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """The real Slurm."""
    path = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])
    lacking = [name for name in DAEMONS if shutil.which(name, path=path) is None]
    if lacking and not os.environ.get("CI"):
        pytest.skip(f"no {', '.join(lacking)} here: `make system` installs the packages of Slurm")
    assert not lacking
    with real_slurm(tmp_path_factory.mktemp("slurm")) as slurm:
        yield slurm


@pytest.fixture(scope="module")
def several_nodes(fake: Slurm) -> Slurm:
    """The fake Slurm, where the system lets it make nodes."""
    tried = subprocess.run(
        ["unshare", "--net", "--pid", "--mount", "--uts", "--fork", "--mount-proc", "true"], check=False
    )
    if tried.returncode:
        pytest.skip("nodes are namespaces, which only root may make")
    return fake


@pytest.fixture
def slurm(request: pytest.FixtureRequest) -> Slurm:
    """One of them, by its name."""
    found: Slurm = request.getfixturevalue(request.param)
    return found


@pytest.mark.full  # the next one asks more
@pytest.mark.parametrize("slurm", ["fake", "real"], indirect=True)
def test_a_stopped_job_is_queued_again_and_ends_as_if_undisturbed(slurm: Slurm, place: Place) -> None:
    """Before its time is up, SIGTERM comes to the batch script alone."""
    job = slurm.submit("--cpus-per-task=2", **place.variables)
    until(lambda: place.shards() >= 3)
    slurm.command("scancel", "--batch", "--signal=TERM", job)
    until(lambda: "Queued again" in slurm.output(job))
    assert "run the same command again to continue" in slurm.output(job)
    ended = slurm.ended(job)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("COMPLETED", "0:0", "1")
    assert 3 <= place.finished_before() < place.shards()
    place.require_as_undisturbed()


@pytest.mark.parametrize("slurm", [pytest.param("fake", marks=pytest.mark.full), "real"], indirect=True)
def test_a_preempted_job_ends_as_if_undisturbed(slurm: Slurm, place: Place) -> None:
    """Slurm ends every process of a job that it requeues, and starts it again."""
    job = slurm.submit("--cpus-per-task=2", **place.variables)
    until(lambda: place.shards() >= 3)
    slurm.command("scontrol", "requeue", job)
    ended = slurm.ended(job)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("COMPLETED", "0:0", "1")
    assert "Queued again" not in slurm.output(job)
    assert 3 <= place.finished_before() < place.shards()
    place.require_as_undisturbed()


@pytest.mark.full
def test_a_job_that_gives_way_to_another_ends_its_shards_first(real: Slurm, place: Place) -> None:
    """Where Slurm's configuration says that the signal of a job is sent at preemption too."""
    job = real.submit("--cpus-per-task=2", **place.variables)
    until(lambda: place.shards() >= 3)
    urgent = real.command("sbatch", "--parsable", *real.options, "--partition=urgent", "--exclusive", "--wrap=true")
    assert real.ended(urgent)["JobState"] == "COMPLETED"
    ended = real.ended(job)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("COMPLETED", "0:0", "1")
    assert "attribute was stopped when" in real.output(job)
    assert [call["ended"] for call in place.calls()] == ["Stopped", "finished"]
    place.require_as_undisturbed()


@pytest.mark.full
def test_a_job_that_was_stopped_often_enough_is_not_queued_again(fake: Slurm, place: Place) -> None:
    job = fake.submit("--cpus-per-task=2", REQUEUES=0, **place.variables)
    until(lambda: place.shards() >= 3)
    fake.command("scancel", "--batch", "--signal=TERM", job)
    ended = fake.ended(job)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "143:0", "0")
    again = fake.ended(fake.submit("--cpus-per-task=2", **place.variables))
    assert (again["JobState"], again["ExitCode"]) == ("COMPLETED", "0:0")
    place.require_as_undisturbed()


@pytest.mark.full
def test_a_cancelled_job_does_not_come_back(real: Slurm, place: Place) -> None:
    job = real.submit("--cpus-per-task=2", **place.variables)
    until(lambda: place.shards() >= 3)
    real.command("scancel", job)
    ended = real.ended(job)
    assert (ended["JobState"], ended["Restarts"]) == ("CANCELLED", "0")
    until(lambda: not real.command("squeue", "--noheader"))
    assert place.missing() > 0


@pytest.mark.parametrize("slurm", [pytest.param("fake", marks=pytest.mark.full), "real"], indirect=True)
def test_an_array_does_parts_and_a_job_behind_it_finishes(slurm: Slurm, place: Place) -> None:
    last = slurm.command(SCRIPTS / "submit-array.sh", 3, *slurm.options, **place.variables).splitlines()[-1]
    ended = slurm.ended(last)
    assert (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0")
    array = str(int(last) - 1)
    told = [slurm.told(f"{array}_{part}") for part in (1, 2, 3)]
    assert [one["JobState"] for one in told] == ["COMPLETED"] * 3
    # Every shard was done by the task whose part it is, so the job behind them had only to aggregate.
    for part, one in enumerate(told, start=1):
        shards = {
            line.split()[2] for line in Path(one["StdOut"]).read_text().splitlines() if line.startswith("attribute ")
        }
        assert shards == {f"g0-{at:05d}:" for at in range(place.shards()) if at % 3 == part - 1}
    assert "attribute " not in slurm.output(last)
    place.require_as_undisturbed()


def test_a_stopped_task_of_an_array_is_queued_again_alone(fake: Slurm, place: Place) -> None:
    last = fake.command(SCRIPTS / "submit-array.sh", 2, **place.variables).splitlines()[-1]
    first = f"{int(last) - 1}_1"
    until(lambda: place.shards() >= 3)
    fake.command("scancel", "--batch", "--signal=TERM", first)
    ended = fake.ended(last)
    assert (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0")
    assert fake.told(first)["Restarts"] == "1"
    assert fake.told(f"{int(last) - 1}_2")["Restarts"] == "0"
    place.require_as_undisturbed()


@pytest.mark.full
def test_two_nodes_share_the_work(several_nodes: Slurm, place: Place) -> None:
    job = several_nodes.submit("--nodes=2", "--exclusive", "--cpus-per-task=1", **place.variables)
    ended = several_nodes.ended(job)
    assert (ended["JobState"], ended["ExitCode"]) == ("COMPLETED", "0:0"), several_nodes.output(job)
    [call] = place.calls()
    # A core each on two nodes.
    assert [one["workers"] for one in call["passes"]] == ["2 Ray actors"]
    assert "On worker node. Connecting to Ray cluster at 10.99.0.1" in several_nodes.output(job)
    place.require_as_undisturbed()


@pytest.mark.full
def test_two_nodes_that_are_stopped_end_as_if_undisturbed(several_nodes: Slurm, place: Place) -> None:
    job = several_nodes.submit("--nodes=2", "--exclusive", "--cpus-per-task=1", **place.variables)
    until(lambda: place.shards() >= 3)
    several_nodes.command("scancel", "--batch", "--signal=TERM", job)
    until(lambda: "Queued again" in several_nodes.output(job))
    assert "attribute was stopped when" in several_nodes.output(job)
    ended = several_nodes.ended(job)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("COMPLETED", "0:0", "1")
    calls = place.calls()
    assert [call["ended"] for call in calls] == ["Stopped", "finished"]
    # No shard was dropped, and none was done twice.
    assert sum(one["finished"] - one["finished_before"] for call in calls for one in call["passes"]) == place.shards()
    assert 3 <= place.finished_before() < place.shards()
    place.require_as_undisturbed()


@pytest.mark.full
def test_two_nodes_that_are_stopped_before_ray_is_there_are_queued_again(several_nodes: Slurm, place: Place) -> None:
    job = several_nodes.submit("--nodes=2", "--exclusive", "--cpus-per-task=1", **place.variables)
    until(lambda: several_nodes.told(job)["JobState"] == "RUNNING" and "Starting Ray" in several_nodes.output(job))
    several_nodes.command("scancel", "--batch", "--signal=TERM", job)
    ended = several_nodes.ended(job)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("COMPLETED", "0:0", "1")
    assert "Queued again" in several_nodes.output(job)
    place.require_as_undisturbed()


def test_the_real_commands_understand_what_several_nodes_ask_of_them(real: Slurm) -> None:
    """Of one node, since a machine is one: the options of srun, and what scontrol says of an exclusive job."""
    script = (SCRIPTS / "whenwhy.sbatch").read_text()
    [options] = re.findall(r"run srun (.*?) ray symmetric-run", re.sub(r"\\\n *", "", script))
    options = options.replace("$nodes", "1").replace("$cpus", "1")
    job = real.command(
        "sbatch", "--parsable", *real.options, "--exclusive", f"--wrap=srun {options} echo heard $((6 * 7))"
    )
    assert real.ended(job)["JobState"] == "COMPLETED"
    assert real.told(job)["OverSubscribe"] == "NO"
    assert real.output(job) == "heard 42\n"


def test_several_nodes_that_others_may_share_are_refused(several_nodes: Slurm, place: Place) -> None:
    job = several_nodes.submit("--nodes=2", "--cpus-per-task=1", **place.variables)
    assert several_nodes.ended(job)["ExitCode"] == "2:0"
    assert "add --exclusive to sbatch" in several_nodes.output(job)
    assert not place.attributions.exists()


@pytest.mark.full
@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({"HEAD_ADDRESS": "10.99.0.9", "NODES_WAIT_SECONDS": "1"}, id="no head"),
        pytest.param({"SLURM_GPUS_ON_NODE": "-1"}, id="ray start fails"),
    ],
)
def test_nodes_on_which_ray_does_not_start_are_a_failure(
    several_nodes: Slurm, place: Place, wrong: dict[str, str]
) -> None:
    """`ray symmetric-run` itself exits with 0 where `ray start` fails."""
    job = several_nodes.submit("--nodes=2", "--exclusive", "--cpus-per-task=1", **place.variables, **wrong)
    ended = several_nodes.ended(job)
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "1:0")
    assert "Ray did not start on 2 nodes" in several_nodes.output(job)
    assert not place.store.exists()
