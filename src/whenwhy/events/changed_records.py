"""A patient's record and changes of it flow in; the record that `prepare` would have made of the changed events flows out.

Sequences keep whole minutes and what a step shows, not the events themselves. So events are put where they give the
record that is there, and with the changes they go through the code that makes all records: steps and everything
that follows from recorded values move along.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise

import meds
import numpy as np
import pyarrow as pa

from whenwhy.errors import UserError
from whenwhy.events.derived_features import Layout
from whenwhy.events.event_scan import UNDATED
from whenwhy.events.feature_values import AGE, ANY_NUMBER, Vocabulary, ordered_bits
from whenwhy.events.prepare_settings import PrepareSettings
from whenwhy.events.records import ALL, REPEATS, PatientEvents, Records, records_of
from whenwhy.events.sequence_directory import (
    LAYOUT,
    NOTES_FILE,
    PROVISIONAL_FILE,
    REPORT,
    VOCABULARY,
    read_layout,
)
from whenwhy.events.steps import BINS, MINUTE_US, VISIT
from whenwhy.schema import EVERYTHING_ABSENT, FEATURE_VALUES, RARE, RECORDED
from whenwhy.shards import StageDirectory


@dataclass(frozen=True)
class SetNumber:
    """The value at a place of the record has another number, and the feature value that goes with it.

    Attributes:
        place: as `ChangeableRecords.values` counts.

    Example: `SetNumber(place=12, number=0.9)`
    """

    place: int
    number: float


@dataclass(frozen=True)
class Remove:
    """The value at a place of the record was never recorded.

    Attributes:
        place: as `ChangeableRecords.values` counts.

    Example: `Remove(place=12)`
    """

    place: int


@dataclass(frozen=True)
class Add:
    """One more event was recorded.

    Attributes:
        time: naive, as MEDS times are; the minute of a recorded value is that value's own time. None: undated.
        number: None: it has none.

    Example: `Add("hdl", datetime(2020, 1, 8, 12), 35.0)`
    """

    code: str
    time: datetime | None = None
    number: float | None = None


Change = SetNumber | Remove | Add


@dataclass(frozen=True)
class ChangedRecord:
    """A record after changes.

    Attributes:
        table: one row of `schema.SEQUENCES`.
        remarks: sentences for people: what the model does not know, and what changes do that nobody asked for.
    """

    table: pa.Table
    remarks: tuple[str, ...]


#: A place in a record: what is recorded, or follows from it, and when. Events come first, then undated values.
VALUES = pa.schema(
    [
        ("place", pa.int32()),
        ("step", pa.int32()),  # null: undated
        ("time", pa.timestamp("us")),  # of its minute; null: undated
        *(FEATURE_VALUES.field(name) for name in ("kind", "code", "description", "unit")),
        ("number", pa.float32()),  # null: none
        *(FEATURE_VALUES.field(name) for name in ("feature_value_id", "low", "high")),
    ]
)

#: Columns in which a record that was made again must be the same.
SAME = (
    "anchor_minutes", "step_minutes", "event_step", "event_id", "event_minutes", "event_value", "event_weight",
    "static_id", "static_value", "static_weight",
)  # fmt: skip

#: Kinds of values that can be changed; the others follow from them.
CHANGEABLE = (RECORDED, RARE)


@dataclass
class _Events:
    """Events of one record [event], in no order; step is -1 of what is in none yet."""

    time: np.ndarray
    id: np.ndarray
    number: np.ndarray
    anchor: np.ndarray
    step: np.ndarray

    def at(self, where: np.ndarray) -> _Events:
        return _Events(*(column[where] for column in self.__dict__.values()))

    def with_more(self, time: Sequence[int], id_: Sequence[int], number: Sequence[float], anchor: bool) -> _Events:
        more: tuple[np.ndarray, ...] = (
            np.array(time, np.int64), np.array(id_, np.int32), np.array(number, np.float32),
            np.full(len(time), anchor), np.full(len(time), -1, np.int32),
        )  # fmt: skip
        return _Events(*(np.concatenate(both) for both in zip(self.__dict__.values(), more, strict=True)))


class ChangeableRecords:
    """How the records of a directory of sequences are made again with other events.

    Args:
        stage: the directory that `whenwhy prepare` wrote.

    Example: `ChangeableRecords(stage).changed(patient_records(stage, 42).slice(0, 1), [Remove(place=3)]).table`
    """

    def __init__(self, stage: StageDirectory) -> None:
        self.path = stage.path
        self.settings = PrepareSettings.of(stage.settings)
        self.rules = self.settings.rules
        self.layout: Layout
        self.layout, self.final, _ = read_layout(stage)
        self.table = stage.read(VOCABULARY, VOCABULARY)
        provisional = stage.read(LAYOUT, PROVISIONAL_FILE)
        self.vocabulary = Vocabulary(provisional)
        notes = json.loads(stage.read_bytes(LAYOUT, NOTES_FILE))
        self.anchor: str = notes["anchor"]
        self.code: list[str] = self.table["code"].to_pylist()  # [id]
        self.kind: list[str] = self.table["kind"].to_pylist()
        self.changeable = np.isin(self.kind, CHANGEABLE)
        self.anchoring = np.array([self._anchors(code) for code in self.code])
        numbered = self.layout.code
        follows = self.layout.carried >= 0
        follows |= (numbered >= 0) & np.append(self.layout.since_last >= 0, False)[numbered]
        follows |= np.isin(numbered, self.layout.not_measured[:, 0])
        #: Codes whose earlier records matter at later steps.
        self.followed = {self.code[at] for at in np.flatnonzero(follows)}
        self.with_numbers: set[str] = set()
        self.without_numbers: set[str] = set()
        self.ranges: dict[str, tuple[float, float]] = {}
        for row in provisional.slice(1).select(["code", "bin", "low", "high"]).to_pylist():
            if row["bin"] is not None:
                self.with_numbers.add(row["code"])
            if row["bin"] in (None, ANY_NUMBER):
                self.without_numbers.add(row["code"])
            if row["low"] is not None:  # what a vocabulary that was given says itself
                low, high = self.ranges.get(row["code"], (math.inf, -math.inf))
                self.ranges[row["code"]] = (min(low, row["low"]), max(high, row["high"]))
        self.ranges |= notes.get("ranges", {})
        undated = np.zeros(len(self.code), dtype=np.int64)
        for told in stage.entry(REPORT).summary["undated"]:
            undated[told["feature_value_id"]] = told["n_train"]
        #: Training events of each feature value [id], dated and undated.
        self.trained = {False: self.table["n_train"].to_numpy() - undated, True: undated}

    def values(self, record: pa.Table) -> pa.Table:
        """The table of `VALUES` of a record (one row of `schema.SEQUENCES`): a row a place."""
        ids = np.concatenate([_flat(record, "event_id"), _flat(record, "static_id")])
        n_events = len(_flat(record, "event_id"))
        dated = np.arange(len(ids)) < n_events
        undated = np.zeros(len(ids) - n_events, dtype=np.int32)
        step = np.concatenate([_flat(record, "event_step"), undated])
        minutes = np.concatenate([_flat(record, "event_minutes"), undated]).astype(np.int64)
        number = np.concatenate([_flat(record, "event_value"), _flat(record, "static_value")])
        about = self.table.take(pa.array(ids))
        columns = {name: about[name] for name in VALUES.names if name in about.column_names} | {
            "place": np.arange(len(ids)),
            "step": pa.array(step, mask=~dated),
            "time": pa.array(_prediction_time(record) - minutes * MINUTE_US, mask=~dated).cast(pa.timestamp("us")),
            "number": pa.array(number, from_pandas=True),
        }
        return pa.table({name: columns[name] for name in VALUES.names}).cast(VALUES)

    def changed(self, record: pa.Table, changes: Sequence[Change]) -> ChangedRecord:
        """The record that `prepare` would have made of the changed events.

        Args:
            record: one row of `schema.SEQUENCES`.
            changes: all at once; their places are those of `record`.

        Raises:
            UserError: a place or a number that is none, a time after the prediction, a number of a code without
                numbers or none of a code with numbers, two changes of one place, a value that follows from others; or
                a record that cannot be made again from what is kept of it.
        """
        if not changes:
            return ChangedRecord(record, ())
        original = self._events_of(record)
        unchanged = self._made(record, original, original)
        if any(not unchanged.table[name].equals(record[name]) for name in SAME):
            raise UserError(
                f"The record of patient {record['subject_id'][0].as_py()} at {record['prediction_time'][0].as_py()} cannot "
                f"be made again from what {self.path} keeps of it, since values from before its first step, or from "
                "within a minute of another step, count in it: choose another prediction, or prepare with more "
                "--max-steps."
            )
        remarks: list[str] = []
        events = self._applied(record, original, changes, remarks)
        made = self._made(record, original, events)
        remarks += self._side_effects(unchanged, made, changes)
        remarks += self._not_kept(original, unchanged, made, changes)
        return ChangedRecord(made.table, tuple(dict.fromkeys(remarks)))

    # -- events out of a record -------------------------------------------------------------------------

    def _events_of(self, record: pa.Table) -> _Events:
        """What is at each place of the record, at the last time that its minute and its step allow."""
        end = _prediction_time(record)
        ids, step = _flat(record, "event_id"), _flat(record, "event_step")
        minutes = _flat(record, "event_minutes").astype(np.int64)
        static = _flat(record, "static_id")
        shift = self._shift(step, np.where(self.changeable[ids], minutes, -1), len(_flat(record, "step_minutes")))
        ids = np.concatenate([ids, static])
        time = np.concatenate([end - minutes * MINUTE_US - shift[step], np.full(len(static), UNDATED)])
        return _Events(
            time,
            ids,
            np.concatenate([_flat(record, "event_value"), _flat(record, "static_value")]),
            self.anchoring[ids] & self.changeable[ids] & (time != UNDATED),
            np.concatenate([step, np.full(len(static), -1)]).astype(np.int32),
        )

    def _shift(self, step: np.ndarray, minutes: np.ndarray, n_steps: int) -> np.ndarray:
        """[step] microseconds earlier, so that steps which their minutes would join stay apart.

        Args:
            minutes: [event] before the prediction; -1 of what makes no step.
        """
        if self.rules.steps.kind == BINS or n_steps < 2:
            return np.zeros(max(n_steps, 1), dtype=np.int64)
        of = minutes >= 0
        last, first = np.full(n_steps, np.iinfo(np.int64).max), np.zeros(n_steps, dtype=np.int64)
        np.minimum.at(last, step[of], minutes[of])
        np.maximum.at(first, step[of], minutes[of])
        joined = (last[:-1] - first[1:]) * MINUTE_US <= self.rules.steps.width
        return np.append(np.cumsum(joined[::-1])[::-1], 0)

    # -- changes ----------------------------------------------------------------------------------------

    def _applied(self, record: pa.Table, original: _Events, changes: Sequence[Change], remarks: list[str]) -> _Events:
        ids, number = original.id.copy(), original.number.copy()
        kept = np.ones(len(ids), dtype=bool)
        touched: set[int] = set()
        added: list[tuple[int, int, float, bool]] = []
        for change in changes:
            if isinstance(change, Add):
                added.append(self._added(record, original, change, remarks))
                continue
            place = change.place
            if not 0 <= place < len(ids):
                raise UserError(f"The record has the places 0 to {len(ids) - 1}, and none {place}: name one of them.")
            code = self.code[ids[place]]
            if not self.changeable[ids[place]]:
                raise UserError(f"'{code}' at place {place} follows from what is recorded: change that.")
            if place in touched:
                raise UserError(f"The value of '{code}' at place {place} is changed twice: give one change of it.")
            touched.add(place)
            if isinstance(change, Remove):
                kept[place] = False
                continue
            number[place] = _finite(change.number, code)
            if self.kind[ids[place]] == RARE:
                remarks.append(f"'{code}' stands for rare codes, whose numbers the model does not see.")
            else:
                undated = bool(original.time[place] == UNDATED)
                ids[place] = self._feature_value(code, number[place], undated, remarks)
        events = _Events(original.time, ids, number, original.anchor, original.step).at(np.flatnonzero(kept))
        for time, feature_value, of_event, anchor in added:
            events = events.with_more([time], [feature_value], [of_event], anchor)
        return events

    def _added(
        self, record: pa.Table, original: _Events, change: Add, remarks: list[str]
    ) -> tuple[int, int, float, bool]:
        """The time, the feature value and the number of one more event, and whether it anchors."""
        if change.code in (AGE, meds.birth_code):
            raise UserError(f"'{change.code}' is known once of a patient: change the number of '{AGE}'.")
        time = self._time_of(record, original, change)
        number = np.float32(np.nan) if change.number is None else _finite(change.number, change.code)
        anchors = self._anchors(change.code) and time != UNDATED
        if change.code in self.settings.without:
            remarks.append(f"'{change.code}' was left out of what the model sees, so one more changes nothing there.")
            return time, -1, float(number), anchors
        return time, self._feature_value(change.code, number, time == UNDATED, remarks), float(number), anchors

    def _time_of(self, record: pa.Table, original: _Events, change: Add) -> int:
        if change.time is None:
            return int(UNDATED)
        if change.time.tzinfo is not None:
            raise UserError(f"The time of '{change.code}', {change.time}, has a time zone: give it as MEDS tells it.")
        time, end = int(np.datetime64(change.time, "us").astype(np.int64)), _prediction_time(record)
        if time > end:
            raise UserError(
                f"'{change.code}' is to be at {change.time}, after the prediction at "
                f"{record['prediction_time'][0].as_py()}: give a time before it."
            )
        recorded = self.changeable[original.id] & (original.time != UNDATED)
        recorded &= (end - original.time) // MINUTE_US == (end - time) // MINUTE_US
        return int(original.time[recorded].max(initial=time)) if recorded.any() else time

    def _feature_value(self, code: str, number: np.float32, undated: bool, remarks: list[str]) -> int:
        """The id of a code with a number (NaN: none), or -1 where the model knows no such thing."""
        told = f"'{code}'" if np.isnan(number) else f"'{code}' with the number {number:g}"
        if code not in self.with_numbers | self.without_numbers:
            remarks.append(f"The model does not know the code '{code}', so it is not seen.")
            return -1
        if not np.isnan(number) and code not in self.with_numbers:
            raise UserError(f"'{code}' has no numbers, and {number:g} is given: leave the number out.")
        if np.isnan(number) and code not in self.without_numbers:
            raise UserError(f"'{code}' is always recorded with a number: give one.")
        found = int(self.vocabulary.ids(pa.array([code], pa.string()), np.array([number], np.float32))[0])
        found = int(self.final[found]) if found >= 0 else -1
        low, high = self.ranges.get(code, (-math.inf, math.inf))
        if not np.isnan(number) and not low <= number <= high:
            remarks.append(f"{told} lies outside the numbers that the model was trained on, {low:g} to {high:g}.")
        elif not np.isnan(number) and math.inf in (-low, high):
            remarks.append(f"Which numbers of '{code}' the model was trained on is not known.")
        if found < 0:
            remarks.append(f"{told} has no feature value, so it is not seen.")
        elif self.kind[found] == RARE:
            remarks.append(f"'{code}' is rare, so the model sees '{self.code[found]}', whatever the number.")
        elif not self.trained[undated][found]:
            when = "undated" if undated else "dated"
            remarks.append(f"No training patient has {told} {when}, so the model has learned nothing of it.")
        return found

    def _anchors(self, code: str) -> bool:
        return bool(self.anchor) and (code == self.anchor or code.startswith(f"{self.anchor}//"))

    # -- a record out of events -------------------------------------------------------------------------

    def _made(self, record: pa.Table, original: _Events, events: _Events) -> Records:
        """The record of these events; `original` are those of the record that is there."""
        events = events.at(np.flatnonzero((events.id < 0) | self.changeable[events.id]))
        unseen = self._unseen(record, original, events)
        events = events.with_more(unseen, [EVERYTHING_ABSENT] * len(unseen), [np.nan] * len(unseen), False)
        hidden = self._hidden_anchor(record, original)
        events = events.with_more(hidden, [-1] * len(hidden), [np.nan] * len(hidden), True)
        events = events.at(np.lexsort((ordered_bits(events.number), events.id, events.time)))
        one = np.zeros(1, dtype=np.int64)
        of_patient = PatientEvents(
            np.zeros(len(events.time), dtype=np.int32), events.time, events.id, events.number, events.anchor,
            (np.array([-1], np.int32), np.array([np.nan], np.float32)),
        )  # fmt: skip
        return records_of(record, one, of_patient, self.rules, self.layout)

    def _unseen(self, record: pa.Table, original: _Events, events: _Events) -> list[int]:
        """Times of events that the record does not show, and without which it would have other steps."""
        rule, step_minutes = self.rules.steps, _flat(record, "step_minutes")
        end, found = _prediction_time(record), []
        if rule.kind == BINS and len(step_minutes) == self.rules.most_steps:
            found.append(end - int(step_minutes[0]) * MINUTE_US - rule.width - 1)
        if self.rules.repeats == ALL or not len(step_minutes):
            return found
        # Of values that a step repeats only the last is kept, which may lie further from its neighbours than a visit's
        # events may, and later than the record begins.
        begin = end - record["history_minutes"][0].as_py() * MINUTE_US
        for step in np.unique(events.step[events.step >= 0]).tolist():
            times = original.time[(original.step == step) & self.changeable[original.id]].tolist()
            times = sorted([*times, begin] if step == 0 else times)
            found += times[: int(step == 0)]
            if rule.kind == VISIT:
                for one, other in pairwise(times):
                    found += range(one + rule.width, other, rule.width)
        return found

    def _hidden_anchor(self, record: pa.Table, original: _Events) -> list[int]:
        """The time of the anchor, unless a value of the record is it."""
        minutes = record["anchor_minutes"][0].as_py()
        if minutes is None:
            return []
        end = _prediction_time(record)
        shown = ((end - original.time[original.anchor]) // MINUTE_US == minutes).any()
        return [] if shown else [end - minutes * MINUTE_US]

    def _side_effects(self, before: Records, after: Records, changes: Sequence[Change]) -> list[str]:
        """What the changes do that nobody asked for, in sentences."""
        more = {name: after.counts[name] - before.counts[name] for name in after.counts}
        most, remarks = self.rules.most_steps, []
        if more["n_too_old"] > 0:
            hours = self.settings.history_hours
            remarks.append(f"The record looks back {hours:g} hours, and what was added earlier is left out.")
        if more["n_truncated"] > 0:
            remarks.append(
                f"The record shows its {most:,} most recent steps, so {more['n_truncated']:,} values of older ones are "
                "left out."
            )
        if more["n_repeated"] > 0:
            remarks.append(f"{more['n_repeated']:,} values are left out: {REPEATS[self.rules.repeats]}.")
        if self.rules.repeats != ALL and not all(isinstance(change, Add) for change in changes):
            remarks.append(
                f"Of repeated values in a step the last alone is kept ({REPEATS[self.rules.repeats]}), and all are "
                "changed with it."
            )
        return remarks

    def _not_kept(self, original: _Events, before: Records, after: Records, changes: Sequence[Change]) -> list[str]:
        """Where the sequences do not keep what the changed record would show, in sentences."""
        rule, most, remarks = self.rules.steps, self.rules.most_steps, []
        if before.counts["n_steps"] == most:
            told = f"The record shows its {most:,} most recent steps, and"
            codes = {c.code if isinstance(c, Add) else self.code[original.id[c.place]] for c in changes}
            if codes & self.followed:
                named = ", ".join(sorted(codes & self.followed))
                remarks.append(f"{told} what follows from earlier values of {named} is not kept.")
            began, begins = (int(of.table["history_minutes"][0].as_py() or 0) for of in (before, after))
            shown = int((_flat(after.table, "step_minutes") <= began).sum())
            if rule.kind != BINS and (shown < most or (rule.kind == VISIT and begins > began)):
                remarks.append(f"{told} an earlier one that would be among them now is not kept.")
        if rule.kind == VISIT and self.rules.repeats != ALL:
            shown_at = np.flatnonzero((original.step >= 0) & self.changeable[original.id])
            kept = original.at(shown_at[np.argsort(original.time[shown_at], kind="stable")])
            for change in changes:
                if not isinstance(change, Add) or change.time is None:
                    continue
                time = int(np.datetime64(change.time, "us").astype(np.int64))
                after_it = int(np.searchsorted(kept.time, time, side="right"))
                if after_it == len(kept.time) or kept.time[after_it] - time <= rule.width:
                    continue
                if after_it == 0 or kept.step[after_it] != kept.step[after_it - 1]:
                    remarks.append(
                        f"When the visit after {change.time} began is not kept: the added value may lie in it."
                    )
        return remarks


def _flat(record: pa.Table, name: str) -> np.ndarray:
    """The elements of a list column of one row."""
    return np.asarray(record[name].combine_chunks().flatten().to_numpy(zero_copy_only=False))


def _prediction_time(record: pa.Table) -> int:
    """In microseconds."""
    return int(record["prediction_time"].cast(pa.int64())[0].as_py())


def _finite(number: float, code: str) -> np.float32:
    """The number as records keep it; raises `UserError` for one that is none."""
    with np.errstate(over="ignore"):
        found = np.float32(number)
    if not np.isfinite(found):
        raise UserError(f"The number of '{code}' is {number}: give a finite one (float32).")
    return found
