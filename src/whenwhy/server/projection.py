"""What each code contributes to each prediction flows in, places of predictions in a plane flow out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
from scipy.sparse import csr_array
from scipy.sparse.linalg import LinearOperator, svds

from whenwhy.errors import UserError

AXES: Final = 2


@dataclass(frozen=True)
class Profiles:
    """What codes contribute to predictions.

    Attributes:
        predictions: a row a prediction, by its id: prediction_id, subject_id, prediction_time, label, score.
        codes: the names of the matrix's columns, in order.
        matrix: [prediction, code] the sums of contributions, zero where a code was not recorded.
    """

    predictions: pa.Table
    codes: list[str]
    matrix: csr_array

    @property
    def carriers(self) -> list[tuple[str, float] | None]:
        """Of each prediction the code whose contributions add up to most, in size, and their sum; None: nothing recorded."""
        counts = np.diff(self.matrix.indptr)
        row = np.repeat(np.arange(len(counts)), counts)
        order = np.lexsort((self.matrix.indices, -np.abs(self.matrix.data), row))
        first = order[self.matrix.indptr[:-1][counts > 0]]
        told = [
            (self.codes[code], by)
            for code, by in zip(self.matrix.indices[first].tolist(), self.matrix.data[first].tolist(), strict=True)
        ]
        found: list[tuple[str, float] | None] = [None] * len(counts)
        for at, one in zip(np.flatnonzero(counts).tolist(), told, strict=True):
            found[at] = one
        return found


def profiles_of(table: pa.Table) -> Profiles:
    """The profiles of an answer to the query `contribution_profiles`.

    Example:
        >>> rows = dict(subject_id=1, prediction_time=0, label="true", score=0.5)
        >>> table = pa.Table.from_pylist([{"prediction_id": 7, "code": code, "contribution": by, **rows}
        ...                               for code, by in (("hdl", 0.25), ("age", -2.0))])
        >>> found = profiles_of(table)
        >>> found.codes, found.matrix.toarray().tolist(), found.carriers
        (['age', 'hdl'], [[-2.0, 0.25]], [('age', -2.0)])
    """
    _, first, row = np.unique(table["prediction_id"].to_numpy(), return_index=True, return_inverse=True)
    named = table["code"].combine_chunks().dictionary_encode()
    names = named.dictionary.to_pylist()
    codes = sorted(names)
    place = {code: at for at, code in enumerate(codes)}
    there = np.asarray(named.is_valid().to_numpy(zero_copy_only=False))
    column = (
        np.array([place[name] for name in names], dtype=np.int64)[
            named.indices.drop_null().to_numpy(zero_copy_only=False)
        ]
        if names
        else np.zeros(0, dtype=np.int64)
    )
    values = table["contribution"].to_numpy()[there]
    matrix = csr_array((values, (row[there], column)), shape=(len(first), len(codes)))
    about = table.select(["prediction_id", "subject_id", "prediction_time", "label", "score"]).take(pa.array(first))
    return Profiles(about, codes, matrix)


@dataclass(frozen=True)
class Plane:
    """The two directions in which profiles differ most.

    Profiles are centred and not scaled: contributions of all codes have one unit, the score's, so a code that moves
    predictions little moves their places little, and lengths in the plane are in that unit.

    Attributes:
        codes: of the columns.
        mean: [code] the mean profile, which lies at 0, 0.
        axes: [axis, code], of length 1, at right angles; the largest element of each is positive.
        shares: of the variance, of each axis.
    """

    codes: list[str]
    mean: np.ndarray
    axes: np.ndarray
    shares: tuple[float, ...]

    def places(self, profiles: Profiles) -> np.ndarray:
        """The places [prediction, axis] of profiles; codes that the plane does not know move nothing."""
        column = {code: at for at, code in enumerate(self.codes)}
        axes = np.zeros((len(profiles.codes), len(self.axes)))  # [code of these profiles, axis]
        for at, code in enumerate(profiles.codes):
            if code in column:
                axes[at] = self.axes[:, column[code]]
        return np.asarray(profiles.matrix @ axes - self.mean @ self.axes.T)

    def loading(self, axis: int, most: int) -> list[tuple[str, float]]:
        """The codes that an axis consists of most, with their parts of its direction, the largest in size first."""
        by = self.axes[axis]
        order = sorted(range(len(by)), key=lambda at: (-abs(by[at]), self.codes[at]))[:most]
        return [(self.codes[at], float(by[at])) for at in order if by[at]]


def fit_plane(profiles: Profiles) -> Plane:
    """The plane of profiles: their first two principal components, the same each time.

    Raises:
        UserError: fewer than three codes or predictions, or predictions whose contributions are all alike.

    Example: `fit_plane(profiles_of(store.ask("contribution_profiles")))`
    """
    matrix = profiles.matrix
    n, m = matrix.shape
    if min(n, m) <= AXES:
        raise UserError(
            f"A plane takes at least {AXES + 1} predictions and {AXES + 1} codes, and there are {n:,} and {m:,}: choose "
            "another split or run."
        )
    mean = np.asarray(matrix.mean(axis=0)).ravel()
    variance = float((matrix.data**2).sum() - n * (mean**2).sum())
    if variance <= 1e-12 * float((matrix.data**2).sum()):
        raise UserError("The contributions to all predictions are alike, so nothing tells their places apart.")
    # The centred matrix is never written out: most codes are recorded for few.
    centred = LinearOperator(
        (n, m),
        matvec=lambda v: matrix @ v.ravel() - mean @ v.ravel(),
        rmatvec=lambda u: matrix.T @ u.ravel() - mean * u.sum(),
        dtype=np.float64,
    )
    begin = np.random.default_rng(0).normal(size=min(n, m))
    _, lengths, axes = svds(centred, k=AXES, v0=begin)
    axes, lengths = axes[::-1], lengths[::-1]
    largest = axes[np.arange(AXES), np.abs(axes).argmax(axis=1)]
    axes = axes * np.where(largest < 0, -1.0, 1.0)[:, None]
    return Plane(profiles.codes, mean, axes, tuple((lengths**2 / variance).tolist()))


def inside(places: np.ndarray, xs: Sequence[float], ys: Sequence[float]) -> np.ndarray:
    """Which places [prediction, 2] lie within a closed line through these corners [prediction] bool.

    Example:
        >>> inside(np.array([[0.5, 0.5], [2.0, 0.5]]), [0, 1, 1, 0], [0, 0, 1, 1]).tolist()
        [True, False]
    """
    found = np.zeros(len(places), dtype=bool)
    x, y = places[:, 0], places[:, 1]
    for x0, y0, x1, y1 in zip(xs, ys, [*xs[1:], xs[0]], [*ys[1:], ys[0]], strict=True):
        if y0 != y1:
            # A ray to the right crosses the line an odd number of times from within.
            found ^= ((y0 > y) != (y1 > y)) & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)
    return found
