"""Feature values: a code and a range of its numbers, fitted on training patients up to their prediction time.

A code's numbers fall into quantile bins; few distinct numbers get a bin each; a code without numbers is
one feature value, "recorded". Edges are float32, as the numbers are, so that equal numbers share a bin.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import meds
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from whenwhy.schema import EVERYTHING_ABSENT, FEATURE_VALUES, RECORDED

#: A stranger's model counts its vocabulary from 0, and 0 is "everything absent" here: its index i has the id i + 1.
FOREIGN_OFFSET = EVERYTHING_ABSENT + 1

#: Age at the prediction, in years: derived from the birth that MEDS records, a static value.
AGE = "AGE"
DERIVED_CODES = {AGE: ("age at the prediction", "years")}


def bin_edges(values: np.ndarray, counts: np.ndarray, bins: int) -> np.ndarray:
    """Inner edges [bin - 1] as float32, ascending: an event falls into bin sum(value >= edge).

    With at most `bins` distinct values each gets a bin. Otherwise an edge is the first value at which the
    share of events below it reaches k / bins; tied edges are merged.

    Args:
        values: [distinct value] float32, ascending, without NaN.
        counts: [distinct value] how often each occurs.

    Example:
        >>> bin_edges(np.float32([1, 2, 3, 4]), np.array([5, 5, 5, 5]), bins=2)
        array([3.], dtype=float32)
        >>> bin_edges(np.float32([0, 1]), np.array([4139, 2869]), bins=10)
        array([1.], dtype=float32)
    """
    values = values.astype(np.float32)
    if len(values) <= bins:
        return values[1:]
    below = np.concatenate([[0], np.cumsum(counts)[:-1]]) / counts.sum()  # share of events below each value
    first = np.searchsorted(below, np.arange(1, bins) / bins - 1e-12, side="left")
    return np.unique(values[first[(first > 0) & (first < len(values))]])


@dataclass(frozen=True)
class Vocabulary:
    """The feature values of one data set. `table` has the columns of `schema.FEATURE_VALUES`, row i has id i."""

    table: pa.Table

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @cached_property
    def codes(self) -> pa.Array:
        """The distinct codes, ascending."""
        return pa.array(sorted(set(self.table["code"][1:].to_pylist())), pa.string())

    @cached_property
    def _layout(self) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
        """By code: id recorded without a number (or -1), id of the first bin (or -1), inner edges."""
        present = np.full(len(self.codes), -1, dtype=np.int32)
        first = np.full(len(self.codes), -1, dtype=np.int32)
        edges: list[list[float]] = [[] for _ in range(len(self.codes))]
        position = {code: i for i, code in enumerate(self.codes.to_pylist())}
        for row in self.table.slice(1).select(["feature_value_id", "code", "bin", "low"]).to_pylist():
            at = position[row["code"]]
            if row["bin"] is None:
                present[at] = row["feature_value_id"]
            elif row["bin"] == 0:
                first[at] = row["feature_value_id"]
            else:
                edges[at].append(row["low"])
        return present, first, [np.array(e, dtype=np.float32) for e in edges]

    def ids(self, code: pa.Array | pa.ChunkedArray, value: np.ndarray) -> np.ndarray:
        """Feature value ids [event] int32; -1 where training patients never recorded such a thing.

        Args:
            code: [event] strings.
            value: [event] float32, NaN where there is no number.
        """
        present, first, edges = self._layout
        at = pc.fill_null(pc.index_in(code, value_set=self.codes), -1).to_numpy(zero_copy_only=False)
        known = at >= 0
        numeric = ~np.isnan(value)
        ids = np.full(len(at), -1, dtype=np.int32)
        ids[known & ~numeric] = present[at[known & ~numeric]]
        # One pass over the numeric events sorted by code: each code's run is binned by its own edges.
        rows = np.flatnonzero(known & numeric)
        rows = rows[np.argsort(at[rows], kind="stable")]
        runs, starts = np.unique(at[rows], return_index=True)
        ends = np.append(starts, len(rows))[1:]  # none where no event has a number
        for code_at, begin, end in zip(runs, starts, ends, strict=True):
            if first[code_at] >= 0:
                inside = rows[begin:end]
                ids[inside] = first[code_at] + np.searchsorted(edges[code_at], value[inside], side="right")
        return ids


def fitted_feature_values(
    counted: Iterable[tuple[str, np.ndarray, np.ndarray]], codes: pa.Table, bins: int
) -> pa.Table:
    """The table of feature values (`schema.FEATURE_VALUES`), counts still null, fitted on training events.

    Args:
        counted: per code, ascending: code, distinct numbers [value] float32 ascending with NaN last for
            "without a number", events with each.
        codes: columns code, description, unit, parents.
        bins: quantile bins of a code with many distinct numbers.

    Example:
        >>> no_codes = pa.table({"code": pa.array([], pa.string())})
        >>> table = fitted_feature_values([("hdl", np.float32([40, 60]), np.array([5, 5]))], no_codes, bins=10)
        >>> table.select(["feature_value_id", "code", "low", "high"]).to_pylist()[1]
        {'feature_value_id': 1, 'code': 'hdl', 'low': -inf, 'high': 60.0}
    """
    described = {row["code"]: row for row in codes.to_pylist()}
    nothing = dict.fromkeys(FEATURE_VALUES.names)
    rows = [
        nothing
        | {
            "code": "(everything absent)",
            "kind": RECORDED,
            "description": "all that a step does not record",
            "parents": [],
        }
    ]
    for code, values, events in counted:
        told = described.get(code, {})
        name, unit = DERIVED_CODES.get(code, (told.get("description"), told.get("unit")))
        base = nothing | {
            "code": code,
            "kind": RECORDED,
            "description": name,
            "unit": unit,
            "parents": told.get("parents") or [],
        }
        numeric = ~np.isnan(values)
        if not numeric.all():
            rows.append(base)
        if numeric.any():
            edges = bin_edges(values[numeric], events[numeric], bins).astype(np.float64)
            bounds = [-np.inf, *edges, np.inf]
            rows += [base | {"bin": i, "low": bounds[i], "high": bounds[i + 1]} for i in range(len(edges) + 1)]
    return pa.Table.from_pylist(
        [row | {"feature_value_id": EVERYTHING_ABSENT + i} for i, row in enumerate(rows)], schema=FEATURE_VALUES
    )


#: MEDS codes that are no feature values of their own: a birth becomes the age, a death is never in the past.
NO_FEATURES = (meds.birth_code, meds.death_code)
