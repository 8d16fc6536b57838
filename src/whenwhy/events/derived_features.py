"""What follows from recorded values: the last one carried forward, hours since, not measured for long, numbers as weights.

Each has a feature value of its own, so that no contribution of a filled value is taken for a measurement's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import IO

import numpy as np

from whenwhy.errors import UserError, unknown_name
from whenwhy.events.feature_values import Row, binned_rows, numbered
from whenwhy.events.steps import Steps
from whenwhy.schema import CARRIED, NOT_MEASURED, NUMBER, RARE, SINCE_LAST

#: Stands for every code that has numbers.
EVERY_CODE = "all"

#: Hours since the last record fall between these: from minutes to years, each about twice the one before.
SINCE_LAST_HOURS = np.array(
    [0.5, 1, 2, 4, 8, 12, 24, 48, 96, 168, 336, 720, 1440, 2880, 4383, 8766, 17532, 43830], dtype=np.float32
)

#: Carried values that one shard may hold. More would not fit in memory: wider steps, or fewer codes.
MOST_CARRIED = 100_000_000


#: The most that a number weighs, in units of its spread: an outlier moves a model no further.
MOST_WEIGHT = 4.0


@dataclass(frozen=True)
class DerivedSettings:
    """Which derived features are asked for; EVERY_CODE stands for each code with numbers.

    Attributes:
        carry: codes whose last value is carried forward to later steps that do not record them.
        carry_hours: for no longer than this; None: to the prediction.
        since_last: codes whose records tell the hours since their previous record.
        not_measured: (code, hours): said once, at the first step when the code has not been recorded for so long.
        numbers: codes whose numbers, recorded or carried, also enter as weights.
    """

    carry: tuple[str, ...] = ()
    carry_hours: float | None = None
    since_last: tuple[str, ...] = ()
    not_measured: tuple[tuple[str, float], ...] = ()
    numbers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layout:
    """Arrays by final feature value id, what `derived` reads.

    Attributes:
        code: [id] the number of the recorded code; -1 for what is not recorded.
        carried: [id] the id of the same value carried forward, or -1.
        since_last: [code] the id of the first bin of hours since last, or -1.
        not_measured: [pair, 3] code number, hours, id.
        number: [id] the id whose weight is the value's number, or -1.
        centre, scale: [id] a number weighs (number - centre) / scale; NaN of ids that are no numbers.
    """

    code: np.ndarray
    carried: np.ndarray
    since_last: np.ndarray
    not_measured: np.ndarray
    number: np.ndarray
    centre: np.ndarray
    scale: np.ndarray
    carry_hours: float

    @cached_property
    def asked(self) -> bool:
        """Whether any derived feature is asked for."""
        follow = (self.carried >= 0).any() or (self.since_last >= 0).any() or len(self.not_measured)
        return bool(follow or self.weighed)

    @cached_property
    def weighed(self) -> bool:
        """Whether any number is a weight."""
        return bool((self.number >= 0).any())

    def weights(self, ids: np.ndarray, number: np.ndarray) -> np.ndarray:
        """What values weigh in their bags [value] float32: 1 but for numbers."""
        weight = ((number.astype(np.float64) - self.centre[ids]) / self.scale[ids]).clip(-MOST_WEIGHT, MOST_WEIGHT)
        return np.where(np.isnan(self.scale[ids]), 1.0, weight).astype(np.float32)

    def save(self, file: IO[bytes]) -> None:
        """Written so that each worker can read it again."""
        np.savez(file, **{name.name: getattr(self, name.name) for name in fields(self)})

    @classmethod
    def load(cls, file: Path | IO[bytes]) -> Layout:
        """What `save` wrote."""
        with np.load(file) as arrays:
            told = dict(arrays)
        return cls(**{**told, "carry_hours": float(told["carry_hours"])})


def with_derived(
    rows: Sequence[Row], asked: DerivedSettings, where: str, spread: Mapping[str, tuple[float, float]] | None = None
) -> tuple[list[Row], Layout]:
    """The rows with those of derived features behind them, and their layout.

    Args:
        spread: code -> the middle and the spread of its numbers.

    Raises:
        UserError: a code that the rows do not have, or hours that are none.

    Example:
        >>> from whenwhy.events.feature_values import as_table, fitted_rows, FittingNotes
        >>> rows = fitted_rows({"hdl": (9, 1, 0)}, [("hdl", np.array([40]), np.array([9]))], {}, 10, {}, FittingNotes())
        >>> [row["code"] for row in with_derived(rows, DerivedSettings(carry=("hdl",)), "meds")[0]][1:]
        ['hdl', 'hdl (carried forward)']
    """
    codes = sorted({row["code"] for row in rows[1:] if row["kind"] != RARE})
    number = {code: at for at, code in enumerate(codes)}
    code = np.array([number.get(row["code"], -1) if row["kind"] != RARE else -1 for row in rows], dtype=np.int32)
    numeric = sorted({row["code"] for row in rows if row["bin"] is not None})

    def chosen(names: Sequence[str]) -> list[str]:
        for name in names:
            if name != EVERY_CODE and name not in number:
                raise unknown_name("code", name, codes, where)
        return numeric if EVERY_CODE in names else sorted(set(names))

    made: list[Row] = [dict(row) for row in rows]
    carried = np.full(len(rows), -1, dtype=np.int32)
    first_of: dict[str, Row] = {}
    for row in rows:
        first_of.setdefault(row["code"], row)
    to_carry = set(chosen(asked.carry))
    for at, row in enumerate(rows):
        if row["code"] in to_carry and code[at] >= 0:
            carried[at] = len(made)
            made.append(_derived(row, CARRIED, "carried forward"))
    since_last = np.full(len(codes), -1, dtype=np.int32)
    for name in chosen(asked.since_last):
        since_last[number[name]] = len(made)
        told = _derived(first_of[name], SINCE_LAST, "hours since last")
        made += binned_rows(
            told["code"],
            SINCE_LAST,
            SINCE_LAST_HOURS,
            description=told["description"],
            unit="hours",
            parents=told["parents"],
        )
    not_measured = []
    for name, hours in asked.not_measured:
        for each in chosen((name,)):
            not_measured.append((number[each], hours, len(made)))
            row = first_of[each] | {"bin": None, "low": None, "high": None, "unit": None}
            made.append(_derived(row, NOT_MEASURED, f"not measured for {hours:g} h"))
    weighed = chosen(asked.numbers)
    number_id = np.full(len(made) + 2 * len(weighed), -1, dtype=np.int32)
    centre, scale = (np.full(len(number_id), np.nan) for _ in range(2))
    for name in weighed:
        if name not in (spread or {}):
            raise UserError(f"{where}: '{name}' has no numbers of training patients: leave it out of --numbers.")
        own = [at for at, row in enumerate(rows) if row["code"] == name and row["bin"] is not None]
        for ids in (own, [int(carried[at]) for at in own if carried[at] >= 0]):
            if not ids:
                continue
            # A carried number has an id of its own, so that no weight is taken for a measurement's.
            centre[len(made)], scale[len(made)] = (spread or {})[name]
            number_id[ids] = len(made)
            row = made[ids[0]] | {"bin": None, "low": None, "high": None}
            made.append(_derived(row, NUMBER, "number"))
    layout = Layout(
        code,
        carried,
        since_last,
        np.array(not_measured, dtype=np.float64).reshape(-1, 3),
        number_id[: len(made)],
        centre[: len(made)],
        scale[: len(made)],
        np.inf if asked.carry_hours is None else asked.carry_hours,
    )
    return numbered(made), layout


def _derived(row: Row, kind: str, words: str) -> Row:
    described = row["description"] or row["code"]
    # A group of its own, so that a code's group holds measurements alone.
    told = {"code": f"{row['code']} ({words})", "description": f"{described}, {words}", "parents": [f"({kind})"]}
    return row | told | {"kind": kind}


@dataclass(frozen=True)
class Values:
    """Feature values in records: [value] record, step, id, whole minutes to the prediction, number (NaN: none)."""

    row: np.ndarray
    step: np.ndarray
    id: np.ndarray
    minutes: np.ndarray
    number: np.ndarray

    def at(self, where: np.ndarray) -> Values:
        """Those at these positions."""
        return Values(*(column[where] for column in self.__dict__.values()))


_NOTHING = Values(*(np.array([], dtype=kind) for kind in (np.int32, np.int32, np.int32, np.int32, np.float32)))


def derived(values: Values, steps: Steps, layout: Layout) -> Values:
    """The derived feature values of these records, in no order.

    Args:
        values: the recorded ones by record and time; those of steps below 0 are older than the record
            shows, and are carried into it all the same.
    """
    if not layout.asked:
        return _NOTHING
    code = layout.code[values.id]
    carried = _carried(values, code, steps, layout)
    parts = [
        carried,
        _since_last(values, code, layout),
        _not_measured(values, code, steps, layout),
        numbers_of(values.at(np.flatnonzero(values.step >= 0)), layout),
        numbers_of(carried, layout),
    ]
    return Values(*(np.concatenate(columns) for columns in zip(*(p.__dict__.values() for p in parts), strict=True)))


def numbers_of(values: Values, layout: Layout) -> Values:
    """The values whose numbers are weights, as those."""
    at = np.flatnonzero(layout.number[values.id] >= 0)
    found = values.at(at)
    return replace(found, id=layout.number[found.id])


def _last_of_each(row: np.ndarray, code: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Positions of the last value of each (record, code, step), by record, code and step."""
    order = np.lexsort((step, code, row))  # stable: by time within
    new = np.diff(row[order]) != 0
    new |= (np.diff(code[order]) != 0) | (np.diff(step[order]) != 0)
    return np.asarray(order[np.append(new, True)]) if len(order) else order


def _carried(values: Values, code: np.ndarray, steps: Steps, layout: Layout) -> Values:
    can = np.flatnonzero(layout.carried[values.id] >= 0)
    last = can[_last_of_each(values.row[can], code[can], values.step[can])]
    row, step = values.row[last], values.step[last].astype(np.int64)
    same = np.append((row[1:] == row[:-1]) & (code[last][1:] == code[last][:-1]), False)
    until = np.where(same, np.append(step[1:], 0), steps.counts[row])  # the step of the next record, or the end
    begin = np.maximum(step + 1, 0)
    length = np.maximum(until - begin, 0)
    if int(length.sum()) > MOST_CARRIED:
        raise UserError(
            f"Carrying values forward would make {int(length.sum()):,} of them in one shard: name fewer codes in "
            "--carry, limit it by --carry-hours, or use wider --steps."
        )
    filled_step = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length) + np.repeat(begin, length)
    at = np.repeat(last, length)
    minutes = steps.minutes[steps.first[values.row[at]] + filled_step]
    found = Values(
        values.row[at], filled_step.astype(np.int32), layout.carried[values.id[at]], minutes, values.number[at]
    )
    if np.isinf(layout.carry_hours):
        return found
    return found.at(np.flatnonzero(values.minutes[at] - minutes <= 60 * layout.carry_hours))


def _since_last(values: Values, code: np.ndarray, layout: Layout) -> Values:
    asked = np.append(layout.since_last >= 0, False)  # code -1 is none
    order = np.flatnonzero(asked[code])
    order = order[np.lexsort((-values.minutes[order], code[order], values.row[order]))]
    row, minutes = values.row[order], values.minutes[order]
    same = (np.diff(row) == 0) & (np.diff(code[order]) == 0)
    later = np.flatnonzero(same & (np.diff(minutes) < 0)) + 1  # the first record at another time
    hours = ((minutes[later - 1] - minutes[later]) / 60).astype(np.float32)
    at = order[later]
    found = Values(
        values.row[at],
        values.step[at],
        layout.since_last[code[at]] + np.searchsorted(SINCE_LAST_HOURS, hours, side="right").astype(np.int32),
        values.minutes[at],
        hours,
    )
    return found.at(np.flatnonzero(found.step >= 0))


def _not_measured(values: Values, code: np.ndarray, steps: Steps, layout: Layout) -> Values:
    records = np.arange(len(steps.counts))
    found: list[Values] = []
    # Steps as one ascending key: by record, then by time.
    reach = np.int64(1) << 33
    key = np.repeat(records, steps.counts) * reach - steps.minutes
    for of_code, hours, feature in layout.not_measured:
        at = np.flatnonzero(code == int(of_code))
        at = at[_last_of_each(values.row[at], code[at], values.step[at])]
        # A record's observation begins as if everything had been measured.
        row = np.concatenate([records, values.row[at]])
        minutes = np.concatenate([steps.history, values.minutes[at]]).astype(np.int64)
        step = np.concatenate([np.full(len(records), -1), values.step[at]])
        order = np.lexsort((step, row))
        row, minutes, step = row[order], minutes[order], step[order]
        until = np.where(np.append(row[1:] == row[:-1], False), np.append(step[1:], 0), steps.counts[row])
        due = np.searchsorted(key, row * reach - (minutes - round(60 * hours)), side="left") - steps.first[row]
        due = np.maximum(due, np.maximum(step + 1, 0))
        said = np.flatnonzero(due < until)
        place = steps.first[row[said]] + due[said]
        found.append(
            Values(
                row[said].astype(np.int32),
                due[said].astype(np.int32),
                np.full(len(said), int(feature), dtype=np.int32),
                steps.minutes[place],
                np.full(len(said), np.nan, dtype=np.float32),
            )
        )
    return Values(
        *(
            np.concatenate(c)
            for c in zip(_NOTHING.__dict__.values(), *(f.__dict__.values() for f in found), strict=True)
        )
    )
