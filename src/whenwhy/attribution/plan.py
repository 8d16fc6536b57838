"""How long a run would take and what it would need: some batches of some shards are really attributed, and timed."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from zlib import crc32

import numpy as np
import torch
from rich.filesize import decimal

from whenwhy.attribution.attribute_shards import AttributeSettings, AttributeShard, begun, explaining, shard_files
from whenwhy.engine import Workers, kept_pool, run, worker_threads
from whenwhy.engine.memory import peak_bytes
from whenwhy.errors import UserError
from whenwhy.events.sequence_batch import Sequences
from whenwhy.events.sequence_directory import TABLE
from whenwhy.models.foreign.named import ForeignSource
from whenwhy.shards import Json

#: For so long each worker is timed, about, once it is warm.
SECONDS = 10.0


@dataclass(frozen=True)
class Plan:
    """What a run would take.

    Attributes:
        n_predictions, n_shards, n_workers: of the run.
        seconds: from its start to its end, of which `once` pass before the first shard begins.
        disk_bytes: of the attributions.
        worker_bytes: of memory that a worker held at most.
        n_timed: predictions that were attributed for this plan.
    """

    n_predictions: int
    n_shards: int
    n_workers: int
    seconds: float
    once: float
    disk_bytes: float
    worker_bytes: int
    n_timed: int


@dataclass(frozen=True)
class TimedShard:
    """The engine's task: as much of a shard as fits into `seconds` attributed; TIMES/KEY.json says what it took."""

    shard: AttributeShard
    times: str
    seconds: float

    def start(self) -> Callable[[str], int]:
        torch.set_num_threads(worker_threads())
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        stage, source = self.shard.stage(), self.shard.source()
        asked = AttributeSettings(**stage.settings)
        explained = explaining(self.shard.loaded(device), stage, device, Counter())

        def one_shard(key: str) -> int:
            begin = time.monotonic()
            table = source.read(key, TABLE)
            reading = time.monotonic() - begin
            whole = Sequences(table)
            batches = whole.buckets(np.arange(len(whole)), patients=asked.batch_patients, steps=asked.batch_steps)
            order = np.random.default_rng(crc32(key.encode())).permutation(len(batches))
            # Twice: a worker's first batch is slow, and a run has many.
            for _ in range(2):
                begin = time.monotonic()
                for _ in explained(whole, batches[order[0]], asked.precision):
                    pass
                first = time.monotonic() - begin
            share, chosen = first / max(1, _steps(whole, batches[order[0]])), []
            for at in order:
                chosen.append(batches[at])
                if share * sum(_steps(whole, rows) for rows in chosen) > self.seconds:
                    break
            rows = np.sort(np.concatenate(chosen))
            begin = time.monotonic()
            files, summary = shard_files(Sequences(table.take(rows)), key, asked, explained)
            stage.publish(key, files, summary)
            (Path(self.times) / f"{key}.json").write_text(
                json.dumps(
                    {
                        "reading": reading,
                        "seconds": time.monotonic() - begin,
                        "steps": int(whole.n_steps[rows].sum()) + len(rows),
                        "predictions": len(rows),
                        "bytes": sum(told["bytes"] for told in stage.entry(key).files.values()),
                        "peak": peak_bytes(),
                    }
                )
            )
            return len(rows)

        return one_shard


def _steps(sequences: Sequences, rows: np.ndarray) -> int:
    return int(sequences.n_steps[rows].sum()) + len(rows)


def plan(
    sequences_path: Path,
    model: Path | ForeignSource,
    settings: AttributeSettings,
    workers: Workers | None = None,
    *,
    seconds: float = SECONDS,
) -> Plan:
    """What `attribute_shards` with the same arguments would take, with so many such workers as this machine has.

    A shard a worker is timed, all workers at work as in the run, but no more than there are cores here; what the
    run does once (training patients that are drawn, a method that is fitted) is done and timed too. More workers
    are taken to be as fast each.

    Args:
        seconds: for which each worker is timed, about.

    Raises:
        UserError: as `attribute_shards`; or there is nothing to attribute.

    Example: `plan(Path("seq"), Path("model"), AttributeSettings("shapley"), Workers(count=8)).seconds / 3600`
    """
    workers = workers or Workers()
    if workers.ray_address:
        raise UserError(
            "A plan times this machine: leave out --ray-address, and give as many --workers as the cluster has."
        )
    with tempfile.TemporaryDirectory(prefix="whenwhy-plan-") as folder:
        clock = time.monotonic()
        out, times = Path(folder) / "attributed", Path(folder) / "times"
        times.mkdir()
        run_begun = begun(sequences_path, model, out, settings)
        sequences = run_begun.sequences
        told = {name: sequences.entry(name).summary for name in sequences.shards}
        some = [name for name in sequences.shards if told[name]["n_predictions"]]
        if not some:
            raise UserError(f"{sequences_path} has no prediction: there is nothing to plan.")
        here = os.cpu_count() or 1
        local = workers if workers.count is None else replace(workers, count=min(workers.count, here))
        with kept_pool(local, len(some)) as pool:
            at_once = pool.count
            spread = [some[at] for at in np.unique(np.linspace(0, len(some) - 1, min(at_once, len(some))).astype(int))]
            task = TimedShard(run_begun.task, str(times), seconds)
            run(_Idle(), spread, stage="start", unit="workers", pool=pool)
            once = time.monotonic() - clock
            run(task, spread, stage="plan", unit="predictions", pool=pool)
        timed: list[Json] = [json.loads((times / f"{name}.json").read_text()) for name in spread]
    n_workers = 1 if workers.inline else workers.count or at_once
    return foretold(timed, list(told.values()), n_workers, once)


def foretold(timed: Sequence[Json], shards: Sequence[Json], n_workers: int, once: float) -> Plan:
    """The plan of a run of these shards, from what some took.

    Time and bytes are those of the timed steps, as often as there are steps; every shard is read whole, and the largest
    one by a single worker.

    Args:
        timed: as `TimedShard` tells; shards: the summaries of all.
        once: seconds before the first shard begins.

    Example:
        >>> took = {"reading": 1.0, "seconds": 10.0, "steps": 100, "predictions": 20, "bytes": 5_000, "peak": 2 * 10**8}
        >>> found = foretold([took], [{"n_steps": 180, "n_predictions": 20}] * 4, n_workers=2, once=6.0)
        >>> found.seconds, found.disk_bytes
        (48.0, 40000.0)
    """
    steps = sum(one["steps"] for one in timed)
    each = [one["n_steps"] + one["n_predictions"] for one in shards]
    a_step = sum(one["seconds"] for one in timed) / steps
    reading = sum(one["reading"] for one in timed) / len(timed)
    some = sum(size > 0 for size in each)
    busy = max((a_step * sum(each) + reading * some) / n_workers, a_step * max(each) + reading)
    return Plan(
        sum(one["n_predictions"] for one in shards),
        len(shards),
        n_workers,
        once + busy,
        once,
        sum(one["bytes"] for one in timed) / steps * sum(each),
        max(one["peak"] for one in timed),
        sum(one["predictions"] for one in timed),
    )


@dataclass(frozen=True)
class _Idle:
    """A task that only waits for its worker to be there."""

    def start(self) -> Callable[[str], int]:
        return lambda key: 1


def plan_sentence(found: Plan, method: str) -> str:
    """A plan in one sentence for people.

    Example:
        >>> plan_sentence(Plan(1_000_000, 500, 8, 8130.0, 20.0, 5e9, 900_000_000, 4096), "shapley")
        'shapley of 1,000,000 predictions (500 shards) with 8 workers: about 2:15:30 hours, 5.0 GB on disk, 900.0 MB of memory a worker (4,096 predictions were timed)'
    """
    workers = "1 worker" if found.n_workers == 1 else f"{found.n_workers:,} workers"
    return (
        f"{method} of {found.n_predictions:,} predictions ({found.n_shards:,} shards) with {workers}: about "
        f"{timedelta(seconds=round(found.seconds))} hours, {decimal(round(found.disk_bytes))} on disk, "
        f"{decimal(found.worker_bytes)} of memory a worker "
        f"({found.n_timed:,} predictions were timed)"
    )
