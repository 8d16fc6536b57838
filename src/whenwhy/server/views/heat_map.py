"""A state flows in, when which values of the feature mattered flows out: heat maps of value x time, side by side."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from bokeh.models import LinearColorMapper
from bokeh.models.glyphs import Rect
from bokeh.models.ui.ui_element import UIElement
from bokeh.palettes import RdBu, interp_palette

from whenwhy.server.answers import Question, question
from whenwhy.server.charts import (
    FADED,
    Columns,
    TimeFrame,
    brushed,
    color_bar,
    draw,
    empty,
    grey_cells,
    room_for,
    show_values,
    tooltip,
)
from whenwhy.server.choices import Choices
from whenwhy.server.cohort import Cohort, recorded_text
from whenwhy.server.feature import FeatureCells, asked_of
from whenwhy.server.labels import (
    capitalised,
    found,
    interval,
    no_cells,
    not_a_cause,
    quantity_in_unit,
    signed,
    unit_of,
    value_labels,
)
from whenwhy.server.markup import heading, in_details, table, words
from whenwhy.server.state import State
from whenwhy.server.time_scale import TimeScale
from whenwhy.server.view import Mark, Tables, Texts
from whenwhy.server.views.about import cohort_words

#: From blue (lowers the prediction) over white to red (raises it); an odd number, so that zero has a colour of its own.
PALETTE = interp_palette(RdBu[11], 255)

#: What the colour bar takes above the cells; the value effect leaves as much, so that its rows stand beside these.
ABOVE, BELOW = 64, 52

#: The panels, and the column of the answer that each draws.
PANELS: Final = {"cohort": "mean_per_event", "reference": "mean_per_event", "difference": "difference"}


@dataclass(frozen=True)
class Cells:
    """The cells of each panel within the feature's whole grid, and what the card says."""

    state: State
    scale: TimeScale
    values: list[Mapping[str, Any]]
    cells: Mapping[str, list[Mapping[str, Any]]]
    summary: Mapping[str, Any] | None
    has_time: bool

    @property
    def limit(self) -> float:
        """The end of the colour scale on either side of zero: one for the cohort and its reference."""
        means = [abs(cell["mean_per_event"]) for name in ("cohort", "reference") for cell in self.cells.get(name, [])]
        return max(means, default=0.0) or 1.0

    @property
    def difference_limit(self) -> float:
        """The same of differences."""
        return max((abs(cell["difference"]) for cell in self.cells.get("difference", [])), default=0.0) or 1.0


class _Panel:
    """One heat map."""

    def __init__(self, name: str, frame: TimeFrame, height: int) -> None:
        self.name, self.column = name, PANELS[name]
        self.shown, self.hidden = empty(*SHOWN), empty(*HIDDEN)
        self.shown.name, self.hidden.name = f"heat_map_{name}_cells", f"heat_map_{name}_hidden"
        self.mapper = LinearColorMapper(palette=PALETTE, low=-1.0, high=1.0, name=f"heat_map_{name}_colors")
        self.plot = frame.chart(height, grid="", min_border_top=ABOVE, min_border_bottom=BELOW)
        missing = grey_cells(self.plot, self.hidden)
        # On white, so that what is not sure fades into it.
        cells = draw(
            self.plot,
            self.shown,
            Rect(
                x="x",
                y="y",
                width=1,
                height=1,
                line_color="line",
                line_width="line_width",
                fill_color={"field": "mean", "transform": self.mapper},
                fill_alpha="alpha",
            ),
        )
        place = [("value", "@value"), ("time", "@time")]
        what = "difference" if name == "difference" else "mean per event"
        self.plot.add_tools(
            tooltip(
                [cells],
                [
                    *place,
                    (what, "@mean_words"),
                    ("95 % interval", "@interval"),
                    ("patients", "@patients"),
                    ("events", "@events"),
                ],
            ),
            tooltip([missing], [*place, ("", "fewer than 11 patients, none, or hidden to protect others")]),
        )
        self.bar = color_bar(self.plot, self.mapper)

    def put(self, data: Cells, labels: list[str], limit: float, unit: str, name: str) -> None:
        cells = data.cells.get(self.name)
        self.plot.visible = bool(cells) or (self.name != "cohort" and cells is not None and bool(data.cells["cohort"]))
        if cells is None:
            return
        self.mapper.update(low=-limit, high=limit)
        self.shown.data = shown_columns(data, cells, self.column)
        self.hidden.data = hidden_columns(data, cells)
        title = "difference" if self.name == "difference" else "mean"
        self.bar.title = f"{unit} per event ({title})"
        self.plot.height = ABOVE + BELOW + show_values(self.plot, labels, data.values, name)


class HeatMap:
    """The mean contribution per event of each range of values in each bin of time."""

    name = "heat_map"

    def __init__(self, choices: Choices, frame: TimeFrame, mark: Mark | None = None, difference: bool = False) -> None:
        self._choices, self._frame, self._can_mark = choices, frame, mark is not None
        names = list(PANELS) if difference else ["cohort", "reference"]
        self.panels = {name: _Panel(name, frame, 360) for name in names}
        self._grid: tuple[str, TimeScale, Sequence[int]] = ("", TimeScale(0, 1.0), ())
        if mark is not None:
            for panel in self.panels.values():
                brushed(panel.plot, partial(self._brushed, mark))

    @property
    def charts(self) -> Mapping[str, UIElement]:
        """The heat map of the cohort, that of its reference, and that of their difference."""
        return {
            "heat_map" if name == "cohort" else f"heat_map_{name}": panel.plot for name, panel in self.panels.items()
        }

    def questions(self, state: State) -> Mapping[str, Question]:
        """The cells that may be shown, and the grid that they lie in."""
        asked = asked_of(state)
        asked.pop("marked", None)
        asked["bins"] = question("feature_bins", feature=state.feature, run=state.run)
        if state.reference is not None and "difference" in self.panels:
            asked["difference"] = question(
                "feature_comparison", feature=state.feature, level="value", **state.of_both()
            )
        return asked

    def csv(self, state: State) -> Question:
        """The question whose answer people take along."""
        return question("feature_heatmap", feature=state.feature, **state.of())

    def read(self, state: State, tables: Tables) -> Cells:
        """The cells of each panel."""
        own = FeatureCells.of(tables["cohort"])
        cells: dict[str, list[Mapping[str, Any]]] = {"cohort": own.cells}
        if "reference" in tables:
            cells["reference"] = FeatureCells.of(tables["reference"]).cells
        if "difference" in tables:
            cells["difference"] = tables["difference"].to_pylist()
        offered = self._choices.offered[state.run]
        has_time = bool(own.course) or bool(offered.features[state.feature]["has_time"])
        return Cells(state, offered.time, tables["bins"].to_pylist(), cells, own.summary, has_time)

    def put(self, data: Cells) -> Texts:
        """The card's title, who the panels are of, the legend of colours, or words where there is nothing to draw."""
        state = data.state
        run = self._choices.runs[state.run]
        sentence = sentence_of(data, self._choices)
        labels = value_labels(data.values, with_unit=False)
        name = self._choices.offered[state.run].name_of(state.feature)
        for panel in self.panels.values():
            limit = data.difference_limit if panel.name == "difference" else data.limit
            panel.put(data, labels, limit, unit_of(run), name)
        self._frame.put(data.scale, room_for(labels))
        self._grid = (state.feature, data.scale, [value["feature_value_id"] for value in data.values])
        outcome = str(run["outcome"])

        def of(cohort: Cohort | None) -> str:
            told = [] if cohort is None else cohort_words(state, cohort, outcome)[1:]
            return f"<h3>{html.escape(', '.join(told))}</h3>" if told and state.reference is not None else ""

        return {
            "heat_map_heading": heading_of(data, self._choices),
            "heat_map_words": words(sentence) if sentence else legend(self._can_mark),
            "heat_map_cohort": of(state.cohort) if data.cells["cohort"] else "",
            "heat_map_reference": of(state.reference) if data.cells["cohort"] else "",
            "heat_map_difference": "<h3>the first minus the second</h3>"
            if data.cells["cohort"] and "difference" in data.cells
            else "",
            "heat_map_table": "" if sentence else _table(data, labels, run),
        }

    def _brushed(self, mark: Mark, left: float, right: float, bottom: float, top: float) -> None:
        """Marks the cells that a rectangle touches."""
        feature, scale, values = self._grid
        if not scale.n_bins or not values:
            return
        rows = [i for i in range(len(values)) if (i + 0.5 > bottom and i - 0.5 < top) or bottom == top == i + 0.5]
        if rows:
            first, last = scale.between(left, right)
            chosen = () if len(rows) == len(values) else tuple(values[i] for i in rows)
            mark(recorded_text(feature, chosen, scale.hours(first, last)))


def legend(can_mark: bool) -> str:
    """What the colours mean."""
    return (
        '<p class="quiet">Red raises the prediction, blue lowers it; pale: the interval holds zero, or there is none. '
        '<span class="swatch"></span>Grey: fewer than 11 patients, none, or hidden to protect others.'
        + (" Draw over cells, or click on one, to mark them.</p>" if can_mark else "</p>")
    )


def heading_of(data: Cells, choices: Choices) -> str:
    """The card's title with the patients and events that it rests on."""
    state = data.state
    name = choices.offered[state.run].words_of(state.feature)
    outcome = str(choices.runs[state.run]["outcome"])
    who = cohort_words(state, state.cohort, outcome)
    return heading(f"{capitalised(name)}{found(data.summary)}", ", ".join(who))


def sentence_of(data: Cells, choices: Choices) -> str:
    """Why there is nothing to draw; empty where there is."""
    if data.cells["cohort"]:
        return ""
    name = capitalised(choices.offered[data.state.run].name_of(data.state.feature))
    if data.summary is None:
        return f"{name}: {no_cells(data.state.min_patients)}."
    if data.has_time:
        return (
            f"{name}: {no_cells(data.state.min_patients)}, a cell being one range of values in one bin of time. "
            "Coarser pictures may have some."
        )
    return (
        f"{name} has no time here: it describes the patient and not a moment (or each of its moments is too rare to be "
        "shown). Its value effect shows how the contribution depends on the value."
    )


SHOWN = (
    *("x", "y", "feature_value_id", "time_bin", "mean", "n_patients", "n_events", "patients", "events"),
    *("value", "time", "mean_words", "interval", "alpha", "line", "line_width"),
)
HIDDEN = ("x", "y", "value", "time")


def shown_columns(data: Cells, cells: Sequence[Mapping[str, Any]], column: str) -> Columns:
    """The cells of a panel at their places, with the words of their tooltips; pale where the sign is not sure."""
    state = data.state
    row = {value["feature_value_id"]: i for i, value in enumerate(data.values)}
    label = value_labels(data.values)
    known = [cell for cell in cells if cell["feature_value_id"] in row]
    at = [row[cell["feature_value_id"]] for cell in known]
    marked = [
        state.selected is not None
        and state.selected.code is not None
        and state.selected.holds(state.feature, cell["feature_value_id"], cell["low_hours"])
        for cell in known
    ]
    told = {
        "x": [-cell["time_bin"] - 0.5 for cell in known],
        "y": at,
        "value": [label[i] for i in at],
        "time": [data.scale.words(cell["time_bin"]) for cell in known],
        "mean": [cell[column] for cell in known],
        "mean_words": [signed(cell[column]) for cell in known],
        "interval": [interval(cell[f"{column}_low"], cell[f"{column}_high"]) for cell in known],
        "alpha": [1.0 if is_sure(cell[f"{column}_low"], cell[f"{column}_high"]) else FADED for cell in known],
        "line": ["#1c2430" if one else "#ffffff" for one in marked],
        "line_width": [2.5 if one else 1.0 for one in marked],
    }
    for name in ("feature_value_id", "time_bin"):
        told[name] = [cell[name] for cell in known]
    for name in ("patients", "events"):
        sides = ("_a", "_b") if column == "difference" else ("",)
        told[name] = [" and ".join(f"{cell[f'n_{name}{side}']:,}" for side in sides) for cell in known]
        told[f"n_{name}"] = [min(cell[f"n_{name}{side}"] for side in sides) for cell in known]
    return told


def is_sure(low: float | None, high: float | None) -> bool:
    """Whether an interval is there and excludes zero.

    Example:
        >>> is_sure(0.1, 0.2), is_sure(-0.1, 0.2), is_sure(None, None)
        (True, False, False)
    """
    return low is not None and high is not None and (low > 0 or high < 0)


def hidden_columns(data: Cells, cells: Sequence[Mapping[str, Any]]) -> Columns:
    """The places of the grid that have no cell to show."""
    there = {(cell["feature_value_id"], cell["time_bin"]) for cell in cells}
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


#: What the table of a panel holds.
CAPTIONS: Final = {"cohort": "Mean", "reference": "Mean of the reference", "difference": "The first minus the second"}


def _table(data: Cells, labels: list[str], run: Mapping[str, Any]) -> str:
    """The panels' numbers: a row a range of values, a column a bin of time, the prediction at the right."""
    times = list(reversed(range(data.scale.n_bins)))
    head = ["Value", *(data.scale.words(t) for t in times)]
    tables = []
    for name, cells in data.cells.items():
        mean = {(cell["feature_value_id"], cell["time_bin"]): cell[PANELS[name]] for cell in cells}
        rows = [
            [label, *(signed(m) if (m := mean.get((v["feature_value_id"], t), math.nan)) == m else "" for t in times)]
            for label, v in zip(labels, data.values, strict=True)
        ]
        caption = (
            f"{CAPTIONS[name]} per event: {quantity_in_unit(run)}; empty where no cell may be shown. {not_a_cause(run)}"
        )
        tables.append(table(caption, head, [[html.escape(cell) for cell in row] for row in rows]))
    return in_details("The heat map as a table", "".join(tables))
