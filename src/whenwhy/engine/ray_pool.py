"""Hand-written Ray actors, one per device: the only place that imports Ray.

Ray Data was left aside: the unit that resumes must be a shard that can be named, hashed and verified.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import ray
from ray.exceptions import ActorUnavailableError, AuthenticationError, RayActorError, RayError, RayTaskError
from ray.util.metrics import Counter, Gauge

from whenwhy.engine.memory import device_peak_bytes, keep_freed_memory
from whenwhy.engine.progress import Progress, console
from whenwhy.engine.ray_settings import IMPORTED_BEFORE
from whenwhy.engine.run import Outcome, Task, Workers
from whenwhy.engine.threads import set_worker_threads
from whenwhy.errors import UserError

#: Actors exchange names and counts alone, so the object store is kept at Ray's smallest.
OBJECT_STORE_BYTES = 80 * 1024 * 1024

#: So long a cluster may take to be reached.
LISTENER_SECONDS = 10.0

#: So long an actor that restarts is waited for before it is stopped.
RESTART_SECONDS = 30.0

#: So long nobody may work before people are told.
NOBODY_SECONDS = 60.0

#: Of every Ray that this process starts: Ray reads the first one, and keeps to it.
OWN_TOKEN = secrets.token_hex(32)

#: The address by which this process joined a cluster, as it was written.
_joined: str | None = None

#: How often who waits for workers looks around.
LOOK_SECONDS = 0.5


class Worker:
    """An actor: each task started once on its own device, then one shard a call."""

    def __init__(self, threads: int) -> None:
        keep_freed_memory()
        set_worker_threads(threads)
        pa.set_cpu_count(threads)
        self.begun: int | None = None
        self.work_on: Callable[[str], int] | None = None

    def work(self, number: int, task: Task, key: str) -> tuple[int, int]:
        """One shard of a task, as amount of work and GPU memory; `number` tells tasks apart, also to a new actor."""
        if self.begun != number:
            self.work_on, self.begun = task.start(), number
        assert self.work_on is not None
        return self.work_on(key), device_peak_bytes()


class RayPool:
    """One actor per GPU (or part of one), or per so many cores as it has threads where there is no GPU."""

    here = False

    def __init__(self, workers: Workers, at_most: int | None = None) -> None:
        connect(workers)
        count, cpus, gpus = shares(
            workers, [node["Resources"] for node in ray.nodes() if node["Alive"]], at_most or sys.maxsize
        )
        # Restarted by Ray whenever one dies, and counted here: a shard is tried three times, whoever tries.
        self.made = ray.remote(Worker).options(num_cpus=cpus, num_gpus=gpus, max_restarts=-1, max_task_retries=0)
        self.threads = workers.threads
        # Free once it is there: one that finds no place must not hold a shard.
        self.free: list[Any] = []
        self.starting: dict[Any, Any] = {}
        for _ in range(count):
            self._start(self.made.remote(self.threads))
        self.begun_waiting: float | None = time.monotonic()
        self.ending = False
        self.name, self.count = f"{count} Ray actors", count
        self.working: dict[Any, tuple[Any, str]] = {}
        self.number = 0
        self.task: Any = None
        self.gauges = Gauges()

    def begin(self, task: Task) -> None:
        # Once in the object store, not with every shard's name.
        self.number, self.task = self.number + 1, ray.put(task)

    def idle(self) -> bool:
        return bool(self.free)

    def busy(self) -> bool:
        return bool(self.working)

    def submit(self, key: str) -> None:
        actor = self.free.pop()
        self.working[actor.work.remote(self.number, self.task, key)] = (actor, key)

    def next(self) -> Outcome | None:
        found, _ = ray.wait([*self.working, *self.starting], num_returns=1, timeout=LOOK_SECONDS)
        if not found:
            self._say_if_nobody_works()
            return None
        if found[0] in self.starting:
            self._started(found[0])
            return None
        actor, key = self.working.pop(found[0])
        try:
            amount, device_bytes = ray.get(found[0])
        except RayTaskError as error:
            cause = error.cause
            outcome = Outcome(key, error=cause if isinstance(cause, Exception) else error)
        except RayActorError as error:
            # It may take long, on another machine perhaps: the others go on meanwhile.
            self._start(actor)
            return Outcome(key, error=error, died=True)
        except RayError as error:
            outcome = Outcome(key, error=error)
        else:
            outcome = Outcome(key, amount, None, device_bytes)
        self.free.append(actor)
        return outcome

    def _start(self, actor: Any) -> None:
        self.starting[actor.__ray_ready__.remote()] = actor

    def _started(self, ready: Any) -> None:
        """An actor is free; or a new one stands for it, if Ray has given it up."""
        actor = self.starting.pop(ready)
        try:
            ray.get(ready)
        except ActorUnavailableError:  # not yet
            time.sleep(LOOK_SECONDS)
            self._start(actor)
        except RayError:
            time.sleep(LOOK_SECONDS)
            self._start(self.made.remote(self.threads))
        else:
            self.free.append(actor)
            self.begun_waiting = None

    def _say_if_nobody_works(self) -> None:
        if self.begun_waiting is not None and time.monotonic() - self.begun_waiting > NOBODY_SECONDS:
            self.begun_waiting = None
            console.print(
                f"No worker has found a place for {NOBODY_SECONDS:.0f} seconds: the cluster's cores or GPUs are in use, or each "
                "worker asks for more than a machine has.",
                soft_wrap=True,
            )

    def measure(self, progress: Progress, outcome: Outcome) -> None:
        self.gauges.measure(progress, outcome)

    def abandon(self, ending: bool) -> None:
        self.ending = ending
        for actor, _ in self.working.values():
            ray.kill(actor)
            if not ending:
                self._start(self.made.remote(self.threads))
        self.working.clear()

    def close(self) -> None:
        # Ray 2.60 keeps the cores of an actor that is killed while it restarts.
        deadline = time.monotonic() + RESTART_SECONDS
        while self.starting and not self.ending and time.monotonic() < deadline:
            for ready in ray.wait(list(self.starting), num_returns=1, timeout=LOOK_SECONDS)[0]:
                self._started(ready)
        for actor in [*self.free, *self.starting.values(), *(actor for actor, _ in self.working.values())]:
            ray.kill(actor)


class Gauges:
    """What Ray's Prometheus page says of a run, where the cluster has one: shards, work, GPU memory."""

    def __init__(self) -> None:
        tags = ("stage",)
        self.shards = Counter("whenwhy_shards", "Shards that ended.", (*tags, "outcome"))
        self.amount = Counter("whenwhy_amount", "Units of work done.", (*tags, "unit"))
        self.left = Gauge("whenwhy_shards_left", "Shards that are not finished.", tags)
        self.memory = Gauge("whenwhy_gpu_bytes", "The most GPU memory that a worker held.", tags)

    def measure(self, progress: Progress, outcome: Outcome) -> None:
        """One more shard has ended."""
        of = {"stage": progress.stage}
        self.shards.inc(1, of | {"outcome": "failed" if outcome.error else "finished"})
        if outcome.amount:
            self.amount.inc(outcome.amount, of | {"unit": progress.unit})
        self.left.set(progress.total - progress.finished, of)
        self.memory.set(progress.device_bytes, of)


def shares(workers: Workers, nodes: Sequence[Mapping[str, float]], at_most: int) -> tuple[int, float, float]:
    """How many actors there are, and what each has of cores and of a GPU.

    More workers than there are GPUs (or cores) share them in equal parts that do not straddle two of them.

    Args:
        nodes: the resources of each, by Ray's names.

    Raises:
        UserError: parts of GPUs are asked for where there is none, or more of them than there are.

    Example:
        >>> shares(Workers(), [{"CPU": 4}], 100), shares(Workers(threads=4), [{"CPU": 10}, {"CPU": 6}], 100)
        ((4, 1.0, 0.0), (3, 4.0, 0.0))
        >>> shares(Workers(), [{"CPU": 16, "GPU": 2}], 100), shares(Workers(3), [{"CPU": 16, "GPU": 2}], 100)
        ((2, 1.0, 1.0), (3, 1.0, 0.5))
        >>> shares(Workers(gpus_per_worker=0.25), [{"CPU": 16, "GPU": 2}], 100)
        (8, 1.0, 0.25)
    """
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    if workers.gpus_per_worker is not None:
        if not gpus:
            raise UserError(
                "--gpus-per-worker: there is no GPU here: leave it out, or name a --ray-address that has some."
            )
        on_each = int(1 / workers.gpus_per_worker + 1e-6)
        count, gpu = workers.count or gpus * on_each, workers.gpus_per_worker
        if count > gpus * on_each:
            raise UserError(
                f"--workers {count} with --gpus-per-worker {gpu:g} need more than the {gpus} GPUs here: give at most "
                f"{gpus * on_each} workers, or a smaller part to each."
            )
    elif gpus:
        count = workers.count or gpus
        on_each = -(-count // gpus)
        gpu = 1 / on_each
    else:
        cores = max(1, int(sum(node.get("CPU", 0) for node in nodes)))
        fit = sum(int(node.get("CPU", 0) // workers.threads) for node in nodes)
        count = min(workers.count or max(1, fit), at_most)
        return count, float(workers.threads) if count <= fit else 1 / -(-count // cores), 0.0
    # Each GPU's workers find cores beside it.
    cpu = min(node.get("CPU", 0) / (int(node["GPU"]) * on_each) for node in nodes if node.get("GPU", 0) >= 1)
    return min(count, at_most), min(float(workers.threads), int(cpu * 1000) / 1000), float(gpu)


def connect(workers: Workers) -> None:
    """Join the cluster at `ray_address`, or start Ray on this machine; one that runs already is kept.

    Raises:
        UserError: Ray cannot be reached or started, or this process is at another address already.
    """
    global _joined
    if ray.is_initialized():
        there = ray.get_runtime_context().gcs_address
        if workers.ray_address not in (None, "auto", there, _joined):
            raise UserError(
                f"This process is at Ray {there} already, and cannot join {workers.ray_address} too: leave the address "
                "out, or call ray.shutdown() first."
            )
        return
    if IMPORTED_BEFORE:
        raise UserError(
            "Ray was imported before whenwhy could tell it to ask for a token: import whenwhy.engine first, or set "
            "RAY_AUTH_MODE=token in the environment."
        )
    mode = os.environ.get("RAY_AUTH_MODE")
    if mode != "token":
        raise UserError(f"RAY_AUTH_MODE is '{mode}', and without a token who reaches Ray can run code: unset it.")
    _require_listener(workers.ray_address)
    before = signal.getsignal(signal.SIGTERM)
    try:
        if workers.ray_address:
            ray.init(address=workers.ray_address, logging_level=logging.ERROR, log_to_driver=False)
            _joined = workers.ray_address
        else:
            # A token of this process alone, known to its children by the environment: nothing is written.
            os.environ["RAY_AUTH_TOKEN"] = OWN_TOKEN
            ray.init(
                address="local",
                num_cpus=workers.count and workers.count * workers.threads,
                include_dashboard=False,
                logging_level=logging.ERROR,
                log_to_driver=False,
                object_store_memory=OBJECT_STORE_BYTES,
            )
    except AuthenticationError:
        raise UserError(
            f"Ray at {workers.ray_address} wants its token: put it into RAY_AUTH_TOKEN or ~/.ray/auth_token."
        ) from None
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = f"join Ray at {workers.ray_address}" if workers.ray_address else "start Ray on this machine"
        token = "check its token (RAY_AUTH_TOKEN or ~/.ray/auth_token), or " if workers.ray_address else ""
        told = " ".join(str(error).split())
        raise UserError(f"Could not {where} ({told}): {token}add --inline to work without Ray.") from error

    finally:
        # Ray ends the process with status 15.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)


def _require_listener(address: str | None) -> None:
    """Raises `UserError` if nobody answers at HOST:PORT, for which Ray would wait for minutes."""
    host, _, port = (address or "").rpartition(":")
    if host and port.isdecimal() and "/" not in host:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=LISTENER_SECONDS).close()
        except OSError as error:
            raise UserError(
                f"Nobody answers at {address} ({error.strerror or error}): name the address of a Ray cluster, or add "
                "--inline to work without Ray."
            ) from None
