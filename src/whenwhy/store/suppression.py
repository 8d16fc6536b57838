"""Cells and exposure flow in; which of them may be shown flows out.

A cell of 1 to 10 patients, or dominated by as few, is hidden, and so is one that all but 1 to 10 of the
patients at risk have. Because margins are shown, one hidden cell among its siblings would follow by
subtraction: so in every line (a margin and the cells that add up to it) either nothing is hidden, or at
least two cells that hold enough patients together; where that cannot be had, the margin is hidden too.
A margin that is hidden has a hidden cell in each of its lines, or it would follow by addition.
Patients recur from cell to cell, so how many different ones hidden cells hold is bounded from below: by the
largest cell, and by the margin less all that is shown.

The lines are those of time (on every axis), classes, strata, values of a code, codes and groups of a group, and codes that
exclude one another (SEX//F and SEX//M). One more comes of what is derived: who was rightly predicted "true" is who
is "true" and was predicted so, and who was wrongly predicted is who was predicted any other class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from whenwhy.schema import MIN_PATIENTS
from whenwhy.statistics.cohorts import ALL, CORRECT, PREDICTED
from whenwhy.statistics.time_axis import BEFORE_PREDICTION
from whenwhy.store.group_lines import group_lines

#: What tells one cell or count from another.
EXPOSURE_KEYS = ["run_id", "target", "split", "class", "stratum", "time_axis", "time_bin"]
CELL_KEYS = [*EXPOSURE_KEYS, "level", "feature_value_id", "code"]

#: What a cell's decision rests on.
CELL_COLUMNS = [*CELL_KEYS, "n_events", "n_patients", "s_nn"]


def shown_cells(cells: pa.Table, exposure: pa.Table, parents: pa.Table, threshold: int = MIN_PATIENTS) -> np.ndarray:
    """Whether each cell may be shown [cell].

    Args:
        cells: with `CELL_COLUMNS`; all those of a run, target and split, or of several.
        exposure: of `schema.EXPOSURE`, all of it.
        parents: columns code, parents: the groups of each code.
        threshold: the fewest patients of a cell that is shown.
    """
    if not cells.num_rows:
        return np.zeros(0, dtype=bool)
    patients = cells["n_patients"].to_numpy().astype(np.float64)
    effective = cells["n_events"].to_numpy().astype(np.float64) ** 2 / cells["s_nn"].to_numpy()
    books = _Books(exposure)
    keys = _Keys(books.numbers(cells) | _feature_numbers(cells))
    of_exposure = _Keys(books.numbers(exposure))
    at_risk = exposure["n_patients"].to_numpy()[of_exposure.find(keys.packed_by(of_exposure.sizes))]
    lacking = at_risk - patients
    few = (patients < threshold) | (effective < threshold) | ((lacking > 0) & (lacking < threshold))

    lines = _Lines(few, patients)
    for axis in range(len(books.names["time_axis"])):
        dated = (keys["time_axis"] == axis) & (keys["time_bin"] > 0)
        lines.add(dated, keys.find(keys.packed(time_bin=0, time_axis=books.main_axis)))
    _add_cohort_lines(lines, keys, books)
    lines.add(keys["level"] == _VALUE, keys.find(keys.packed(level=_CODE, feature_value_id=0)))
    lines.add_apart(*_of_groups(cells, parents, keys))
    lines.add_without_margin(*_siblings(cells, keys, of_exposure))
    return ~lines.hidden(threshold)


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


def shown_exposure(exposure: pa.Table, threshold: int = MIN_PATIENTS) -> np.ndarray:
    """Whether each count of patients at risk may be shown [row].

    Besides the lines: the counts of a cohort before the prediction fall from all time to the oldest bin, and neighbours
    differ by those whose history ends there; a count is hidden if it differs from the last one shown by a few. So is
    one on another axis: neighbouring bins differ by who enters or leaves, and all time by who is not on the axis.
    """
    patients = exposure["n_patients"].to_numpy().astype(np.float64)
    predictions = exposure["n_predictions"].to_numpy().astype(np.float64)
    few = patients < threshold
    books = _Books(exposure)
    keys = _Keys(books.numbers(exposure))
    all_time = keys.find(keys.packed(time_bin=0, time_axis=books.main_axis))
    cohort = keys.packed(time_bin=0)  # and axis
    last: dict[int, int] = {}
    # Before the prediction first, there and elsewhere all time before the bins.
    for at in np.lexsort((keys["time_bin"], keys["time_axis"] != books.main_axis, cohort)).tolist():
        if few[at]:
            continue
        elsewhere = keys["time_axis"][at] != books.main_axis
        before = last.get(int(cohort[at]), int(all_time[at]) if elsewhere else None)
        if (
            before is not None
            and not few[before]
            and abs(patients[before] - patients[at]) < threshold
            and predictions[before] != predictions[at]
        ):
            few[at] = True
        else:
            last[int(cohort[at])] = at
    lines = _Lines(few, patients)
    _add_cohort_lines(lines, keys, books)
    return ~lines.hidden(threshold)


# -- keys as whole numbers ------------------------------------------------------------------------

_VALUE, _CODE, _GROUP = range(3)


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

    def numbers(self, table: pa.Table) -> dict[str, np.ndarray]:
        """The columns of `EXPOSURE_KEYS` as numbers."""
        found = {name: _numbers(table[name], names) for name, names in self.names.items()}
        time_bin = pc.fill_null(table["time_bin"].cast(pa.int64()), self.first_bin - 1).to_numpy()
        return found | {"time_bin": time_bin - self.first_bin + 1}


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


class _Keys:
    """A table's keys: columns of numbers, and one number a row that stands for all of them."""

    def __init__(self, columns: dict[str, np.ndarray]) -> None:
        self.columns = columns
        self.sizes = {name: int(column.max(initial=0)) + 2 for name, column in columns.items()}
        packed = self.packed()
        self.order = np.argsort(packed)
        self.sorted = packed[self.order]

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns[name]

    def packed(self, **changed: np.ndarray | int) -> np.ndarray:
        """A whole number for each row, with some columns changed."""
        return self.packed_by(self.sizes, changed)

    def packed_by(self, sizes: Mapping[str, int], changed: Mapping[str, np.ndarray | int] | None = None) -> np.ndarray:
        """The same of these columns alone."""
        assert np.prod([float(size) for size in sizes.values()]) < 2**63
        packed = np.zeros(len(next(iter(self.columns.values()))), dtype=np.int64)
        for name, size in sizes.items():
            number = (changed or {}).get(name)
            packed = packed * size + (self.columns[name] if number is None else number)
        return packed

    def find(self, wanted: np.ndarray) -> np.ndarray:
        """The rows that have these numbers; -1: none has."""
        at = np.minimum(np.searchsorted(self.sorted, wanted), len(self.sorted) - 1)
        return np.where(self.sorted[at] == wanted, self.order[at], -1)


def _feature_numbers(cells: pa.Table) -> dict[str, np.ndarray]:
    """Level, code and feature value (0: none) as numbers."""
    levels = pa.array(["value", "code", "group"])
    return {
        "level": _numbers(cells["level"], levels),
        "code": _numbers(cells["code"], _codes(cells)),
        "feature_value_id": pc.fill_null(cells["feature_value_id"].cast(pa.int64()), -1).to_numpy() + 1,
    }


def _codes(cells: pa.Table) -> pa.Array:
    return pc.unique(pc.unique(cells["code"]).cast(pa.string())).sort()


def _of_groups(cells: pa.Table, parents: pa.Table, keys: _Keys) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cells of codes and groups, the cell of the group that each adds up to (-1: none), and a number for each sum."""
    codes = _codes(cells).to_pylist()
    number = {code: at for at, code in enumerate(codes)}
    groups = {row["code"]: row["parents"] or [] for row in parents.to_pylist() if row["code"] in number}
    size = len(codes) + 1  # the last number stands for names that no cell has
    members = [
        (level * size + number.get(name, size - 1), number.get(one.group, size - 1), line)
        for line, one in enumerate(group_lines(groups))
        for level, names in ((_GROUP, one.subgroups), (_CODE, one.codes))
        for name in names
    ]
    feature, group, line = np.array(members, dtype=np.int64).reshape(-1, 3).T
    # The cells of each member, of all times and cohorts.
    of_cell = keys["level"] * size + keys["code"]
    order = np.argsort(of_cell, kind="stable")
    first, last = (np.searchsorted(of_cell[order], feature, side=side) for side in ("left", "right"))
    count = last - first
    child = order[np.repeat(first - np.cumsum(count) + count, count) + np.arange(count.sum())]
    first_group, second_group = keys.packed(level=_GROUP, code=0)[child], keys.packed(level=_GROUP, code=1)[child]
    margin = keys.find(first_group + (second_group - first_group) * np.repeat(group, count))
    return child, margin, np.repeat(line, count)


def _siblings(cells: pa.Table, keys: _Keys, of_exposure: _Keys) -> tuple[np.ndarray, np.ndarray]:
    """Cells of sibling codes (SEX//F and SEX//M), which add up to the patients at risk, and a number for each such sum."""
    codes = _codes(cells).to_pylist()
    prefix = np.array([code.split("//")[0] for code in codes], dtype=object)
    number = np.unique(prefix.astype(str), return_inverse=True)[1]
    has_siblings = np.array(["//" in code for code in codes])[keys["code"]]
    at = np.flatnonzero((keys["level"] == _CODE) & (keys["time_bin"] == 0) & has_siblings)
    cohort = keys.packed_by(of_exposure.sizes)[at]
    return at, np.unique(np.stack([cohort, number[keys["code"][at]]]), axis=1, return_inverse=True)[1].reshape(-1)


# -- lines ----------------------------------------------------------------------------------------


def _add_cohort_lines(lines: _Lines, keys: _Keys, books: _Books) -> None:
    """Lines of classes, of each kind of strata, and of what a prediction says of both."""
    label, stratum = keys["class"], keys["stratum"]
    lines.add(label > 0, keys.find(keys.packed(**{"class": 0})))
    to_all = keys.find(keys.packed(stratum=0))
    names = books.names["stratum"].to_pylist()
    kind = np.array([name.partition("=")[0] for name in names])
    for one in np.unique(kind[1:]):
        lines.add((stratum > 0) & (kind == one)[stratum], to_all)
    place = {name: at for at, name in enumerate(names)}
    right, wrong = place.get(f"{CORRECT}=yes"), place.get(f"{CORRECT}=no")
    if right is None and wrong is None:
        return
    to_right, to_wrong = (keys.find(keys.packed(stratum=-1 if of is None else of)) for of in (right, wrong))
    classes = books.names["class"].to_pylist()
    as_predicted = np.array([place.get(f"{PREDICTED}={name}", -1) for name in classes])[label]
    lines.add((label > 0) & (stratum == as_predicted), to_right)
    lines.add((label > 0) & (kind == PREDICTED)[stratum] & (stratum != as_predicted), to_wrong)


class _Lines:
    """Cells, those that must be hidden anyway, and the lines among them."""

    def __init__(self, few: np.ndarray, patients: np.ndarray) -> None:
        self.few, self.patients = few, patients
        self.child: list[np.ndarray] = []
        self.parent: list[np.ndarray] = []
        self.line: list[np.ndarray] = []
        self.n_lines = 0
        self.beyond = 0

    def add(self, children: np.ndarray, parent: np.ndarray) -> None:
        """Lines of one kind: whether each cell is a child, and of which margin (-1: of none that is there)."""
        child = np.flatnonzero(children & (parent >= 0))
        margin, line = np.unique(parent[child], return_inverse=True)
        self._take(child, margin[line], line, len(margin))

    def add_apart(self, child: np.ndarray, parent: np.ndarray, line: np.ndarray) -> None:
        """Lines of which a cell may be in several, told apart by a number besides their margins."""
        there = parent >= 0
        child, parent = child[there], parent[there]
        sums, line = np.unique(line[there] * len(self.few) + parent, return_inverse=True)
        self._take(child, parent, line, len(sums))

    def add_without_margin(self, child: np.ndarray, line: np.ndarray) -> None:
        """Lines whose margin is no cell, and always known."""
        count = int(line.max(initial=-1)) + 1
        self._take(child, len(self.few) + self.beyond + line, line, count)
        self.beyond += count

    def _take(self, child: np.ndarray, parent: np.ndarray, line: np.ndarray, count: int) -> None:
        self.child.append(child)
        self.parent.append(parent)
        self.line.append(line + self.n_lines)
        self.n_lines += count

    def hidden(self, threshold: int) -> np.ndarray:
        """`few`, and what must be hidden with it so that nothing follows by subtraction [cell]."""
        child, parent, line = (np.concatenate(parts) for parts in (self.child, self.parent, self.line))
        patients, n_cells, lines = self.patients, len(self.few), self.n_lines
        hidden = np.concatenate([self.few, np.zeros(self.beyond, dtype=bool)])
        parent_of_line = np.zeros(lines, dtype=np.int64)
        parent_of_line[line] = parent
        in_margin = np.concatenate([patients, np.zeros(self.beyond)])[parent_of_line]
        by_size = np.lexsort((child, patients[child], line))  # within a line the smallest cell first
        while True:
            gone = hidden[child]
            count = np.bincount(line[gone], minlength=lines)
            largest = np.zeros(lines)
            np.maximum.at(largest, line[gone], patients[child[gone]])
            less_shown = in_margin - np.bincount(line[~gone], weights=patients[child[~gone]], minlength=lines)
            together = np.maximum(largest, less_shown)
            subtracted = (count > 0) & ((count < 2) | (together < threshold)) & ~hidden[parent_of_line]
            added = (count == 0) & hidden[parent_of_line] & (parent_of_line < n_cells)
            weak = subtracted | added
            if not weak.any():
                return hidden[:n_cells]
            candidates = by_size[weak[line[by_size]] & ~hidden[child[by_size]]]
            chosen, first = np.unique(line[candidates], return_index=True)
            hidden[child[candidates[first]]] = True
            hidden[parent_of_line[np.setdiff1d(np.flatnonzero(weak), chosen)]] = True
