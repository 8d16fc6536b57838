"""Patients flow in, folds of patients flow out: who trains, tunes and is held out, with nobody divided."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from whenwhy.errors import UserError
from whenwhy.events.sequence_batch import Sequences
from whenwhy.events.sequence_loader import Choose
from whenwhy.events.sequences import TABLE
from whenwhy.schema import HELD_OUT, SPLITS, TRAIN, TUNING
from whenwhy.shards import StageDirectory

WHOLE_NUMBER = re.compile(r"-?\d+")

#: Of the patients that a further fold does not hold out, this share tunes.
TUNING_SHARE = 1 / 8


@dataclass(frozen=True)
class FoldSplit:
    """The split of every patient in one fold.

    Attributes:
        subject: [patient] int64, distinct, ascending.
        split: [patient] one of `SPLITS`.
    """

    subject: np.ndarray
    split: np.ndarray

    def of(self, subject: np.ndarray) -> np.ndarray:
        """The split of each prediction, given whose it is [prediction]."""
        return np.asarray(self.split[np.searchsorted(self.subject, subject)])

    def choose(self, split: str) -> Choose:
        """The rows of some sequences that are in a split, for `loaded_batches`."""

        def rows(sequences: Sequences) -> np.ndarray:
            return np.flatnonzero(self.of(sequences.column("subject_id")) == split)

        return rows


def fold_split(subject: np.ndarray, own: np.ndarray, number: int, folds: int, seed: int) -> FoldSplit:
    """The patients' split in fold `number` (from 1).

    Fold 1 is the data set's own split. The others hold out, in turn, an equal part of the patients that
    fold 1 does not hold out, so that with a fifth held out five folds hold out every patient once.

    Args:
        subject: [prediction] whose each prediction is.
        own: [prediction] the data set's split.

    Example:
        >>> own = np.array(["held_out", "train", "train", "tuning", "train"])
        >>> [fold_split(np.arange(5), own, number, 3, seed=0).split.tolist().count("held_out") for number in (1, 2, 3)]
        [1, 2, 2]
    """
    patients, first = np.unique(subject, return_index=True)
    own = own[first]
    if number == 1:
        return FoldSplit(patients, own)
    random = np.random.default_rng([seed, folds])
    rest = random.permutation(patients[own != HELD_OUT])
    held_out = rest[number - 2 :: folds - 1]
    others = random.permutation(np.setdiff1d(patients, held_out))
    tuning = others[: int(len(others) * TUNING_SHARE)]
    split = np.where(np.isin(patients, held_out), HELD_OUT, np.where(np.isin(patients, tuning), TUNING, TRAIN))
    return FoldSplit(patients, split)


def outcomes(directory: StageDirectory) -> pa.Table:
    """Whose each prediction is, its split and its label: all that folds are made from, in order of the shards."""
    names = ["subject_id", "split", "label"]
    return pa.concat_tables([directory.read(name, TABLE, names) for name in directory.shards])


def classes_in(label: np.ndarray) -> tuple[str, ...]:
    """The distinct labels in the order of a model's classes: whole numbers by value, others by their characters.

    Example:
        >>> classes_in(np.array(["10", "9", "10"])), classes_in(np.array(["true", "false"]))
        (('9', '10'), ('false', 'true'))
    """
    found = sorted(map(str, np.unique(label)))
    if all(WHOLE_NUMBER.fullmatch(name) for name in found):
        found.sort(key=int)
    return tuple(found)


def class_index(label: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """The place of each label among the classes [prediction] int64; -1: it is none of them.

    Example:
        >>> class_index(np.array(["dead", "home", "lost"]), ("home", "dead")).tolist()
        [1, 0, -1]
    """
    found = np.full(len(label), -1, dtype=np.int64)
    for place, name in enumerate(classes):
        found[label == name] = place
    return found


def require_every_class(
    directory: StageDirectory, split: np.ndarray, label: np.ndarray, classes: Sequence[str], fold: str = ""
) -> None:
    """Raises `UserError` unless every split has predictions of every class.

    Args:
        split, label: [prediction].
        fold: the fold's name, of a fold other than the data set's own split.
    """
    for name in SPLITS:
        for of_class in reversed(classes):
            if not ((split == name) & (label == of_class)).any():
                where = f" of {fold}" if fold else ""
                every = "both classes" if len(classes) == 2 else "every class"
                raise UserError(
                    f"{directory.path}: no prediction of split '{name}'{where} has the label '{of_class}', so "
                    f"nothing can be measured: give labels with {every} in every split, then prepare again."
                )
