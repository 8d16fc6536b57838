"""A state flows in, how far the feature's contributions spread flows out: bands of percentiles in each bin of time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from bokeh.models import BasicTicker
from bokeh.models.annotations.geometry import Span
from bokeh.models.glyphs import Quad, Segment
from bokeh.models.ui.ui_element import UIElement

from whenwhy.errors import UserError
from whenwhy.server.answers import Question, question
from whenwhy.server.charts import MARK, ZERO_LINE, Columns, TimeFrame, around_zero, draw, empty, tooltip
from whenwhy.server.choices import Choices
from whenwhy.server.labels import (
    capitalised,
    class_words,
    found,
    no_cells,
    quantity_in_unit,
    signed,
    split_words,
    unit_of,
)
from whenwhy.server.markup import heading, in_details, table, words
from whenwhy.server.outcomes import need_rows
from whenwhy.server.state import State
from whenwhy.server.time_scale import TimeScale
from whenwhy.server.view import Tables, Texts

#: The part of the page that asks for it.
PART: Final = "spread"
PERCENTILES: Final = ("p10", "p30", "p50", "p70", "p90")


@dataclass(frozen=True)
class Bands:
    """The rows of percentile_bands, and what the title rests on."""

    state: State
    scale: TimeScale
    rows: list[dict[str, Any]]
    summary: Mapping[str, Any] | None


class Percentiles:
    """The middle of the events' contributions, and where 40 and 80 % of them lie."""

    name = "percentiles"

    def __init__(self, choices: Choices, frame: TimeFrame) -> None:
        self._choices = choices
        self.source = empty(*COLUMNS)
        self.source.name = "percentile_bands"
        self._plot = frame.chart(216, grid="y", min_border_top=8, min_border_bottom=52)
        self._plot.yaxis.ticker = BasicTicker(desired_num_ticks=4)
        self._plot.add_layout(Span(location=0, dimension="width", line_color=ZERO_LINE, line_width=1))
        bands = [
            draw(
                self._plot,
                self.source,
                Quad(
                    left="left", right="right", bottom=low, top=high, fill_color=MARK, fill_alpha=alpha, line_color=None
                ),
            )
            for low, high, alpha in (("p10", "p90", 0.22), ("p30", "p70", 0.4))
        ]
        middle = Segment(x0="left", x1="right", y0="p50", y1="p50", line_color=MARK, line_width=2)
        draw(self._plot, self.source, middle)
        self._plot.add_tools(
            tooltip(
                bands[:1],
                [
                    ("time", "@time"),
                    ("median", "@p50_words"),
                    ("30 to 70 % of events", "@inner"),
                    ("10 to 90 % of events", "@outer"),
                    ("patients", "@n_patients{0,0}"),
                    ("events", "@n_events{0,0}"),
                ],
            )
        )

    @property
    def charts(self) -> Mapping[str, UIElement]:
        """The bands."""
        return {"percentiles": self._plot}

    def questions(self, state: State) -> Mapping[str, Question]:
        """The bands, once they are opened."""
        if PART not in state.opened:
            return {}
        need_rows(self._choices, "Percentiles of single contributions")
        if state.cohort.stratum != "all" or not state.is_ready:
            raise UserError(
                "Percentiles are ready for everybody of a class alone: choose the stratum everybody, without conditions "
                "and without a fixed panel."
            )
        told = {name: value for name, value in state.of().items() if name != "stratum"}
        return {
            "bands": question("percentile_bands", feature=state.feature, **told),
            "summary": question("feature_summary", feature=state.feature, **state.of()),
        }

    def csv(self, state: State) -> Question:
        """The question whose answer people take along."""
        return self.questions(state)["bands"]

    def read(self, state: State, tables: Tables) -> Bands | None:
        """The bands; None while nobody asks for them."""
        if "bands" not in tables:
            return None
        summary = next(iter(tables["summary"].to_pylist()), None)
        return Bands(state, self._choices.offered[state.run].time, tables["bands"].to_pylist(), summary)

    def put(self, data: Bands | None) -> Texts:
        """The card's title, and the same as a table."""
        self._plot.visible = data is not None and bool(data.rows)
        self.source.data = {name: [] for name in COLUMNS} if data is None else columns(data)
        if data is None or not data.rows:
            said = "" if data is None else words(capitalised(no_cells(data.state.min_patients)) + " that have a time.")
            return {"percentiles_heading": "", "percentiles_words": said, "percentiles_table": ""}
        run, state = self._choices.runs[data.state.run], data.state
        low, high = around_zero([row[name] for row in data.rows for name in PERCENTILES])
        self._plot.y_range.update(start=low, end=high)
        self._plot.yaxis.axis_label = f"{unit_of(run)} of an event"
        who = f"{split_words(state.split)}, {class_words(state.cohort.class_label, str(run['outcome']))}"
        told = (
            f"{who}; line: the median event; dark: 30 to 70 % of events lie there, light: 10 to 90 %. This is how much events "
            "differ, and no interval of a mean; of fewer than 11 patients nothing is shown"
        )
        name = capitalised(self._choices.offered[state.run].name_of(state.feature))
        return {
            "percentiles_heading": heading(f"{name}: how far contributions spread{found(data.summary)}", told + "."),
            "percentiles_words": "",
            "percentiles_table": _table(data, run),
        }


COLUMNS: Final = (
    *("left", "right", "time_bin", *PERCENTILES, "n_patients", "n_events", "time", "p50_words", "inner", "outer"),
)


def columns(data: Bands) -> Columns:
    """The bands at their places, with the words of their tooltips."""
    rows = data.rows
    kept = ("time_bin", *PERCENTILES, "n_patients", "n_events")
    return {
        "left": [-row["time_bin"] - 1 for row in rows],
        "right": [-row["time_bin"] for row in rows],
        **{name: [row[name] for row in rows] for name in kept},
        "time": [data.scale.words(row["time_bin"]) for row in rows],
        "p50_words": [signed(row["p50"]) for row in rows],
        "inner": [f"{signed(row['p30'])} to {signed(row['p70'])}" for row in rows],
        "outer": [f"{signed(row['p10'])} to {signed(row['p90'])}" for row in rows],
    }


def _table(data: Bands, run: Mapping[str, Any]) -> str:
    rows = [
        [
            data.scale.words(row["time_bin"]),
            f"{row['n_patients']:,}",
            f"{row['n_events']:,}",
            *(signed(row[name]) for name in PERCENTILES),
        ]
        for row in data.rows
    ]
    head = ["Time", "Patients", "Events", "10 %", "30 %", "Median", "70 %", "90 %"]
    return in_details("The spread as a table", table(f"Percentiles of events: {quantity_in_unit(run)}.", head, rows))
