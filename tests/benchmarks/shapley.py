"""How much faster Shapley values over events are than TimeSHAP's: `python tests/benchmarks/shapley.py [--small]`.

Both prune with the same tolerance and draw the same number of coalitions for the same records and the same GRU, on one
core, in turns within one run; the rates are of whole sequences a second, medians over turns. TimeSHAP is the package
where it is installed (it needs a shap whose kernel explainer it knows; a newer one's is given to it under its old
name), and `replicas.timeshap` where it is not: `timeshap_package` says 1 or 0. The package gets dense sequences one at a time,
as it takes them, and a forward function that hands the states of the pruned past back, which saves it reading the past.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import pyarrow as pa
import torch

from benchmarks.reader import one_core
from replicas import timeshap as replica
from whenwhy.attribution import attribute
from whenwhy.events.sequence_batch import EVENTS, Sequences
from whenwhy.models.recurrent import GRUClassifier
from whenwhy.schema import SEQUENCES

#: As in `attribution`: of these figures all are of one size.
VOCABULARY_SIZE, HIDDEN, VALUES_A_STEP = 10_000, 128, 12

#: Of a logit: a past of less is one player.
TOLERANCE = 0.01

#: The values of the players of one dense sequence [step, feature value].
Explain = Callable[[np.ndarray], np.ndarray]


def measure(small: bool = False, folder: Path | None = None) -> dict[str, Any]:
    """The rates and their ratio, `shapley_vs_timeshap`.

    Args:
        small: fewer, shorter sequences and fewer coalitions, for a test.
        folder: not used.
    """
    patients, steps, samples, repeats = (4, 12, 32, 2) if small else (16, 48, 512, 3)
    model = remembering()
    sequences = made_up(patients, steps)
    batch, dense = sequences.batch(np.arange(patients)), dense_of(sequences)
    explain, is_package = timeshap(model, samples)
    ours, theirs, largest = [], [], 0.0
    options = {"players": "events", "samples": samples, "pruning": TOLERANCE}
    with one_core():
        for _ in range(repeats):
            begun = time.perf_counter()
            found = attribute(model, batch, method="kernel_shap", options=options)
            ours.append(patients / (time.perf_counter() - begun))
            begun = time.perf_counter()
            told = [explain(one) for one in dense]
            theirs.append(patients / (time.perf_counter() - begun))
            gains = (found.score - found.baseline_score).numpy()
            largest = max(abs(float(values.sum() - gain)) for values, gain in zip(told, gains, strict=True))
    return {
        "shapley_vs_timeshap": median(ours) / median(theirs),
        "sequences_per_second": median(ours),
        "timeshap_sequences_per_second": median(theirs),
        "timeshap_package": int(is_package),
        "largest_difference_of_sums": largest,
        "n_sequences": patients,
        "n_steps": steps,
        "n_samples": samples,
    }


def remembering() -> GRUClassifier:
    """A GRU whose score depends on some 13 recent steps, 2 to 30 by the record, as a trained one's may.

    One with torch's initial weights forgets within three steps: pruning would leave two or three players, who have
    six coalitions at most, whatever the samples.
    """
    torch.manual_seed(0)
    model = GRUClassifier(VOCABULARY_SIZE, HIDDEN).eval()
    with torch.no_grad():
        model.tables[EVENTS].normal_(0, 0.25)
        for weights in (model.cell.weight_hh_l0, model.cell.weight_ih_l0):
            weights.normal_(0, HIDDEN**-0.5)
        model.cell.bias_hh_l0[HIDDEN : 2 * HIDDEN] += 3  # the update gate, which keeps
    return model


def timeshap(model: GRUClassifier, samples: int) -> tuple[Explain, bool]:
    """What explains one dense sequence as TimeSHAP does, and whether it is the package."""
    baseline = np.zeros((1, VOCABULARY_SIZE))
    forward = dense_forward(model)
    try:
        import shap.explainers._kernel as kernel

        if not hasattr(kernel, "Kernel"):
            kernel.Kernel = kernel.KernelExplainer
        from timeshap.explainer.event_level import event_level
        from timeshap.explainer.pruning import temp_coalition_pruning
    except ImportError:
        random = np.random.default_rng(0)

        def plain(x: np.ndarray) -> np.ndarray:
            return forward(x)[0]

        def slowly(one: np.ndarray) -> np.ndarray:
            past = replica.pruned_past(plain, one, baseline[0], TOLERANCE)
            return replica.event_values(plain, one, baseline[0], past, samples, random)

        return slowly, False

    def by_the_package(one: np.ndarray) -> np.ndarray:
        past = len(one) + temp_coalition_pruning(forward, one[None], baseline, TOLERANCE)
        return event_level(forward, one[None], baseline, past, 0, samples)["Shapley Value"].to_numpy()

    return by_the_package, True


def dense_forward(model: GRUClassifier) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """Scores [sample, 1] and states [1, sample, hidden] of dense sequences [sample, step, feature value].

    There are no static values; sequences may go on from given states.
    """

    def forward(x: np.ndarray, states: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        with torch.no_grad():
            events = torch.as_tensor(x, dtype=torch.float32) @ model.tables[EVENTS]
            given = torch.zeros(1, len(x), HIDDEN) if states is None else torch.as_tensor(states, dtype=torch.float32)
            _, last = model.cell(events, given.contiguous())
            score = model.head(torch.cat([last[0], torch.zeros(len(x), HIDDEN)], dim=1))
        return score.numpy(), last.numpy()

    return forward


def made_up(patients: int, steps: int) -> Sequences:
    """Records of so many steps with VALUES_A_STEP different values each, and nothing static."""
    random = np.random.default_rng(0)
    rows = []
    for subject in range(patients):
        ids = [random.choice(VOCABULARY_SIZE - 1, VALUES_A_STEP, replace=False) + 1 for _ in range(steps)]
        at = np.repeat(np.arange(steps), [len(values) for values in ids])
        rows.append(
            {
                "subject_id": subject, "prediction_time": 0, "label": "true", "split": "train", "strata": [],
                "step_minutes": np.arange(steps, 0, -1) * 60, "event_step": at, "event_id": np.concatenate(ids),
                "event_value": [None] * len(at), "static_id": [], "static_value": [],
            }
        )  # fmt: skip
    return Sequences(pa.Table.from_pylist(rows, schema=SEQUENCES))


def dense_of(sequences: Sequences) -> list[np.ndarray]:
    """Each record as numbers of [step, feature value]."""
    found = []
    for row in sequences.table.to_pylist():
        dense = np.zeros((len(row["step_minutes"]), VOCABULARY_SIZE))
        dense[row["event_step"], row["event_id"]] = 1
        found.append(dense)
    return found


if __name__ == "__main__":
    print(json.dumps(measure("--small" in sys.argv), indent=2))
