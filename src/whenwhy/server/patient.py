"""What a session looks at of single patients flows in, the record of one flows out; no address ever has any of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from whenwhy.errors import UserError, unknown_name
from whenwhy.events.changed_records import Add, Change, Remove, SetNumber
from whenwhy.server.answers import Question, question
from whenwhy.server.labels import TIME_UNITS, for_analysts, number, value_range
from whenwhy.server.state import State

#: How a list of patients may be ordered, and what each order is called.
ORDERS: Final = {
    "score": "highest score",
    "lowest score": "lowest score",
    "time": "latest prediction",
    "n_values": "most recorded values",
}
#: So many predictions a page of the list has.
PAGE: Final = 10

CHOOSE: Final = "No patient is chosen: choose one of the list, or find one by id."
FOR_ANALYSTS: Final = for_analysts("Single patients")


@dataclass(frozen=True)
class Chosen:
    """The patient and prediction that a session looks at, changes of that record, and the place in the list.

    `time` None is the patient's latest prediction.
    """

    subject_id: int | None = None
    time: datetime | None = None
    changes: tuple[Change, ...] = ()
    order: str = "score"
    skip: int = 0


#: Gives what a session looks at, each time anew.
Look = Callable[[], Chosen]


@dataclass(frozen=True)
class Record:
    """One prediction of a patient: its row of the query `patient`, what was recorded, and the rows of all predictions.

    Attributes:
        head: prediction_time, label, predicted, split, score, baseline_score, probability.
        values: rows with code, description, unit, time, hours_before (None: undated), numeric_value, low, high,
            feature_value_id, contribution.
        predictions: the head of each prediction, the latest first.
    """

    subject_id: int
    head: Mapping[str, Any]
    values: list[Mapping[str, Any]]
    predictions: list[Mapping[str, Any]]

    @property
    def residual(self) -> float:
        """What the contributions and the baseline's score leave of the score, in its unit: zero where nothing leaks.

        Example:
            >>> Record(1, {"score": 2.0, "baseline_score": 0.5}, [{"contribution": 1.5}], []).residual
            0.0
        """
        told = math.fsum(row["contribution"] for row in self.values)
        return float(told + self.head["baseline_score"] - self.head["score"])


HEAD: Final = ("prediction_time", "label", "predicted", "split", "score", "baseline_score", "probability")


def patient_question(state: State, chosen: Chosen) -> Question:
    """The question of the chosen patient's records.

    Raises:
        UserError: none is chosen.
    """
    if chosen.subject_id is None:
        raise UserError(CHOOSE)
    return question("patient", subject_id=chosen.subject_id, run=state.run)


def record_of(table: pa.Table, chosen: Chosen) -> Record:
    """The chosen prediction's record, from the answer of `patient`.

    Raises:
        UserError: the run has no such patient.
    """
    assert chosen.subject_id is not None
    if not table.num_rows:
        raise UserError(f"This run has no patient {chosen.subject_id}: check the id.")
    times = table["prediction_time"]
    heads = {row["prediction_time"]: row for row in reversed(table.select(HEAD).to_pylist())}
    at = chosen.time if chosen.time in heads else times[0].as_py()
    rows = table.filter(pc.equal(times, pa.scalar(at, times.type))).to_pylist()
    values = [row for row in rows if row["feature_value_id"] is not None]
    return Record(chosen.subject_id, heads[at], values, [heads[time] for time in sorted(heads, reverse=True)])


def value_words(row: Mapping[str, Any]) -> str:
    """A recorded value in its unit.

    Example:
        >>> value_words({"numeric_value": 37.25, "unit": "mg/dL"}), value_words({"numeric_value": None, "unit": None})
        ('37.25 mg/dL', 'recorded')
    """
    if row["numeric_value"] is None:
        return "recorded"
    return f"{number(row['numeric_value'])}{' ' + row['unit'] if row['unit'] else ''}"


def range_words(row: Mapping[str, Any]) -> str:
    """The limits of the feature value that a recorded value counts as.

    Example:
        >>> range_words({"low": 35.0, "high": 39.0, "unit": "mg/dL"}), range_words({"low": None, "high": None})
        ('35 to 39 mg/dL', 'no limits')
    """
    if row["low"] is None and row["high"] is None:
        return "no limits"
    return value_range(row["low"], row["high"], row["unit"])


@dataclass(frozen=True)
class RecordAxis:
    """The axis of time of one record: the prediction at 0 at the right, undated values in a strip at the left."""

    span_hours: float
    has_undated: bool

    @classmethod
    def of(cls, record: Record) -> RecordAxis:
        """The axis that shows all of a record."""
        hours = [row["hours_before"] for row in record.values]
        return cls(max((hour for hour in hours if hour is not None), default=0.0) or 1.0, None in hours)

    @property
    def unit(self) -> tuple[str, int]:
        """The unit that people read, and its hours: the widest of which there are at least two.

        Example:
            >>> RecordAxis(72.0, False).unit, RecordAxis(30.0, False).unit
            (('days', 24), ('hours', 1))
        """
        return next(((name, hours) for name, hours in TIME_UNITS if self.span_hours >= 2 * hours), TIME_UNITS[-1])

    @property
    def span(self) -> float:
        """The time shown, in the unit."""
        return self.span_hours / self.unit[1]

    def place(self, hours_before: float | None) -> float:
        """Where a value stands.

        Example:
            >>> RecordAxis(72.0, True).place(24.0), RecordAxis(100.0, True).place(None) < -100 / 24
            (-1.0, True)
        """
        return -1.12 * self.span if hours_before is None else -hours_before / self.unit[1]

    @property
    def ends(self) -> tuple[float, float]:
        """Both ends of the axis."""
        return (-1.2 if self.has_undated else -1.04) * self.span, 0.04 * self.span

    @property
    def strip(self) -> float:
        """Where the undated values' strip ends."""
        return -1.05 * self.span

    @property
    def ticks(self) -> dict[float, str]:
        """Three to seven places with their labels, and one for the strip.

        Example:
            >>> RecordAxis(72.0, True).ticks
            {-3.36: 'undated', -3.0: '3', -2.0: '2', -1.0: '1', 0.0: '0'}
        """
        size = 10.0 ** math.floor(math.log10(self.span))
        step = next((part * size for part in (0.2, 0.5, 1.0, 2.0) if self.span / (part * size) <= 5), 2.0 * size)
        known = {-step * i or 0.0: number(step * i) for i in range(int(self.span / step + 1e-9), -1, -1)}
        return {**({round(self.place(None), 9): "undated"} if self.has_undated else {}), **known}

    def words(self, hours_before: float | None) -> str:
        """When it was.

        Example:
            >>> RecordAxis(72.0, False).words(36.0), RecordAxis(72.0, False).words(None)
            ('1.5 days before', 'undated')
        """
        if hours_before is None:
            return "undated"
        name, hours = self.unit
        return f"{number(hours_before / hours, 3)} {name} before"


# -- what a person does ---------------------------------------------------------------------------------


def looked(chosen: Chosen, told: Mapping[str, Any]) -> Chosen:
    """Another patient or prediction: `subject` is the id, `time` the prediction's, or nothing for the latest.

    Raises:
        UserError: no such number.

    Example:
        >>> looked(Chosen(), {"subject": " 42 "}).subject_id
        42
    """
    text = str(told["subject"]).strip()
    if not (text.removeprefix("-").isascii() and text.removeprefix("-").isdecimal() and abs(int(text)) < 2**63):
        raise UserError(f"'{text[:30]}' is no patient's id: give a whole number.")
    time = datetime.fromisoformat(told["time"]) if told.get("time") else None
    if (int(text), time) == (chosen.subject_id, chosen.time):
        return chosen
    return replace(chosen, subject_id=int(text), time=time, changes=())


def listed(chosen: Chosen, told: Mapping[str, Any]) -> Chosen:
    """Another order of the list, from its beginning, or another page of it.

    Example:
        >>> listed(Chosen(), {"skip": "20"}).skip
        20
    """
    if "order" in told:
        if told["order"] not in ORDERS:
            raise unknown_name("order", str(told["order"])[:60], ORDERS)
        return replace(chosen, order=told["order"], skip=0)
    return replace(chosen, skip=max(0, int(told["skip"])))


def changed(chosen: Chosen, told: Mapping[str, Any]) -> Chosen:
    """A change more: of the number at a `place`, of the place as a whole, or one more `code`.

    Args:
        told: `place` and `number` set a number, `place` alone removes; `code` adds, `hours` before the prediction at
            `time`, undated without, with a `number` or without.

    Raises:
        UserError: a number that is none.

    Example:
        >>> changed(Chosen(1), {"place": "3", "number": "0.5"}).changes
        (SetNumber(place=3, number=0.5),)
    """
    value = _number(told["number"], "number") if told.get("number") else None
    change: Change
    if "place" not in told:
        hours = _number(told["before"], "time") * float(told["hours"]) if told.get("before") else None
        if hours is not None and not 0 <= hours < 1e7:
            raise UserError("Give a time before the prediction, 0 or more, or none for an undated value.")
        time = None if hours is None else datetime.fromisoformat(told["time"]) - timedelta(hours=hours)
        change = Add(str(told["code"]).strip(), time, value)
        return replace(chosen, changes=(*chosen.changes, change))
    place = int(told["place"])
    change = Remove(place) if value is None else SetNumber(place, value)
    # The last word about a place counts.
    others = tuple(one for one in chosen.changes if isinstance(one, Add) or one.place != place)
    return replace(chosen, changes=(*others, change))


def undone(chosen: Chosen, told: Mapping[str, Any]) -> Chosen:
    """A change less, by its place among them; all of them without one.

    Example:
        >>> undone(Chosen(1, changes=(Remove(3), Remove(4))), {"at": "0"}).changes
        (Remove(place=4),)
    """
    if "at" not in told:
        return replace(chosen, changes=())
    at = int(told["at"])
    return replace(chosen, changes=chosen.changes[:at] + chosen.changes[at + 1 :])


def _number(text: Any, name: str) -> float:
    try:
        found = float(str(text).replace("−", "-"))
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise UserError(f"The {name} is '{str(text)[:30]}': give a number.")
    return found
