"""Words of an address flow in, the predictions that they mean flow out: a class, a stratum, and conditions in SQL."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any, Final

from whenwhy.errors import UserError
from whenwhy.server.labels import for_analysts, number, shortened, time_range, time_unit, value_labels

#: What names single patients: never in an address, which may be passed on.
_IDS: Final = re.compile(r"\b(subject_id|prediction_id)\b", re.IGNORECASE)

#: What `members_sql` writes.
_MEMBERS: Final = re.compile(
    re.escape("(subject_id, epoch_us(prediction_time)) in (select (unnest([")
    + r"([-\d, ]+)"
    + re.escape("]), unnest([")
    + r"([-\d, ]+)"
    + re.escape("])))")
)

NEEDS_ROWS: Final = for_analysts("Conditions of one's own", "Choose a class and a stratum instead.")

#: A code's ranges of values, in order: feature_value_id, bin, low, high and unit of each.
Ranges = Callable[[str], Sequence[Mapping[str, Any]]]

#: What a brush over a chart of predictions may limit, and how people call it.
RANGES: Final = {
    "score": "score",
    "probability": "predicted probability",
    "prediction_time": "time of the prediction",
    "n_steps": "steps",
    "n_values": "recorded values",
    "history_minutes": "minutes of history",
}


@dataclass(frozen=True)
class Condition:
    """One condition that a prediction may fulfil: the text that an address has, its SQL, and its words.

    `code`, `values` and `hours` tell where a recorded feature lies in charts of value and time.
    """

    text: str
    sql: str
    words: str
    code: str | None = None
    values: tuple[int, ...] = ()
    hours: tuple[float, float] | None = None

    def holds(self, code: str, value_id: int | None, low_hours: float | None) -> bool:
        """Whether a cell of a chart lies in it, as every cell does where it says nothing of features.

        None stands for what the chart does not tell.

        Example:
            >>> condition_of("recorded:hdl@3,4@0..48").holds("hdl", 3, 24.0)
            True
        """
        return self.code is None or (
            code == self.code
            and (value_id is None or not self.values or value_id in self.values)
            and (low_hours is None or self.hours is None or self.hours[0] <= low_hours < self.hours[1])
        )


@dataclass(frozen=True)
class Cohort:
    """Predictions of a class and a stratum that are ready in the store, and conditions that only rows can tell."""

    class_label: str = "all"
    stratum: str = "all"
    conditions: tuple[Condition, ...] = ()

    @property
    def predicate(self) -> str | None:
        """All its conditions as one of SQL; None without any.

        Example:
            >>> Cohort(conditions=(condition_of("where:score > 0"), condition_of("range:n_steps@3.."))).predicate
            '(score > 0) and (n_steps >= 3.0)'
        """
        return " and ".join(f"({condition.sql})" for condition in self.conditions) or None

    @property
    def is_ready(self) -> bool:
        """Whether the store has its cells ready, so that everybody may see it."""
        return not self.conditions

    @property
    def whatever_outcome(self) -> Cohort:
        """The same of all classes, whatever is predicted.

        Example:
            >>> Cohort("true", "correct=yes").whatever_outcome
            Cohort(class_label='all', stratum='all', conditions=())
        """
        is_outcome = self.stratum.partition("=")[0] in ("predicted", "correct")
        return replace(self, class_label="all", stratum="all" if is_outcome else self.stratum)

    def with_condition(self, condition: Condition) -> Cohort:
        """The same with a condition more, once.

        Raises:
            UserError: it says where in a chart, and not who.
        """
        if not condition.sql:
            raise UserError(NEEDS_ROWS)
        if condition in self.conditions:
            return self
        return replace(self, conditions=(*self.conditions, condition))

    def without_condition(self, text: str) -> Cohort:
        """The same without a condition."""
        return replace(self, conditions=tuple(c for c in self.conditions if c.text != text))

    @property
    def whole_sql(self) -> str:
        """All that it asks of a prediction, its class and stratum too.

        Example:
            >>> print(Cohort("true", "sex=F").whole_sql)
            label = 'true' and "sex" = 'F'
        """
        told = [] if self.class_label == "all" else [f"label = {quoted(self.class_label)}"]
        if self.stratum != "all":
            name, _, value = self.stratum.partition("=")
            is_right = f"(predicted = label) = {'true' if value == 'yes' else 'false'}"
            told.append(is_right if name == "correct" else f'"{name.replace(chr(34), chr(34) * 2)}" = {quoted(value)}')
        return " and ".join([*told, *([self.predicate] if self.predicate else [])]) or "true"


def condition_of(text: str, feature_name: str | None = None, ranges: Ranges | None = None) -> Condition:
    """The condition that a text of an address means.

    Args:
        text: `where:SQL`, a predicate over predictions; `recorded:CODE`, or of these values and hours before the
            prediction `recorded:CODE@1,2@0..48`; `range:COLUMN@LOW..HIGH`, low <= it < high, either may be left out.
        feature_name: how people call the code.
        ranges: the rows of the query feature_bins of a code; None: which ranges are meant is not told.

    Raises:
        UserError: no such condition, or one that names single patients.

    Example:
        >>> condition_of("range:probability@0.2..0.4").sql
        'probability >= 0.2 and probability < 0.4'
        >>> condition_of("recorded:hdl@@0..48").words
        'hdl recorded 0 to 2 days before'
    """
    kind, _, told = text.partition(":")
    if kind == "where" and told.strip():
        if _IDS.search(told):
            raise UserError(
                "This condition names single patients, and an address may be passed on: save the cohort under a name."
            )
        # A comment at its end must not take the bracket along.
        return Condition(text, told + ("\n" if "--" in told else ""), shortened(" ".join(told.split()), 80))
    if kind == "recorded" and told:
        return _recorded(text, told, feature_name, ranges)
    column, at, limits = told.partition("@")
    if kind == "range" and column in RANGES and at:
        return _range(text, column, limits)
    raise UserError(f"There is no condition '{shortened(text, 60)}': write e.g. where:score > 0.")


def recorded_text(code: str, values: tuple[int, ...] = (), hours: tuple[float, float] | None = None) -> str:
    """The text of the condition that a feature was recorded.

    Example:
        >>> recorded_text("hdl", (3, 4), (0.0, float("inf")))
        'recorded:hdl@3,4@0..'
    """
    end = "" if hours is None else f"{hours[0]:g}.." + ("" if math.isinf(hours[1]) else f"{hours[1]:g}")
    return f"recorded:{code}@{','.join(map(str, values))}@{end}"


def _recorded(text: str, told: str, feature_name: str | None, ranges: Ranges | None) -> Condition:
    code, ids, between = told.rsplit("@", 2) if told.count("@") >= 2 else (told, "", "")
    try:
        values = tuple(int(one) for one in ids.split(",") if one)
        hours = _limits(between, float) if between else None
    except ValueError:
        raise UserError(f"'{shortened(text, 60)}' is no condition: write e.g. recorded:hdl@3,4@0..48.") from None
    places = [f"f.code = {quoted(code)}"] + [f"r.feature_value_id in ({', '.join(map(str, values))})"] * bool(values)
    which = _which(code, values, ranges) if values and ranges is not None else ""
    words = " ".join(filter(None, [feature_name or code, which, "recorded"]))
    if hours is not None:
        low, high = (hours[0] or 0.0), (hours[1] if hours[1] is not None else math.inf)
        hours = (low, high)
        places += [f"r.minutes >= {low * 60:g}"] + ([] if math.isinf(high) else [f"r.minutes < {high * 60:g}"])
        words += f" {time_range(low, high, time_unit((low if math.isinf(high) else high - low) or 1))}"
    return Condition(
        text,
        f"(run_id, prediction_id) in (select (r.run_id, r.prediction_id) from rows r "
        f"join feature_values f using (run_id, feature_value_id) where {' and '.join(places)})",
        words,
        code,
        values,
        hours,
    )


def _which(code: str, values: tuple[int, ...], ranges: Ranges) -> str:
    """The ranges of values in words, neighbours as one."""
    known = list(ranges(code))
    places = {row["feature_value_id"]: i for i, row in enumerate(known)}
    for one in values:
        if one not in places:
            raise UserError(f"There is no range {one} of {code}: mark it again.")
    if len(known) == 1:
        return ""
    joined: list[dict[str, Any]] = []
    for at in sorted(places[one] for one in values):
        row = {**known[at], "at": at}
        if joined and joined[-1]["at"] == at - 1 and joined[-1]["bin"] is not None:
            joined[-1] |= {"at": at, "high": row["high"]}
        else:
            joined.append(row)
    told = zip(joined, value_labels(joined), strict=True)
    return " or ".join("without a number" if row["bin"] is None else label for row, label in told)


def _range(text: str, column: str, limits: str) -> Condition:
    is_time = column == "prediction_time"
    try:
        low, high = _limits(limits, date.fromisoformat if is_time else float)
    except ValueError:
        raise UserError(f"'{shortened(text, 60)}' is no condition: write e.g. range:probability@0.2..0.4.") from None

    def sql(limit: Any) -> str:
        return f"timestamp '{limit}'" if is_time else repr(limit)

    def said(limit: Any) -> str:
        return str(limit) if is_time else number(limit)

    parts = [f"{column} >= {sql(low)}"] * (low is not None) + [f"{column} < {sql(high)}"] * (high is not None)
    if low is not None and high is not None:
        words = f"{said(low)} to {said(high)}"
    else:
        words = f"from {said(low)} on" if low is not None else f"below {said(high)}"
    return Condition(text, " and ".join(parts), f"{RANGES[column]} {words}")


def _limits(text: str, read: Callable[[str], Any]) -> tuple[Any, Any]:
    """Both ends of LOW..HIGH; None for the one that is missing."""
    low, dots, high = text.partition("..")
    if not dots or not (low or high):
        raise ValueError(text)
    found = (read(low) if low else None), (read(high) if high else None)
    if any(isinstance(limit, float) and not math.isfinite(limit) for limit in found):
        raise ValueError(text)
    return found


def members_sql(members: Collection[tuple[int, int]]) -> str:
    """The predicate of single predictions, each a patient's id and the prediction's time in microseconds.

    Example:
        >>> members_sql({(7, 60), (2, 0)})
        '(subject_id, epoch_us(prediction_time)) in (select (unnest([2, 7]), unnest([0, 60])))'
    """
    ids, times = zip(*sorted(members), strict=True)
    # As two lists DuckDB joins them; a list of pairs takes it three times as long.
    return (
        f"(subject_id, epoch_us(prediction_time)) in "
        f"(select (unnest([{', '.join(map(str, ids))}]), unnest([{', '.join(map(str, times))}])))"
    )


def without_members(sql: str, subjects: Collection[int]) -> str:
    """A predicate that has those of `members_sql`, without single patients.

    Example:
        >>> without_members("score > 0 and " + members_sql({(7, 60), (2, 0), (7, 61)}), {7})
        'score > 0 and (subject_id, epoch_us(prediction_time)) in (select (unnest([2]), unnest([0])))'
    """

    def kept(found: re.Match[str]) -> str:
        ids, times = ([int(one) for one in told.split(", ")] for told in found.groups())
        members = {(one, at) for one, at in zip(ids, times, strict=True) if one not in subjects}
        return members_sql(members) if members else "false"

    return _MEMBERS.sub(kept, sql)


def without_ids(sql: str) -> str:
    """A predicate that has those of `members_sql`, as it may be passed on: how many are meant, and not who.

    Example:
        >>> without_ids("score > 0 and " + members_sql({(7, 60), (2, 0)}))
        'score > 0 and (one of 2 predictions that a line was drawn around)'
    """
    return _MEMBERS.sub(
        lambda found: f"(one of {found[1].count(',') + 1:,} predictions that a line was drawn around)", sql
    )


def quoted(text: str) -> str:
    """A text as SQL writes it.

    Example:
        >>> quoted("it's")
        "'it''s'"
    """
    return "'" + text.replace("'", "''") + "'"
