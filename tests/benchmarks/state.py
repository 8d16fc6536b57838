"""The State benchmark: which feature a hidden state makes matter: `python tests/benchmarks/state.py [--small]`.

Tonekaboni et al., "What went wrong and when? Instance-wise feature importance for time-series black-box models",
NeurIPS 2020, as reproduced for Enguehard, ICML 2023. A hidden Markov chain of two states chooses which of two features
decides the label of each step. Measures what `amortised_mask` costs and loses beside `extremal_mask`.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import nn

from whenwhy.attribution.attribute import fitted_on
from whenwhy.attribution.dense import DenseQuestion
from whenwhy.attribution.registry import Explanation, Fitted, method_named
from whenwhy.events.sequence_batch import EVENTS

MEANS = np.array([[0.1, 1.6, 0.5], [-0.1, -0.4, -1.5]])


@dataclass(frozen=True)
class State:
    """Sequences of the benchmark.

    Attributes:
        x: [sequence, step, 3] float32.
        y: [sequence, step] int64, the labels.
        truth: [sequence, step, 3] bool, the cell that decides each label.
    """

    x: torch.Tensor
    y: torch.Tensor
    truth: torch.Tensor


def state_sequences(number: int, steps: int = 200, seed: int = 0) -> State:
    """Sequences drawn anew from the benchmark's definition.

    The state before step 1 is Bernoulli(1/2); P(1 | 0) = 0.05, P(1 | 1) = 0.95 - d / 500 with d the consecutive
    repeats since the last change. A step's features are normal around its state's means with covariance 0.8 I
    (+ 0.01 between feature 0 and feature 1 + state), its label Bernoulli(sigmoid(2 x[1 + state])).

    Example:
        >>> data = state_sequences(4, steps=5)
        >>> data.x.shape, data.truth.sum(2).unique().tolist(), bool(data.truth[..., 0].any())
        (torch.Size([4, 5, 3]), [1], False)
    """
    random = np.random.default_rng(seed)
    factors = []
    for state in range(2):
        covariance = 0.801 * np.eye(3)
        covariance[0, 1 + state] = covariance[1 + state, 0] = 0.01
        factors.append(np.linalg.cholesky(covariance))
    factor = np.stack(factors)  # [state, 3, 3]
    state, repeats = random.integers(0, 2, number), np.zeros(number)
    x, chosen = np.zeros((number, steps, 3)), np.zeros((number, steps), dtype=np.int64)
    for step in range(steps):
        after = (random.random(number) < np.where(state == 1, 0.95 - repeats / 500, 0.05)).astype(np.int64)
        repeats = np.where(after == state, repeats + 1, 0)
        state = after
        noise = np.einsum("nij,nj->ni", factor[state], random.standard_normal((number, 3)))
        x[:, step], chosen[:, step] = MEANS[state] + noise, 1 + state
    deciding = np.take_along_axis(x, chosen[..., None], 2)[..., 0]
    y = random.random((number, steps)) < 1 / (1 + np.exp(-2 * deciding))
    truth = np.zeros(x.shape, dtype=bool)
    np.put_along_axis(truth, chosen[..., None], True, 2)
    return State(torch.from_numpy(x).float(), torch.from_numpy(y).long(), torch.from_numpy(truth))


class StateClassifier(nn.Module):
    """A GRU, then at each step batch normalisation, ReLU, dropout and a linear layer: logits [patient, step, 2]."""

    def __init__(self, hidden: int = 200) -> None:
        super().__init__()
        self.cell = nn.GRU(3, hidden, batch_first=True)
        self.head = nn.Sequential(nn.BatchNorm1d(hidden), nn.ReLU(), nn.Dropout(0.5), nn.Linear(hidden, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The logits of every step's label."""
        states = self.cell(x)[0]  # [patient, step, hidden]
        logits: torch.Tensor = self.head(states.flatten(0, 1)).unflatten(0, states.shape[:2])
        return logits


def state_classifier(
    data: State, hidden: int = 200, epochs: int = 50, learning_rate: float = 1e-4, seed: int = 0
) -> StateClassifier:
    """The classifier, learned on one random prefix a batch: Adam, weight decay 1e-3, batches of 32.

    Of a prefix the last step's label is learned, which needs no other step's head.
    """
    torch.manual_seed(seed)
    model, random = StateClassifier(hidden), np.random.default_rng(seed)
    optimizer = torch.optim.Adam(model.parameters(), learning_rate, weight_decay=1e-3)
    for _ in range(epochs):
        for rows in np.array_split(random.permutation(len(data.x)), max(1, len(data.x) // 32)):
            end = int(random.integers(1, data.x.shape[1] + 1))
            states = model.cell(data.x[rows, :end])[0]
            loss = nn.functional.cross_entropy(model.head(states[:, -1]), data.y[rows, end - 1])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


def ranks(attributions: torch.Tensor, truth: torch.Tensor) -> tuple[float, float]:
    """AUROC and AUPRC of |attributions|, scaled to [0, 1] within each sample, all cells pooled."""
    size = attributions.abs().flatten(1)
    low, high = size.amin(1, keepdim=True), size.amax(1, keepdim=True)
    scaled, true = ((size - low) / (high - low + 1e-5)).flatten().numpy(), truth.flatten().numpy()
    return float(roc_auc_score(true, scaled)), float(average_precision_score(true, scaled))


def amortised_beside_optimal(
    model: nn.Module,
    learning: State,
    test: State,
    *,
    optimal: dict[str, Any],
    amortised: dict[str, Any],
    compared: int = 100,
) -> dict[str, float]:
    """What the predicted masks cost and lose, on the first `compared` test sequences.

    Args:
        optimal, amortised: options of `extremal_mask` and of `amortised_mask`.

    Returns:
        `amortised_speedup`: seconds a sequence of `extremal_mask` over those of the masks of `amortised_mask` alone,
        once it is fitted, without telling what each is worth; `fit_seconds` apart. `amortised_auprc_gap`: AUPRC of the first less that of the second.

    Read the gap beside the objectives. The truth here is which state rules, and a network that has learned little
    draws smooth masks, which follow the state better than the masks of least objective do: the gap can be
    negative, and shrinks as the fit comes nearer to the optimum. So no option may be chosen by this gap.
    """
    x, truth = test.x[:compared], test.truth[:compared]
    begun = time.perf_counter()
    best = _masks(model, x, "extremal_mask", optimal)
    optimal_seconds = (time.perf_counter() - begun) / len(x)
    method = method_named("amortised_mask")
    options = method.with_options(amortised)
    questions = [DenseQuestion(model, part) for part in learning.x.split(32)]
    begun = time.perf_counter()
    fitted = fitted_on(method, questions, options)
    fit_seconds = time.perf_counter() - begun
    alone = options | {"objective": False}
    _masks(model, x, "amortised_mask", alone, fitted)  # the first call warms kernels
    begun = time.perf_counter()
    _masks(model, x, "amortised_mask", alone, fitted)
    amortised_seconds = (time.perf_counter() - begun) / len(x)
    predicted = _masks(model, x, "amortised_mask", options, fitted)
    figures = {
        "amortised_speedup": optimal_seconds / amortised_seconds,
        "extremal_seconds_per_sequence": optimal_seconds,
        "amortised_seconds_per_sequence": amortised_seconds,
        "fit_seconds": fit_seconds,
        "extremal_objective": float(best.notes["objective"].mean()),
        "amortised_objective": float(predicted.notes["objective"].mean()),
    }
    for name, found in (("extremal", best), ("amortised", predicted)):
        auroc, auprc = ranks(found.contributions.values[EVENTS].view_as(x), truth)
        figures |= {f"{name}_auroc": auroc, f"{name}_auprc": auprc}
    return figures | {"amortised_auprc_gap": figures["extremal_auprc"] - figures["amortised_auprc"]}


def _masks(
    model: nn.Module, x: torch.Tensor, name: str, options: dict[str, Any], fitted: Fitted | None = None
) -> Explanation:
    question = DenseQuestion(model, x, fitted=fitted.tensors if fitted else None)
    return method_named(name).compute(question, **options)


def measure(small: bool = False, folder: Path | None = None) -> dict[str, Any]:
    """The figures of `amortised_beside_optimal`, and the classifier's accuracy on test sequences.

    Args:
        small: fewer, shorter sequences and fewer steps of learning, under a minute: the same keys, other values.
    """
    steps, learning, compared = (40, 256, 32) if small else (200, 800, 50)
    train, test = state_sequences(learning, steps, seed=0), state_sequences(200, steps, seed=1)
    quick: dict[str, Any] = {"hidden": 32, "epochs": 40, "learning_rate": 3e-3}
    model = state_classifier(train, **(quick if small else {}))
    with torch.no_grad():
        accuracy = float((model(test.x).argmax(2) == test.y).float().mean())
    figures = amortised_beside_optimal(
        model,
        train,
        test,
        optimal={"epochs": 60 if small else 500},
        amortised={"epochs": 12 if small else 100, "learning_rate": 0.01, "gap_epochs": 0},
        compared=compared,
    )
    return figures | {"accuracy": accuracy, "steps": steps, "sequences": compared}


if __name__ == "__main__":
    print(json.dumps(measure("--small" in sys.argv), indent=2))
