"""A state flows in, the features that matter most flow out, in the order that is asked for: bars, sparklines, a table."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
from bokeh.models import FixedTicker, Range1d, TapTool
from bokeh.models.annotations.geometry import Span
from bokeh.models.glyphs import HBar, MultiLine, Segment
from bokeh.models.ui.ui_element import UIElement

from whenwhy.errors import UserError
from whenwhy.server.answers import Question, question
from whenwhy.server.charts import CHOSEN, FADED, MARK, ZERO_LINE, Columns, chart, draw, empty, tooltip
from whenwhy.server.choices import Choices
from whenwhy.server.feature_names import feature_name, feature_words
from whenwhy.server.labels import (
    capitalised,
    counted,
    interval,
    no_cells,
    number,
    quantity,
    ranking_title,
    shortened,
    signed,
    unit_of,
)
from whenwhy.server.markup import choice, heading, table, words
from whenwhy.server.state import ORDERS, State
from whenwhy.server.view import Choose, Tables, Texts
from whenwhy.server.views.subgroups import rate

TOP: Final = 20
#: In another order than that of sparklines, so many of these are asked for; a feature beyond them has none.
COURSES: Final = 500
#: More features than a store has.
ALL: Final = 10**9
BAR_HEIGHT: Final = 24
LABEL_WIDTH: Final = 148
#: The share of the chart's width that sparklines take at its right.
SPARKLINES: Final = 0.27


@dataclass(frozen=True)
class Measure:
    """What bars show in one order: the columns of the answer, and the words of the axis."""

    value: str
    low: str | None
    high: str | None
    axis: str

    def ends(self, row: Mapping[str, Any]) -> tuple[float | None, float | None]:
        """The interval of a row, where it has one."""
        if self.low is None or self.high is None:
            return None, None
        return row[self.low], row[self.high]


_MEAN = Measure("mean_per_event", "mean_per_event_low", "mean_per_event_high", "{unit} per event")
MEASURES: Final = {
    "size": Measure("mean_abs_per_prediction", None, None, "{unit} per prediction"),
    "mean": _MEAN,
    "significance": _MEAN,
    "difference": Measure("difference", "difference_low", "difference_high", "{unit} per prediction"),
    "variance": Measure("variance", None, None, "variance of contributions"),
    "entropy_over_time": Measure("entropy_over_time", None, None, "evenness over time"),
    "entropy_over_values": Measure("entropy_over_values", None, None, "evenness over values"),
}

#: What a number of the table is.
WHAT: Final = {
    "size": "mean absolute value",
    "mean": "mean",
    "significance": "mean",
    "difference": "difference",
    "variance": "variance",
    "entropy_over_time": "entropy",
    "entropy_over_values": "entropy",
}


@dataclass(frozen=True)
class Ranked:
    """The features in their order, and what the marked patients have."""

    state: State
    rows: list[Mapping[str, Any]]
    marked: Mapping[str, float]
    n_bins: int

    @property
    def measure(self) -> Measure:
        """What the bars show."""
        return MEASURES[self.state.order]


class Ranking:
    """A bar and a sparkline a feature; a bar or a row chooses it."""

    name = "ranking"

    def __init__(self, choices: Choices, choose: Choose | None = None) -> None:
        self._choices, self._can_choose = choices, choose is not None
        self.source, self.marked, self.lines = empty(*COLUMNS), empty("y", "value"), empty(*LINES)
        self.source.name = "ranking_bars"
        #: The questions whose answers the lines stand for.
        self.lines_of: tuple[Question, ...] = ()
        self._plot = chart(300, left=LABEL_WIDTH, grid="x")
        self._plot.min_border_right = 12
        self._plot.yaxis.ticker = self._rows = FixedTicker(ticks=[])
        self._plot.xaxis.ticker = self._numbers = FixedTicker(ticks=[])
        self._plot.extra_x_ranges = {"time": Range1d(start=0, end=1)}
        self._plot.add_layout(Span(location=0, dimension="height", line_color=ZERO_LINE, line_width=1))
        bars = draw(
            self._plot,
            self.source,
            HBar(y="y", left=0, right="length", height=0.72, line_color=None, fill_color="color", fill_alpha="alpha"),
        )
        draw(
            self._plot,
            self.marked,
            HBar(y="y", left=0, right="value", height=0.24, line_color=None, fill_color="#e08a3c"),
        )
        draw(
            self._plot, self.source, Segment(x0="low", x1="high", y0="y", y1="y", line_color="#1c2430", line_width=1.5)
        )
        # No course of theirs is drawn beyond the bars' own region.
        sparklines = draw(self._plot, self.lines, MultiLine(xs="xs", ys="ys", line_color="color", line_width=1.5))
        sparklines.x_range_name = "time"
        self._plot.add_tools(
            tooltip(
                [bars],
                [
                    ("feature", "@name"),
                    ("@what", "@value_words"),
                    ("95 % interval", "@interval_words"),
                    ("patients", "@patients"),
                ],
            )
        )
        if choose is not None:
            self._plot.add_tools(TapTool(renderers=[bars]))
            self.source.selected.on_change("indices", partial(self._tapped, choose))

    @property
    def charts(self) -> Mapping[str, UIElement]:
        """The bars with their sparklines."""
        return {"ranking": self._plot}

    def questions(self, state: State) -> Mapping[str, Question]:
        """The first features of the order, and how those of the marked patients stand."""
        asked = {"rows": ranking_of(state)}
        if state.selected_cohort is not None and state.order in ("size", "mean", "significance"):
            asked["marked"] = question("top_features", **state.of(state.selected_cohort), top=ALL)
        return asked

    def csv(self, state: State) -> Question:
        """The question whose answer people take along."""
        return ranking_of(state)

    def read(self, state: State, tables: Tables) -> Ranked:
        """The rows, and what marked patients have in them."""
        rows = tables["rows"].to_pylist()
        wanted = {row["code"] for row in rows}
        marked: dict[str, float] = {}
        if "marked" in tables:
            column, told = MEASURES[state.order].value, tables["marked"]
            there = told.filter(pc.is_in(told["code"], pa.array(sorted(wanted), pa.string())))
            marked = {row["code"]: row[column] for row in there.to_pylist()}
        return Ranked(state, rows, marked, self._choices.offered[state.run].time.n_bins)

    def _tapped(self, choose: Choose, attribute: str, old: list[int], new: list[int]) -> None:
        if new:
            choose(self.source.data["code"][new[0]])

    def put(self, data: Ranked) -> Texts:
        """The card's title, and the table."""
        run = self._choices.runs[data.state.run]
        n = len(data.rows)
        self._plot.visible = n > 0
        self.source.selected.indices = []
        self.source.data = columns(data)
        if not n:
            none = capitalised(no_cells(data.state.min_patients)) + "."
            return {"ranking_heading": "", "ranking_words": words(none), "ranking_table": ""}
        at = dict(zip(self.source.data["code"], self.source.data["y"], strict=True))
        self.marked.data = {
            "y": [at[code] for code in data.marked],
            "value": [data.marked[code] for code in data.marked],
        }
        ends = [
            end
            for name in ("length", "low", "high")
            for end in self.source.data[name]
            if end is not None and end == end
        ]
        low, high = min(0.0, *ends), max(0.0, *ends)
        span = (high - low) or 1.0
        low, high = low - (0.03 * span if low < 0 else 0), high + 0.03 * span
        self._plot.x_range.update(start=low, end=high + (high - low) * SPARKLINES / (1 - SPARKLINES))
        self._numbers.ticks = ticks(low, high)
        self._plot.xaxis.major_label_overrides = {tick: number(tick, 3) for tick in ticks(low, high)}
        bins = max(1, data.n_bins)
        self._plot.extra_x_ranges["time"].update(start=-bins / SPARKLINES * 1.04, end=bins * 0.02)
        if self.lines_of != drawn_for(data.state):
            self.lines.data = {name: [] for name in LINES}
        self._plot.y_range.update(start=-n - 0.5, end=-0.5)
        self._plot.height = BAR_HEIGHT * n + 62
        self._rows.ticks = sorted(self.source.data["y"])
        self._plot.yaxis.major_label_overrides = {
            -row["rank"]: shortened(feature_name(row["code"], row["description"]), 22) for row in data.rows
        }
        self._plot.xaxis.axis_label = data.measure.axis.format(unit=unit_of(run))
        shown = f"the first {n}" if n == TOP else counted(n, "feature")
        choosing = "; choose a bar" if self._can_choose else ""
        ranked = f"by {ORDERS[data.state.order]}{choosing}; at the right its course in time, each to its own scale"
        if data.state.order == "size" and any(row["mean_abs_per_prediction"] is None for row in data.rows):
            ranked = "without a rank: how many predictions there are may not be shown for this cohort"
        return {
            "ranking_heading": heading(ranking_title(run), f"{shown} {ranked}"),
            "ranking_words": "",
            "ranking_table": _table(data, run),
        }


def ranking_of(state: State) -> Question:
    """The question that an order asks."""
    if state.order == "difference":
        if state.reference is None:
            raise UserError("There is nobody to compare with: choose a reference first, or another order.")
        return question("cohort_comparison", **state.of_both(), top=TOP)
    if state.order in ("size", "mean", "significance"):
        return question("top_features", **state.of(), top=TOP, order_by=state.order)
    if not state.is_ready:
        raise UserError(
            f"The order by {ORDERS[state.order]} is ready for classes and strata alone: remove the conditions and the fixed "
            "panel, or choose another."
        )
    return question("feature_ranking", criterion=state.order, **state.of(), top=TOP)


def courses_of(state: State) -> Question:
    """The question for the courses of an order's features."""
    return question("sparklines", **state.of(), top=TOP if state.order == "size" else COURSES)


def drawn_for(state: State) -> tuple[Question, ...]:
    """The questions whose answers sparklines stand for."""
    return ranking_of(state), courses_of(state)


COLUMNS = (
    *("y", "code", "name", "color", "alpha", "length", "value", "low", "high", "what", "value_words", "interval_words"),
    *("patients", "n_patients"),
)


LINES: Final = ("code", "xs", "ys", "color")


def _patients(row: Mapping[str, Any]) -> list[int]:
    return [row["n_patients_a"], row["n_patients_b"]] if "n_patients_a" in row else [row["n_patients"]]


def _is_faint(data: Ranked, row: Mapping[str, Any]) -> bool:
    """Whether a row's sign is not sure; of differences, whether it is no discovery among all that were tested."""
    if data.measure.low is None:
        return False
    if data.state.order == "difference":
        return not row["is_discovery"]
    low, high = data.measure.ends(row)
    return low is None or high is None or low <= 0 <= high


def columns(data: Ranked) -> Columns:
    """The bars at their places."""
    rows, measure = data.rows, data.measure
    told: Columns = {name: [] for name in COLUMNS}
    for row in rows:
        value, (low, high) = row[measure.value], measure.ends(row)
        patients = _patients(row)
        each = {
            "y": -row["rank"],
            "code": row["code"],
            "name": feature_words(row["code"], row["description"]),
            "color": CHOSEN if row["code"] == data.state.feature else MARK,
            "alpha": FADED if _is_faint(data, row) else 1.0,
            "length": value or 0.0,
            "value": value,
            "low": math.nan if low is None else low,
            "high": math.nan if high is None else high,
            "what": ORDERS[data.state.order],
            "value_words": "not shown" if value is None else number(value),
            "interval_words": "" if measure.low is None else interval(low, high),
            "patients": " and ".join(f"{n:,}" for n in patients),
            "n_patients": max(patients),
        }
        for name, one in each.items():
            told[name].append(one)
    return told


def ticks(low: float, high: float) -> list[float]:
    """A few round numbers within a range.

    Example:
        >>> ticks(0.0, 0.93), ticks(-1.0, 1.2)
        ([0.0, 0.25, 0.5, 0.75], [-1.0, 0.0, 1.0])
    """
    span = (high - low) or 1.0
    unit = 10 ** math.floor(math.log10(span))
    step = next(unit * k for k in (0.2, 0.25, 0.5, 1, 2, 2.5, 5, 10) if span / (unit * k) <= 4)
    return [round(i * step, 12) + 0.0 for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _table(data: Ranked, run: Mapping[str, Any]) -> str:
    """The rows as HTML; a feature's name chooses it."""
    measure = data.measure
    rows = []
    for row in data.rows:
        low, high = measure.ends(row)
        value = row[measure.value]
        told = [
            choice("choose", feature_words(row["code"], row["description"]), name="feature", value=row["code"]),
            " and ".join(f"{n:,}" for n in _patients(row)),
            "not shown" if value is None else html.escape(signed(value) if measure.low else number(value)),
        ]
        if measure.low is not None:
            told.append(html.escape(interval(low, high)))
        if data.state.order == "difference":
            told.append(rate(row["q_value"]))
        rows.append(told)
    head = ["Feature", "Patients", f"{capitalised(WHAT[data.state.order])}, {measure.axis.format(unit=unit_of(run))}"]
    head += ["95 % interval"] * (measure.low is not None) + ["False discovery rate"] * (
        data.state.order == "difference"
    )
    return table(
        f"The same features by {ORDERS[data.state.order]}; of each its {quantity(run)}; intervals: 95 %, patients as units.",
        head,
        rows,
        chosen=next((i for i, row in enumerate(data.rows) if row["code"] == data.state.feature), None),
    )
