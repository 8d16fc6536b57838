"""A small cohort in many shards, the command that attributes it, what a trace does to it, and what must hold in the end."""

from __future__ import annotations

import atexit
import io
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, redirect_stderr, suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import psutil
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from forked import process

from cohort import write_cohort
from conftest import INLINE, Command
from whenwhy.attribution.attribute_shards import AttributeSettings, attribute_shards
from whenwhy.attribution.attribution_directory import PREDICTION_ROWS
from whenwhy.events.sequence_directory import TABLE
from whenwhy.events.sequences import PrepareSettings, prepare
from whenwhy.models.training import TrainSettings, train
from whenwhy.shards import StageDirectory

ASKED = PrepareSettings("the outcome", strata=("age_band", "sex"), bins=4, shard_size=8)

#: Options of a run that is soon done, and of one that takes about a quarter of a second a shard.
QUICK: tuple[str, ...] = ("--method", "gradient_times_input")
SLOW: tuple[str, ...] = ("--method", "shapley", "--option", "samples=64")

#: What is told of each shard that is done, on standard error.
_PROGRESS = re.compile(r"^attribute \d+/\d+ .*\n", re.MULTILINE)


@dataclass(frozen=True)
class Prepared:
    """Where the cohort, its sequences and a model are."""

    meds: Path
    sequences: Path
    model: Path

    @property
    def shards(self) -> list[str]:
        return StageDirectory.open(self.sequences).shards


@cache
def folder() -> Path:
    """Removed when the tests end."""
    made = Path(tempfile.mkdtemp(prefix="whenwhy-faults-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


def silence() -> AbstractContextManager[object]:
    """What is said meanwhile is no part of what a test's command says."""
    return redirect_stderr(io.StringIO())


@cache
def prepared() -> Prepared:
    """90 patients without repeated events in two dozen shards, and a tiny model."""
    made = Prepared(folder() / "meds", folder() / "sequences", folder() / "model")
    write_cohort(made.meds, patients=90, seed=11)
    for file in (made.meds / "data").rglob("*.parquet"):
        table = pq.read_table(file)
        distinct = table.group_by(table.column_names, use_threads=False).aggregate([])
        keys = [("subject_id", "ascending", "at_end"), ("time", "ascending", "at_start")]
        pq.write_table(distinct.take(pc.sort_indices(distinct, sort_keys=keys)), file)
    with silence():
        prepare(made.meds, made.meds / "labels" / "outcome", made.sequences, ASKED, INLINE)
        train(made.sequences, made.model, TrainSettings(hidden=8, epochs=1), INLINE)
    return made


@cache
def in_many_shards() -> Path:
    """The same predictions in about a hundred shards."""
    out = folder() / "many"
    with silence():
        prepare(prepared().meds, prepared().meds / "labels" / "outcome", out, replace(ASKED, shard_size=2), INLINE)
    return out


@cache
def undisturbed_run(options: tuple[str, ...] = QUICK, sequences: Path | None = None) -> StageDirectory:
    """The attributions of a run that nothing disturbs."""
    given = dict(zip(options[::2], options[1::2], strict=True))
    named = dict([given["--option"].split("=")]) if "--option" in given else {}
    asked = AttributeSettings(given["--method"], options=named)
    of = sequences or prepared().sequences
    out = folder() / f"undisturbed-{given['--method']}-{of.name}"
    with silence():
        return attribute_shards(of, prepared().model, out, asked, INLINE)


def undisturbed(options: tuple[str, ...] = QUICK, sequences: Path | None = None) -> str:
    """Its content hash."""
    return undisturbed_run(options, sequences).content_sha256()


def arguments(out: Path, *besides: str, options: Sequence[str] = QUICK, sequences: Path | None = None) -> list[str]:
    """What follows the command's name: inline, unless workers are named."""
    of, who = prepared(), besides or ("--inline",)
    return ["attribute", str(sequences or of.sequences), "--model", str(of.model), "--out", str(out), *options, *who]


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it printed to standard output and error."""

    status: int
    printed: str
    said: str


class Running:
    """The command, under way as a process of its own; if `traced`, it waits for its tracer."""

    def __init__(
        self, asked: Sequence[str], environment: Mapping[str, str] | None = None, traced: bool = False
    ) -> None:
        self._told = Path(tempfile.mkdtemp(dir=folder()))
        self._process = process(asked, self._told / "printed", self._told / "said", environment or {}, traced)
        self.pid = int(self._process.pid or 0)

    def over(self) -> bool:
        return self._process.exitcode is not None

    def send(self, number: signal.Signals) -> None:
        if not self.over():
            os.kill(self.pid, number)

    def ended(self, seconds: float = 120) -> Ended:
        """What there is to say when it is over; a negative status is the signal that killed it."""
        self._process.join(seconds)
        status = self._process.exitcode
        if status is None:
            self.send(signal.SIGKILL)
            raise AssertionError(f"the command did not end within {seconds} seconds")
        printed, said = ((self._told / name) for name in ("printed", "said"))
        return Ended(status, *(file.read_text() if file.exists() else "" for file in (printed, said)))


def entries(out: Path) -> list[str]:
    """The shards that are done."""
    return sorted(file.stem for file in (out / "entries").glob("g*.json"))


def below(pid: int, name: str = "") -> list[psutil.Process]:
    """The processes that one started, and that those started, whose command begins by a name."""
    found = []
    for child in psutil.Process(pid).children(recursive=True) if psutil.pid_exists(pid) else ():
        with suppress(psutil.NoSuchProcess):
            if " ".join(child.cmdline()).startswith(name):
                found.append(child)
    return found


#: What Ray calls an actor's process while it does a shard.
AT_WORK = "ray::Worker.work"


def until(true: Callable[[], object], seconds: float = 120) -> None:
    """Returns when something is true; what it waits for decides, the time is a bound alone."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not true within {seconds} seconds"
        time.sleep(0.005)


def besides_progress(said: str) -> str:
    """What was said on standard error, but for the lines that tell of shards done."""
    return _PROGRESS.sub("", said)


def completes(whenwhy: Command, out: Path, options: Sequence[str] = QUICK, sequences: Path | None = None) -> None:
    """The same command, undisturbed, ends as a run that never was disturbed."""
    status, _, said = whenwhy(*arguments(out, options=options, sequences=sequences))
    assert status == 0, said
    complete(out, options, sequences)


def complete(out: Path, options: Sequence[str] = QUICK, sequences: Path | None = None) -> None:
    """A directory holds what an undisturbed run writes, and each prediction once."""
    assert StageDirectory.open(out).content_sha256() == undisturbed(tuple(options), sequences)
    accounted(out, sequences=sequences)


def accounted(out: Path, quarantined: Sequence[str] = (), sequences: Path | None = None) -> None:
    """Predictions of the input = attributed + quarantined; those attributed are compared one by one."""
    given, found = StageDirectory.open(sequences or prepared().sequences), StageDirectory.open(out)
    assert found.shards == given.shards
    assert [name for name in found.shards if name in found.missing()] == sorted(quarantined)
    keys = ["subject_id", "prediction_time"]
    attributed = 0
    for name in found.shards:
        if name not in quarantined:
            asked, told = given.read(name, TABLE, keys), found.read(name, PREDICTION_ROWS, keys)
            assert asked.to_pylist() == told.to_pylist()
            attributed += told.num_rows
    left = sum(given.entry(name).summary["n_predictions"] for name in quarantined)
    labels = pq.read_metadata(prepared().meds / "labels" / "outcome" / "0.parquet").num_rows
    assert attributed + left == labels


def readable(out: Path) -> None:
    """Every entry that is there can be read, with its checksums."""
    stage = StageDirectory.open(out)
    for name in entries(out):
        for file in stage.entry(name).files:
            stage.read(name, file)


def trusted_is_whole(out: Path) -> None:
    """The same, where nobody is at work; the entries that are not there are known to be missing."""
    readable(out)
    accounted(out, [name for name in StageDirectory.open(out).shards if name not in entries(out)])


# -- faults that a trace injects -------------------------------------------------------------------------


def require_strace() -> None:
    """Skips the test where strace cannot be had, but for continuous integration, which must have it."""
    if shutil.which("strace") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("strace is not installed: continuous integration must have it")
        pytest.skip("strace is not installed")


#: System calls under the names that differ from machine to machine.
CALLS = {
    "write": "write",
    "fsync": "fsync",
    "rename": "?rename,?renameat,?renameat2",
    "link": "?link,?linkat",
}

_CALL = re.compile(r"^(\d+) +(write|fsync|rename|renameat|renameat2|link|linkat)\((.*)$")


@dataclass(frozen=True)
class Call:
    """A system call of the main thread.

    Attributes:
        number: how many of its kind there were until then, itself counted.
    """

    kind: str
    number: int
    told: str


def traced(asked: Sequence[str], log: Path, *options: str, kinds: Sequence[str] = tuple(CALLS)) -> Ended:
    """A command to its end under strace, with its calls of these kinds in `log`."""
    running = Running(asked, traced=True)
    calls = ",".join(CALLS[kind] for kind in kinds)
    trace = ["strace", "-f", "-y", "-o", str(log), "-e", f"trace={calls}", *options, "-p", str(running.pid)]
    with subprocess.Popen(trace, stderr=subprocess.DEVNULL):
        return running.ended()


@cache
def calls_of_a_run() -> tuple[Call, ...]:
    """The calls with which an undisturbed command's main thread writes below its directory, in order."""
    out, log = folder() / "traced", folder() / "traced.log"
    told = traced(arguments(out), log)
    assert told.status == 0, told
    complete(out)
    found: list[Call] = []
    seen: dict[str, int] = {}
    lines = log.read_text().splitlines()
    main = lines[0].split()[0]
    for line in lines:
        call = _CALL.match(line)
        if call and call[1] == main:
            kind = next(kind for kind in CALLS if call[2].startswith(kind))
            seen[kind] = seen.get(kind, 0) + 1
            if str(out) in call[3].split(" = ")[0]:
                found.append(Call(kind, seen[kind], call[3].replace(str(out), "")))
    return tuple(found)


def shard_calls(kind: str) -> list[Call]:
    """Those of a kind that belong to shards: none of the start, none of run.json in the end."""
    calls = calls_of_a_run()
    links = [at for at, call in enumerate(calls) if call.kind == "link" and "/entries/g" in call.told]
    begin = max(at for at in range(links[0]) if calls[at].kind == "link")
    return [call for call in calls[begin + 1 : links[-1] + 1] if call.kind == kind]


def injected(log: Path) -> list[str]:
    """The calls into which a trace put an error."""
    return [line for line in log.read_text().splitlines() if line.endswith("(INJECTED)")]
