"""Training: patients never divided, resumed as undisturbed, and what ships is what was measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, log_loss, roc_auc_score

from benchmarks.reader import measure
from conftest import INLINE, SmallRun
from whenwhy.engine import Workers
from whenwhy.errors import UserError
from whenwhy.events import sequence_loader
from whenwhy.events.sequence_batch import Sequences
from whenwhy.events.sequences import TABLE, VOCABULARY
from whenwhy.models.checkpoint import load_model
from whenwhy.models.fitting import loss_of, weighing
from whenwhy.models.folds import fold_split, outcomes
from whenwhy.models.logistic_regression import PENALTIES, inputs_of, logistic_regression
from whenwhy.models.measurements import measured, measured_sentence
from whenwhy.models.predictions import scored_shards
from whenwhy.models.recurrent import RecurrentClassifier
from whenwhy.models.training import TrainSettings, load_sequences, train
from whenwhy.schema import HELD_OUT, SEQUENCES, TRAIN, TUNING
from whenwhy.shards import StageDirectory


@pytest.fixture(scope="module")
def sequences(small_run: SmallRun) -> Sequences:
    return load_sequences(StageDirectory.open(small_run.sequences))


@pytest.mark.parametrize("folds", [2, 3, 5])
def test_folds_hold_out_every_patient_once_and_divide_none(sequences: Sequences, folds: int) -> None:
    subject = sequences.column("subject_id")
    held_out = []
    for number in range(1, folds + 1):
        split = fold_split(subject, sequences.column("split"), number, folds, seed=0).of(subject)
        assert all(len(set(split[subject == s])) == 1 for s in np.unique(subject))
        assert {HELD_OUT, TRAIN, TUNING} == set(split)
        held_out.append(set(subject[split == HELD_OUT]))
    assert held_out[0] == set(subject[sequences.column("split") == HELD_OUT])
    assert sum(map(len, held_out)) == len(set.union(*held_out)) == len(np.unique(subject))


def test_folds_need_only_whose_a_prediction_is_its_split_and_label(small_run: SmallRun, sequences: Sequences) -> None:
    told = outcomes(StageDirectory.open(small_run.sequences))
    assert told.column_names == ["subject_id", "split", "label"]
    assert told["subject_id"].to_pylist() == sequences.column("subject_id").tolist()


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
    summary = stage.entry("fold-1").summary
    assert summary["auroc"] == pytest.approx(roc_auc_score(positive, told["probability"].to_numpy()))
    assert summary["auprc"] == pytest.approx(average_precision_score(positive, told["probability"].to_numpy()))
    assert summary["auroc_low"] < summary["auroc"] < summary["auroc_high"]
    assert sum(part["n"] for part in summary["calibration_curve"]) == summary["n_held_out"] == len(rows)


def test_training_again_gives_the_same_model(small_run: SmallRun, tmp_path: Path) -> None:
    settings = TrainSettings(hidden=8, epochs=2)
    again = train(small_run.sequences, tmp_path / "model", settings, Workers(count=1))  # by Ray, not inline
    assert again.content_sha256() == StageDirectory.open(small_run.model).content_sha256()


def test_another_seed_gives_another_model(small_run: SmallRun, tmp_path: Path) -> None:
    other = train(small_run.sequences, tmp_path / "model", TrainSettings(hidden=8, epochs=2, seed=1), INLINE)
    assert other.content_sha256() != StageDirectory.open(small_run.model).content_sha256()


def test_going_on_does_not_begin_again(small_run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed training would end with the same bytes too if its state were ignored: finished epochs are not repeated."""
    from whenwhy.models import fitting

    stop_after, epochs = 3, []
    save = fitting.FitState.save

    def saving(state: fitting.FitState, path: Path) -> None:
        save(state, path)
        epochs.append(state.epoch)
        if state.epoch == stop_after:
            raise KeyboardInterrupt

    monkeypatch.setattr(fitting.FitState, "save", saving)
    asked = small_run.sequences, tmp_path / "model", TrainSettings(hidden=4, epochs=5, patience=5), INLINE
    with pytest.raises(KeyboardInterrupt):
        train(*asked)
    stop_after = 0
    train(*asked)
    assert epochs == [1, 2, 3, 4, 5]


def test_a_damaged_state_gets_a_sentence(small_run: SmallRun, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    asked = small_run.sequences, tmp_path / "model", TrainSettings(hidden=4, epochs=1), INLINE
    train(*asked)
    (tmp_path / "model" / "entries" / "fold-1.json").unlink()
    (tmp_path / "model" / "scratch").mkdir()
    (tmp_path / "model" / "scratch" / "fold-1.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match=r"fold-1\.safetensors is damaged: remove it"):
        train(*asked)


def test_training_holds_some_shards_at_a_time(
    small_run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more predictions are ever in one table of sequences than a group of shards has."""
    largest = 0
    build = Sequences.__init__

    def built(self: Sequences, table: object) -> None:
        nonlocal largest
        build(self, table)  # type: ignore[arg-type]
        largest = max(largest, len(self))

    monkeypatch.setattr(Sequences, "__init__", built)
    monkeypatch.setattr(sequence_loader, "SHARDS_TOGETHER", 2)
    stage = StageDirectory.open(small_run.sequences)
    in_shard = sorted(stage.entry(name).files[TABLE]["rows"] for name in stage.shards)
    assert len(in_shard) > 3
    train(small_run.sequences, tmp_path / "model", TrainSettings(hidden=4, epochs=1, folds=2), INLINE)
    assert 0 < largest <= sum(in_shard[-2:])


def test_shards_become_batches_much_faster_than_a_model_takes_them() -> None:
    assert measure(small=True)["reader_vs_gru"] >= 5


def test_training_stops_when_tuning_patients_no_longer_gain(small_run: SmallRun, tmp_path: Path) -> None:
    settings = TrainSettings(hidden=32, dropout=0.0, averaging=0.0, learning_rate=0.02, epochs=60, patience=2)
    stage = train(small_run.sequences, tmp_path / "model", settings, INLINE)
    told = stage.entry("fold-1").summary
    assert told["epochs"] == told["best_epoch"] + 2 < 60
    source = StageDirectory.open(small_run.sequences)
    shards = list(scored_shards(load_model(stage), source, lambda s: np.flatnonzero(s.column("split") == TUNING)))
    positive = np.concatenate([shard.column("label") == "true" for shard in shards])
    probability = np.concatenate([shard.probability for shard in shards])
    assert told["tuning_loss"] == pytest.approx(log_loss(positive, probability), abs=1e-6)


def test_a_loss_that_is_not_finite_is_refused(small_run: SmallRun, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="smaller --learning-rate"):
        train(small_run.sequences, tmp_path / "model", TrainSettings(learning_rate=1e30, epochs=3), INLINE)


def test_balanced_classes_keep_the_true_prior(sequences: Sequences) -> None:
    """At the best weighted loss the score is the true log-odds, not the balanced ones."""
    rare = torch.tensor([1] * 10 + [0] * 90)
    weighs = weighing("balanced", rare.numpy())
    assert weighs[1] * 10 == pytest.approx(weighs[0] * 90) == pytest.approx(50)
    model = RecurrentClassifier(100, hidden=2, dropout=0.0)
    with torch.no_grad():
        model.head.weight.zero_()
    batch = sequences.batch(np.arange(100))
    optimizer = torch.optim.LBFGS([model.head.bias], max_iter=100, tolerance_grad=1e-9)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_of(model, batch, rare, weighs, every_step=False)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert torch.sigmoid(model.head.bias).item() == pytest.approx(0.1, abs=1e-4)
    plain = loss_of(model, batch, rare, weighing("none", rare.numpy()), every_step=False)
    assert plain.item() == pytest.approx(-(0.1 * np.log(0.1) + 0.9 * np.log(0.9)), abs=1e-4)


def test_balanced_classes_train(small_run: SmallRun, tmp_path: Path) -> None:
    """Sensitivity comes from the loss, not from probabilities of another prior: the mean stays near the rate."""
    settings = TrainSettings(hidden=8, epochs=2, class_weights="balanced")
    stage = train(small_run.sequences, tmp_path / "model", settings, INLINE)
    assert stage.content_sha256() != StageDirectory.open(small_run.model).content_sha256()
    told = stage.entry("fold-1").summary
    mean = np.mean(stage.read("fold-1", "predictions")["probability"].to_numpy())
    assert abs(mean - told["n_positive"] / told["n_held_out"]) < 0.08


def test_every_step_is_supervised(sequences: Sequences) -> None:
    """The loss by hand: a record's mean over its own steps, or its score's where it has none."""
    model = RecurrentClassifier(100, hidden=4, dropout=0.0).eval()
    rows = np.concatenate([np.flatnonzero(sequences.n_steps == 0)[:2], np.flatnonzero(sequences.n_steps > 0)[:9]])
    assert (sequences.n_steps[rows] == 0).sum() == 2
    positive = torch.tensor([1, 0] * 5 + [1])
    found = loss_of(model, sequences.batch(rows), positive, weighing("none", positive.numpy()), every_step=True)
    expected = []
    for at, row in enumerate(rows):
        batch = sequences.batch(np.array([row]))
        embedded = model.embed(batch)
        steps = int(batch.lengths[0])
        scores = model.step_scores(embedded, batch.lengths)[0] if steps else model.score(embedded, batch.lengths)
        probability = torch.sigmoid(scores[: max(steps, 1)].detach()).numpy()
        expected.append(-np.log(probability if positive[at] else 1 - probability).mean())
    assert found.item() == pytest.approx(np.mean(expected), rel=1e-5)


def test_supervision_at_every_step_trains(small_run: SmallRun, tmp_path: Path) -> None:
    settings = TrainSettings(hidden=4, epochs=1, supervise="every", pooling="mean")
    every = train(small_run.sequences, tmp_path / "every", settings, INLINE)
    last = train(small_run.sequences, tmp_path / "last", replace(settings, supervise="last"), INLINE)
    assert every.content_sha256() != last.content_sha256()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"architecture": "grru"}, "did you mean 'gru'"),
        ({"class_weights": "balance"}, "did you mean 'balanced'"),
        ({"supervise": "all"}, "There is no supervision 'all'"),
        ({"supervise": "every", "bidirectional": True}, "at every step, but a bidirectional one has seen the end"),
        ({"supervise": "every", "architecture": "retain"}, "at every step, but RETAIN reads a record backwards"),
        ({"epochs": 0}, "at least 1"),
        ({"learning_rate": 0.0}, "a learning rate above 0"),
        ({"averaging": 1.0}, "averaging below 1"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_is_written(
    small_run: SmallRun, tmp_path: Path, settings: dict, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        train(small_run.sequences, tmp_path / "model", TrainSettings(**settings), INLINE)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("architecture", ["lstm", "gru_attention", "retain"])
def test_every_architecture_trains_and_ships(small_run: SmallRun, tmp_path: Path, architecture: str) -> None:
    settings = TrainSettings(architecture=architecture, hidden=4, epochs=1)
    stage = train(small_run.sequences, tmp_path / "model", settings, INLINE)
    model = load_model(stage)
    source = StageDirectory.open(small_run.sequences)
    held_out = [
        s.probability for s in scored_shards(model, source, lambda s: np.flatnonzero(s.column("split") == HELD_OUT))
    ]
    assert np.allclose(np.concatenate(held_out), stage.read("fold-1", "predictions")["probability"].to_numpy())


def test_the_difference_is_paired_over_folds(small_run: SmallRun, tmp_path: Path) -> None:
    stage = train(small_run.sequences, tmp_path / "model", TrainSettings(hidden=4, epochs=1, folds=3), INLINE)
    told = measured(stage)
    difference = [fold["auroc"] - fold["logistic_regression_auroc"] for fold in told["folds"]]
    assert told["difference"] == pytest.approx(np.mean(difference))
    assert told["difference_standard_error"] == pytest.approx(np.std(difference, ddof=1) / np.sqrt(3))
    assert f"mean of 3 folds: {told['auroc']:.3f}" in measured_sentence(told)
    assert f"Brier score {told['folds'][0]['brier']:.4f}" in measured_sentence(told)
    assert "calibration_curve" not in json.dumps(told)  # its bins count few patients: it stays with the model
    assert len(stage.entry("fold-2").summary["calibration_curve"]) == 10


def test_the_regression_is_scikit_learns_on_log_counts(small_run: SmallRun, sequences: Sequences) -> None:
    source = StageDirectory.open(small_run.sequences)
    size = source.read(VOCABULARY, VOCABULARY).num_rows
    subject, own = sequences.column("subject_id"), sequences.column("split")
    split = fold_split(subject, own, 1, 1, seed=0)
    found = logistic_regression(source, size, split, seed=0)
    assert found.n_train == found.n_train_of == (own == TRAIN).sum()
    features, positive = inputs_of(sequences, size).toarray(), sequences.column("label") == "true"
    losses = {}
    for penalty in PENALTIES:
        model = LogisticRegression(C=penalty, max_iter=500).fit(features[own == TRAIN], positive[own == TRAIN])
        losses[penalty] = log_loss(positive[own == TUNING], model.predict_proba(features[own == TUNING])[:, 1])
    assert found.penalty == min(losses, key=losses.__getitem__)
    expected = LogisticRegression(C=found.penalty, max_iter=500).fit(features[own == TRAIN], positive[own == TRAIN])
    np.testing.assert_allclose(
        found.probabilities(inputs_of(sequences, size))[:, 1], expected.predict_proba(features)[:, 1], atol=1e-3
    )


def test_the_regression_learns_from_a_sample_that_can_be_drawn_again(small_run: SmallRun, sequences: Sequences) -> None:
    source = StageDirectory.open(small_run.sequences)
    size = source.read(VOCABULARY, VOCABULARY).num_rows
    split = fold_split(sequences.column("subject_id"), sequences.column("split"), 1, 1, seed=0)
    counts = inputs_of(sequences, size)
    drawn = [logistic_regression(source, size, split, seed, most=100) for seed in (0, 0, 1)]
    assert {told.n_train for told in drawn} == {100}
    assert drawn[0].n_train_of == (sequences.column("split") == TRAIN).sum() > 100
    probabilities = [told.probabilities(counts) for told in drawn]
    assert (probabilities[0] == probabilities[1]).all()
    assert (probabilities[0] != probabilities[2]).any()


def test_the_regression_counts_every_recorded_value(sequences: Sequences) -> None:
    given = sequences.table.slice(0, 50).to_pylist()
    random = np.random.default_rng(0)
    weighed = [
        row | {f"{name}_weight": random.normal(size=len(row[f"{name}_id"])).tolist() for name in ("event", "static")}
        for row in given
    ]
    for rows in (given, weighed):
        inputs = inputs_of(Sequences(pa.Table.from_pylist(rows, schema=SEQUENCES)), 100).toarray()
        for at, row in enumerate(rows):
            counts, sums = np.zeros(100), np.zeros(100)
            for name in ("event", "static"):
                for place, weight in zip(row[f"{name}_id"], row[f"{name}_weight"] or [1] * 9999, strict=False):
                    counts[place] += 1
                    sums[place] += weight
            mean = np.divide(sums, counts, out=np.zeros(100), where=counts > 0)
            np.testing.assert_allclose(inputs[at], mean * np.log1p(counts), atol=1e-6)


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
