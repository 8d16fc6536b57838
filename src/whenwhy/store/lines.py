"""Cells and the lines among them flow in; which more must be hidden, so that no hidden one follows, flows out.

A line is a margin and the cells that add up to it. Nothing here knows what a cell is of.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Lines:
    """Cells, those that must be hidden anyway, and the lines among them that may have to hide more.

    Most cells are hidden anyway. A line keeps only how many of those it has and how large the largest is, and none is
    kept that has hidden cells below a hidden margin: nothing follows from it, whatever else is hidden. What a margin
    has beyond its cells is hidden too, like a cell, if it may be of a few patients.

    Args:
        few, patients, events: of the cells, and after them of margins that are none, which stay as they are.
    """

    def __init__(self, few: np.ndarray, patients: np.ndarray, events: np.ndarray, n_cells: int, threshold: int) -> None:
        self.few, self.patients, self.events, self.n_cells = few.copy(), patients, events, n_cells
        self.threshold = threshold
        self.lines: list[_Kind] = []
        self.audited: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self.n_lines = self.n_audited = 0
        self.with_it: list[tuple[np.ndarray, np.ndarray]] = []

    def hide_with(self, cell: np.ndarray, other: np.ndarray) -> None:
        """Where a cell is hidden, another is hidden too (-1: none is there); before any line is added."""
        there = (cell >= 0) & (other >= 0) & (cell != other)
        cell, other = cell[there], other[there]
        self.with_it.append((cell, other))
        self.few[other[self.few[cell]]] = True

    def add(self, child: np.ndarray, parent: np.ndarray, most: np.ndarray | None = None) -> None:
        """Lines of one kind.

        Args:
            child: cells.
            parent: the margin of each, -1: of none that is there.
            most: how many patients all cells of the line have together, at most; None: as many as they add up to.
        """
        there = parent >= 0
        child, parent = child[there], parent[there]
        is_margin = np.zeros(len(self.few), dtype=bool)
        is_margin[parent] = True
        margin = np.flatnonzero(is_margin)
        line = (np.cumsum(is_margin) - 1)[parent]
        together = np.bincount(line, weights=self.patients[child], minlength=len(margin))
        if most is not None:
            at_most = np.zeros(len(margin))
            at_most[line] = most[there]
            together = np.minimum(together, at_most)
        of_margin = self.patients[margin]
        rest = self.events[margin] - np.bincount(line, weights=self.events[child], minlength=len(margin))
        self._audit(child, line, margin, rest == 0)
        beyond = (rest > 0) & (margin < self.n_cells) & (of_margin - together < self.threshold)
        gone = self.few[child]
        count = np.bincount(line[gone], minlength=len(margin)) + beyond
        largest = np.zeros(len(margin), dtype=np.int64)
        np.maximum.at(largest, line[gone], self.patients[child[gone]])
        child, line = child[~gone], line[~gone]
        less_shown = of_margin - np.bincount(line, weights=self.patients[child], minlength=len(margin))
        kept = ~(self.few[margin] & (count > 0))
        number = np.cumsum(kept) - 1 + self.n_lines
        self.lines.append(
            _Kind(
                margin[kept],
                count[kept],
                largest[kept],
                less_shown[kept],
                child[kept[line]].astype(np.int32),
                number[line[kept[line]]].astype(np.int32),
            )
        )
        self.n_lines += int(kept.sum())

    def _audit(self, child: np.ndarray, line: np.ndarray, margin: np.ndarray, whole: np.ndarray) -> None:
        """Keep lines whose margin may be shown, and is the sum of the cells that are there, with all their cells."""
        asked = whole & ~self.few[margin] & (np.bincount(line, weights=self.few[child], minlength=len(margin)) > 0)
        number = np.cumsum(asked) - 1 + self.n_audited
        self.n_audited += int(asked.sum())
        asked_link = asked[line]
        self.audited.append(
            (margin[asked], child[asked_link].astype(np.int32), number[line[asked_link]].astype(np.int32))
        )

    def _pinned(self, hidden: np.ndarray) -> np.ndarray:
        """Margins and lines' cells that must lose one more, since bounds from all lines at once leave a hidden count within
        1 to threshold - 1: the smallest shown cell of the line that bounds it most, or its margin.
        """
        margin, child, line = (np.concatenate(parts) for parts in zip(*self.audited, strict=True))
        open_ = ~hidden[margin]
        unknown = hidden[child] & open_[line]
        cells, place = np.unique(child[unknown], return_inverse=True)
        of, count = line[unknown], len(margin)
        if not len(cells):
            return cells
        low, high = np.zeros(len(cells)), np.full(len(cells), np.inf)
        tight = np.full(len(of), np.inf)
        shown = ~hidden[child]
        for numbers in (self.events, self.patients):
            left = numbers[margin] - np.bincount(line[shown], weights=numbers[child[shown]], minlength=count)
            true = np.bincount(of, weights=numbers[cells][place], minlength=count)
            adds = (left == true)[of]  # patients do where nobody is in two of the cells
            at, lines_of = place[adds], of[adds]
            least = np.zeros(len(cells))
            np.minimum.at(high, place, left[of] if numbers is self.events else numbers[margin][of])
            while len(at):
                before = least.sum(), high[at].sum()
                others = np.bincount(lines_of, weights=high[at], minlength=count)[lines_of] - high[at]
                np.maximum.at(least, at, left[lines_of] - others)
                if not least.any():
                    break
                bound = left[lines_of] - np.bincount(lines_of, weights=least[at], minlength=count)[lines_of] + least[at]
                np.minimum.at(high, at, bound)
                tight[adds] = np.minimum(tight[adds], bound)
                if (least.sum(), high[at].sum()) == before:
                    break
            low = np.maximum(low, least)
        pinned = (low >= 1) & (high < self.threshold)
        links = np.flatnonzero(pinned[place])
        links = links[np.lexsort((of[links], tight[links], place[links]))]
        chosen = np.unique(of[links[np.unique(place[links], return_index=True)[1]]])
        losing = np.flatnonzero(np.isin(line, chosen) & shown)
        losing = losing[np.lexsort((child[losing], self.patients[child[losing]], line[losing]))]
        found, first = np.unique(line[losing], return_index=True)
        return np.concatenate([child[losing[first]], margin[np.setdiff1d(chosen, found)]])

    def hidden(self) -> np.ndarray:
        """`few`, and what must be hidden with it so that nothing follows by subtraction [cell]."""
        hidden, threshold = self.few.copy(), self.threshold
        margin, count, largest, less_shown, child, line = (
            np.concatenate(parts) for parts in zip(*self.lines, strict=True)
        )
        by_size = np.lexsort((child, self.patients[child], line))  # within a line the smallest cell first
        child, line = child[by_size], line[by_size]
        smallest, end = (np.searchsorted(line, np.arange(self.n_lines), side=side) for side in ("left", "right"))
        links_of, lines_of = _Places(child, len(hidden)), _Places(margin, len(hidden))
        cell, other = (
            np.concatenate([np.zeros(0, dtype=np.int64), *parts])
            for parts in ([pair[at] for pair in self.with_it] for at in (0, 1))
        )
        others_of = _Places(cell, len(hidden))
        asked = np.arange(self.n_lines)
        while True:
            margin_hidden = hidden[margin[asked]]
            alone = (count[asked] < 2) | (np.maximum(largest[asked], less_shown[asked]) < threshold)
            weak = asked[np.where(margin_hidden, count[asked] == 0, (count[asked] > 0) & alone)]
            at = smallest[weak]
            while True:
                past = at < end[weak]
                past[past] = hidden[child[at[past]]]
                if not past.any():
                    break
                at += past
            smallest[weak] = at
            one_more = at < end[weak]
            new = np.concatenate([child[at[one_more]], margin[weak[~one_more]]])
            if not len(weak):
                new = self._pinned(hidden)
            new = np.unique(np.concatenate([new, other[others_of(np.unique(new))]]))
            new = new[~hidden[new] & (new < self.n_cells)]
            if not len(new):
                return hidden[: self.n_cells]
            hidden[new] = True
            links = links_of(new)
            np.add.at(count, line[links], 1)
            np.maximum.at(largest, line[links], self.patients[child[links]])
            np.add.at(less_shown, line[links], self.patients[child[links]])
            # No other line has become weak.
            asked = np.unique(np.concatenate([line[links], lines_of(new)]))


class _Kind(NamedTuple):
    """Lines of one kind.

    Attributes:
        margin, n_hidden, largest, less_shown: its margin, how many cells are hidden anyway, the patients of the
            largest of them, and those of the margin less those of all others [line].
        child, line: the cells that are not hidden yet, and which line each is in [link].
    """

    margin: np.ndarray
    n_hidden: np.ndarray
    largest: np.ndarray
    less_shown: np.ndarray
    child: np.ndarray
    line: np.ndarray


class _Places:
    """Where each number stands in an array of numbers below a size."""

    def __init__(self, numbers: np.ndarray, size: int) -> None:
        self.order = np.argsort(numbers, kind="stable")
        count = np.bincount(numbers, minlength=size)
        self.end = np.cumsum(count)
        self.count = count

    def __call__(self, wanted: np.ndarray) -> np.ndarray:
        """All places of these numbers."""
        count = self.count[wanted]
        behind = np.repeat(self.end[wanted] - np.cumsum(count), count)
        return np.asarray(self.order[behind + np.arange(len(behind))])
