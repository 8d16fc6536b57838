"""What the engine costs beside a bare loop, how it grows with workers and shards, and how well a plan foretells a run."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.ingest import made
from whenwhy.attribution.attribute_shards import AttributeSettings, attribute_shards
from whenwhy.attribution.plan import plan
from whenwhy.engine import Workers
from whenwhy.events.sequence_batch import SequenceBatch, Sequences
from whenwhy.events.sequence_directory import TABLE
from whenwhy.events.sequences import PrepareSettings, prepare
from whenwhy.models.checkpoint import load_model
from whenwhy.models.training import TrainSettings, train
from whenwhy.shards import StageDirectory

INLINE = Workers(inline=True)

#: The driver's largest memory after so many shards of no work, by Ray actors.
DRIVER = """
import json, resource, sys
from whenwhy.engine import Workers, run

class Nothing:
    def start(self):
        return lambda key: 1

run(Nothing(), [f"g0-{at:05d}" for at in range(int(sys.argv[1]))], stage="x", unit="keys", workers=Workers(count=2))
print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))
"""


def measure(small: bool, folder: Path | None = None) -> dict[str, Any]:
    """The keys of `engine`; every pair side by side in one run, medians of turns."""
    with tempfile.TemporaryDirectory() as temporary:
        where, turns = Path(temporary), 1 if small else 3
        meds = made(folder or where, 500 if small else 8_000)
        labels = next((meds / "labels").iterdir())
        sequences, model = where / "sequences", where / "model"
        prepare(meds, labels, sequences, PrepareSettings("x", shard_size=64 if small else 512), INLINE)
        train(sequences, model, TrainSettings(hidden=32 if small else 128, epochs=1), INLINE)
        told: dict[str, Any] = {}
        for method in ("gradient_times_input", "integrated_gradients"):
            told |= beside_bare_loop(sequences, model, method, where / "attr", turns)
        told |= two_workers(sequences, model, where / "attr", turns)
        told |= foretold(sequences, model, where / "attr", turns)
        told |= many_shards(meds, labels, model, where, 50 if small else 1_000)
    return told


def attributed(sequences: Path, model: Path, out: Path, method: str, workers: Workers) -> tuple[float, float]:
    """Seconds from start to end, and of the pass over the shards alone."""
    shutil.rmtree(out, ignore_errors=True)
    begin = time.monotonic()
    attribute_shards(sequences, model, out, AttributeSettings(method), workers)
    whole = time.monotonic() - begin
    return whole, json.loads((out / "run.json").read_text())["calls"][-1]["passes"][0]["seconds"]


def beside_bare_loop(sequences: Path, model: Path, method: str, out: Path, turns: int) -> dict[str, float]:
    """The rate of the engine's pass (read, attribute, write, hash, publish) over that of torch alone, on one thread.

    The loop has the run's batches in memory, and goes forward and back through the model once, or at as many
    Gauss-Legendre nodes as each batch's records took in the run, each a pass of its own.
    """
    ours, bare = [], []
    torch.set_num_threads(1)
    network, stage = load_model(model), StageDirectory.open(sequences)
    batches: list[SequenceBatch] = []
    for shard in stage.shards:
        whole = Sequences(stage.read(shard, TABLE))
        batches += [whole.batch(rows) for rows in whole.buckets(np.arange(len(whole)), patients=256, steps=4096)]
    nodes = 1
    for _ in range(turns + 1):
        ours.append(attributed(sequences, model, out, method, INLINE)[1])
        if method == "integrated_gradients":
            run = StageDirectory.open(out)
            evaluations = [run.read(name, "predictions", ["n_nodes"]).column(0).to_numpy() for name in run.shards]
            nodes = round(float(np.concatenate(evaluations).mean()))
        begin = time.monotonic()
        for batch in batches:
            for node in range(nodes):
                weights = {
                    name: (bags.weights * ((node + 1) / nodes)).requires_grad_() for name, bags in batch.streams.items()
                }
                score = network.score(network.embed(batch, weights), batch.lengths)
                torch.autograd.grad(score.sum(), list(weights.values()), allow_unused=True)
        bare.append(time.monotonic() - begin)
    short = "gradient" if method.startswith("gradient") else "ig"
    return {f"end_to_end_share_{short}": median(bare[1:]) / median(ours[1:]), f"{short}_nodes": nodes}


def two_workers(sequences: Path, model: Path, out: Path, turns: int) -> dict[str, float]:
    """How many times one worker's rate two have, a thread each, their start included: of a run of some minutes."""
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(turns):
        for count, told in seconds.items():
            told.append(attributed(sequences, model, out, "smooth_grad", Workers(count=count))[1])
    return {"two_worker_speedup": median(seconds[1]) / median(seconds[2])}


def foretold(sequences: Path, model: Path, out: Path, turns: int) -> dict[str, float]:
    """A plan's seconds and bytes over those of the run, with two workers."""
    ratios, sizes = [], []
    for _ in range(turns):
        asked = AttributeSettings("smooth_grad")
        planned = plan(sequences, model, asked, Workers(count=2))
        whole, _ = attributed(sequences, model, out, "smooth_grad", Workers(count=2))
        run = StageDirectory.open(out)
        size = sum(told["bytes"] for name in run.shards for told in run.entry(name).files.values())
        ratios.append(planned.seconds / whole)
        sizes.append(planned.disk_bytes / size)
    return {
        "plan_error": median(abs(ratio - 1) for ratio in ratios),
        "plan_seconds_over_run": median(ratios),
        "plan_bytes_over_run": median(sizes),
    }


def many_shards(meds: Path, labels: Path, model: Path, where: Path, shards: int) -> dict[str, float]:
    """Seconds of a finished run of so many shards when it is called again, and how the driver's memory grows with them."""
    sequences, out = where / "many", where / "many-attr"
    n_predictions = sum(
        StageDirectory.open(where / "sequences").entry(name).summary["n_predictions"]
        for name in StageDirectory.open(where / "sequences").shards
    )
    prepare(meds, labels, sequences, PrepareSettings("x", shard_size=max(1, n_predictions // shards)), INLINE)
    attribute_shards(sequences, model, out, AttributeSettings("saliency"), INLINE)
    command = [
        sys.executable, "-m", "whenwhy", "attribute", str(sequences), "--model", str(model), "--out", str(out),
        "--method", "saliency",
    ]  # fmt: skip
    begin = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    again = time.monotonic() - begin
    few, many = (
        int(subprocess.run([sys.executable, "-c", DRIVER, str(n)], check=True, capture_output=True, text=True).stdout)
        for n in (shards // 10, 10 * shards)
    )
    return {
        "resume_seconds_1000_shards": again,
        "resume_shards": len(StageDirectory.open(out).shards),
        "driver_memory_growth": many / few,
    }
