"""Hand-written Ray actors, one per device: the only place that imports Ray.

Ray Data was left aside: the unit that resumes must be a shard that can be named, hashed and verified.
"""

from __future__ import annotations

import logging
import os
import secrets
import sys
from collections.abc import Callable
from typing import Any

from whenwhy.engine.memory import keep_freed_memory
from whenwhy.engine.run import Task, Workers
from whenwhy.engine.stopping import TimeIsUp
from whenwhy.errors import UserError

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # private data: nothing is reported outside
# Ray listens on every interface of a machine, and who reaches it can run code: nobody may without the token.
os.environ.setdefault("RAY_AUTH_MODE", "token")
# Workers are the work: they do not stand back behind every other process of the machine.
os.environ.setdefault("RAY_worker_niceness", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

#: How often Ray restarts an actor whose process died.
MAX_RESTARTS = 3

#: Actors exchange names and counts alone, so the object store is kept at Ray's smallest.
OBJECT_STORE_BYTES = 80 * 1024 * 1024


#: How often who waits for workers looks whether it is late.
LOOK_SECONDS = 0.5


class Worker:
    """An actor: each task started once on its own device, then one shard a call."""

    def __init__(self) -> None:
        keep_freed_memory()
        self.begun: int | None = None
        self.work_on: Callable[[str], int] | None = None

    def work(self, number: int, task: Task, key: str) -> int:
        """One shard of a task; `number` tells tasks apart, also to an actor that was started again."""
        if self.begun != number:
            self.work_on, self.begun = task.start(), number
        assert self.work_on is not None
        return self.work_on(key)


class RayPool:
    """One actor per GPU, or per core where there is none."""

    here = False

    def __init__(self, workers: Workers, at_most: int | None = None) -> None:
        connect(workers)
        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0))
        cores = max(1, int(resources.get("CPU", 1)))
        count = min(workers.count or gpus or cores, at_most or sys.maxsize)
        # More workers than devices share them in equal fractions.
        actor = ray.remote(Worker).options(
            num_cpus=min(1.0, cores / count),
            num_gpus=min(1.0, gpus / count) if gpus else 0,
            max_restarts=MAX_RESTARTS,
            max_task_retries=0,
        )
        self.free: list[Any] = [actor.remote() for _ in range(count)]
        self.actors = list(self.free)
        self.name, self.count = f"{count} Ray actors", count
        self.working: dict[Any, tuple[Any, str]] = {}
        self.number = 0
        self.task: Any = None

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

    def next(self, late: Callable[[], bool] = lambda: False) -> tuple[str, int | Exception]:
        done = None
        while done is None:
            if late():
                raise TimeIsUp
            found, _ = ray.wait(list(self.working), num_returns=1, timeout=LOOK_SECONDS)
            done = found[0] if found else None
        actor, key = self.working.pop(done)
        try:
            outcome: int | Exception = int(ray.get(done))
        except RayTaskError as error:
            cause = error.cause
            outcome = cause if isinstance(cause, Exception) else error
        except RayActorError as error:
            outcome = error
            if _is_dead(actor):
                self.actors.remove(actor)
                if not self.actors:
                    raise UserError(
                        f"every worker died more than {MAX_RESTARTS} times ({str(error).splitlines()[0]}): "
                        "look for a lack of memory, then run the same command again to continue."
                    ) from error
                return key, outcome
        except RayError as error:
            outcome = error
        self.free.append(actor)
        return key, outcome

    def close(self) -> None:
        for actor in self.actors:
            ray.kill(actor)


def _is_dead(actor: Any) -> bool:
    """Whether Ray has given the actor up: a call to a restarting actor waits, to a dead one it raises."""
    try:
        ray.get(actor.__ray_ready__.remote(), timeout=60)
    except RayError:
        return True
    return False


def connect(workers: Workers) -> None:
    """Join the cluster at `ray_address`, or start Ray on this machine; one that runs already is kept."""
    if ray.is_initialized():
        return
    try:
        if workers.ray_address:
            ray.init(address=workers.ray_address, logging_level=logging.ERROR, log_to_driver=False)
        else:
            # A token of this process alone, known to its children by the environment: nothing is written.
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
            ray.init(
                address="local",
                num_cpus=workers.count,
                include_dashboard=False,
                logging_level=logging.ERROR,
                log_to_driver=False,
                object_store_memory=OBJECT_STORE_BYTES,
            )
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = f"join Ray at {workers.ray_address}" if workers.ray_address else "start Ray on this machine"
        raise UserError(f"Could not {where} ({error}): add --inline to work without Ray.") from error
