"""A plain logistic regression on the same inputs: how often each feature value is recorded, on a log scale.

The logarithm of 1 + count, times the mean weight, which is 1 but for numbers: on data sets at hand the logarithm did
better than counts, presence, or shares of the steps.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array, vstack
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from whenwhy.errors import UserError
from whenwhy.events.sequence_batch import Sequences
from whenwhy.events.sequence_loader import COLUMNS
from whenwhy.events.sequences import TABLE
from whenwhy.models.folds import FoldSplit, class_index
from whenwhy.models.sequence_model import TWO_CLASSES
from whenwhy.schema import TRAIN, TUNING
from whenwhy.shards import StageDirectory

#: Inverse strengths of the ridge penalty, one of which is chosen on the tuning patients.
PENALTIES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)

#: The most predictions of a split that are held in memory; of more, a sample is drawn.
MOST_PREDICTIONS = 100_000


@dataclass(frozen=True)
class FittedRegression:
    """A fitted regression.

    Attributes:
        model: of scikit-learn, on `inputs_of`.
        penalty: the inverse strength that was chosen.
        n_train, n_train_of: predictions it was fitted on, and how many there were.
    """

    model: LogisticRegression
    penalty: float
    n_train: int
    n_train_of: int

    def probabilities(self, inputs: csr_array) -> np.ndarray:
        """Of the classes [prediction, class], from inputs [prediction, feature value]."""
        return np.asarray(self.model.predict_proba(inputs))


def inputs_of(sequences: Sequences, vocabulary_size: int) -> csr_array:
    """log(1 + how often a record has a feature value) times its mean weight [prediction, feature value], sparse."""
    rows = np.concatenate(
        [np.repeat(np.arange(len(sequences)), np.diff(o)) for o in (sequences.event_offsets, sequences.static_offsets)]
    )
    columns = np.concatenate([sequences.event_id, sequences.static_id])
    shape = (len(sequences), vocabulary_size)
    counts = csr_array((np.ones(len(rows)), (rows, columns)), shape=shape)
    counts.sum_duplicates()
    if sequences.event_weight is None and sequences.static_weight is None:
        return np.log1p(counts)
    pairs = ((sequences.event_weight, sequences.event_id), (sequences.static_weight, sequences.static_id))
    weights = np.concatenate([np.ones(len(ids)) if weight is None else weight for weight, ids in pairs])
    sums = csr_array((weights, (rows, columns)), shape=shape)
    sums.sum_duplicates()  # both have the same places, in the same order
    sums.data *= np.log1p(counts.data) / counts.data
    return sums


def logistic_regression(
    directory: StageDirectory,
    vocabulary_size: int,
    split: FoldSplit,
    seed: int,
    most: int = MOST_PREDICTIONS,
    classes: Sequence[str] = TWO_CLASSES,
) -> FittedRegression:
    """The regression fitted on the training patients, its penalty the one with the least log loss on the tuning patients.

    Of more than two classes it is multinomial. Memory holds at most `most` predictions of each of the two splits, a
    sample that follows from `seed`.

    Raises:
        UserError: the sample of the training patients lacks a class.
    """
    train, label, n_train_of = _sampled(directory, vocabulary_size, split, TRAIN, most, seed, classes)
    tuning, tuning_label, _ = _sampled(directory, vocabulary_size, split, TUNING, most, seed, classes)
    missing = [name for place, name in enumerate(classes) if not (label == place).any()]
    if missing:
        raise UserError(
            f"{directory.path}: of {len(label):,} training predictions that the logistic regression learns from, none has "
            f"the label '{missing[0]}', so nothing can be compared: join rare classes, then prepare again."
        )
    best, best_loss, best_penalty = None, np.inf, PENALTIES[0]
    for penalty in PENALTIES:
        with warnings.catch_warnings():
            # The weakest penalties may not converge; the tuning patients judge what comes out all the same.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model = LogisticRegression(C=penalty, max_iter=500).fit(train, label)
        loss = log_loss(tuning_label, model.predict_proba(tuning), labels=range(len(classes)))
        if loss < best_loss:
            best, best_loss, best_penalty = model, loss, penalty
    assert best is not None
    return FittedRegression(best, best_penalty, train.shape[0], n_train_of)


def _sampled(
    directory: StageDirectory,
    vocabulary_size: int,
    split: FoldSplit,
    name: str,
    most: int,
    seed: int,
    classes: Sequence[str],
) -> tuple[csr_array, np.ndarray, int]:
    """Inputs and places of the labels of at most `most` predictions of a split, and how many there are."""
    subjects = [directory.read(shard, TABLE, ["subject_id"])["subject_id"].to_numpy() for shard in directory.shards]
    rows = [np.flatnonzero(split.of(subject) == name) for subject in subjects]
    total = sum(map(len, rows))
    if total > most:
        random = np.random.default_rng(seed)
        chosen = np.zeros(total, dtype=bool)
        chosen[random.choice(total, most, replace=False)] = True
        begins = np.cumsum([0, *map(len, rows)])[:-1]
        rows = [own[chosen[begin : begin + len(own)]] for own, begin in zip(rows, begins, strict=True)]
    features, label = [], []
    for shard, own in zip(directory.shards, rows, strict=True):
        if len(own):
            sequences = Sequences(directory.read(shard, TABLE, COLUMNS))
            features.append(inputs_of(sequences, vocabulary_size)[own])
            label.append(class_index(sequences.column("label")[own], classes))
    return vstack(features, format="csr"), np.concatenate(label), total
