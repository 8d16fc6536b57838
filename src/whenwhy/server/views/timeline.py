"""A state flows in, when the feature mattered flows out: its mean contribution in each bin of time with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bokeh.models import BasicTicker, ColumnDataSource
from bokeh.models.annotations.geometry import Span
from bokeh.models.ui.ui_element import UIElement

from whenwhy.server.answers import Asks
from whenwhy.server.choices import Choices
from whenwhy.server.labels import interval, quantity_in_unit, signed, unit_of
from whenwhy.server.state import State
from whenwhy.server.time_scale import TimeFrame, TimeScale
from whenwhy.server.view import MARK, Columns, heading, in_details, table, text, tooltip
from whenwhy.server.views.heat_map import found


@dataclass(frozen=True)
class Course:
    """The rows of feature_timeline."""

    state: State
    scale: TimeScale
    rows: list[Mapping[str, Any]]
    summary: Mapping[str, Any] | None


class Timeline:
    """The mean contribution per event; the mean per prediction at risk stands in the tooltip and the table."""

    def __init__(self, choices: Choices, frame: TimeFrame) -> None:
        self._choices = choices
        self._heading, self._table = text(), text()
        self.source = ColumnDataSource(columns(None), name="timeline_means")
        self.bands = ColumnDataSource(band_columns([]), name="timeline_bands")
        self._plot = frame.chart(216, min_border_top=8, min_border_bottom=52)
        self._plot.yaxis.ticker = BasicTicker(desired_num_ticks=4)
        self._plot.xgrid.visible = False
        self._plot.add_layout(Span(location=0, dimension="width", line_color="#5b6777", line_width=1))
        self._plot.quad(
            left="left",
            right="right",
            bottom="low",
            top="high",
            color=MARK,
            alpha=0.35,
            line_color=None,
            source=self.bands,
        )
        means = self._plot.segment(
            x0="left", x1="right", y0="mean", y1="mean", color=MARK, line_width=2, source=self.source
        )
        points = self._plot.scatter(
            x="x", y="mean", size=6, line_color=MARK, fill_color="fill", line_width=2, source=self.source
        )
        self._plot.add_tools(
            tooltip(
                [means, points],
                [
                    ("time", "@time"),
                    ("mean per event", "@event_words"),
                    ("95 % interval", "@event_interval"),
                    ("mean per prediction at risk", "@prediction_words"),
                    ("95 % interval", "@prediction_interval"),
                    ("patients", "@n_patients{0,0} of @n_patients_at_risk at risk"),
                    ("events", "@n_events{0,0}"),
                ],
            )
        )

    @property
    def roots(self) -> Mapping[str, UIElement]:
        """The card's title, the course, and the same as a table."""
        return {"timeline_heading": self._heading, "timeline": self._plot, "timeline_table": self._table}

    def query(self, store: Asks, state: State) -> Course:
        """The feature's course."""
        return Course(
            state,
            TimeScale.of(store.ask("time_bins", run=state.run).to_pylist()),
            store.ask("feature_timeline", feature=state.feature, **state.cohort).to_pylist(),
            next(iter(store.ask("feature_summary", feature=state.feature, **state.cohort).to_pylist()), None),
        )

    def put(self, data: Course) -> None:
        """Nothing; the course follows."""
        self._plot.visible = bool(data.rows)
        self.source.data = columns(data)
        self.bands.data = band_columns(data.rows)
        run = self._choices.runs[data.state.run]
        unit = unit_of(run)
        low, high = around_zero(data.rows)
        self._plot.y_range.update(start=low, end=high)
        self._plot.yaxis.axis_label = f"{unit} per event"
        if not data.rows:
            self._heading.text = self._table.text = ""
            return
        self._heading.text = heading(
            f"When it mattered{found(data.summary)}",
            "band: 95 % interval, patients as units; hollow: fewer than 30 effective patients, no interval",
        )
        self._table.text = _table(data, run)


def around_zero(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Ends of an axis that holds zero, every mean and every interval, with some air.

    Example:
        >>> around_zero([{"mean_per_event": 1.0, "mean_per_event_low": None, "mean_per_event_high": None}])
        (-0.08, 1.08)
    """
    names = ("mean_per_event", "mean_per_event_low", "mean_per_event_high")
    ends = [0.0, *(row[name] for row in rows for name in names if row[name] is not None)]
    air = 0.08 * (max(ends) - min(ends)) or 1.0
    return min(ends) - air, max(ends) + air


def columns(data: Course | None) -> Columns:
    """The means at their places, with the words of their tooltips."""
    rows, scale = (data.rows, data.scale) if data else ([], TimeScale(0, 1.0))
    return {
        "x": [-row["time_bin"] - 0.5 for row in rows],
        "left": [-row["time_bin"] - 1 for row in rows],
        "right": [-row["time_bin"] for row in rows],
        "time_bin": [row["time_bin"] for row in rows],
        "mean": [row["mean_per_event"] for row in rows],
        "fill": fills(rows),
        "n_patients": [row["n_patients"] for row in rows],
        "n_events": [row["n_events"] for row in rows],
        "n_patients_at_risk": [at_risk(row) for row in rows],
        "time": [scale.words(row["time_bin"]) for row in rows],
        "event_words": [signed(row["mean_per_event"]) for row in rows],
        "event_interval": [interval(row["mean_per_event_low"], row["mean_per_event_high"]) for row in rows],
        "prediction_words": [signed(row["mean_per_prediction"]) for row in rows],
        "prediction_interval": [
            interval(row["mean_per_prediction_low"], row["mean_per_prediction_high"]) for row in rows
        ],
    }


def at_risk(row: Mapping[str, Any]) -> str:
    """How many patients were under observation, where that may be shown."""
    return "" if row["n_patients_at_risk"] is None else f"{row['n_patients_at_risk']:,}"


def fills(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Hollow points where a mean has no interval."""
    return ["#ffffff" if row["mean_per_event_low"] is None else MARK for row in rows]


def band_columns(rows: Sequence[Mapping[str, Any]]) -> Columns:
    """The intervals, where there are any."""
    known = [row for row in rows if row["mean_per_event_low"] is not None]
    return {
        "left": [-row["time_bin"] - 1 for row in known],
        "right": [-row["time_bin"] for row in known],
        "low": [row["mean_per_event_low"] for row in known],
        "high": [row["mean_per_event_high"] for row in known],
    }


def _table(data: Course, run: Mapping[str, Any]) -> str:
    rows = [
        [
            data.scale.words(row["time_bin"]),
            at_risk(row),
            f"{row['n_patients']:,}",
            f"{row['n_events']:,}",
            signed(row["mean_per_event"]),
            interval(row["mean_per_event_low"], row["mean_per_event_high"]),
            signed(row["mean_per_prediction"]),
            interval(row["mean_per_prediction_low"], row["mean_per_prediction_high"]),
        ]
        for row in data.rows
    ]
    head = ["Time", "Patients at risk", "Patients", "Events", "Mean per event", "95 % interval"]
    return in_details(
        "The course as a table",
        table(
            f"Mean {quantity_in_unit(run)}; intervals: 95 %, patients as units.",
            [*head, "Mean per prediction at risk", "95 % interval"],
            rows,
        ),
    )
