"""Training: patients never divided, resumed as undisturbed, and what ships is what was measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from conftest import INLINE, SmallRun
from whenwhy.engine import Workers
from whenwhy.errors import UserError
from whenwhy.events.sequence_batch import Sequences
from whenwhy.events.sequences import TABLE
from whenwhy.models.checkpoint import load_model
from whenwhy.models.logistic_regression import counts_of
from whenwhy.models.training import TrainSettings, fold_split, load_sequences, measured, train
from whenwhy.schema import HELD_OUT, TRAIN, TUNING
from whenwhy.shards import StageDirectory


@pytest.fixture(scope="module")
def sequences(small_run: SmallRun) -> Sequences:
    return load_sequences(StageDirectory.open(small_run.sequences))


@pytest.mark.parametrize("folds", [2, 3, 5])
def test_folds_hold_out_every_patient_once_and_divide_none(sequences: Sequences, folds: int) -> None:
    subject = sequences.column("subject_id")
    held_out = []
    for number in range(1, folds + 1):
        split = fold_split(sequences, number, folds, seed=0)
        assert all(len(set(split[subject == s])) == 1 for s in np.unique(subject))
        assert {HELD_OUT, TRAIN, TUNING} == set(split)
        held_out.append(set(subject[split == HELD_OUT]))
    assert held_out[0] == set(subject[sequences.column("split") == HELD_OUT])
    assert sum(map(len, held_out)) == len(set.union(*held_out)) == len(np.unique(subject))


def test_what_ships_is_what_was_measured(small_run: SmallRun, sequences: Sequences) -> None:
    stage = StageDirectory.open(small_run.model)
    model = load_model(stage)
    rows = np.flatnonzero(sequences.column("split") == HELD_OUT)
    with torch.no_grad():
        score = torch.cat(
            [
                model.score(model.embed(b), b.lengths)
                for b in (sequences.batch(rows[i : i + 1]) for i in range(len(rows)))
            ]
        )
    told = stage.read("fold-1", "predictions")
    assert told["subject_id"].to_pylist() == sequences.column("subject_id")[rows].tolist()
    assert np.allclose(torch.sigmoid(score).numpy(), told["probability"].to_numpy(), atol=1e-6)
    positive = sequences.column("label")[rows] == "true"
    assert stage.entry("fold-1").summary["auroc"] == pytest.approx(
        roc_auc_score(positive, told["probability"].to_numpy())
    )


def test_training_again_gives_the_same_model(small_run: SmallRun, tmp_path: Path) -> None:
    settings = TrainSettings(hidden=8, epochs=2)
    again = train(small_run.sequences, tmp_path / "model", settings, Workers(count=1))  # by Ray, not inline
    assert again.content_sha256() == StageDirectory.open(small_run.model).content_sha256()


def test_the_difference_is_paired_over_folds(small_run: SmallRun, tmp_path: Path) -> None:
    stage = train(small_run.sequences, tmp_path / "model", TrainSettings(hidden=4, epochs=1, folds=3), INLINE)
    told = measured(stage)
    difference = [fold["auroc"] - fold["logistic_regression_auroc"] for fold in told["folds"]]
    assert told["difference"] == pytest.approx(np.mean(difference))
    assert told["difference_standard_error"] == pytest.approx(np.std(difference, ddof=1) / np.sqrt(3))


def test_the_regression_counts_every_recorded_value(sequences: Sequences) -> None:
    counts = counts_of(sequences, 100).toarray()
    for at, row in enumerate(sequences.table.to_pylist()[:50]):
        expected = np.zeros(100)
        for place in row["event_id"] + row["static_id"]:
            expected[place] += 1
        assert (counts[at] == expected).all()


def test_weights_that_are_not_finite_are_refused(small_run: SmallRun, tmp_path: Path) -> None:
    from safetensors.torch import load, save

    from whenwhy.models.checkpoint import DESCRIPTION, SHIPPED, WEIGHTS

    good = StageDirectory.open(small_run.model)
    weights = load(good.file(SHIPPED, WEIGHTS).read_bytes())
    weights["head.bias"][0] = float("nan")
    bad = StageDirectory.create(
        tmp_path / "model", stage="train", settings={}, inputs={}, shards=[SHIPPED], code_version="0"
    )
    bad.publish(SHIPPED, {WEIGHTS: save(weights), DESCRIPTION: good.file(SHIPPED, DESCRIPTION).read_bytes()})
    with pytest.raises(UserError, match=r"not finite \(head\.bias\)"):
        load_model(bad)


def test_shards_are_read_in_order(small_run: SmallRun, sequences: Sequences) -> None:
    stage = StageDirectory.open(small_run.sequences)
    subjects = [s for shard in stage.shards for s in stage.read(shard, TABLE)["subject_id"].to_pylist()]
    assert sequences.column("subject_id").tolist() == subjects
