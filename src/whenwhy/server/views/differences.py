"""A state flows in, which features contribute differently in two cohorts flows out: bars, both levels, a table."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bokeh.models import BasicTicker, TapTool
from bokeh.models.annotations.geometry import Span
from bokeh.models.glyphs import HBar, Segment
from bokeh.models.ui.ui_element import UIElement

from whenwhy.errors import UserError
from whenwhy.server.answers import Question, question
from whenwhy.server.charts import CHOSEN, FADED, MARK, ZERO_LINE, Columns, around_zero, chart, draw, tooltip
from whenwhy.server.choices import Choices
from whenwhy.server.dumbbells import LABEL_WIDTH, Dumbbells, put_rows
from whenwhy.server.feature_names import feature_name, feature_words
from whenwhy.server.labels import (
    capitalised,
    counted,
    interval,
    no_cells,
    not_a_cause,
    quantity_in_unit,
    signed,
    unit_of,
)
from whenwhy.server.markup import choice, heading, table, words
from whenwhy.server.state import State
from whenwhy.server.view import Choose, Tables, Texts
from whenwhy.server.views.subgroups import rate

TOP: Final = 20

#: What stands behind an interval of a difference.
INTERVALS: Final = {
    "separate patients": "no patient is in both cohorts",
    "shared patients": "some patients are in both cohorts, which the interval counts in",
    "at least": "somebody may be in both cohorts, so that the widest possible interval is shown",
}


@dataclass(frozen=True)
class Differing:
    """The rows of cohort_comparison."""

    state: State
    rows: list[Mapping[str, Any]]


class Differences:
    """A bar a feature, the first cohort minus the second, and the level of either; a bar or a row chooses the feature."""

    name = "differences"

    def __init__(self, choices: Choices, choose: Choose | None = None) -> None:
        self._choices = choices
        told = [
            ("feature", "name"),
            ("difference", "difference_words"),
            ("95 % interval", "interval"),
            ("mean of the cohort", "first_words"),
            ("mean of its reference", "second_words"),
            ("patients", "patients"),
            ("false discovery rate", "rate"),
        ]
        # One source, so that whoever chooses a bar chooses its levels.
        self.levels = Dumbbells("differences_rows", told, choose, COLUMNS)
        self.source = self.levels.source
        self._plot = chart(300, left=LABEL_WIDTH, grid="x")
        self._plot.xaxis.ticker = BasicTicker(desired_num_ticks=4)
        self._plot.add_layout(Span(location=0, dimension="height", line_color=ZERO_LINE, line_width=1))
        bars = draw(
            self._plot,
            self.source,
            HBar(
                y="y", left=0, right="difference", height=0.72, line_color=None, fill_color="color", fill_alpha="alpha"
            ),
        )
        whisker = Segment(x0="low", x1="high", y0="y", y1="y", line_color="#1c2430", line_width=1.5)
        draw(self._plot, self.source, whisker)
        self._plot.add_tools(
            tooltip([bars], [(name, f"@{column}") for name, column in told]), TapTool(renderers=[bars])
        )

    @property
    def charts(self) -> Mapping[str, UIElement]:
        """The differences, and the levels that they are of."""
        return {"differences": self._plot, "differences_levels": self.levels.plot}

    def questions(self, state: State) -> Mapping[str, Question]:
        """The features whose contributions differ most."""
        compared(state)
        return {"rows": question("cohort_comparison", **state.of_both(), top=TOP)}

    def csv(self, state: State) -> Question:
        """The question whose answer people take along."""
        return self.questions(state)["rows"]

    def read(self, state: State, tables: Tables) -> Differing:
        """The rows."""
        return Differing(state, tables["rows"].to_pylist())

    def put(self, data: Differing) -> Texts:
        """The card's title, and the table."""
        run, rows = self._choices.runs[data.state.run], data.rows
        labels = [feature_name(row["code"], row["description"]) for row in rows]
        self.levels.put(labels, columns(data), f"{unit_of(run)} per prediction")
        put_rows(self._plot, labels)
        low, high = around_zero([row[name] for row in rows for name in ENDS])
        self._plot.x_range.update(start=low, end=high)
        self._plot.xaxis.axis_label = f"{unit_of(run)} per prediction"
        if not rows:
            none = capitalised(no_cells(data.state.min_patients)) + ", in both cohorts."
            return {"differences_heading": "", "differences_words": words(none), "differences_table": ""}
        n_tested, n_found = rows[0]["n_tested"], sum(bool(row["is_discovery"]) for row in rows)
        quiet = (
            f"per prediction; whiskers: 95 % interval, patients as units: {interval_words(rows)}; solid: found at a false "
            f"discovery rate of 5 % among all {counted(n_tested or 0, 'feature')} of 60 effective patients in both, "
            "others are not tested; pale: not found"
        )
        title = f"Where they differ: {n_found} of {counted(len(rows), 'feature')} below surely"
        return {
            "differences_heading": heading(title, quiet),
            "differences_words": "",
            "differences_table": _table(data, run),
        }


ENDS: Final = ("difference", "difference_low", "difference_high")

#: What the bars draw, and counts.
COLUMNS = ("color", "alpha", "difference", "low", "high", "n_patients_a", "n_patients_b")


def compared(state: State) -> None:
    """Nothing, if there is somebody to compare with.

    Raises:
        UserError: there is nobody.
    """
    if state.reference is None:
        raise UserError("There is nobody to compare with: choose two cohorts first.")


def interval_words(rows: Sequence[Mapping[str, Any]]) -> str:
    """What stands behind the intervals of differences.

    Example:
        >>> interval_words([{"interval_of": "separate patients"}])
        'no patient is in both cohorts'
    """
    return "; ".join(INTERVALS[kind] for kind in dict.fromkeys(row["interval_of"] for row in rows) if kind)


def columns(data: Differing) -> Columns:
    """The bars at their places, with the words of their tooltips; pale where a difference is no discovery."""
    rows = data.rows
    return {
        "first": [row["mean_a"] for row in rows],
        "second": [row["mean_b"] for row in rows],
        "code": [row["code"] for row in rows],
        "name": [feature_words(row["code"], row["description"]) for row in rows],
        "color": [CHOSEN if row["code"] == data.state.feature else MARK for row in rows],
        "alpha": [1.0 if row["is_discovery"] else FADED for row in rows],
        "difference": [row["difference"] for row in rows],
        "low": [_or_nan(row["difference_low"]) for row in rows],
        "high": [_or_nan(row["difference_high"]) for row in rows],
        "difference_words": [signed(row["difference"]) for row in rows],
        "interval": [interval(row["difference_low"], row["difference_high"]) for row in rows],
        "first_words": [signed(row["mean_a"]) for row in rows],
        "second_words": [signed(row["mean_b"]) for row in rows],
        "patients": [f"{row['n_patients_a']:,} and {row['n_patients_b']:,}" for row in rows],
        "rate": [rate(row["q_value"]) for row in rows],
        "n_patients_a": [row["n_patients_a"] for row in rows],
        "n_patients_b": [row["n_patients_b"] for row in rows],
    }


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _table(data: Differing, run: Mapping[str, Any]) -> str:
    """The rows as HTML; a feature's name chooses it."""
    rows = [
        [
            choice("choose", feature_words(row["code"], row["description"]), name="feature", value=row["code"]),
            f"{row['n_patients_a']:,}",
            f"{row['n_patients_b']:,}",
            signed(row["mean_a"]),
            signed(row["mean_b"]),
            f"<b>{signed(row['difference'])}</b>" if row["is_discovery"] else signed(row["difference"]),
            html.escape(interval(row["difference_low"], row["difference_high"])),
            rate(row["q_value"]),
        ]
        for row in data.rows
    ]
    head = [
        *("Feature", "Patients of the cohort", "of its reference", "Mean of the cohort", "of its reference"),
        *("Difference", "95 % interval", "False discovery rate"),
    ]
    caption = (
        f"Mean per prediction: {quantity_in_unit(run)}; bold: found at a false discovery rate of 5 %. "
        f"Intervals: 95 %, patients as units: {interval_words(data.rows)}. {not_a_cause(run)}"
    )
    chosen = next((i for i, row in enumerate(data.rows) if row["code"] == data.state.feature), None)
    return table(caption.strip(), head, rows, chosen=chosen)
