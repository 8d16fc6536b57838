"""Sequences flow in, a measured model flows out: `whenwhy train`.

Fold 1 is the data set's own split of patients, and its model is the one that ships. Further folds hold
out other patients, only to measure: the same training, beside a logistic regression on the same inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from whenwhy import __version__
from whenwhy.engine import Workers, reported, run, worker_threads
from whenwhy.errors import UserError, unknown_name
from whenwhy.events.sequence_batch import Sequences
from whenwhy.events.sequences import TABLE, VOCABULARY
from whenwhy.locations import is_remote, location, named, workplace
from whenwhy.models.architectures import ARCHITECTURES, model_arguments
from whenwhy.models.checkpoint import checkpoint_files, vocabulary_sha256
from whenwhy.models.fit_state import forget
from whenwhy.models.fitting import CLASS_WEIGHTS, SUPERVISE, FitSettings, Fitted, fit, weighing
from whenwhy.models.folds import FoldSplit, class_index, classes_in, fold_split, outcomes, require_every_class
from whenwhy.models.logistic_regression import FittedRegression, inputs_of, logistic_regression
from whenwhy.models.measurements import REGRESSION
from whenwhy.models.predictions import scored_shards
from whenwhy.models.quality import calibration, calibration_of_classes, discrimination
from whenwhy.models.sequence_model import TWO_CLASSES, n_outputs
from whenwhy.schema import HELD_OUT, TRAIN
from whenwhy.shards import Json, StageDirectory


@dataclass(frozen=True)
class TrainSettings(FitSettings):
    """How a model is built, fitted and measured. `folds` counts the data set's own split as the first."""

    architecture: str = "gru"
    hidden: int = 64
    layers: int = 1
    bidirectional: bool = False
    pooling: str | None = None  # None: the architecture's own
    dropout: float = 0.5
    input_dropout: float = 0.0
    members: int = 1
    folds: int = 1
    seed: int = 0

    def arguments(self, vocabulary_size: int, classes: Sequence[str] = TWO_CLASSES) -> Json:
        """What the architecture is called with."""
        return model_arguments(
            self.architecture,
            vocabulary_size=vocabulary_size,
            hidden=self.hidden,
            layers=self.layers,
            bidirectional=self.bidirectional,
            pooling=self.pooling,
            dropout=self.dropout,
            input_dropout=self.input_dropout,
            members=self.members,
            classes=classes,
        )

    @property
    def fitting(self) -> FitSettings:
        """Its part that says how a model is fitted."""
        return FitSettings(**{field.name: getattr(self, field.name) for field in fields(FitSettings)})

    def check(self) -> None:
        """Raises `UserError` for what cannot be asked."""
        self.arguments(vocabulary_size=1)
        if self.class_weights not in CLASS_WEIGHTS:
            raise unknown_name("class weighting", self.class_weights, CLASS_WEIGHTS)
        if self.supervise not in SUPERVISE:
            raise unknown_name("supervision", self.supervise, SUPERVISE)
        if min(self.folds, self.epochs, self.batch, self.patience) < 1:
            raise UserError("train needs at least 1 fold, 1 epoch, 1 epoch of patience and 1 prediction a batch.")
        if not (0 < self.learning_rate < math.inf and 0 <= self.weight_decay < math.inf and 0 <= self.averaging < 1):
            raise UserError("train needs a learning rate above 0, a weight decay of at least 0 and averaging below 1.")
        if self.supervise == "every":
            reason = ARCHITECTURES[self.architecture](**self.arguments(vocabulary_size=1)).not_causal
            if reason:
                raise UserError(f"--supervise every asks for scores at every step, but {reason}: use last.")


def train(sequences_path: Path, out: Path, settings: TrainSettings, workers: Workers | None = None) -> StageDirectory:
    """The model directory: one entry a fold, with its weights, held-out predictions and measurements.

    Raises:
        UserError: an option that does not exist or does not fit the others, or a split that lacks a class.

    Example: `train(Path("seq"), Path("model"), TrainSettings(folds=5))`
    """
    settings.check()
    sequences = StageDirectory.open(sequences_path, "prepare").require_complete()
    told = outcomes(sequences)
    label = column(told, "label")
    require_every_class(sequences, column(told, "split"), label, classes_in(label))
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
    task = TrainFold(named(sequences_path), named(out))
    with reported(out):
        run(task, missing, stage="train", unit="predictions", workers=workers, finished=len(keys) - len(missing))
    scratch = scratch_of(stage)
    if scratch.exists() and not any(scratch.iterdir()):
        scratch.rmdir()
    return stage


def scratch_of(stage: StageDirectory) -> Path:
    """Where unfinished folds keep their state."""
    here = workplace(stage.path)
    # A bucket's lies outside of what people remove with it: another run must not find it.
    return here / (stage.run_id if is_remote(stage.path) else "scratch")


def column(told: pa.Table, name: str) -> np.ndarray:
    """A column of `outcomes` as an array [prediction]."""
    return np.asarray(told[name].to_numpy())


@dataclass(frozen=True)
class TrainFold:
    """The engine's task: one fold trained and measured."""

    sequences: str
    out: str

    def start(self) -> Callable[[str], int]:
        torch.set_num_threads(worker_threads())  # one: as many folds at a time as there are cores
        stage = StageDirectory.open(location(self.out), "train")
        source = StageDirectory.open(location(self.sequences), "prepare")
        settings = TrainSettings(**stage.settings)
        size = source.read(VOCABULARY, VOCABULARY, ["feature_value_id"]).num_rows
        told = outcomes(source)
        subject, own, label = (column(told, name) for name in ("subject_id", "split", "label"))
        classes = classes_in(label)
        arguments = settings.arguments(size, classes)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

        def one_fold(key: str) -> int:
            number = int(key.rpartition("-")[2])
            split = fold_split(subject, own, number, settings.folds, settings.seed)
            of = split.of(subject)
            require_every_class(source, of, label, classes, key)
            state_path = scratch_of(stage) / f"{key}.safetensors"
            fitted = fit(
                source,
                split,
                weighing(settings.class_weights, class_index(label[of == TRAIN], classes), len(classes)),
                settings.architecture,
                arguments,
                settings.fitting,
                seed=(settings.seed, number),
                state_path=state_path,
                device=device,
            )
            regression = logistic_regression(source, size, split, settings.seed, classes=classes)
            held_out = _held_out(source, split, size, fitted, regression, device)
            description: Json = {
                "architecture": settings.architecture,
                "arguments": arguments,
                "vocabulary_sha256": vocabulary_sha256(source),
                "run_id": stage.run_id,
            }
            summary = summary_of(held_out, fitted, regression, settings.seed)
            stage.publish(key, {**checkpoint_files(fitted.model, description), "predictions": held_out}, summary)
            forget(state_path)
            return len(subject) * fitted.epochs

        return one_fold


def _held_out(
    source: StageDirectory,
    split: FoldSplit,
    size: int,
    fitted: Fitted,
    regression: FittedRegression,
    device: torch.device,
) -> pa.Table:
    """What model and regression say of the held-out patients' predictions, in order."""
    tables, n = [], n_outputs(fitted.model.classes)
    for shard in scored_shards(fitted.model, source, split.choose(HELD_OUT), device):
        table = shard.sequences.table.select(["subject_id", "prediction_time", "label"]).take(shard.rows)
        inputs = inputs_of(shard.sequences, size)[shard.rows]
        for prefix, told in (("", shard.probabilities), (REGRESSION, regression.probabilities(inputs))):
            for name, values in zip(probability_columns(fitted.model.classes, prefix), told.T[-n:], strict=True):
                table = table.append_column(name, pa.array(values))
        tables.append(table)
    return pa.concat_tables(tables)


def probability_columns(classes: Sequence[str], prefix: str = "") -> list[str]:
    """The columns of a model's held-out predictions: of two classes the later's probability, of more a class's each.

    Example:
        >>> probability_columns(("home", "dead")), probability_columns(("a", "b", "c"), REGRESSION)[0]
        (['probability'], 'logistic_regression_probability:a')
    """
    return [
        f"{prefix}probability" + (f":{name}" if len(classes) > 2 else "") for name in classes[-n_outputs(classes) :]
    ]


def summary_of(held_out: pa.Table, fitted: Fitted, regression: FittedRegression, seed: int) -> Json:
    """What a fold measured on its held-out patients; what begins with n_ counts patients or predictions."""
    subject, classes = held_out["subject_id"].to_numpy(), fitted.model.classes
    label = class_index(column(held_out, "label"), classes)
    several = classes if len(classes) > 2 else ()
    named = {
        prefix: np.stack([held_out[name].to_numpy() for name in probability_columns(classes, prefix)], axis=1)
        for prefix in ("", REGRESSION)
    }  # [prediction, class], of two classes the later alone
    positive = label[:, None] == np.arange(len(classes))[-n_outputs(classes) :]
    told = discrimination(subject, positive, named, seed, several)
    for prefix, probability in named.items():
        calibrated = (
            calibration_of_classes(label, probability, several)
            if several
            else calibration(positive[:, 0], probability[:, 0])
        )
        for name, found in calibrated.pop("by_class", {}).items():
            told[f"{prefix}by_class"][name] |= found
        told |= {f"{prefix}{name}": value for name, value in calibrated.items()}
    counts: Json = {"n_positive": int(positive.sum())}
    if several:
        counts = {"n_by_class": {name: int((label == place).sum()) for place, name in enumerate(classes)}}
    return {
        "n_held_out": len(subject),
        "n_held_out_patients": len(np.unique(subject)),
        **counts,
        "epochs": fitted.epochs,
        "best_epoch": fitted.best_epoch,
        "tuning_loss": fitted.tuning_loss,
        f"{REGRESSION}penalty": regression.penalty,
        f"n_{REGRESSION}train": regression.n_train,
        f"n_{REGRESSION}train_of": regression.n_train_of,
        **told,
    }


def load_sequences(directory: StageDirectory | Path | str) -> Sequences:
    """All shards of a complete directory of `whenwhy prepare`, in memory.

    Example: `load_sequences("demo/sequences").batch(np.arange(32))`
    """
    if not isinstance(directory, StageDirectory):
        directory = StageDirectory.open(location(directory), "prepare").require_complete()
    return Sequences(pa.concat_tables([directory.read(name, TABLE) for name in directory.shards]))
