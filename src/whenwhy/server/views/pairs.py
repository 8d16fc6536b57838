"""A state flows in, what ranges of two features contribute together flows out: a matrix, zero in the middle of its colours."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from bokeh.models import LinearColorMapper
from bokeh.models.glyphs import Rect
from bokeh.models.ui.ui_element import UIElement

from whenwhy.errors import UserError
from whenwhy.server.answers import Question, question
from whenwhy.server.charts import (
    FADED,
    Columns,
    chart,
    color_bar,
    draw,
    empty,
    grey_cells,
    room_for,
    show_values,
    tooltip,
)
from whenwhy.server.choices import Choices
from whenwhy.server.labels import (
    capitalised,
    counted,
    interval,
    no_cells,
    not_a_cause,
    quantity_in_unit,
    signed,
    unit_of,
    value_labels,
)
from whenwhy.server.markup import choice, heading, in_details, table, words
from whenwhy.server.outcomes import need_rows, rows_of
from whenwhy.server.state import LAGS, State
from whenwhy.server.view import Tables, Texts
from whenwhy.server.views.heat_map import PALETTE, is_sure
from whenwhy.server.views.partners import ALL, at_lag, lags_of, pairs_of

#: The part of the page that asks for it.
PART: Final = "pairs"
#: So many partners are offered.
OFFERED: Final = 12
HIDDEN: Final = '<p class="quiet"><span class="swatch"></span>Grey: fewer than 11 patients, or none.</p>'
#: What the colour bar takes above the cells, and slanted labels below.
ABOVE, BELOW = 64, 84


@dataclass(frozen=True)
class Matrix:
    """Partners to choose from, the cells of feature_pairs with the chosen one, and the ranges of both features."""

    state: State
    partners: list[dict[str, Any]]
    cells: list[dict[str, Any]]
    values: list[dict[str, Any]]
    others: list[dict[str, Any]]

    @property
    def limit(self) -> float:
        """The end of the colour scale on either side of zero."""
        return max((abs(cell["mean_joint"]) for cell in self.cells), default=0.0) or 1.0


class Pairs:
    """What values of the chosen feature and of a partner contribute together, at the chosen lag."""

    name = "pairs"

    def __init__(self, choices: Choices) -> None:
        self._choices = choices
        self.source, self.hidden = empty(*COLUMNS), empty("x", "y", "value", "other")
        self.source.name, self.hidden.name = "pairs_cells", "pairs_hidden"
        self.mapper = LinearColorMapper(palette=PALETTE, low=-1.0, high=1.0, name="pairs_colors")
        self._plot = chart(360, grid="", min_border_top=ABOVE, min_border_bottom=BELOW)
        self._plot.xaxis.major_label_orientation = 0.6
        missing = grey_cells(self._plot, self.hidden)
        cell = Rect(
            x="x",
            y="y",
            width=1,
            height=1,
            line_color="#ffffff",
            fill_color={"field": "mean_joint", "transform": self.mapper},
            fill_alpha="alpha",
        )
        cells = draw(self._plot, self.source, cell)
        self._plot.add_tools(
            tooltip(
                [cells],
                [
                    ("@name", "@value"),
                    ("@other_name", "@other"),
                    ("both together, per pair", "@joint"),
                    ("95 % interval", "@joint_interval"),
                    ("difference the partner makes", "@difference"),
                    ("95 % interval", "@difference_interval"),
                    ("patients", "@n_patients{0,0}"),
                    ("pairs", "@n_pairs{0,0}"),
                ],
            ),
            tooltip([missing], [("value", "@value"), ("partner", "@other"), ("", "fewer than 11 patients, or none")]),
        )
        self.bar = color_bar(self._plot, self.mapper)

    @property
    def charts(self) -> Mapping[str, UIElement]:
        """The matrix."""
        return {"pairs": self._plot}

    def questions(self, state: State) -> Mapping[str, Question]:
        """The partners of the feature, and with one chosen the pairs of their ranges; once they are opened."""
        if PART not in state.opened:
            return {}
        need_rows(self._choices, "What features contribute together")
        asked = {"partners": pairs_of(state)}
        if state.other is not None:
            told = {"feature": state.feature, "other": state.other, "lags": int(state.lag), **state.of()}
            asked["cells"] = question("feature_pairs", level="value", top=ALL, **told)
            asked["values"] = question("feature_bins", feature=state.feature, run=state.run)
            asked["others"] = question("feature_bins", feature=state.other, run=state.run)
        return asked

    def csv(self, state: State) -> Question:
        """The question whose answer people take along.

        Raises:
            UserError: no partner is chosen.
        """
        if state.other is None:
            raise UserError("No partner is chosen: choose one, and its pairs of values can be taken along.")
        return self.questions(state)["cells"]

    def read(self, state: State, tables: Tables) -> Matrix | None:
        """The cells; None while nobody asks for them."""
        if "partners" not in tables:
            return None
        partners = at_lag(tables["partners"], state).slice(0, OFFERED).to_pylist()
        cells = at_lag(tables["cells"], state).to_pylist() if "cells" in tables else []
        return Matrix(state, partners, cells, rows_of(tables, "values"), rows_of(tables, "others"))

    def put(self, data: Matrix | None) -> Texts:
        """The partners to choose from, the card's title, and the same as a table."""
        self._plot.visible = data is not None and bool(data.cells)
        if data is None:
            self.source.data = {name: [] for name in COLUMNS}
            return dict.fromkeys(("pairs_heading", "pairs_words", "pairs_partners", "pairs_table"), "")
        state, run = data.state, self._choices.runs[data.state.run]
        partners = self._partners(data)
        name = self._name(state.feature, state)
        if not data.cells:
            none = f"{capitalised(name)}: {no_cells(state.min_patients)}, a cell being "
            said = "one range of each of both" if state.other else "one partner"
            told = "Choose a partner." if data.partners and not state.other else f"{none}{said} {LAGS[state.lag]}."
            return {"pairs_heading": "", "pairs_words": words(told), "pairs_partners": partners, "pairs_table": ""}
        assert state.other is not None
        other = self._name(state.other, state)
        labels, others = (value_labels(values, with_unit=False) for values in (data.values, data.others))
        self.mapper.update(low=-data.limit, high=data.limit)
        self.source.data = columns(data, name, other)
        self.hidden.data = hidden_columns(data)
        self.bar.title = f"{unit_of(run)} per pair (mean of what both contribute)"
        self._plot.height = ABOVE + BELOW + show_values(self._plot, labels, data.values, name)
        self._plot.min_border_left = room_for(labels)
        self._plot.x_range.update(start=-0.5, end=len(others) - 0.5)
        self._plot.xaxis[0].ticker.update(ticks=list(range(len(others))))  # type: ignore[union-attr]
        self._plot.xaxis.major_label_overrides = dict(enumerate(others))
        unit = next((value["unit"] for value in data.others if value["unit"]), None)
        self._plot.xaxis.axis_label = f"{other} ({unit})" if unit else other
        n = sum(cell["n_pairs"] for cell in data.cells)
        told = (
            f"the partner recorded {LAGS[state.lag]}: {counted(n, 'pair')} shown. Red raises the prediction, blue lowers it; pale: the "
            "95 % interval (patients as units) holds zero, or there is none"
        )
        return {
            "pairs_heading": heading(f"{capitalised(name)} with {other}", told + ".") + HIDDEN,
            "pairs_words": "",
            "pairs_partners": partners,
            "pairs_table": _table(data, labels, others, run),
        }

    def _name(self, code: str, state: State) -> str:
        return self._choices.offered[state.run].name_of(code)

    def _partners(self, data: Matrix) -> str:
        """The HTML of the partners that carry most together with the feature."""
        told = []
        for row in data.partners:
            code = row["other"]
            said = self._choices.offered[data.state.run].words_of(code)
            is_chosen = code == data.state.other
            told.append(
                f"<b>{html.escape(said)}</b>" if is_chosen else choice("choose", said, name="other", value=code)
            )
        return lags_of(data.state) + (f"<p>Together with: {' · '.join(told)}</p>" if told else "")


COLUMNS: Final = (
    *("x", "y", "mean_joint", "alpha", "name", "other_name", "value", "other", "joint", "joint_interval"),
    *("difference", "difference_interval", "n_patients", "n_pairs"),
)


def _places(values: list[dict[str, Any]]) -> dict[int, int]:
    return {value["feature_value_id"]: i for i, value in enumerate(values)}


def columns(data: Matrix, name: str, other: str) -> Columns:
    """The cells at their places, with the words of their tooltips; pale where the sign is not sure."""
    rows, places = data.cells, (_places(data.values), _places(data.others))
    labels = (value_labels(data.values), value_labels(data.others))
    at = [places[0][cell["feature_value_id"]] for cell in rows]
    beside = [places[1][cell["other_feature_value_id"]] for cell in rows]
    return {
        "x": beside,
        "y": at,
        "mean_joint": [cell["mean_joint"] for cell in rows],
        "alpha": [1.0 if is_sure(cell["mean_joint_low"], cell["mean_joint_high"]) else FADED for cell in rows],
        "name": [name for _ in rows],
        "other_name": [other for _ in rows],
        "value": [labels[0][i] for i in at],
        "other": [labels[1][i] for i in beside],
        "joint": [signed(cell["mean_joint"]) for cell in rows],
        "joint_interval": [interval(cell["mean_joint_low"], cell["mean_joint_high"]) for cell in rows],
        "difference": [signed(cell["difference"]) for cell in rows],
        "difference_interval": [interval(cell["difference_low"], cell["difference_high"]) for cell in rows],
        "n_patients": [cell["n_patients"] for cell in rows],
        "n_pairs": [cell["n_pairs"] for cell in rows],
    }


def hidden_columns(data: Matrix) -> Columns:
    """The places that have no cell to show."""
    there = {(cell["feature_value_id"], cell["other_feature_value_id"]) for cell in data.cells}
    labels = (value_labels(data.values), value_labels(data.others))
    places = [
        (i, j)
        for i, value in enumerate(data.values)
        for j, other in enumerate(data.others)
        if (value["feature_value_id"], other["feature_value_id"]) not in there
    ]
    return {
        "x": [j for _, j in places],
        "y": [i for i, _ in places],
        "value": [labels[0][i] for i, _ in places],
        "other": [labels[1][j] for _, j in places],
    }


def _table(data: Matrix, labels: list[str], others: list[str], run: Mapping[str, Any]) -> str:
    places = (_places(data.values), _places(data.others))
    rows = [
        [
            html.escape(labels[places[0][cell["feature_value_id"]]]),
            html.escape(others[places[1][cell["other_feature_value_id"]]]),
            f"{cell['n_patients']:,}",
            f"{cell['n_pairs']:,}",
            signed(cell["mean_joint"]),
            interval(cell["mean_joint_low"], cell["mean_joint_high"]),
            signed(cell["difference"]),
            interval(cell["difference_low"], cell["difference_high"]),
        ]
        for cell in data.cells
    ]
    caption = f"{capitalised(quantity_in_unit(run))}; intervals: 95 %, patients as units. {not_a_cause(run)}"
    head = ["Value", "Partner's value", "Patients", "Pairs", "Both, per pair", "95 % interval", "Difference"]
    return in_details("The pairs as a table", table(caption, [*head, "95 % interval"], rows))
