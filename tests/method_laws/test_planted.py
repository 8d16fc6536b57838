"""What was planted in made-up patients is found: models learn it, and every method says where it lies."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from conftest import INLINE
from quick_methods import OF_ANY_MODEL, QUICK
from whenwhy.attribution import Population, attribute, fit_method, population_of, registered_methods
from whenwhy.events.sequence_batch import EVENTS, SequenceBatch, Sequences
from whenwhy.events.sequence_directory import VOCABULARY
from whenwhy.events.sequences import TABLE, PrepareSettings, prepare
from whenwhy.events.sources import import_source
from whenwhy.models.recurrent import RecurrentClassifier
from whenwhy.schema import HELD_OUT, TRAIN

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.full]

#: Learned masks have something to learn here; the others are as quick as ever.
OPTIONS = QUICK | {
    "amortised_mask": {"epochs": 60, "hidden": 8, "learning_rate": 0.01, "gap_epochs": 0},
    "extremal_mask": {"epochs": 120},
}


@dataclass(frozen=True)
class Planted:
    """Two models, one of the labels and one of the true logits, some held-out records, and the truth.

    Attributes:
        code, low: [feature value] of the vocabulary.
    """

    truth: dict[str, Any]
    of_labels: RecurrentClassifier
    of_truth: RecurrentClassifier
    batch: SequenceBatch
    sample: SequenceBatch
    population: Population
    code: np.ndarray
    low: np.ndarray


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    root = tmp_path_factory.mktemp("planted")
    meds = root / "meds"
    import_source("synthetic", meds, patients=6000, codes=50, events_per_patient=30, seed=1, workers=1)
    truth = json.loads((meds / "truth.json").read_text())
    edges = {
        effect["code"]: [effect["low"] or effect["high"]]
        for effect in truth["effects"]
        if effect["code"] != "AGE" and (effect["low"] or effect["high"])
    }
    settings = PrepareSettings("death", bins=2, cut_offs=edges, max_steps=16, history_hours=24 * 90, shard_size=1 << 15)
    sequences = prepare(meds, meds / "labels" / truth["task"], root / "sequences", settings, INLINE)
    table = pa.concat_tables([sequences.read(shard, TABLE) for shard in sequences.shards])
    of = Sequences(table)
    told = pq.read_table(meds / "truth").to_pandas().set_index("subject_id").logit
    logit = told.loc[table["subject_id"].to_pylist()].to_numpy()
    label = (of.column("label") == "true").astype(float)
    training = np.flatnonzero(of.column("split") == TRAIN)
    vocabulary = sequences.read(VOCABULARY, VOCABULARY).to_pandas()
    known = of.batch(training[:256])
    models = [
        learned(len(vocabulary), of, training, wanted, loss)
        for wanted, loss in (
            (label, torch.nn.functional.binary_cross_entropy_with_logits), (logit, torch.nn.functional.mse_loss),
        )
    ]  # fmt: skip
    number = {code: at for at, code in enumerate(dict.fromkeys(vocabulary.code))}
    codes = np.array([number[code] for code in vocabulary.code])
    held_out = np.flatnonzero((of.column("split") == HELD_OUT) & (of.n_steps > 0))[:500]
    return Planted(
        truth, models[0], models[1], of.batch(held_out), known,
        population_of([known], len(vocabulary), codes, known), vocabulary.code.to_numpy(), vocabulary.low.to_numpy(),
    )  # fmt: skip


def learned(size: int, of: Sequences, rows: np.ndarray, wanted: np.ndarray, loss: Any) -> RecurrentClassifier:
    """A small GRU, by Adam over the training records for some epochs."""
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    model = RecurrentClassifier(size, 16, dropout=0.0)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(12):
        for some in of.buckets(rows, patients=128, steps=1 << 14, random=random):
            optimizer.zero_grad()
            batch = of.batch(some)
            loss(model(batch), torch.from_numpy(wanted[some]).float()).backward()
            optimizer.step()
    return model.eval()


def sizes(planted: Planted, model: RecurrentClassifier, method: str) -> dict[str, float]:
    """The mean |attribution| of the records of each feature value, by code and the begin of its range."""
    options, fitted = OPTIONS.get(method), None
    if registered_methods()[method].fit is not None:
        fitted = fit_method(model, [planted.sample], method=method, options=options)
    found = attribute(
        model,
        planted.batch,
        method=method,
        population=planted.population,
        tolerance=0.01,
        options=options,
        fitted=fitted,
    )
    size, ids = found.streams[EVENTS].abs().double().numpy(), planted.batch.streams[EVENTS].ids.numpy()
    own = {value: ids == value for value in np.unique(ids)}
    return {
        f"{planted.code[value]} {planted.low[value]:g}": float(size[here].mean())
        for value, here in own.items()
        if here.sum() >= 8
    }


@pytest.mark.parametrize("method", OF_ANY_MODEL)
def test_a_leak_that_a_model_lives_on_is_on_top(method: str, planted: Planted) -> None:
    """Of the labels the model learns above all what the outcome itself caused to be recorded."""
    [leak] = planted.truth["leaks"]
    told = sizes(planted, planted.of_labels, method)
    assert max(told, key=told.__getitem__).startswith(leak["code"])
    assert len(told) > 80


@pytest.mark.parametrize("method", OF_ANY_MODEL)
def test_the_causes_are_on_top_and_the_distractor_below_its_cause(method: str, planted: Planted) -> None:
    """Of the true logits the model learns the mechanism, which reads neither the leak nor the distractor."""
    told = sizes(planted, planted.of_truth, method)
    order = sorted(told, key=told.__getitem__, reverse=True)
    causes = {
        f"{effect['code']} {low:g}"
        for effect in planted.truth["effects"]
        if effect["code"] != "AGE"
        for low in [effect["low"] or (-np.inf if effect["high"] else np.nan)]
    } & set(told)
    assert len(causes) >= 6
    assert len(causes & set(order[: len(causes) + 2])) >= len(causes) - 2, order[:12]
    [distractor], [leak] = planted.truth["distractors"], planted.truth["leaks"]
    rank = {value.split(" ")[0]: place for place, value in enumerate(order)}
    assert rank[distractor["code"]] > rank[distractor["follows"]]
    assert rank[leak["code"]] > 1  # it is rare, and learned by heart here and there
