"""A plain logistic regression on the same inputs: how often each feature value is recorded."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from whenwhy.events.sequence_batch import Sequences

#: Inverse strengths of the ridge penalty, one of which is chosen on the tuning patients.
PENALTIES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


def counts_of(sequences: Sequences, vocabulary_size: int) -> csr_array:
    """How often each prediction's record has each feature value [prediction, feature value], sparse."""
    rows = np.concatenate(
        [np.repeat(np.arange(len(sequences)), np.diff(o)) for o in (sequences.event_offsets, sequences.static_offsets)]
    )
    columns = np.concatenate([sequences.event_id, sequences.static_id])
    return csr_array((np.ones(len(rows)), (rows, columns)), shape=(len(sequences), vocabulary_size))


def logistic_regression_probability(
    counts: csr_array, positive: np.ndarray, train: np.ndarray, tuning: np.ndarray, wanted: np.ndarray
) -> np.ndarray:
    """The probability of the positive class for the rows `wanted`, from a regression fitted on `train`.

    The penalty is the one with the least log loss on `tuning`.
    """
    fitted = [LogisticRegression(C=penalty, max_iter=1000).fit(counts[train], positive[train]) for penalty in PENALTIES]
    losses = [log_loss(positive[tuning], model.predict_proba(counts[tuning])[:, 1], labels=[0, 1]) for model in fitted]
    return np.asarray(fitted[int(np.argmin(losses))].predict_proba(counts[wanted])[:, 1])
