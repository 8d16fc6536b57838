"""Cells and exposure flow in; which of them may be shown flows out.

A cell of 1 to 10 patients, or dominated by as few, is hidden, and so is one that all but 1 to 10 of the
patients at risk have. Because margins are shown, one hidden cell among its siblings would follow by
subtraction: so in every line (a margin and the cells that add up to it) either nothing is hidden, or at
least two cells that hold enough patients together; where that cannot be had, the margin is hidden too.
A margin that is hidden has a hidden cell in each of its lines, or it would follow by addition.
Patients recur from cell to cell, so how many different ones hidden cells hold is bounded from below: by the
largest cell, and by the margin less all that is shown. What a margin has beyond its cells (events without a time,
or of predictions that are not on an axis) is one more hidden cell, unless it must be of many patients.
Lines cross: where the bounds that all of them give still leave a hidden count within 1 to 10, more is hidden.

The lines are those of time (on every axis), classes, strata, values of a code, codes and groups of a group, and codes that
exclude one another (SEX//F and SEX//M). One more comes of what is derived: who was rightly predicted "true" is who
is "true" and was predicted so, and who was wrongly predicted is who was predicted any other class. Two classes, two
predictions and how often they agree make all four counts: right predictions of all are shown with those of each class.

Cells tell who is at risk, too. A code that everybody has (the age, or the code whose first record time is counted
from) has the very patients of exposure: both are shown, or neither.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from whenwhy.schema import MIN_PATIENTS
from whenwhy.statistics.cohorts import ALL, CORRECT, PREDICTED
from whenwhy.statistics.time_axis import BEFORE_PREDICTION
from whenwhy.store.group_lines import group_lines
from whenwhy.store.lines import Lines

#: What tells one cell or count from another.
EXPOSURE_KEYS = ["run_id", "target", "split", "class", "stratum", "time_axis", "time_bin"]
CELL_KEYS = [*EXPOSURE_KEYS, "level", "feature_value_id", "code"]

#: What a cell's decision rests on.
CELL_COLUMNS = [*CELL_KEYS, "n_events", "n_patients", "s_nn"]


def shown_cells(
    cells: pa.Table, exposure: pa.Table, exposure_shown: np.ndarray, parents: pa.Table, threshold: int = MIN_PATIENTS
) -> np.ndarray:
    """Whether each cell may be shown [cell].

    Args:
        cells: with `CELL_COLUMNS`; all those of a run, target and split, or of several.
        exposure: of `schema.EXPOSURE`, all of it.
        exposure_shown: what `shown_exposure` says of it [row of exposure].
        parents: columns code, parents: the groups of each code.
        threshold: the fewest patients of a cell that is shown.
    """
    if not cells.num_rows:
        return np.zeros(0, dtype=bool)
    books = _Books(exposure)
    of_exposure = _Keys(exposure, books.numbers)
    codes = _codes(cells)
    keys = _Keys(cells, _feature_numbers(codes) | books.numbers)
    patients, events, s_nn = (cells[name].to_numpy()[keys.order] for name in ("n_patients", "n_events", "s_nn"))
    n_cells = len(patients)
    few = (patients < threshold) | (events.astype(np.float64) ** 2 / s_nn < threshold)
    # A cell says of those at risk who are not in it as much as of those who are.
    at_risk = of_exposure.find(of_exposure.packed_of(keys))
    exposed = of_exposure.values(exposure["n_patients"])
    exposure_hidden = ~exposure_shown[of_exposure.order]
    lacking = exposed[at_risk] - patients
    few |= ((lacking > 0) & (lacking < threshold)) | ((lacking == 0) & exposure_hidden[at_risk])

    lines = Lines(
        np.concatenate([few, exposure_hidden]),
        np.concatenate([patients, exposed]),
        np.concatenate([events, exposed]),
        n_cells,
        threshold,
    )
    level, time_bin = keys.column("level"), keys.column("time_bin")
    for axis in range(len(books.names["time_axis"])):
        dated = np.flatnonzero((keys.column("time_axis") == axis) & (time_bin > 0))
        on_axis = None
        if axis != books.main_axis:
            on_axis = exposed[of_exposure.find(of_exposure.changed(at_risk[dated], time_bin=0))]
        lines.add(dated, keys.find(keys.changed(dated, time_bin=0, time_axis=books.main_axis)), on_axis)
    _add_beginnings(lines, keys, books, patients)
    _add_cohort_lines(lines, keys, books)
    values = np.flatnonzero(level == _VALUE)
    lines.add(values, keys.find(keys.changed(values, level=_CODE, feature_value_id=0)))
    of_codes = np.flatnonzero(level == _CODE)
    for child, group in _of_groups(codes, parents, keys):
        lines.add(child, group)
    siblings, family = _siblings(of_codes[time_bin[of_codes] == 0], keys, codes)
    for one in np.unique(family):
        of = siblings[family == one]
        lines.add(of, n_cells + at_risk[of])
    shown = np.empty(n_cells, dtype=bool)
    shown[keys.order] = ~lines.hidden()
    return shown


def apart(parents: pa.Table, most: int, sizes: Sequence[int]) -> list[pa.Array]:
    """Codes and groups in parts between which there is no line, each of about `most` cells or of a single such part.

    Args:
        parents: columns code, parents, with a row for each group too.
        sizes: the cells of each code.
    """
    codes = parents["code"].to_pylist()
    place = {code: at for at, code in enumerate(codes)}
    prefixes: dict[str, int] = {}
    links = []
    for at, row in enumerate(parents.to_pylist()):
        links += [(at, place[group]) for group in row["parents"] or [] if group in place]
        links.append((at, prefixes.setdefault(row["code"].split("//")[0], at)))
    one, other = np.array(links, dtype=np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(one)), (one, other)), shape=(len(codes), len(codes)))
    _, part = connected_components(graph, directed=False)
    count = np.bincount(part, weights=np.asarray(sizes, dtype=np.float64))
    block = (np.cumsum(count) - count) // most  # parts that begin within one block's size are taken together
    names = np.array(codes, dtype=object)
    return [pa.array(names[block[part] == number].tolist(), pa.string()) for number in np.unique(block)]


def shown_exposure(
    exposure: pa.Table, threshold: int = MIN_PATIENTS, told_by_hidden: np.ndarray | None = None
) -> np.ndarray:
    """Whether each count of patients at risk may be shown [row].

    Besides the lines: the counts of a cohort before the prediction fall from all time to the oldest bin, and neighbours
    differ by those whose history ends there; a count is hidden if it differs from the last one shown by a few. So is
    one on another axis: neighbouring bins differ by who enters or leaves, and all time by who is not on the axis.

    Args:
        told_by_hidden: which rows count the patients of a hidden cell; None: none does.
    """
    books = _Books(exposure)
    keys = _Keys(exposure, books.numbers)
    patients, predictions = (keys.values(exposure[name]) for name in ("n_patients", "n_predictions"))
    few = patients < threshold
    if told_by_hidden is not None:
        few |= told_by_hidden[keys.order]
    every = np.arange(len(few))
    all_time = keys.find(keys.changed(every, time_bin=0, time_axis=books.main_axis))
    cohort = keys.changed(every, time_bin=0)  # and axis
    elsewhere = keys.column("time_axis") != books.main_axis
    last: dict[int, int] = {}
    # Before the prediction first, there and elsewhere all time before the bins.
    for at in np.lexsort((keys.column("time_bin"), elsewhere, cohort)).tolist():
        if few[at]:
            continue
        before = last.get(int(cohort[at]), int(all_time[at]) if elsewhere[at] else None)
        if (
            before is not None
            and not few[before]
            and abs(patients[before] - patients[at]) < threshold
            and predictions[before] != predictions[at]
        ):
            few[at] = True
        else:
            last[int(cohort[at])] = at
    lines = Lines(few, patients, predictions, len(few), threshold)
    lines.hide_with(keys.find(cohort), every)  # a bin says that all time has at least as many
    _add_cohort_lines(lines, keys, books)
    _add_beginnings(lines, keys, books, patients, all_time_of=keys.column("time_axis"))
    shown = np.empty(len(few), dtype=bool)
    shown[keys.order] = ~lines.hidden()
    return shown


# -- keys as whole numbers ------------------------------------------------------------------------

#: In the order of their names, as cells lie in a store.
_CODE, _GROUP, _VALUE = range(3)

#: The numbers of a column's values, and what it takes of them.
_Numbers = dict[str, Callable[[pa.ChunkedArray], np.ndarray]]


class _Books:
    """The names that keys are made of, in the order of their numbers; 0 is all classes, all strata, all time."""

    def __init__(self, exposure: pa.Table) -> None:
        self.names = {name: pc.unique(exposure[name].cast(pa.string())).sort() for name in EXPOSURE_KEYS[:-1]}
        for name in ("class", "stratum"):
            others = [one for one in self.names[name].to_pylist() if one != ALL]
            self.names[name] = pa.array([ALL, *others], pa.string())
        axes = self.names["time_axis"].to_pylist()
        self.main_axis = axes.index(BEFORE_PREDICTION) if BEFORE_PREDICTION in axes else 0
        self.first_bin = pc.min(exposure["time_bin"]).as_py() or 0
        self.numbers: _Numbers = {
            "time_axis": partial(_numbers, names=self.names["time_axis"]),
            **{name: partial(_numbers, names=names) for name, names in self.names.items() if name != "time_axis"},
            "time_bin": self._bins,
        }

    def _bins(self, time_bin: pa.ChunkedArray) -> np.ndarray:
        return _counted(time_bin, self.first_bin)


def _numbers(column: pa.ChunkedArray, names: pa.Array) -> np.ndarray:
    """The place of each value among names [row]."""
    column = column.combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # of no chunk, or of several
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    if pa.types.is_dictionary(column.type):
        # A dictionary may name what no row has.
        place = pc.fill_null(pc.index_in(column.dictionary, value_set=names), -1).to_numpy().astype(np.int64)
        return np.asarray(place[column.indices.to_numpy()])
    return np.asarray(pc.index_in(column, value_set=names).to_numpy().astype(np.int64))


def _counted(column: pa.ChunkedArray, first: int) -> np.ndarray:
    """1 for `first`, 2 for the next; 0 for null [row]."""
    return np.asarray(pc.fill_null(column.cast(pa.int64()), first - 1).to_numpy()) - (first - 1)


class _Keys:
    """A table's keys in ascending order, a whole number each that stands for all their columns.

    Attributes:
        order: the row of the table that each belongs to.
    """

    def __init__(self, table: pa.Table, numbers: _Numbers) -> None:
        self.sizes: dict[str, int] = {}
        packed = np.zeros(table.num_rows, dtype=np.int64)
        for name, of in numbers.items():
            number = of(table[name])
            self.sizes[name] = int(number.max(initial=0)) + 2  # one more, so that -1 is nobody's number
            packed = packed * self.sizes[name] + number
        assert np.prod([float(size) for size in self.sizes.values()]) < 2**63
        self.order = np.argsort(packed, kind="stable")
        self.packed = packed[self.order]
        names = list(self.sizes)
        self.strides = {name: math.prod(self.sizes[n] for n in names[at + 1 :]) for at, name in enumerate(names)}

    def values(self, column: pa.ChunkedArray) -> np.ndarray:
        """A column of the table, in the order of the keys."""
        return np.asarray(column.to_numpy()[self.order])

    def column(self, name: str, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        """The numbers of one column."""
        number = self.packed[rows] // self.strides[name] % self.sizes[name]
        return np.asarray(number.astype(np.int32))

    def changed(self, rows: np.ndarray, **to: np.ndarray | int) -> np.ndarray:
        """The keys of some rows, with some columns changed."""
        packed = self.packed[rows]
        for name, number in to.items():
            packed += (number - self.column(name, rows).astype(np.int64)) * self.strides[name]
        return np.asarray(packed)

    def packed_of(self, others: _Keys, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        """The keys of rows of a table that has more columns, by those of this one."""
        packed = np.zeros(len(others.packed[rows]), dtype=np.int64)
        for name, stride in self.strides.items():
            packed += others.column(name, rows).astype(np.int64) * stride
        return packed

    def find(self, wanted: np.ndarray) -> np.ndarray:
        """The rows that have these keys; -1: none has."""
        at = np.minimum(np.searchsorted(self.packed, wanted), len(self.packed) - 1)
        return np.where(self.packed[at] == wanted, at, -1)


def _feature_numbers(codes: pa.Array) -> _Numbers:
    """Code, level and feature value (0: none) as numbers."""
    return {
        "code": partial(_numbers, names=codes),
        "level": partial(_numbers, names=pa.array(["code", "group", "value"])),
        "feature_value_id": partial(_counted, first=0),
    }


def _codes(cells: pa.Table) -> pa.Array:
    return pc.unique(pc.unique(cells["code"]).cast(pa.string())).sort()


def _of_groups(codes: pa.Array, parents: pa.Table, keys: _Keys) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Cells of codes and groups, and the cell of the group that each adds up to (-1: none); a group in one sum a time."""
    number = {code: at for at, code in enumerate(codes.to_pylist())}
    groups = {row["code"]: row["parents"] or [] for row in parents.to_pylist() if row["code"] in number}
    before: Counter[str] = Counter()
    sums: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
    for one in group_lines(groups):
        if one.group in number:
            sums[before[one.group]] += [
                (number[name], level, number[one.group])
                for level, names in ((_GROUP, one.subgroups), (_CODE, one.codes))
                for name in names
                if name in number
            ]
        before[one.group] += 1
    for members in sums.values():
        code, level, group = np.array(members, dtype=np.int64).reshape(-1, 3).T
        # Keys are in the order of codes, then levels.
        low = code * keys.strides["code"] + level * keys.strides["level"]
        first, last = (np.searchsorted(keys.packed, of) for of in (low, low + keys.strides["level"]))
        count = last - first
        child = np.repeat(first - np.cumsum(count) + count, count) + np.arange(count.sum())
        yield child, keys.find(keys.changed(child, level=_GROUP, code=np.repeat(group, count)))


def _siblings(all_time: np.ndarray, keys: _Keys, codes: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Cells of sibling codes (SEX//F and SEX//M), which add up to the patients at risk, and which family each is of."""
    names = codes.to_pylist()
    family = np.unique(np.array([name.split("//")[0] for name in names], dtype=str), return_inverse=True)[1]
    code = keys.column("code", all_time)
    has_siblings = np.array(["//" in name for name in names])[code]
    return all_time[has_siblings], family[code[has_siblings]]


# -- lines ----------------------------------------------------------------------------------------


def _add_cohort_lines(lines: Lines, keys: _Keys, books: _Books) -> None:
    """Lines of classes, of each kind of strata, and of what a prediction says of both."""
    label, stratum = keys.column("class"), keys.column("stratum")

    def add(children: np.ndarray, **margin: int) -> None:
        rows = np.flatnonzero(children)
        lines.add(rows, keys.find(keys.changed(rows, **margin)))

    names = books.names["stratum"].to_pylist()
    kind = np.array([name.partition("=")[0] for name in names])
    place = {name: at for at, name in enumerate(names)}
    right, wrong = (place.get(f"{CORRECT}={said}", -2) for said in ("yes", "no"))
    # Of two classes, how often each is there and is predicted, and how often that is right, tell which is taken for which.
    rightly = np.flatnonzero((label > 0) & (stratum == right))
    for of in (right, wrong):
        if of >= 0:
            lines.hide_with(rightly, keys.find(keys.changed(rightly, stratum=of, **{"class": 0})))
    add(label > 0, **{"class": 0})
    for one in np.unique(kind[1:]):
        add((stratum > 0) & (kind == one)[stratum], stratum=0)
    classes = books.names["class"].to_pylist()
    as_predicted = np.array([place.get(f"{PREDICTED}={name}", -1) for name in classes])[label]
    if right >= 0:
        add((label > 0) & (stratum == as_predicted), stratum=right)
    if wrong >= 0:
        add((label > 0) & (kind == PREDICTED)[stratum] & (stratum != as_predicted), stratum=wrong)


def _add_beginnings(
    lines: Lines, keys: _Keys, books: _Books, patients: np.ndarray, all_time_of: np.ndarray | None = None
) -> None:
    """Where time begins at a code, all who have it are in the bin of the beginning: it tells what all time does.

    Args:
        all_time_of: the axis of the row's all time; None: that before the prediction.
    """
    begins = np.flatnonzero(
        (keys.column("time_axis") != books.main_axis) & (keys.column("time_bin") == 1 - books.first_bin)
    )
    axis = books.main_axis if all_time_of is None else all_time_of[begins]
    whole = keys.find(keys.changed(begins, time_bin=0, time_axis=axis))
    lines.add(begins, np.where(patients[begins] == patients[whole], whole, -1))
