"""Feature values: a code and a range of its numbers, fitted on training patients up to their prediction time.

A code's numbers fall into quantile bins, or between clinical cut-offs; few distinct numbers get a bin
each; a code without numbers is one feature value, "recorded". Edges are float32, as the numbers are, so
that equal numbers share a bin: as float64, 39 % of all cut-offs with one decimal would misplace them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import meds
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from whenwhy.events.quantiles import EdgeFinder, SpreadFinder
from whenwhy.schema import EVERYTHING_ABSENT, FEATURE_VALUES, RARE, RECORDED

#: A stranger's model counts its vocabulary from 0, and 0 is "everything absent" here: its index i has the id i + 1.
FOREIGN_OFFSET = EVERYTHING_ABSENT + 1

#: Age at the prediction, in years: derived from the birth that MEDS records, a static value.
AGE = "AGE"
DERIVED_CODES = {AGE: ("age at the prediction", "years")}

#: MEDS codes that are no feature values of their own: a birth becomes the age, a death is never in the past.
NO_FEATURES = (meds.birth_code, meds.death_code)

#: What stands for "no number" where numbers are ordered as integers.
NO_NUMBER = np.uint32(0xFFFFFFFF)

Row = dict[str, Any]


def ordered_bits(number: np.ndarray) -> np.ndarray:
    """[number] uint32 in the order of the float32 numbers; NaN, "no number", comes last.

    Example:
        >>> (np.diff(ordered_bits(np.float32([-np.inf, -1, -0.0, 0.5, np.nan])).astype(int)) > 0).all()
        np.True_
        >>> ordered_bits(np.float32([-0.0])) == ordered_bits(np.float32([0.0]))
        array([ True])
    """
    bits = (number.astype(np.float32) + np.float32(0)).view(np.uint32)  # -0.0 becomes 0.0
    negative = bits >> np.uint32(31) == 1
    ordered = np.where(negative, ~bits, bits | np.uint32(0x80000000))
    return np.where(np.isnan(number), NO_NUMBER, ordered)


def numbers_of(ordered: np.ndarray) -> np.ndarray:
    """The float32 numbers of `ordered_bits`, NaN for "no number"."""
    bits = np.where(ordered >> np.uint32(31) == 1, ordered & np.uint32(0x7FFFFFFF), ~ordered)
    number = bits.astype(np.uint32).view(np.float32)
    return np.where(ordered == NO_NUMBER, np.float32(np.nan), number)


def packed(code: np.ndarray, number: np.ndarray) -> np.ndarray:
    """[event] uint64 in the order of code, then number."""
    return code.astype(np.uint64) << np.uint64(32) | ordered_bits(number).astype(np.uint64)


@dataclass
class FittingNotes:
    """What was done to values on the way, for people.

    Attributes:
        few: numeric codes whose distinct values got a bin each.
        tied: codes with fewer bins than asked, since their values tie.
        cut_offs: codes divided at given cut-offs.
        rare_codes: codes of too few training patients, folded; rare_bins: bins merged into a neighbour.
        spread: code -> the middle and the spread of its numbers.
        ranges: code -> its lowest and its highest number.
    """

    few: list[str] = field(default_factory=list)
    tied: list[str] = field(default_factory=list)
    cut_offs: list[str] = field(default_factory=list)
    rare_codes: dict[str, str] = field(default_factory=dict)
    rare_bins: int = 0
    spread: dict[str, tuple[float, float]] = field(default_factory=dict)
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)


class Lookup:
    """Feature value ids by the position of a code and a number, for one table and one list of codes."""

    def __init__(self, table: pa.Table, codes: Sequence[str]) -> None:
        position = {code: at for at, code in enumerate(codes)}
        # Each key begins a stretch of numbers with one id; -1 where there is none.
        stretches: dict[int, int] = {at << 32: -1 for at in range(len(codes))}
        absent = int(NO_NUMBER)
        for at in range(len(codes)):
            stretches[at << 32 | absent] = -1
        wanted = table.slice(1).select(["feature_value_id", "code", "kind", "bin", "low", "high"])
        for row in wanted.to_pylist():
            if row["kind"] != RECORDED or row["code"] not in position:
                continue
            first = position[row["code"]] << 32
            if row["low"] is not None:
                low, high = (int(ordered_bits(np.array([row[name]]))[0]) for name in ("low", "high"))
                stretches[first | low] = row["feature_value_id"]
                if row["high"] < np.inf:
                    stretches.setdefault(first | high, -1)
            else:
                stretches[first | absent] = row["feature_value_id"]
                if row["bin"] == ANY_NUMBER:
                    stretches[first] = row["feature_value_id"]
        self.keys = np.array(sorted(stretches), dtype=np.uint64)
        self.values = np.array([stretches[int(key)] for key in self.keys], dtype=np.int32)
        self.without = np.array([stretches[at << 32 | absent] for at in range(len(codes))], dtype=np.int32)

    def ids(self, code: np.ndarray, number: np.ndarray) -> np.ndarray:
        """[event] int32; -1 where there is no such feature value.

        Args:
            code: [event] positions in the list of codes.
            number: [event] float32, NaN where there is none.
        """
        if not len(self.keys):
            return np.full(len(code), -1, dtype=np.int32)
        ids: np.ndarray = self.without[code]
        numbered = np.flatnonzero(~np.isnan(number))  # a search is needed for these alone
        key = packed(code[numbered], number[numbered])
        ids[numbered] = self.values[np.searchsorted(self.keys, key, side="right") - 1]
        return ids


#: The bin of a feature value of a foreign vocabulary that stands for a code whatever its number.
ANY_NUMBER = -1


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
    def _lookup(self) -> Lookup:
        return Lookup(self.table, self.codes.to_pylist())

    def ids(self, code: pa.Array | pa.ChunkedArray, value: np.ndarray) -> np.ndarray:
        """Feature value ids [event] int32; -1 where training patients never recorded such a thing.

        Args:
            code: [event] strings.
            value: [event] float32, NaN where there is no number.
        """
        at = pc.fill_null(pc.index_in(code, value_set=self.codes), -1).to_numpy(zero_copy_only=False)
        return np.where(at >= 0, self._lookup.ids(np.maximum(at, 0), value), -1).astype(np.int32)


def fitted_rows(
    totals: Mapping[str, tuple[int, int, int]],
    ordered: Iterable[tuple[str, np.ndarray, np.ndarray]],
    described: Mapping[str, Row],
    bins: int,
    cut_offs: Mapping[str, Sequence[float]],
    notes: FittingNotes,
) -> list[Row]:
    """The rows of `schema.FEATURE_VALUES`, "everything absent" first, ids in order, counts still null.

    Args:
        totals: code -> training events with a number, distinct numbers, training events without one.
        ordered: (code, numbers [piece] ascending without NaN, events with each [piece]); a code's pieces
            come in ascending order, one after another.
        described: code -> description, unit, parents.
        bins: quantile bins of a code with many distinct numbers.
        cut_offs: code -> inner edges, instead of quantiles.

    Example:
        >>> rows = fitted_rows({"hdl": (10, 2, 0)}, [("hdl", np.float32([40, 60]), np.array([5, 5]))], {}, 10, {},
        ...     FittingNotes())
        >>> [(row["code"], row["low"], row["high"]) for row in rows][1:]
        [('hdl', -inf, 60.0), ('hdl', 60.0, inf)]
    """
    edges = {
        code: np.unique(np.array(cuts, dtype=np.float32))
        for code, cuts in cut_offs.items()
        if totals.get(code, (0,))[0]
    }
    notes.cut_offs += sorted(edges)
    finder: EdgeFinder | None = None
    spread: SpreadFinder | None = None
    current: str | None = None

    def close() -> None:
        if spread is not None and current is not None:
            notes.spread[current], notes.ranges[current] = spread.centre_and_scale(), spread.ends
        if finder is not None and current is not None:
            edges[current] = finder.edges()
            if finder.each_its_own:
                notes.few.append(current)
            elif len(edges[current]) + 1 < bins:
                notes.tied.append(current)

    for code, numbers, events in ordered:
        if code != current:
            close()
            n_events, n_distinct, _ = totals[code]
            finder, spread = (
                None if code in cut_offs else EdgeFinder(n_distinct, n_events, bins),
                SpreadFinder(n_events),
            )
            current = code
        assert spread is not None
        spread.take(numbers, events)
        if finder is not None:
            finder.take(numbers, events)
    close()
    rows = [_row("(everything absent)", RECORDED, description="all that a step does not record")]
    for code in sorted(totals):
        n_events, _, n_without = totals[code]
        told = described.get(code, {})
        description, unit = DERIVED_CODES.get(code, (told.get("description"), told.get("unit")))
        parents = told.get("parents") or []
        if n_without:
            rows.append(_row(code, RECORDED, description=description, unit=unit, parents=parents))
        if n_events:
            rows += binned_rows(code, RECORDED, edges[code], description=description, unit=unit, parents=parents)
    return numbered(rows)


def binned_rows(code: str, kind: str, edges: np.ndarray, **told: Any) -> list[Row]:
    """One row a bin between these inner edges."""
    bounds = [-np.inf, *edges.astype(np.float64).tolist(), np.inf]
    return [_row(code, kind, bin=i, low=bounds[i], high=bounds[i + 1], **told) for i in range(len(bounds) - 1)]


def numbered(rows: Sequence[Row]) -> list[Row]:
    """The rows with their places as ids."""
    return [row | {"feature_value_id": EVERYTHING_ABSENT + at} for at, row in enumerate(rows)]


def as_table(rows: Sequence[Row]) -> pa.Table:
    """The table of `schema.FEATURE_VALUES`."""
    return pa.Table.from_pylist(list(rows), schema=FEATURE_VALUES)


def folded(
    rows: Sequence[Row], patients: np.ndarray, code_patients: Mapping[str, int], below: int, notes: FittingNotes
) -> tuple[list[Row], np.ndarray]:
    """The rows after folding what fewer than `below` training patients have, and the new place of each old row.

    A rare code joins the other rare ones of its first parent, or of its name's first part; a rare
    quantile bin joins the neighbour with fewer patients. Cut-offs that were asked for stay.

    Args:
        patients: [row] training patients with each feature value.
        code_patients: training patients with each code.

    Example:
        >>> rows = numbered([_row("(everything absent)", RECORDED), _row("LAB//a", RECORDED), _row("LAB//b", RECORDED)])
        >>> kept, place = folded(rows, np.array([0, 40, 2]), {"LAB//a": 40, "LAB//b": 2}, 5, FittingNotes())
        >>> [row["code"] for row in kept], place.tolist()
        (['(everything absent)', 'LAB (rare)', 'LAB//a'], [0, 2, 1])
    """
    into: dict[int, tuple[Any, ...]] = {0: ("",)}
    made: dict[tuple[Any, ...], Row] = {("",): dict(rows[0])}
    for code, places in _runs(rows):
        if code_patients.get(code, 0) < below:
            group = f"{_group_of(rows[places[0]])} (rare)"
            notes.rare_codes[code] = group
            key: tuple[Any, ...] = (group, RARE)
            told = f"codes of fewer than {below} training patients"
            made.setdefault(key, _row(group, RARE, description=told, parents=rows[places[0]]["parents"][:1]))
            into |= dict.fromkeys(places, key)
            continue
        bins = [[place] for place in places if rows[place]["bin"] is not None]
        while len(bins) > 1 and code not in notes.cut_offs:
            held = [max(int(patients[place]) for place in merged) for merged in bins]
            least = int(np.argmin(held))
            if held[least] >= below:
                break
            beside = [at for at in (least - 1, least + 1) if 0 <= at < len(bins)]
            other = min(beside, key=lambda at: held[at])
            first, second = sorted((least, other))
            bins[first : second + 1] = [bins[first] + bins[second]]
            notes.rare_bins += 1
        groups = [[place] for place in places if rows[place]["bin"] is None] + bins
        for number, merged in enumerate(groups):
            key = (code, RECORDED, number)
            made[key] = rows[merged[0]] | {"high": rows[merged[-1]]["high"]}
            into |= dict.fromkeys(merged, key)
        for number, merged in enumerate(bins):
            made[into[merged[0]]]["bin"] = number
    order = [("",), *sorted(key for key in made if key != ("",))]
    place_of = {key: at for at, key in enumerate(order)}
    kept = numbered([made[key] for key in order])
    return kept, np.array([place_of[into[at]] for at in range(len(rows))], dtype=np.int32)


def _group_of(row: Row) -> str:
    if row["parents"]:
        return str(row["parents"][0])
    first, parts, _ = row["code"].partition("//")
    return first if parts else "other codes"


def _runs(rows: Sequence[Row]) -> Iterator[tuple[str, list[int]]]:
    """Each code and the places of its rows, "everything absent" left out."""
    places: list[int] = []
    for at in range(1, len(rows)):
        if places and rows[at]["code"] != rows[places[-1]]["code"]:
            yield rows[places[0]]["code"], places
            places = []
        places.append(at)
    if places:
        yield rows[places[0]]["code"], places


def _row(code: str, kind: str, parents: Sequence[str] = (), **told: Any) -> Row:
    return dict.fromkeys(FEATURE_VALUES.names) | {"code": code, "kind": kind, "parents": list(parents)} | told
