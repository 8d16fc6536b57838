"""What `prepare` may be asked, checked before any work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields

from whenwhy.errors import UserError, unknown_name
from whenwhy.events.derived_features import EVERY_CODE, DerivedSettings
from whenwhy.events.records import ALL, REPEATS, RecordRules, history_limit
from whenwhy.events.steps import BINS, EVENT, step_rule
from whenwhy.shards import Json

#: A thousand years and more: beyond it, hours are a slip.
MOST_HOURS = 10_000_000

PREDICTION, ADMISSION = "prediction", "admission"


@dataclass(frozen=True)
class PrepareSettings:
    """What `prepare` may be asked.

    Attributes:
        outcome: the outcome's name for people.
        strata: cohorts to be: "age_band", or the first part of a static code ("sex" for SEX//F and SEX//M).
        without: codes that are left out, e.g. because they give the outcome away.
        bins: quantile bins of a numeric code.
        cut_offs: inner edges by code, instead of quantiles.
        rare_below: feature values of fewer training patients are folded.
        steps: "event" (one a distinct time), "visit", or the width of a bin such as "6h" or "1d".
        visit_gap_hours: hours without events that end a visit.
        anchor: "prediction", "admission" (the latest one), or a code (its first occurrence).
        history_hours: events longer before the prediction are left out.
        max_steps: the most recent steps that are kept; what is left out is counted.
        repeats: what becomes of several values in a step: "all", "once" or "last".
        carry, carry_hours, since_last, not_measured, numbers: see `DerivedSettings`.
        shard_size: predictions a shard, about.
    """

    outcome: str
    strata: Sequence[str] = ()
    without: Sequence[str] = ()
    bins: int = 10
    cut_offs: Mapping[str, Sequence[float]] = field(default_factory=dict)
    rare_below: int = 5
    steps: str = EVENT
    visit_gap_hours: float = 24.0
    anchor: str = PREDICTION
    history_hours: float | None = None
    max_steps: int = 1000
    repeats: str = ALL
    carry: Sequence[str] = ()
    carry_hours: float | None = None
    since_last: Sequence[str] = ()
    not_measured: Sequence[tuple[str, float]] = ()
    numbers: Sequence[str] = ()
    shard_size: int = 2048

    @property
    def derived(self) -> DerivedSettings:
        """Those of derived features."""
        pairs = tuple((str(code), float(hours)) for code, hours in self.not_measured)
        return DerivedSettings(tuple(self.carry), self.carry_hours, tuple(self.since_last), pairs, tuple(self.numbers))

    @property
    def rules(self) -> RecordRules:
        """Those of records."""
        rule = step_rule(self.steps, self.visit_gap_hours)
        first = self.anchor != ADMISSION
        return RecordRules(rule, self.max_steps, first, history_limit(self.history_hours), self.repeats)

    def check(self) -> None:
        """Raises `UserError` for settings that cannot be."""
        if self.bins < 2 or self.max_steps < 1 or self.shard_size < 1:
            raise UserError("prepare needs at least 2 bins, 1 step and 1 prediction a shard: give larger numbers.")
        for name, hours in (
            ("--visit-gap", self.visit_gap_hours),
            ("--history-hours", self.history_hours),
            ("--carry-hours", self.carry_hours),
            *((f"--not-measured {code}", hours) for code, hours in self.not_measured),
        ):
            if hours is not None and not 0 < hours <= MOST_HOURS:
                raise UserError(f"{name} is {hours:g} hours: give a number above 0 and up to {MOST_HOURS:,}.")
        rule = self.rules.steps
        if self.repeats not in REPEATS:
            raise unknown_name("way with repeated values", self.repeats, REPEATS)
        if self.carry_hours is not None and not self.carry:
            raise UserError("--carry-hours limits values that are carried forward: name their codes by --carry.")
        if rule.kind != BINS and EVERY_CODE in self.carry:
            raise UserError(
                "--carry all fills every step with every code that was ever recorded, which needs --steps of a fixed "
                "width (such as 1h); or name the codes to carry."
            )

    def as_json(self) -> Json:
        """The settings as a manifest keeps them."""
        told = asdict(self)
        for name in ("strata", "without", "carry", "since_last", "numbers"):
            told[name] = list(told[name])
        told["not_measured"] = [[code, float(hours)] for code, hours in self.not_measured]
        return told

    @classmethod
    def of(cls, told: Json) -> PrepareSettings:
        """The settings of a manifest."""
        return cls(**{name.name: told[name.name] for name in fields(cls) if name.name in told})
