"""Machines of a Ray cluster that are lost: a worker's is survived, the head's ends the run, and the next one goes on."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from runs import (
    AT_WORK,
    SLOW,
    Running,
    arguments,
    below,
    complete,
    completes,
    entries,
    prepared,
    trusted_is_whole,
    until,
)

from conftest import Command

#: A head without cores and two nodes of two; tells the address and each machine's processes, until its input ends.
CLUSTER = """
import json, sys
from ray.cluster_utils import Cluster

given = {"object_store_memory": 80 * 1024 * 1024, "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args=given | {"num_cpus": 0})
nodes = [cluster.head_node, *(cluster.add_node(num_cpus=2, **given) for _ in range(2))]
pids = [[one.process.pid for some in node.all_processes.values() for one in some] for node in nodes]
print(json.dumps([cluster.address, pids]), flush=True)
sys.stdin.read()
cluster.shutdown()
"""

#: So long a process of the cluster looks for a head that does not answer; Ray's own default is a minute.
HEAD_SECONDS = 3


@dataclass(frozen=True)
class Machines:
    """A cluster of three on this machine; the processes of each."""

    environment: dict[str, str]
    address: str
    head: list[int]
    nodes: list[list[int]]


@contextmanager
def cluster(home: Path) -> Iterator[Machines]:
    """Until this ends; who joins needs the token in the environment."""
    environment = {
        "HOME": str(home),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_gcs_rpc_server_reconnect_timeout_s": str(HEAD_SECONDS),
    }
    with subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | environment,
    ) as running:
        assert running.stdout is not None
        address, (head, *nodes) = json.loads(running.stdout.readline())
        everyone = below(running.pid)
        try:
            yield Machines(environment, address, head, nodes)
        finally:
            running.communicate(timeout=60)
            for process in everyone:
                with suppress(psutil.NoSuchProcess):
                    process.kill()


def lose(machine: list[int]) -> None:
    """Every process of a machine killed."""
    for pid in machine:
        with suppress(psutil.NoSuchProcess):
            for process in (psutil.Process(pid), *below(pid)):
                with suppress(psutil.NoSuchProcess):
                    process.kill()


def at_work(machine: list[int]) -> list[psutil.Process]:
    return [process for pid in machine if psutil.pid_exists(pid) for process in below(pid, AT_WORK)]


def test_a_lost_node_is_survived_and_a_lost_head_ends_the_run(whenwhy: Command, tmp_path: Path) -> None:
    with cluster(tmp_path) as machines:
        joined = ("--workers", "2", "--ray-address", machines.address)

        out = tmp_path / "node"
        running = Running(arguments(out, *joined, options=SLOW), machines.environment)
        until(lambda: entries(out) and any(at_work(node) for node in machines.nodes))
        lost = next(node for node in machines.nodes if at_work(node))
        lose(lost)
        done = len(entries(out))
        told = running.ended()
        assert told.status == 0, told
        assert done < len(prepared().shards)
        complete(out, SLOW)

        out = tmp_path / "head"
        [left] = [node for node in machines.nodes if node is not lost]
        running = Running(arguments(out, *joined, options=SLOW), machines.environment)
        until(lambda: entries(out) and at_work(left))
        for worker in at_work(left):
            worker.send_signal(signal.SIGSTOP)  # so that the shards are not done before the driver has noticed
        lose(machines.head)
        told = running.ended(HEAD_SECONDS + 60)
        assert told.status not in (0, -signal.SIGKILL), told
        assert "Traceback" not in told.said
        lose(left)
    trusted_is_whole(out)
    assert len(entries(out)) < len(prepared().shards)
    completes(whenwhy, out, SLOW)
