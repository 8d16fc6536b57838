"""A state flows in, when which values of the feature mattered flows out: a heat map of value x time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bokeh.models import BasicTicker, ColumnDataSource, LinearColorMapper
from bokeh.models.annotations.legends import ColorBar
from bokeh.models.ui.ui_element import UIElement
from bokeh.palettes import RdBu, interp_palette

from whenwhy.server.answers import Asks
from whenwhy.server.choices import Choices
from whenwhy.server.labels import (
    capitalised,
    class_words,
    counted,
    feature_words,
    interval,
    no_cells,
    not_a_cause,
    quantity_in_unit,
    signed,
    split_words,
    stratum_words,
    unit_of,
    value_labels,
)
from whenwhy.server.state import State
from whenwhy.server.time_scale import TimeFrame, TimeScale
from whenwhy.server.view import Columns, grey_cells, heading, in_details, table, text, tooltip, words

#: From blue (lowers the prediction) over white to red (raises it); an odd number, so that zero has a colour of its own.
PALETTE = interp_palette(RdBu[11], 255)

#: What the colour bar takes above the cells; the value effect leaves as much, so that its rows stand beside these.
ABOVE, BELOW = 64, 52


@dataclass(frozen=True)
class Cells:
    """The rows of feature_heatmap within the feature's whole grid, and what the card says."""

    state: State
    scale: TimeScale
    values: list[Mapping[str, Any]]
    cells: list[Mapping[str, Any]]
    summary: Mapping[str, Any] | None
    has_time: bool

    @property
    def limit(self) -> float:
        """The end of the colour scale on either side of zero."""
        return max((abs(cell["mean_per_event"]) for cell in self.cells), default=0.0) or 1.0


class HeatMap:
    """The mean contribution per event of each range of values in each bin of time."""

    def __init__(self, choices: Choices, frame: TimeFrame) -> None:
        self._choices, self._frame = choices, frame
        self._heading, self._legend, self._table = text(), text(), text()
        self.shown = ColumnDataSource(shown_columns(None), name="heat_map_cells")
        self.hidden = ColumnDataSource(hidden_columns(None), name="heat_map_hidden")
        self.mapper = LinearColorMapper(palette=PALETTE, low=-1.0, high=1.0, name="heat_map_colors")
        self._plot = frame.chart(360, min_border_top=ABOVE, min_border_bottom=BELOW)
        self._plot.grid.visible = False
        missing = grey_cells(self._plot, self.hidden)
        cells = self._plot.rect(
            x="x",
            y="y",
            width=1,
            height=1,
            line_color="#ffffff",
            fill_color={"field": "mean_per_event", "transform": self.mapper},
            source=self.shown,
        )
        place = [("value", "@value"), ("time", "@time")]
        self._plot.add_tools(
            tooltip(
                [cells],
                [
                    *place,
                    ("mean per event", "@mean"),
                    ("95 % interval", "@interval"),
                    ("patients", "@n_patients{0,0}"),
                    ("events", "@n_events{0,0}"),
                ],
            ),
            tooltip([missing], [*place, ("", "fewer than 11 patients, none, or hidden to protect others")]),
        )
        self._bar = ColorBar(
            color_mapper=self.mapper,
            ticker=BasicTicker(desired_num_ticks=5),
            orientation="horizontal",
            height=12,
            padding=4,
            margin=0,
            title_standoff=4,
            label_standoff=4,
        )
        self._plot.add_layout(self._bar, "above")

    @property
    def roots(self) -> Mapping[str, UIElement]:
        """The card's title, the legend of grey, the cells, and the same as a table."""
        return {
            "heat_map_heading": self._heading,
            "heat_map_legend": self._legend,
            "heat_map": self._plot,
            "heat_map_table": self._table,
        }

    def query(self, store: Asks, state: State) -> Cells:
        """The cells that may be shown, and the grid that they lie in."""
        cells = store.ask("feature_heatmap", feature=state.feature, **state.cohort).to_pylist()
        summary = store.ask("feature_summary", feature=state.feature, **state.cohort).to_pylist()
        everybody = {"run": state.run, "split": state.split}
        has_time = bool(cells) or store.ask("feature_timeline", feature=state.feature, **everybody).num_rows > 0
        return Cells(
            state,
            TimeScale.of(store.ask("time_bins", run=state.run).to_pylist()),
            store.ask("feature_bins", feature=state.feature, run=state.run).to_pylist(),
            cells,
            summary[0] if summary else None,
            has_time,
        )

    def put(self, data: Cells) -> None:
        """Nothing; colours, axes and words follow."""
        run = self._choices.runs[data.state.run]
        self._heading.text = heading_of(data, self._choices)
        unit = unit_of(run)
        sentence = sentence_of(data, self._choices)
        self._plot.visible = not sentence
        self._legend.text = words(sentence) if sentence else LEGEND
        labels = value_labels(data.values, with_unit=False)
        self.mapper.update(low=-data.limit, high=data.limit)
        self.shown.data = shown_columns(data)
        self.hidden.data = hidden_columns(data)
        self._bar.title = f"{unit} per event (mean)"
        name = self._choices.offered[data.state.run].name_of(data.state.feature)
        self._plot.height = ABOVE + BELOW + show_values(self._plot, labels, data.values, name)
        self._frame.put(data.scale, room_for(labels))
        self._table.text = "" if sentence else _table(data, labels, run)


LEGEND = (
    '<p class="quiet">Red raises the prediction, blue lowers it. <span class="swatch"></span>Grey: fewer than '
    "11 patients, none, or hidden to protect others.</p>"
)


def room_for(labels: list[str]) -> int:
    """The pixels at the left of a chart that its labels and the name of its axis need."""
    return 44 + 8 * max(7, *map(len, labels), 0)


def show_values(plot: Any, labels: list[str], values: list[Mapping[str, Any]], name: str) -> int:
    """The height of the chart's rows, one a range of values, the lowest at the bottom."""
    n = max(1, len(labels))
    plot.y_range.update(start=-0.5, end=n - 0.5)
    plot.yaxis.ticker.ticks = list(range(len(labels)))
    plot.yaxis.major_label_overrides = dict(enumerate(labels))
    unit = next((v["unit"] for v in values if v["unit"]), None)
    plot.yaxis.axis_label = f"{name} ({unit})" if unit else (name if n > 2 else "")
    return 30 * n if n > 2 else 44 * n


def heading_of(data: Cells, choices: Choices) -> str:
    """The card's title with the patients and events that it rests on."""
    state = data.state
    name = feature_words(state.feature, choices.offered[state.run].name_of(state.feature))
    outcome = str(choices.runs[state.run]["outcome"])
    cohort = ", ".join(
        [split_words(state.split), class_words(state.class_label, outcome), stratum_words(state.stratum)]
    )
    return heading(f"{capitalised(name)}{found(data.summary)}", cohort)


def found(summary: Mapping[str, Any] | None) -> str:
    """How many patients and events a title rests on.

    Example:
        >>> found({"n_patients": 920, "n_events": 1407})
        ': 920 patients, 1,407 events'
    """
    if summary is None:
        return ""
    return f": {counted(summary['n_patients'], 'patient')}, {counted(summary['n_events'], 'event')}"


def sentence_of(data: Cells, choices: Choices) -> str:
    """Why there is nothing to draw; empty where there is."""
    if data.cells:
        return ""
    name = capitalised(choices.offered[data.state.run].name_of(data.state.feature))
    if data.summary is None:
        return f"{name}: {no_cells(data.state.min_patients)}."
    if data.has_time:
        return f"{name}: {no_cells(data.state.min_patients)}, a cell being one range of values in one bin of time. Coarser pictures may have some."
    return (
        f"{name} has no time here: it describes the patient and not a moment (or each of its moments is too rare to be "
        "shown). Its value effect shows how the contribution depends on the value."
    )


def shown_columns(data: Cells | None) -> Columns:
    """The cells of the query at their places, with the words of their tooltips."""
    if data is None:
        return {name: [] for name in SHOWN}
    row = {value["feature_value_id"]: i for i, value in enumerate(data.values)}
    label = value_labels(data.values)
    cells = [cell for cell in data.cells if cell["feature_value_id"] in row]
    at = [row[cell["feature_value_id"]] for cell in cells]
    return {
        "x": [-cell["time_bin"] - 0.5 for cell in cells],
        "y": at,
        "feature_value_id": [cell["feature_value_id"] for cell in cells],
        "time_bin": [cell["time_bin"] for cell in cells],
        "mean_per_event": [cell["mean_per_event"] for cell in cells],
        "n_patients": [cell["n_patients"] for cell in cells],
        "n_events": [cell["n_events"] for cell in cells],
        "value": [label[i] for i in at],
        "time": [data.scale.words(cell["time_bin"]) for cell in cells],
        "mean": [signed(cell["mean_per_event"]) for cell in cells],
        "interval": [interval(cell["mean_per_event_low"], cell["mean_per_event_high"]) for cell in cells],
    }


SHOWN = (
    *("x", "y", "feature_value_id", "time_bin", "mean_per_event", "n_patients", "n_events"),
    *("value", "time", "mean", "interval"),
)


def hidden_columns(data: Cells | None) -> Columns:
    """The places of the grid that have no cell to show."""
    if data is None:
        return {"x": [], "y": [], "value": [], "time": []}
    there = {(cell["feature_value_id"], cell["time_bin"]) for cell in data.cells}
    label = value_labels(data.values)
    places = [
        (i, time_bin)
        for i, value in enumerate(data.values)
        for time_bin in range(data.scale.n_bins)
        if (value["feature_value_id"], time_bin) not in there
    ]
    return {
        "x": [-time_bin - 0.5 for _, time_bin in places],
        "y": [i for i, _ in places],
        "value": [label[i] for i, _ in places],
        "time": [data.scale.words(time_bin) for _, time_bin in places],
    }


def _table(data: Cells, labels: list[str], run: Mapping[str, Any]) -> str:
    """The heat map's numbers: a row a range of values, a column a bin of time, the prediction at the right."""
    mean = {(cell["feature_value_id"], cell["time_bin"]): cell["mean_per_event"] for cell in data.cells}
    times = list(reversed(range(data.scale.n_bins)))
    rows = [
        [label, *(signed(m) if (m := mean.get((v["feature_value_id"], t), math.nan)) == m else "" for t in times)]
        for label, v in zip(labels, data.values, strict=True)
    ]
    caption = f"Mean per event: {quantity_in_unit(run)}; empty where no cell may be shown. {not_a_cause(run)}"
    head = ["Value", *(data.scale.words(t) for t in times)]
    return in_details("The heat map as a table", table(caption, head, [[_escaped(c) for c in row] for row in rows]))


def _escaped(cell: str) -> str:
    return cell.replace("&", "&amp;").replace("<", "&lt;")
