"""Sequences flow in, a measured model flows out: `whenwhy train`.

Fold 1 is the data set's own split of patients, and its model is the one that ships. Further folds hold
out other patients, only to measure: the same training, beside a logistic regression on the same inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from sklearn.metrics import average_precision_score, log_loss, roc_auc_score

from whenwhy import __version__
from whenwhy.engine import Workers, run
from whenwhy.errors import UserError, unknown_name
from whenwhy.events.sequence_batch import Sequences
from whenwhy.events.sequences import TABLE, VOCABULARY
from whenwhy.models.architectures import ARCHITECTURES
from whenwhy.models.checkpoint import checkpoint_files, vocabulary_sha256
from whenwhy.models.logistic_regression import counts_of, logistic_regression_probability
from whenwhy.schema import HELD_OUT, SPLITS, TRAIN, TUNING
from whenwhy.shards import Json, StageDirectory

#: Of the patients that a further fold does not hold out, this share tunes.
TUNING_SHARE = 1 / 8


@dataclass(frozen=True)
class TrainSettings:
    """How a model is trained. `folds` counts the data set's own split as the first."""

    architecture: str = "gru"
    hidden: int = 64
    dropout: float = 0.5
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    batch: int = 128
    epochs: int = 30
    patience: int = 4
    folds: int = 1
    seed: int = 0


def train(sequences_path: Path, out: Path, settings: TrainSettings, workers: Workers | None = None) -> StageDirectory:
    """The model directory: one entry a fold, with its weights, held-out predictions and measurements.

    Raises:
        UserError: unknown architecture, or a split without both classes.

    Example: `train(Path("seq"), Path("model"), TrainSettings(folds=5))`
    """
    if settings.architecture not in ARCHITECTURES:
        raise unknown_name("architecture", settings.architecture, ARCHITECTURES)
    if settings.folds < 1 or settings.epochs < 1 or settings.hidden < 1 or settings.batch < 1:
        raise UserError("train needs at least 1 fold, 1 epoch, 1 hidden unit and 1 prediction a batch.")
    sequences = StageDirectory.open(sequences_path, "prepare").require_complete()
    _check_splits(sequences)
    keys = [f"fold-{number + 1}" for number in range(settings.folds)]
    stage = StageDirectory.create(
        out,
        stage="train",
        settings=asdict(settings),
        inputs={"sequences": sequences.as_input()},
        shards=keys,
        code_version=__version__,
    )
    missing = stage.missing()
    task = TrainFold(str(sequences_path), str(out))
    run(task, missing, stage="train", unit="predictions", workers=workers, finished=len(keys) - len(missing))
    return stage


@dataclass(frozen=True)
class TrainFold:
    """The engine's task: one fold trained and measured."""

    sequences: str
    out: str

    def start(self) -> Callable[[str], int]:
        torch.set_num_threads(1)  # as many folds at a time as there are cores
        stage = StageDirectory.open(Path(self.out), "train")
        source = StageDirectory.open(Path(self.sequences), "prepare")
        settings = TrainSettings(**stage.settings)
        sequences = load_sequences(source)
        size = source.read(VOCABULARY, VOCABULARY, ["feature_value_id"]).num_rows

        def one_fold(key: str) -> int:
            split = fold_split(sequences, int(key.rpartition("-")[2]), settings.folds, settings.seed)
            model, epochs = fit(sequences, size, split, settings)
            held_out = np.flatnonzero(split == HELD_OUT)
            positive = sequences.column("label") == "true"
            probability = predict(model, sequences, held_out)
            regression = logistic_regression_probability(
                counts_of(sequences, size), positive, *(np.flatnonzero(split == s) for s in SPLITS)
            )
            description: Json = {
                "architecture": settings.architecture,
                "arguments": {"vocabulary_size": size, "hidden": settings.hidden, "dropout": settings.dropout},
                "vocabulary_sha256": vocabulary_sha256(source),
                "run_id": stage.run_id,
            }
            predictions = sequences.table.select(["subject_id", "prediction_time", "label"]).take(held_out)
            predictions = predictions.append_column("probability", pa.array(probability)).append_column(
                "logistic_regression_probability", pa.array(regression)
            )
            summary = {
                "n_held_out": len(held_out),
                "n_positive": int(positive[held_out].sum()),
                "epochs": epochs,
                "auroc": float(roc_auc_score(positive[held_out], probability)),
                "auprc": float(average_precision_score(positive[held_out], probability)),
                "logistic_regression_auroc": float(roc_auc_score(positive[held_out], regression)),
                "logistic_regression_auprc": float(average_precision_score(positive[held_out], regression)),
            }
            stage.publish(key, {**checkpoint_files(model, description), "predictions": predictions}, summary)
            return len(sequences) * epochs

        return one_fold


def measured(model: StageDirectory) -> Json:
    """What training measured on held-out patients: per fold, means, and the paired difference of the AUROCs."""
    folds = [model.entry(name).summary for name in model.shards]
    difference = np.array([fold["auroc"] - fold["logistic_regression_auroc"] for fold in folds])
    error = float(difference.std(ddof=1) / math.sqrt(len(folds))) if len(folds) > 1 else None
    return {
        "folds": folds,
        "auroc": float(np.mean([fold["auroc"] for fold in folds])),
        "logistic_regression_auroc": float(np.mean([fold["logistic_regression_auroc"] for fold in folds])),
        "difference": float(difference.mean()),
        "difference_standard_error": error,
    }


def measured_sentence(measurement: Json) -> str:
    """What `measured` found, in one sentence for people."""
    folds, error = measurement["folds"], measurement["difference_standard_error"]
    own, regression = measurement["auroc"], measurement["logistic_regression_auroc"]
    if error is None:
        return (
            f"held-out AUROC {own:.3f} ({folds[0]['n_positive']:,} positive of {folds[0]['n_held_out']:,}); "
            f"logistic regression on the same inputs {regression:.3f}"
        )
    return (
        f"held-out AUROC, mean of {len(folds)} folds: {own:.3f}; logistic regression on the same inputs "
        f"{regression:.3f}; paired difference {measurement['difference']:+.4f} (standard error {error:.4f}); "
        f"the model that ships is fold 1's, {folds[0]['auroc']:.3f} beside {folds[0]['logistic_regression_auroc']:.3f}"
    )


def load_sequences(directory: StageDirectory) -> Sequences:
    """All shards of a complete directory of sequences."""
    return Sequences(pa.concat_tables([directory.read(name, TABLE) for name in directory.shards]))


def fold_split(sequences: Sequences, number: int, folds: int, seed: int) -> np.ndarray:
    """The split of each prediction in fold `number` (from 1), patients never divided [prediction].

    Fold 1 is the data set's own split. The others hold out, in turn, an equal part of the patients that
    fold 1 does not hold out, so that with a fifth held out five folds hold out every patient once.
    """
    own: np.ndarray = sequences.column("split")
    if number == 1:
        return own
    subject = sequences.column("subject_id")
    random = np.random.default_rng([seed, folds])
    rest = random.permutation(np.unique(subject[own != HELD_OUT]))
    held_out = rest[number - 2 :: folds - 1]
    others = random.permutation(np.setdiff1d(subject, held_out))
    tuning = others[: int(len(others) * TUNING_SHARE)]
    return np.where(np.isin(subject, held_out), HELD_OUT, np.where(np.isin(subject, tuning), TUNING, TRAIN))


def fit(
    sequences: Sequences, vocabulary_size: int, split: np.ndarray, settings: TrainSettings
) -> tuple[torch.nn.Module, int]:
    """The model with the least log loss on the tuning patients, and how many epochs were trained."""
    torch.manual_seed(settings.seed)
    random = np.random.default_rng(settings.seed)
    label = torch.from_numpy((sequences.column("label") == "true").astype(np.float32))
    train, tuning = np.flatnonzero(split == TRAIN), np.flatnonzero(split == TUNING)
    model = ARCHITECTURES[settings.architecture](
        vocabulary_size=vocabulary_size, hidden=settings.hidden, dropout=settings.dropout
    )
    optimizer = torch.optim.AdamW(model.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    best, best_loss, best_epoch = deepcopy(model.state_dict()), math.inf, 0
    for epoch in range(1, settings.epochs + 1):
        model.train()
        # Like lengths together, yet other neighbours every epoch.
        order = np.argsort(sequences.n_steps[train] // 3 + random.random(len(train)), kind="stable")
        batches = [train[order[i : i + settings.batch]] for i in range(0, len(order), settings.batch)]
        for number in random.permutation(len(batches)):
            rows = batches[number]
            loss = torch.nn.functional.binary_cross_entropy_with_logits(model(sequences.batch(rows)), label[rows])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        probability = predict(model, sequences, tuning)
        tuning_loss = log_loss(label[tuning].numpy(), probability, labels=[0, 1])
        if tuning_loss < best_loss:
            best, best_loss, best_epoch = deepcopy(model.state_dict()), tuning_loss, epoch
        elif epoch - best_epoch >= settings.patience:
            break
    model.load_state_dict(best)
    return model.eval(), epoch


def predict(model: torch.nn.Module, sequences: Sequences, rows: np.ndarray) -> np.ndarray:
    """The probability of the positive class [row]."""
    model.eval()
    probability: np.ndarray = np.zeros(len(sequences))
    with torch.no_grad():
        for bucket in sequences.buckets(rows, patients=512, steps=1 << 15):
            probability[bucket] = torch.sigmoid(model(sequences.batch(bucket)).double()).numpy()
    return np.asarray(probability[rows])


def _check_splits(sequences: StageDirectory) -> None:
    table = pa.concat_tables([sequences.read(name, TABLE, ["label", "split"]) for name in sequences.shards])
    seen = {(row["split"], row["label"]) for row in table.group_by(["split", "label"]).aggregate([]).to_pylist()}
    for split in SPLITS:
        for label in ("true", "false"):
            if (split, label) not in seen:
                raise UserError(
                    f"{sequences.path}: no prediction of split '{split}' has the label '{label}', so nothing can be "
                    "measured: give labels with both classes in every split, then prepare again."
                )
