"""A store flows in, what a person may choose in it flows out: runs, splits, classes, strata, features."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, Final, Protocol

import pyarrow as pa

from whenwhy.errors import UserError
from whenwhy.schema import HELD_OUT, SPLITS
from whenwhy.server.answers import Question, question
from whenwhy.server.cohort import NEEDS_ROWS, Condition, condition_of
from whenwhy.server.feature_names import feature_name, feature_words
from whenwhy.server.time_scale import TimeScale
from whenwhy.store.open import Role

#: Strata that the model's answer makes.
OF_PREDICTIONS: Final = ("correct", "predicted")

#: The strata that should not matter to a model, and matter where it learned a shortcut.
SITE: Final = "site"


@dataclass(frozen=True)
class Offered:
    """What one run offers. `features` holds each code's description, unit, n_values and has_time; `time` its bins."""

    splits: tuple[str, ...]
    classes: tuple[str, ...]
    strata: tuple[str, ...]
    features: Mapping[str, Mapping[str, Any]]
    time: TimeScale
    default_split: str
    default_feature: str

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of strata: sites first, then those of few values, and last those that describe a prediction."""
        n_values = Counter(stratum.partition("=")[0] for stratum in self.strata if "=" in stratum)
        return tuple(sorted(n_values, key=lambda kind: (kind in OF_PREDICTIONS, kind != SITE, n_values[kind], kind)))

    @property
    def two_classes(self) -> tuple[str, str] | None:
        """The outcome that came to pass and the one that did not, or the first two of several; None where there are none."""
        known = [name for name in self.classes if name != "all"]
        if {"true", "false"} <= set(known):
            return "true", "false"
        return (known[0], known[1]) if len(known) > 1 else None

    def name_of(self, code: str) -> str:
        """The description of a feature, or its code where it has none; a treatment is marked."""
        return feature_name(code, self.features.get(code, {}).get("description"))

    def words_of(self, code: str) -> str:
        """The same with its code."""
        return feature_words(code, self.features.get(code, {}).get("description"))


@dataclass(frozen=True)
class Choices:
    """Every run of a store (its row of the query `runs`), and what each offers."""

    runs: Mapping[str, Mapping[str, Any]]
    offered: Mapping[str, Offered]
    has_rows: bool
    #: The rows of feature_bins of a run and a code.
    ranges: Callable[[str, str], Sequence[Mapping[str, Any]]]

    def condition(self, text: str, run: str) -> Condition:
        """The condition of a text of an address; where nobody may read rows, without SQL.

        Raises:
            UserError: there is no such condition, or it needs rows.
        """
        code = text.removeprefix("recorded:").rsplit("@", 2)[0]
        condition = condition_of(text, self.offered[run].name_of(code), partial(self.ranges, run))
        if self.has_rows:
            return condition
        if condition.code is None:
            raise UserError(NEEDS_ROWS)
        return replace(condition, sql="")  # it says where in a chart, and not who


class Asks(Protocol):
    """Whatever answers questions at once."""

    def now(self, asked: Question) -> pa.Table:
        """The answer."""
        ...


def choices_of(answers: Asks, role: Role) -> Choices:
    """What there is to choose; no run where none has a cell that may be shown."""
    runs = {row["run_id"]: row for row in answers.now(question("runs")).to_pylist()}

    @cache
    def ranges(run: str, code: str) -> list[dict[str, Any]]:
        told: list[dict[str, Any]] = answers.now(question("feature_bins", feature=code, run=run)).to_pylist()
        return told

    offered = {run: found for run in runs if (found := _offered(answers, run)) is not None}
    return Choices({run: runs[run] for run in offered}, offered, role == "analyst", ranges)


def _offered(answers: Asks, run: str) -> Offered | None:
    def rows(query: str, **arguments: Any) -> list[dict[str, Any]]:
        told: list[dict[str, Any]] = answers.now(question(query, run=run, **arguments)).to_pylist()
        return told

    cohorts = rows("cohorts")
    features = {row["code"]: row for row in rows("features")}
    if not cohorts or not features:
        return None
    found = {row["split"] for row in cohorts}
    splits = tuple(name for name in SPLITS if name in found) + tuple(sorted(found - set(SPLITS)))
    default_split = HELD_OUT if HELD_OUT in found else splits[0]
    ranked = [row["code"] for row in rows("top_features", split=default_split, top=100)]
    # A first look is at when something mattered, so at a feature that has a time.
    ranked.sort(key=lambda code: not features[code]["has_time"])
    return Offered(
        splits=splits,
        classes=_all_first(row["class"] for row in cohorts),
        strata=_all_first(row["stratum"] for row in cohorts),
        features=features,
        time=TimeScale.of(rows("time_bins")),
        default_split=default_split,
        default_feature=ranked[0] if ranked else next(iter(features)),
    )


def _all_first(names: Any) -> tuple[str, ...]:
    return ("all", *sorted(set(names) - {"all"}))
