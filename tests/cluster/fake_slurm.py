"""A Slurm without daemons: sbatch, srun, scontrol and scancel that really run processes on this machine.

A job is a folder in $FAKE_SLURM and a process that runs it. The nodes of a job of several are network, process and
mount namespaces joined by a bridge: each has an address of its own, and sees no process of another's, nor of this
machine. What the scripts rely on is done as Slurm does it: the batch script runs on the first node; a signal with
--batch reaches it alone; a requeue ends every process of the job and runs the script again with SLURM_RESTART_COUNT,
and the number of an array means all its tasks; srun passes the environment on, ends the others when one task fails
(--kill-on-bad-exit) or a while after the first has ended (--wait), and exits with the highest status.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(os.environ.get("FAKE_SLURM", "."))
POLL_SECONDS = 0.05

#: The most tasks of an array that run at once.
AT_ONCE = 2

#: How long processes have between SIGTERM and SIGKILL.
KILL_WAIT_SECONDS = 10.0


def main() -> int:
    """The exit status of one of the commands, or of a process behind them."""
    what, *arguments = sys.argv[1:]
    if what in ("sbatch", "srun", "scontrol", "scancel"):
        options, rest = parted(arguments)
        return {"sbatch": sbatch, "srun": srun, "scontrol": scontrol, "scancel": scancel}[what](options, rest)
    {"job": job, "task": task, "node": node}[what](*arguments)
    return 0


def parted(arguments: list[str]) -> tuple[dict[str, str], list[str]]:
    """Options, all written --name=value, and what stands behind them."""
    options = {}
    while arguments and arguments[0].startswith("--"):
        name, _, value = arguments[0][2:].partition("=")
        options[name], arguments = value, arguments[1:]
    return options, arguments


def write(path: Path, text: str) -> None:
    """A file that is there as a whole or not at all."""
    temporary = path.with_name(f".{uuid.uuid4().hex}")
    temporary.write_text(text)
    temporary.replace(path)


def read(path: Path) -> str | None:
    """A file's text, if it is there."""
    try:
        return path.read_text()
    except FileNotFoundError:
        return None


def folder_of(name: str) -> Path:
    """The folder of a job, 101, or of a task of an array, 101_2."""
    return ROOT / "jobs" / name.replace("_", "/")


# The commands.


def sbatch(options: dict[str, str], rest: list[str]) -> int:
    """Submits a script."""
    script = Path(rest[0]).read_text()
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", script, re.MULTILINE)) | options
    with (ROOT / "number").open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        number = int(file.read() or 100) + 1
        file.truncate(0)
        file.write(str(number))
    folder = folder_of(str(number))
    folder.mkdir(parents=True)
    write(folder / "script", script)
    write(folder / "job.json", json.dumps({"options": options, "environment": dict(os.environ), "where": os.getcwd()}))
    with (folder / "log").open("w") as log:
        command = [sys.executable, __file__, "job", str(number)]
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    print(number if "parsable" in options else f"Submitted batch job {number}")
    return 0


def scontrol(options: dict[str, str], rest: list[str]) -> int:
    """Shows a job or a task of an array, or requeues it."""
    name = rest[-1]
    folder = folder_of(name)
    asked = json.loads((folder_of(name.partition("_")[0]) / "job.json").read_text())["options"]
    if rest[0] == "requeue":
        if "array" in asked and "_" not in name:
            print("every task of the array would be requeued", file=sys.stderr)
            return 1
        write(folder / "requeue", "")
        return 0
    told = {
        "JobId": name,
        "JobState": read(folder / "state") or "PENDING",
        "Restarts": read(folder / "restarts") or 0,
        "ExitCode": f"{read(folder / 'status') or 0}:0",
        "OverSubscribe": "NO" if "exclusive" in asked else "OK",
        "StdOut": folder / "output.txt",
    }
    print(*(f"{field}={value}" for field, value in told.items()))
    return 0


def scancel(options: dict[str, str], rest: list[str]) -> int:
    """Signals the batch script alone."""
    assert "batch" in options
    folder = folder_of(rest[0])
    order = read(folder / "batch")
    assert order is not None
    write(folder / "node-1" / f"{uuid.uuid4().hex}.kill", json.dumps([f"SIG{options['signal']}", order]))
    return 0


def srun(options: dict[str, str], command: list[str]) -> int:
    """The highest exit status of a command that every node runs, each once."""
    folder, step = Path(os.environ["FAKE_SLURM_FOLDER"]), f"step-{uuid.uuid4().hex}"
    spools = sorted(folder.glob("node-*"))
    assert int(options["nodes"]) == int(options["ntasks"]) == len(spools)
    environment = {name: value for name, value in os.environ.items() if name != "SLURM_CPUS_PER_TASK"}
    orders = [
        ordered(spool, step, command, environment | {"SLURM_PROCID": str(at)}, os.getcwd(), folder / "output.txt")
        for at, spool in enumerate(spools)
    ]

    def killed(*_: object) -> None:
        for spool in spools:
            write(spool / f"{uuid.uuid4().hex}.kill", json.dumps(["SIGKILL", step]))

    signal.signal(signal.SIGTERM, killed)
    first = None
    while True:
        statuses = [int(told) for order in orders if (told := read(order)) is not None]
        if len(statuses) == len(orders):
            return max(statuses)
        if statuses and first is None:
            first = time.monotonic()
        late = first is not None and time.monotonic() > first + float(options.get("wait") or 1e9)
        if late or ("kill-on-bad-exit" in options and any(statuses)):
            killed()
        time.sleep(POLL_SECONDS)


# The process of a job.


def job(number: str) -> None:
    """Runs a job to its end, once what it depends on has ended."""
    folder = folder_of(number)
    options = json.loads((folder / "job.json").read_text())["options"]
    kind, _, before = options.get("dependency", "").partition(":")
    while before and read(folder_of(before) / "ended") is None:
        time.sleep(POLL_SECONDS)
    assert kind in ("", "afterany")
    if "array" not in options:
        write(folder / "ended", str(run_job(number, {})))
        return
    first, _, last = options["array"].partition("-")
    waiting = [str(at) for at in range(int(first), int(last or first) + 1)]
    count, running, worst = str(len(waiting)), {}, 0
    while waiting or running:
        while waiting and len(running) < AT_ONCE:
            name = f"{number}_{waiting.pop(0)}"
            folder_of(name).mkdir()
            running[name] = subprocess.Popen([sys.executable, __file__, "task", name, count])
        for name, process in list(running.items()):
            if process.poll() is not None:
                worst = max(worst, int(read(folder_of(name) / "ended") or 1))
                del running[name]
        time.sleep(POLL_SECONDS)
    write(folder / "ended", str(worst))


def task(name: str, count: str) -> None:
    """Runs one task of an array."""
    array, _, at = name.partition("_")
    variables = {"SLURM_ARRAY_JOB_ID": array, "SLURM_ARRAY_TASK_ID": at, "SLURM_ARRAY_TASK_COUNT": count}
    write(folder_of(name) / "ended", str(run_job(name, variables)))


def run_job(name: str, variables: dict[str, str]) -> int:
    """The batch script's exit status, of the run after which nobody asked for another."""
    number, folder = name.partition("_")[0], folder_of(name)
    told = json.loads((folder_of(number) / "job.json").read_text())
    nodes = int(told["options"].get("nodes", 1))
    environment = told["environment"] | {
        "SLURM_JOB_ID": number,
        "SLURM_JOB_NUM_NODES": str(nodes),
        "SLURM_CPUS_PER_TASK": told["options"].get("cpus-per-task", "1"),
        "FAKE_SLURM_FOLDER": str(folder),
        **variables,
    }
    while True:
        with started(folder, nodes) as spools:
            write(folder / "state", "RUNNING")
            script = ["bash", str(folder_of(number) / "script")]
            batch = ordered(spools[0], "batch", script, environment, told["where"], folder / "output.txt")
            write(folder / "batch", batch.stem)
            status = ended(folder, batch, spools)
        if read(folder / "requeue") is None:
            write(folder / "status", str(status))
            write(folder / "state", "FAILED" if status else "COMPLETED")
            return status
        (folder / "requeue").unlink()
        restarts = str(int(read(folder / "restarts") or 0) + 1)
        write(folder / "restarts", restarts)
        environment["SLURM_RESTART_COUNT"] = restarts


def ended(folder: Path, batch: Path, spools: list[Path]) -> int:
    """The batch script's exit status; a requeue ends all processes of the job."""
    asked = None
    while (status := read(batch)) is None:
        if read(folder / "requeue") is not None and (asked is None or time.monotonic() > asked + KILL_WAIT_SECONDS):
            for spool in spools:
                name = "SIGTERM" if asked is None else "SIGKILL"
                write(spool / f"{uuid.uuid4().hex}.kill", json.dumps([name, str(folder)]))
            asked = time.monotonic()
        time.sleep(POLL_SECONDS)
    return int(status)


# Nodes: processes that run what lies in their spool folder.


def ordered(spool: Path, step: str, command: list[str], environment: dict[str, str], where: str, output: Path) -> Path:
    """Where the exit status will be of a command that a node is to run."""
    status = spool / f"{uuid.uuid4().hex}.status"
    asked = {"command": command, "environment": environment | {"FAKE_SLURM_STEP": step}, "where": where}
    write(status.with_suffix(".order"), json.dumps(asked | {"output": str(output)}))
    return status


@contextmanager
def started(folder: Path, count: int) -> Iterator[list[Path]]:
    """The spools of a job's nodes, while they run: this machine itself, or several with addresses 10.99.0.1 and up."""
    spools = [folder / f"node-{at}" for at in range(1, count + 1)]
    alone = ["unshare", "--net", "--pid", "--mount", "--uts", "--fork", "--kill-child", "--mount-proc"]
    nodes = []
    for spool in spools:
        shutil.rmtree(spool, ignore_errors=True)
        spool.mkdir()
        command = [sys.executable, __file__, "node", str(spool)]
        nodes.append(subprocess.Popen(command if count == 1 else [*alone, *command]))
    try:
        for process, spool in zip(nodes, spools, strict=True):
            while read(spool / "ready") is None:
                if process.poll() is not None:
                    raise RuntimeError(f"{spool} did not start")
                time.sleep(POLL_SECONDS)
        if count > 1:
            join([Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0] for process in nodes])
        yield spools
    finally:
        for spool in spools:
            write(spool / "end", "")
        for process in nodes:
            process.wait()


def join(nodes: list[str]) -> None:
    """A bridge in the first node's network, a cable from every other to it, and an address for each."""

    def within(node: str, command: str) -> None:
        subprocess.run(["nsenter", "--target", node, "--net", "ip", *command.split()], check=True)

    within(nodes[0], "link add eth0 type bridge")
    for at, node in enumerate(nodes, start=1):
        if at > 1:
            within(nodes[0], f"link add port{at} type veth peer name eth0 netns {node}")
            within(nodes[0], f"link set port{at} master eth0 up")
        within(node, f"address add 10.99.0.{at}/24 dev eth0")
        within(node, "link set eth0 up")
        within(node, "link set lo up")


def node(path: str) -> None:
    """Runs what is ordered until it is told to end. First in its namespace, it buries whoever dies there."""
    spool = Path(path)
    if os.getpid() == 1:
        temporary = Path(f"/tmp/ray-{os.getuid()}")
        temporary.mkdir(exist_ok=True)
        (spool / "ray").mkdir()
        subprocess.run(["mount", "--bind", str(spool / "ray"), str(temporary)], check=True)
        subprocess.run(["hostname", spool.name], check=True)
    running: dict[int, Path] = {}
    write(spool / "ready", "")
    while read(spool / "end") is None:
        for order in spool.glob("*.order"):
            asked = json.loads(order.read_text())
            order.unlink()
            with Path(asked["output"]).open("a") as output:
                process = subprocess.Popen(
                    asked["command"], env=asked["environment"], cwd=asked["where"], stdin=subprocess.DEVNULL,
                    stdout=output, stderr=output, start_new_session=True,
                )  # fmt: skip
            running[process.pid] = order
        for file in spool.glob("*.kill"):
            name, whom = json.loads(file.read_text())
            file.unlink()
            first = [process_id for process_id, order in running.items() if order.stem == whom]
            for process_id in first or processes_of(whom):
                with suppress(ProcessLookupError):
                    os.kill(process_id, getattr(signal, name))
        with suppress(ChildProcessError):
            while (one := os.waitpid(-1, os.WNOHANG))[0]:
                if one[0] in running:
                    status = os.waitstatus_to_exitcode(one[1])
                    order = running.pop(one[0])
                    write(order.with_suffix(".status"), str(status if status >= 0 else 128 - status))
        time.sleep(POLL_SECONDS)
    for process_id in processes_of(str(spool.parent)):
        with suppress(ProcessLookupError):
            os.kill(process_id, signal.SIGKILL)


def processes_of(whom: str) -> Iterator[int]:
    """Processes of a step, or of a job by its folder: those that inherited the variable."""
    told = {f"{name}={whom}\0".encode() for name in ("FAKE_SLURM_STEP", "FAKE_SLURM_FOLDER")}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            environment = (folder / "environ").read_bytes()
            if any(one in environment for one in told):
                yield int(folder.name)


if __name__ == "__main__":
    sys.exit(main())
