"""A Slurm to submit to: the fake one, or the real one on this machine with daemons of its own."""

from __future__ import annotations

import getpass
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

HERE = Path(__file__).parent
SCRIPTS = HERE.parents[1] / "cluster" / "slurm"

#: What the real Slurm needs, from the packages slurmctld, slurmd, slurm-client and munge.
DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch")

#: Long enough that only what hangs reaches it.
PATIENCE_SECONDS = 400.0

#: To ask starts a process, which takes its time from the jobs.
POLL_SECONDS = 0.2

FINISHED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")


@dataclass(frozen=True)
class Slurm:
    """Where to submit.

    Attributes:
        environment: in which its commands are found.
        options: of every sbatch.
    """

    environment: dict[str, str]
    options: tuple[str, ...] = ()

    def command(self, *arguments: object, **variables: object) -> str:
        """What a command prints."""
        given = {name: str(value) for name, value in variables.items()}
        told = subprocess.run(
            [str(one) for one in arguments], capture_output=True, text=True, env=self.environment | given, check=False
        )
        assert told.returncode == 0, (arguments, told.stdout, told.stderr)
        return told.stdout.strip()

    def submit(self, *options: str, **variables: object) -> str:
        """The number of a job that runs whenwhy.sbatch."""
        return self.command("sbatch", "--parsable", *self.options, *options, SCRIPTS / "whenwhy.sbatch", **variables)

    def told(self, job: str) -> dict[str, str]:
        """The fields of a job."""
        return dict(re.findall(r"(\w+)=(\S*)", self.command("scontrol", "--oneliner", "show", "job", job)))

    def output(self, job: str) -> str:
        """What its runs printed."""
        return Path(self.told(job)["StdOut"]).read_text()

    def ended(self, job: str) -> dict[str, str]:
        """The fields of a job that has come to its end."""
        until(lambda: self.told(job)["JobState"] in FINISHED)
        return self.told(job)


def until(holds: Callable[[], bool]) -> None:
    """Returns when something holds."""
    late = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < late, "it never came to hold"
        time.sleep(POLL_SECONDS)


@contextmanager
def fake_slurm(folder: Path) -> Iterator[Slurm]:
    """The fake Slurm, with its jobs in a folder; none of their processes is left after this."""
    path = os.pathsep.join([str(HERE / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    try:
        yield Slurm(os.environ | {"PATH": path, "FAKE_SLURM": str(folder), "FAKE_SLURM_PYTHON": sys.executable})
    finally:
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("FAKE_SLURM") == str(folder):
                    process.kill()


@contextmanager
def real_slurm(folder: Path) -> Iterator[Slurm]:
    """Slurm with one node, this machine: its own key, ports, files and daemons, which end with this."""
    for name in ("munge", "state", "spool"):
        (folder / name).mkdir(mode=0o700)
    (folder / "munge" / "key").write_bytes(os.urandom(1024))
    (folder / "munge" / "key").chmod(0o600)
    host, user, ports = socket.gethostname().partition(".")[0], getpass.getuser(), free_ports(2)
    # A requeued job waits until the credential of its last run has expired: 5 seconds are the least that Slurm takes.
    (folder / "slurm.conf").write_text(f"""
ClusterName=whenwhy
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CryptoType=crypto/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,bf_interval=1
KillWait=2
MinJobAge=86400
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={os.cpu_count()} RealMemory=2000 State=UNKNOWN
PartitionName=test Nodes={host} Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=300
PartitionName=urgent Nodes={host} PriorityTier=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
""")
    # SLURM_CONF is how its commands find it.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin", "/sbin"])
    environment = os.environ | {"PATH": path, "SLURM_CONF": str(folder / "slurm.conf")}
    sinfo = ["sinfo", "--noheader"]
    munge = [f"--{name}-file={folder}/munge/{name}" for name in ("key", "pid", "log", "seed")]
    daemons = []
    log = (folder / "daemons.log").open("w")

    def start(*command: str) -> None:
        # A session of their own: Ctrl-C is for the tests, which end the jobs before the daemons.
        asked = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, "start_new_session": True}
        daemons.append(subprocess.Popen(command, env=environment, **asked))

    slurm = Slurm(environment, ("--mem=2000", f"--output={folder}/%j.txt"))
    try:
        start("munged", "--foreground", "--force", f"--socket={folder}/munge/socket", *munge)
        until((folder / "munge" / "socket").exists)
        start("slurmctld", "-D")
        start("slurmd", "-D")
        until(lambda: "idle" in subprocess.run(sinfo, capture_output=True, text=True, env=environment).stdout)
        yield slurm
        slurm.command("scancel", "--user", user)
        until(lambda: not slurm.command("squeue", "--noheader"))
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait()
        log.close()


def free_ports(number: int) -> list[int]:
    """Ports at which nobody listens now."""
    sockets = [socket.socket() for _ in range(number)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
