"""How fast and how small attributions are, beside Captum on the dense form of the same network.

A GRU reads records of 48 steps with 12 values each, of 10,000 feature values. Captum (0.9) gets the same weights
behind a multi-hot vector a step; figures beside it are None where it is not installed. Both sides run in turns within
one run, with the same threads; times are medians.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from benchmarks import shapley, state
from whenwhy.attribution import attribute
from whenwhy.attribution.baselines import given_baseline
from whenwhy.attribution.paths import mean_gradients
from whenwhy.attribution.question import Question
from whenwhy.attribution.targets import Target
from whenwhy.events.sequence_batch import EVENTS, SequenceBatch, Sequences
from whenwhy.models.recurrent import RecurrentClassifier
from whenwhy.schema import SEQUENCES

#: Captum's own default of nodes, and what it is given until it meets the same residual.
CAPTUM_NODES = 50
MORE_NODES = (8, 10, 12, 14, 16, 20, 24, 32, 64, 128, 256, 512)


@dataclass(frozen=True)
class Size:
    """Of a measurement."""

    feature_values: int
    steps: int
    per_step: int
    hidden: int
    patients: int
    repeats: int

    def model(self, bent: bool = True) -> RecurrentClassifier:
        """With torch's own initial weights, or such that bend the score along the path: the same every time."""
        torch.manual_seed(0)
        model = RecurrentClassifier(self.feature_values, self.hidden, dropout=0.0).eval()
        if not bent:
            return model
        with torch.no_grad():
            model.tables[EVENTS].normal_(0, 1.0)
            for weights in (model.cell.weight_hh_l0, model.cell.weight_ih_l0):
                weights.normal_(0, 1.5 / self.hidden**0.5)
        return model

    def batch(self) -> SequenceBatch:
        """Records without static values, and without a value twice in a step, so that multi-hot is the same."""
        random = np.random.default_rng(0)
        at = np.repeat(np.arange(self.steps), self.per_step)
        rows = [
            {
                "subject_id": subject, "prediction_time": 0, "label": "true", "split": "train", "strata": [],
                "step_minutes": np.arange(self.steps, 0, -1), "event_step": at,
                "event_id": np.concatenate(
                    [random.choice(self.feature_values - 1, self.per_step, replace=False) + 1 for _ in range(self.steps)]
                ),
                "event_value": [None] * len(at), "static_id": [], "static_value": [],
            }
            for subject in range(self.patients)
        ]  # fmt: skip
        return Sequences(pa.Table.from_pylist(rows, schema=SEQUENCES)).batch(np.arange(self.patients))


FULL = Size(10_000, 48, 12, 128, patients=64, repeats=3)
SMALL = Size(1_000, 48, 12, 32, patients=2, repeats=1)


class DenseGRU(nn.Module):
    """The same network in the form that Captum takes: multi-hot [patient, step, feature value] -> logit [patient]."""

    def __init__(self, model: RecurrentClassifier) -> None:
        super().__init__()
        self.table, self.cell, self.head, self.hidden = model.tables[EVENTS], model.cell, model.head, model.hidden

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The logit; there are no static values, so the start is 0."""
        states, _ = self.cell(x @ self.table)
        read = torch.cat([states[:, -1], states.new_zeros(len(x), self.hidden)], dim=1)
        found: torch.Tensor = self.head(read).squeeze(1)
        return found


def measure(small: bool = False, folder: Path | None = None) -> dict[str, Any]:
    """Every figure of `run.py attribution`.

    Args:
        small: under a minute, at a smaller size.
        folder: not needed, nothing is kept.
    """
    size = SMALL if small else FULL
    found: dict[str, Any] = {}
    for part in (beside_captum, memory_beside_captum, beside_torch, prefixes_at_once):
        found |= part(size)
    found |= {"threads": torch.get_num_threads(), "patients": size.patients}
    return found | shapley.measure(small) | state.measure(small)


def has_captum() -> bool:
    """Whether Captum can be imported."""
    if importlib.util.find_spec("captum") is None:
        return False
    try:
        importlib.import_module("captum.attr")
    except ImportError:
        return False
    return True


def dense_of(size: Size, batch: SequenceBatch) -> torch.Tensor:
    """Multi-hot [patient, step, feature value]."""
    x = torch.zeros(size.patients, size.steps, size.feature_values)
    bag = torch.arange(size.patients * size.steps).repeat_interleave(size.per_step)
    x.view(-1, size.feature_values)[bag, batch.streams[EVENTS].ids.long()] = 1
    return x


def by_captum(dense: DenseGRU, x: torch.Tensor, nodes: int, patients: int) -> tuple[torch.Tensor, float]:
    """Captum's integrated gradients by the same quadrature, and the residual.

    Rows at once are those at which it was quickest here (of 64, 128 and 512), which also keeps its memory small.
    """
    from captum.attr import IntegratedGradients

    found, delta = IntegratedGradients(dense).attribute(
        x, n_steps=nodes, method="gausslegendre", internal_batch_size=2 * patients, return_convergence_delta=True
    )
    return found, float(delta.abs().max())


def by_us(model: RecurrentClassifier, batch: SequenceBatch, nodes: int) -> dict[str, torch.Tensor]:
    """Our integrated gradients with as many nodes for every record, whatever its residual."""
    question = Question(model, batch, given_baseline("empty", model, batch), Target(), 1e-4, 0)
    return question.contributions(mean_gradients(question, torch.arange(len(batch)), nodes)).values


def in_turns(repeats: int, *asked: Callable[[], Any]) -> list[float]:
    """The median seconds of each, in turns; the first turn warms caches."""
    seconds: list[list[float]] = [[] for _ in asked]
    for _ in range(repeats + 1):
        for one, told in zip(asked, seconds, strict=True):
            begun = time.perf_counter()
            one()
            told.append(time.perf_counter() - begun)
    return [median(told[1:]) for told in seconds]


def beside_captum(size: Size) -> dict[str, Any]:
    """Our rate over Captum's: with its 50 nodes for both, and with what we need for a residual of 1e-4 at most.

    The rule of both is Gauss-Legendre. Captum has as many nodes for every record: its default of 50, or, told beside, the
    fewest of `MORE_NODES` that keep every record's residual below 1e-4, which its user would have to find first. The
    weights bend the score so much that every record needs some 14 nodes; with usual ones, told beside, few need more than
    6. Beside are told the residuals and the largest difference of the attributions at equal nodes.
    """
    names = tuple(f"ig_vs_captum_{what}" for what in ("equal_nodes", "equal_residual", "usual_weights", "fewest_nodes"))
    if not has_captum():
        return dict.fromkeys(names)
    model, batch = size.model(), size.batch()
    dense, x = DenseGRU(model).eval(), dense_of(size, batch)
    ours, theirs = in_turns(
        size.repeats,
        lambda: by_us(model, batch, CAPTUM_NODES),
        lambda: by_captum(dense, x, CAPTUM_NODES, size.patients),
    )
    told, its_residual = by_captum(dense, x, CAPTUM_NODES, size.patients)
    bag = torch.arange(size.patients * size.steps).repeat_interleave(size.per_step)
    at_values = told.reshape(-1, size.feature_values)[bag, batch.streams[EVENTS].ids.long()]
    difference = float((at_values - by_us(model, batch, CAPTUM_NODES)[EVENTS]).abs().max())
    residual = float(attribute(model, batch).residual.abs().max())
    wanted = max(1e-4, residual)
    needed = next((n for n in MORE_NODES if by_captum(dense, x, n, size.patients)[1] <= wanted), MORE_NODES[-1])
    usual = size.model(bent=False)
    adaptive, of_usual, fewest = in_turns(
        size.repeats,
        lambda: attribute(model, batch),
        lambda: attribute(usual, batch),
        lambda: by_captum(dense, x, needed, size.patients),
    )
    return {
        names[0]: theirs / ours,
        names[1]: theirs / adaptive,
        names[2]: theirs / of_usual,
        names[3]: fewest / adaptive,
        "captum_nodes_for_residual": needed,
        "residual": residual,
        "captum_residual": its_residual,
        "largest_difference": difference,
    }


def memory_beside_captum(size: Size) -> dict[str, Any]:
    """Our peak memory over Captum's, each in a process of its own, less what the process had before."""
    if not has_captum():
        return {"memory_vs_captum": None}
    ours, theirs = peak_bytes("us", size), peak_bytes("captum", size)
    return {"memory_vs_captum": ours / theirs, "memory_mib": ours / 2**20, "captum_memory_mib": theirs / 2**20}


def peak_bytes(who: str, size: Size) -> float:
    """Peak memory of one side's attributions in a new process, which first does one small piece to load libraries."""
    context = multiprocessing.get_context("spawn")
    mine, its = context.Pipe(duplex=False)
    process = context.Process(target=_peak, args=(who, size, torch.get_num_threads(), its))
    process.start()
    its.close()
    found = float(mine.recv())
    process.join()
    return found


def _peak(who: str, size: Size, threads: int, told: Any) -> None:
    torch.set_num_threads(threads)
    model, batch = size.model(), size.batch()
    tiny = Size(50, 3, 2, 4, 2, 1)
    _attributed(who, tiny, tiny.model(), tiny.batch())
    _peak_rss()
    before = _peak_rss()  # what is held now
    _attributed(who, size, model, batch)
    told.send(max(1, _peak_rss() - before))
    told.close()


def _attributed(who: str, size: Size, model: RecurrentClassifier, batch: SequenceBatch) -> None:
    if who == "captum":
        by_captum(DenseGRU(model).eval(), dense_of(size, batch), CAPTUM_NODES, size.patients)
    else:
        by_us(model, batch, CAPTUM_NODES)


def _peak_rss() -> int:
    """The most memory that this process had since it was last asked, in bytes; elsewhere than on Linux, ever had."""
    status = Path("/proc/self/status")
    if not status.exists():
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    # Not ru_maxrss, which on Linux begins at the parent's.
    peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    Path("/proc/self/clear_refs").write_text("5")
    return int(peak.split()[1]) * 1024


def beside_torch(size: Size) -> dict[str, Any]:
    """The rate of gradient times input over a bare forward and backward pass in torch, and the bags' own way back.

    The bare pass has the same embedding bags, cell and head, and gives the same gradients and nothing else. Values a
    second are those of gradients from embeddings to the weights of the bags, without the network behind.
    """
    model, batch = size.model(), size.batch()
    many = size.patients
    bags = batch.streams[EVENTS]

    def bare() -> torch.Tensor:
        weights = bags.weights.clone().requires_grad_()
        x = nn.functional.embedding_bag(
            bags.ids, model.tables[EVENTS].detach(), bags.offsets, mode="sum", per_sample_weights=weights
        )
        states, _ = model.cell(x.view(many, size.steps, size.hidden))
        read = torch.cat([states[:, -1], states.new_zeros(many, size.hidden)], dim=1)
        return torch.autograd.grad(model.head(read).sum(), weights)[0]

    question = Question(model, batch, given_baseline("empty", model, batch), Target(), 1e-4, 0)
    gradients = question.gradients_at(question.embedded)
    ours, torchs, bag = in_turns(
        5 * size.repeats,
        lambda: attribute(model, batch, method="gradient_times_input"),
        bare,
        lambda: question.slopes(gradients),
    )
    return {"gradient_share_of_torch": torchs / ours, "bag_values_per_second": len(bags.ids) / bag}


def prefixes_at_once(size: Size) -> dict[str, Any]:
    """How much faster all prefixes come together than one after the other, each cut to its own length, at 8 nodes."""
    model, batch = size.model(), size.batch()
    question = Question(model, batch, given_baseline("empty", model, batch), Target(), 1e-4, 0)
    from whenwhy.attribution.methods import prefix_integrated_gradients as module

    rows = torch.arange(len(batch))

    def one_by_one() -> torch.Tensor:
        found = torch.zeros_like(question.embedded[EVENTS])
        whole, lengths = question.embedded[EVENTS], question.lengths
        for step in range(size.steps):
            question.embedded = question.embedded | {EVENTS: whole[:, : step + 1]}
            question.told_lengths = torch.full_like(lengths, step + 1)
            found[:, step] = mean_gradients(question, rows, 8)[EVENTS][:, step]
        question.embedded, question.told_lengths = question.embedded | {EVENTS: whole}, lengths
        return found

    together = module._mean_own_gradients(question, rows, 8)
    assert torch.allclose(together, one_by_one(), rtol=1e-3, atol=1e-6)
    ours, loop = in_turns(size.repeats, lambda: module._mean_own_gradients(question, rows, 8), one_by_one)
    return {"prefixes_speedup": loop / ours}
