"""All that viewers are shown flows in; what follows for what they are not shown flows out.

The attacker knows every rule by which published counts hang together, and which cells there are. A cell has *events*
and *patients* (a row of exposure: predictions and patients). Events add up in every line; patients do where nobody is
in two of a margin's cells, else the margin has at least as many as each and at most as many as all of them. What a
margin has beyond its cells (a record without a time, a prediction that is not on an axis) is a cell of nobody's table,
and so is who leaves between two bins, who is not on an axis, who is at risk without a code, and whom training counted
beside the cell.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from scipy.optimize import linprog
from scipy.sparse import block_array, coo_array, csr_array
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import lsqr

from whenwhy.store import open_store

KEY = ["split", "class", "stratum", "level", "code", "feature_value_id", "time_axis", "time_bin"]
BEFORE, NONE = "before_prediction", -1_000_000

#: Cells of 1 to 10 patients are never shown.
FEWEST = 11


class Line(NamedTuple):
    """A margin and the cells that add up to it, by row."""

    kind: str
    margin: int
    children: list[int]


@dataclass
class Published:
    """Every true cell and row of exposure, which of them is shown, and the lines among them."""

    name: str
    cells: pd.DataFrame
    shown: np.ndarray
    lines: list[Line]
    training: pd.DataFrame  # feature_value_id, n_train, n_train_patients, shown
    beginnings: dict[str, str]  # axis -> code whose first record it begins at

    @property
    def few(self) -> np.ndarray:
        """Whether a cell has 1 to 10 patients, or is dominated by as few."""
        return (self.cells["n_patients"].to_numpy() < FEWEST) | (effective(self.cells) < FEWEST)

    def part(self, name: str, rows: np.ndarray) -> Published:
        """Only these cells, and the lines that lie in them."""
        at = np.flatnonzero(rows)
        place = np.full(len(rows), -1)
        place[at] = np.arange(len(at))
        within = [line for line in self.lines if rows[[line.margin, *line.children]].all()]
        lines = [Line(line.kind, int(place[line.margin]), place[line.children].tolist()) for line in within]
        cells = self.cells.iloc[at].reset_index(drop=True)
        return Published(f"{self.name}: {name}", cells, self.shown[at], lines, self.training, self.beginnings)

    def parts(self) -> Iterator[Published]:
        """Exposure, every code (or siblings) with its values, and every group with its codes: each beside exposure."""
        level, code = self.cells["level"].to_numpy(), self.cells["code"].to_numpy()
        of_exposure = level == "exposure"
        yield self.part("exposure", of_exposure)
        family = np.array([one.split("//")[0] for one in code])
        for one in np.unique(family[level == "value"]):
            yield self.part(one, of_exposure | (np.isin(level, ("value", "code")) & (family == one)))
        groups: dict[str, set[str]] = defaultdict(set)
        for line in self.lines:
            if line.kind == "group":
                groups[code[line.margin]] |= set(code[line.children])
        for group, codes in sorted(groups.items()):
            members = (level == "code") & np.isin(code, list(codes))
            yield self.part(group, of_exposure | members | ((level == "group") & (code == group)))


def effective(cells: pd.DataFrame) -> np.ndarray:
    """n^2 / S_nn: how many patients stand behind a cell in effect; exposure is judged by its patients."""
    found = cells["n_events"] ** 2 / cells["s_nn"]
    return found.where(cells["level"] != "exposure", cells["n_patients"]).to_numpy()


def keyed(table: pa.Table) -> pd.DataFrame:
    """The table with `NONE` for all time and above the level of values; exposure has a level and one feature."""
    frame = table.to_pandas()
    if "n_predictions" in frame:
        frame = frame.rename(columns={"n_predictions": "n_events"})
        frame[["level", "code", "feature_value_id", "s_nn"]] = "exposure", "", NONE, np.nan
    for name in ("feature_value_id", "time_bin"):
        frame[name] = frame[name].fillna(NONE).astype(int)
    return frame[[*KEY, "n_events", "n_patients", "s_nn"]]


def keys_of(cells: pd.DataFrame) -> list[tuple]:
    return list(cells[KEY].itertuples(index=False, name=None))


def lines_of(cells: pd.DataFrame, parents: dict[str, list[str]], main_axis: str = BEFORE) -> list[Line]:
    """Every line, found from the meaning of the keys alone."""
    row_of = {key: at for at, key in enumerate(keys_of(cells))}
    children: dict[tuple, list[int]] = defaultdict(list)
    for (split, label, stratum, level, code, number, axis, time_bin), at in row_of.items():
        feature, time = (level, code, number), (axis, time_bin)
        if time_bin != NONE and level != "exposure":
            children[f"time {axis}", split, label, stratum, *feature, main_axis, NONE].append(at)
        kind, _, of = stratum.partition("=")
        if label != "all":
            children["class", split, "all", stratum, *feature, *time].append(at)
            if kind == "predicted":
                said = "correct=yes" if of == label else "correct=no"
                children["correct", split, label, said, *feature, *time].append(at)
        if stratum != "all":
            children[f"stratum {kind}", split, label, "all", *feature, *time].append(at)
        if level == "value":
            children["value", split, label, stratum, "code", code, NONE, *time].append(at)
        for group in parents.get(code, []) if level == "code" else []:
            children["group", split, label, stratum, "group", group, NONE, *time].append(at)
    return [Line(key[0], row_of[key[1:]], rows) for key, rows in children.items() if key[1:] in row_of]


def published(name: str, store: Path, beginnings: dict[str, str] | None = None) -> Published:
    """A store's true cells and exposure beside its shareable file."""
    analyst, viewer = open_store(store), open_store(store, "viewer")
    true, told = (
        [keyed(opened.sql(f"select * from {table}")) for table in ("cells", "exposure")] for opened in (analyst, viewer)
    )
    cells, seen = pd.concat(true, ignore_index=True), set(keys_of(pd.concat(told)))
    shown = np.array([key in seen for key in keys_of(cells)])
    assert shown.sum() == len(seen)
    words = analyst.sql("select distinct code, parents from feature_values").to_pylist()
    counts = "select feature_value_id, n_train, n_train_patients from feature_values order by 1"
    training = analyst.sql(counts).to_pandas()
    training["shown"] = viewer.sql(counts).to_pandas()["n_train"].notna()
    analyst.close()
    viewer.close()
    lines = lines_of(cells, {word["code"]: word["parents"] for word in words})
    since = {axis: axis.removeprefix("since:") for axis in cells["time_axis"].unique() if axis.startswith("since:")}
    return Published(name, cells, shown, lines, training, since | (beginnings or {}))


# -- what is known of the unknown ---------------------------------------------------------------------


@dataclass
class _Relations:
    """Numbers, known or not, all of them >= 0, and weighted sums of them that are 0 or at most 0."""

    true: list[float]
    known: list[bool]
    terms: list[tuple[int, int, float]] = field(default_factory=list)
    equal: list[bool] = field(default_factory=list)

    def number(self, true: float, known: bool = False) -> int:
        self.true.append(true)
        self.known.append(known)
        return len(self.true) - 1

    def relate(self, plus: Iterable[int], minus: Iterable[int], equal: bool = True) -> None:
        """The sum of `plus` less that of `minus` is 0, or at most 0."""
        row = len(self.equal)
        self.terms += [(row, at, 1.0) for at in plus] + [(row, at, -1.0) for at in minus]
        self.equal.append(equal)

    def system(self) -> tuple[csr_array, np.ndarray, np.ndarray, np.ndarray]:
        """Weights of the unknown [relation, unknown], right sides, which relations are equal, and who is unknown."""
        row, at, weight = (np.array(part) for part in zip(*self.terms, strict=True))
        shape = (len(self.equal), len(self.true))
        every = coo_array((weight, (row.astype(int), at.astype(int))), shape=shape).tocsc()
        true, known, equal = np.array(self.true), np.array(self.known), np.array(self.equal)
        beyond = every @ true
        assert np.all(beyond[equal] == 0), "the attack itself is sound"
        assert np.all(beyond[~equal] <= 0), "the attack itself is sound"
        unknown = np.flatnonzero(~known)
        weights = every[:, unknown].tocsr()
        used = np.diff(weights.indptr) > 0
        right = -(every[:, np.flatnonzero(known)] @ true[known])
        return weights[used], right[used], equal[used], unknown


class Attack:
    """What follows from what is shown.

    Attributes:
        suspects: numbers of events and of patients of what may be small and must not be known to be [suspect, 2], and
            what each is, in words.
    """

    def __init__(self, of: Published, shown: np.ndarray) -> None:
        self.of, self.shown = of, shown
        cells = of.cells
        self.n = len(cells)
        self.events, self.patients = (cells[name].to_numpy(dtype=float) for name in ("n_events", "n_patients"))
        self.relations = _Relations([*self.events, *self.patients], [*shown, *shown])
        self.suspects: list[tuple[int, int]] = [
            (at, self.n + at) for at in np.flatnonzero(~shown & (self.patients < FEWEST)).tolist()
        ]
        self.keys = keys_of(cells)
        self.words = [str(self.keys[at]) for at, _ in self.suspects]
        row_of = {key: at for at, key in enumerate(self.keys)}
        for at in range(self.n):
            self.relations.relate([self.n + at], [at], equal=False)
        dated = set(cells["code"][cells["time_bin"] != NONE])
        for line in of.lines:
            self._add_line(line, self.keys[line.margin][4] not in dated)
        for key, at in row_of.items():
            self._add_neighbours(key, at, row_of)
        self._add_training(row_of)

    def _suspect(self, true: float, what: str, at: int) -> int:
        number = self.relations.number(true)
        if 0 < true < FEWEST:
            self.suspects.append((number, number))
            self.words.append(f"{what} {self.keys[at]}")
        return number

    def _add_line(self, line: Line, static: bool) -> None:
        n, children = self.n, line.children
        rest = self.events[line.margin] - self.events[children].sum()
        beyond = [self._suspect(rest, f"beyond the {line.kind} of", line.margin)] if rest else []
        self.relations.relate([line.margin], [*children, *beyond])
        apart = line.kind.partition(" ")[0] in ("class", "stratum", "correct") or (line.kind == "value" and static)
        if not rest and apart and self.patients[children].sum() == self.patients[line.margin]:
            self.relations.relate([n + line.margin], [n + child for child in children])
            return
        for child in children:
            self.relations.relate([n + child], [n + line.margin], equal=False)
        self.relations.relate([n + line.margin], [*(n + child for child in children), *beyond], equal=False)

    def _add_neighbours(self, key: tuple, at: int, row_of: dict[tuple, int]) -> None:
        """What a row has to do with those at risk."""
        split, label, stratum, level, code, _, axis, time_bin = key
        cohort, n = (split, label, stratum), self.n

        def risk(axis: str, time_bin: int) -> int | None:
            return row_of.get((*cohort, "exposure", "", NONE, axis, time_bin))

        if level == "exposure":
            before = None
            if axis == BEFORE and time_bin != NONE:
                before = risk(axis, time_bin - 1 if time_bin else NONE)
            elif axis != BEFORE and time_bin == NONE:
                before = risk(BEFORE, NONE)
            if before is not None:
                left = self._suspect(self.events[before] - self.events[at], "left before", at)
                self.relations.relate([before], [at, left])
                self.relations.relate([n + at], [n + before], equal=False)
            return
        at_risk = risk(axis, time_bin)
        assert at_risk is not None
        without = self.patients[at_risk] - self.patients[at]
        self.relations.relate(
            [n + at_risk], [n + at, *([self._suspect(without, "at risk without", at)] if without else [])]
        )
        if level == "code" and self.of.beginnings.get(axis) == code and time_bin == 0:
            # Everybody on the axis has the code, and has it there.
            for other in (risk(axis, NONE), row_of.get((*cohort, "code", code, NONE, BEFORE, NONE))):
                if other is not None and self.patients[other] == self.patients[at]:
                    self.relations.relate([n + other], [n + at])
        if level == "code" and time_bin == NONE and "//" in code:
            prefix = code.split("//")[0] + "//"
            of = self._siblings.get((*cohort, prefix), [])
            if of and of[0] == at and self.patients[of].sum() == self.patients[at_risk]:
                self.relations.relate([n + at_risk], [n + sibling for sibling in of])

    @property
    def _siblings(self) -> dict[tuple, list[int]]:
        if not hasattr(self, "_found_siblings"):
            self._found_siblings: dict[tuple, list[int]] = defaultdict(list)
            for at, (split, label, stratum, level, code, _, _, time_bin) in enumerate(self.keys):
                if level == "code" and time_bin == NONE and "//" in code:
                    self._found_siblings[split, label, stratum, code.split("//")[0] + "//"].append(at)
        return self._found_siblings

    def _add_training(self, row_of: dict[tuple, int]) -> None:
        """Training counts patients and events that need not be among those explained."""
        codes = self.of.cells.drop_duplicates("feature_value_id").set_index("feature_value_id")["code"]
        for number, events, patients, shown in self.of.training.itertuples(index=False, name=None):
            at = row_of.get(("train", "all", "all", "value", codes.get(number), number, BEFORE, NONE))
            if at is None or not shown:
                continue
            for count, of in ((events, at), (patients, self.n + at)):
                more = count - self.relations.true[of]
                told = self.relations.number(count, known=True)
                beside = [self._suspect(abs(more), "training beside", at)] if more else []
                self.relations.relate([told, *(beside if more < 0 else [])], [of, *(beside if more > 0 else [])])

    # -- attacks ------------------------------------------------------------------------------------

    def solved(self, most: int | None = None) -> list[str]:
        """Which suspects must, by linear programmes over everything that is shown, be somebody and at most ten.

        Args:
            most: of the programmes for one suspect alone; None: as many as it takes.
        """
        weights, right, equal, unknown = self.relations.system()
        place = np.full(len(self.relations.true), -1)
        place[unknown] = np.arange(len(unknown))
        pairs = place[np.array(self.suspects, dtype=int).reshape(-1, 2)]
        programme, renamed = _of_what_is_known(weights, right, equal)
        pairs = renamed[pairs]
        left = np.flatnonzero(pairs[:, 0] >= 0)  # of the others nothing is known: they may all be 0
        for of, clears in ((0, lambda found: found < 1 - 1e-6), (1, lambda found: found >= FEWEST - 1e-6)):
            while len(left):
                world = programme.least(pairs[left, 0]) if of == 0 else programme.most(pairs[left, 1])
                cleared = clears(world[pairs[left, of]])
                left = left[~cleared]
                if not cleared.any():
                    break
        found = []
        for suspect in left[:most].tolist():
            nobody = programme.least(pairs[[suspect], 0])[pairs[suspect, 0]] < 1 - 1e-6
            if not nobody and programme.most(pairs[[suspect], 1])[pairs[suspect, 1]] < FEWEST - 1e-6:
                found.append(self.words[suspect])
        return found

    def sums_that_follow(self) -> list[str]:
        """Which hidden cells of few patients have sums (of contributions, their squares...) that follow by addition.

        A number follows if its unit vector is a weighted sum of the equations: then a random vector has, less all that
        the equations span, nothing left there. One may have so little there by chance, two hardly.
        """
        n = self.n
        true, known = [*self.events], [*self.shown]
        only = _Relations(true, known)
        for line in self.of.lines:
            rest = self.events[line.margin] - self.events[line.children].sum()
            only.relate([line.margin], [*line.children, *([only.number(rest)] if rest else [])])
        weights, _, _, unknown = only.system()
        free = np.zeros(len(unknown))
        for random in np.random.default_rng(0).normal(size=(2, len(unknown))):
            spanned = lsqr(weights.T.tocsr(), random, atol=1e-13, btol=1e-13, iter_lim=20_000)[0]
            free = np.maximum(free, np.abs(random - weights.T @ spanned))
        follow = unknown[free < 1e-6]
        few = self.of.few & ~self.shown
        return [str(self.keys[at]) for at in follow if at < n and few[at]]


def _of_what_is_known(weights: csr_array, right: np.ndarray, equal: np.ndarray) -> tuple[_Programme, np.ndarray]:
    """The relations that have to do with any number that is known, and the place of each unknown in them (-1: none)."""
    rows, columns = weights.shape
    row, column = weights.nonzero()
    graph = coo_array((np.ones(len(row)), (row, rows + column)), shape=(rows + columns,) * 2)
    _, part = connected_components(graph, directed=False)
    known = np.isin(part, part[:rows][right != 0])
    keep = np.flatnonzero(known[rows:])
    renamed = np.full(columns, -1)
    renamed[keep] = np.arange(len(keep))
    return _Programme(weights[known[:rows]][:, keep], right[known[:rows]], equal[known[:rows]]), renamed


class _Programme:
    """Worlds that agree with all that is shown."""

    def __init__(self, weights: csr_array, right: np.ndarray, equal: np.ndarray) -> None:
        self.equal, self.most_of = (weights[equal], right[equal]), (weights[~equal], right[~equal])
        self.size = weights.shape[1]

    def least(self, numbers: np.ndarray) -> np.ndarray:
        """A world in which the sum of these numbers is least."""
        goal = np.bincount(numbers, minlength=self.size).astype(float)
        return self._solve(goal, *self.most_of, np.full(self.size, np.inf))

    def most(self, numbers: np.ndarray) -> np.ndarray:
        """A world in which the sum of these numbers, of each at most eleven, is greatest."""
        count = len(numbers)
        capped = csr_array((np.ones(count), (np.arange(count), np.arange(count))), shape=(count, count))
        own = csr_array((-np.ones(count), (np.arange(count), numbers)), shape=(count, self.size))
        weights, right = self.most_of
        below = block_array([[weights, None], [own, capped]]).tocsr()
        goal = np.concatenate([np.zeros(self.size), -np.ones(count)])
        bounds = np.concatenate([np.full(self.size, np.inf), np.full(count, float(FEWEST))])
        return self._solve(goal, below, np.concatenate([right, np.zeros(count)]), bounds)[: self.size]

    def _solve(self, goal: np.ndarray, below: csr_array, right: np.ndarray, upper: np.ndarray) -> np.ndarray:
        equal = self.equal[0]
        if len(goal) > self.size:
            equal = csr_array((equal.data, equal.indices, equal.indptr), shape=(equal.shape[0], len(goal)))
        bounds = np.stack([np.zeros(len(goal)), upper], axis=1)
        solved = linprog(
            goal, A_ub=below, b_ub=right, A_eq=equal, b_eq=self.equal[1], bounds=bounds, method="highs-ipm"
        )
        assert solved.status == 0, solved.message
        return np.asarray(solved.x)
