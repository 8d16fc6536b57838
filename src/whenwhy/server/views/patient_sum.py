"""The chosen patient flows in, how contributions lead from the baseline's score to the prediction's flows out as bars."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from bokeh.models import BasicTicker
from bokeh.models.glyphs import HBar, Scatter
from bokeh.models.ui.ui_element import UIElement

from whenwhy.errors import UserError
from whenwhy.server.answers import Question
from whenwhy.server.charts import MARK, Columns, chart, draw, empty, label_axis, tooltip
from whenwhy.server.choices import Choices
from whenwhy.server.feature_names import feature_words
from whenwhy.server.labels import baseline_words, counted, quantity, quantity_in_unit, shortened, signed, unit_of
from whenwhy.server.markup import heading, in_details, table
from whenwhy.server.patient import Look, Record, patient_question, record_of
from whenwhy.server.state import State
from whenwhy.server.view import Tables, Texts
from whenwhy.server.views.heat_map import PALETTE
from whenwhy.server.views.patient_events import LABELS

#: Codes with a bar of their own.
BARS: Final = 12

RAISES, LOWERS = PALETTE[-30], PALETTE[30]


@dataclass(frozen=True)
class Part:
    """What one bar adds: from `before` to `after`, in the score's unit, by so many values."""

    words: str
    n_values: int
    before: float
    after: float

    @property
    def sum(self) -> float:
        """What it adds."""
        return self.after - self.before


@dataclass(frozen=True)
class Sum:
    """The parts from the baseline's score on, the largest first, and the prediction's score."""

    state: State
    record: Record
    parts: list[Part]


def parts_of(record: Record) -> list[Part]:
    """What each code adds to the baseline's score, the largest in size first, the rest together last.

    Example:
        >>> values = [{"code": code, "description": None, "contribution": by} for code, by in (("a", 1.0), ("b", -2.0))]
        >>> [(part.words, part.before, part.after) for part in parts_of(Record(1, {"baseline_score": 0.5}, values, []))]
        [('b', 0.5, -1.5), ('a', -1.5, -0.5)]
    """
    codes: dict[str, list[Mapping[str, Any]]] = {}
    for row in record.values:
        codes.setdefault(row["code"], []).append(row)
    sums = {code: math.fsum(row["contribution"] for row in rows) for code, rows in codes.items()}
    ranked = sorted(codes, key=lambda code: (-abs(sums[code]), code))
    own = ranked if len(ranked) <= BARS + 1 else ranked[:BARS]
    told = [(feature_words(code, codes[code][0]["description"]), len(codes[code]), sums[code]) for code in own]
    rest = ranked[len(own) :]
    if rest:
        n_values = sum(len(codes[code]) for code in rest)
        told.append((f"{len(rest):,} other features", n_values, math.fsum(sums[code] for code in rest)))
    parts, at = [], float(record.head["baseline_score"])
    for words, n_values, by in told:
        parts.append(Part(words, n_values, at, at + by))
        at += by
    return parts


class PatientSum:
    """Bars from the baseline's score to the prediction's, each from where the one above it ends."""

    name = "patient_sum"

    def __init__(self, choices: Choices, look: Look) -> None:
        self._choices, self._look = choices, look
        self.source, self.ends = empty(*COLUMNS), empty("score", "y", "words")
        self.source.name = "patient_sum_parts"
        self._plot = chart(300, left=LABELS, grid="x", min_border_top=8, min_border_bottom=52)
        self._plot.xaxis.ticker = BasicTicker(desired_num_ticks=5)
        bars = HBar(
            y="y", left="left", right="right", height=0.66, fill_color="color", line_color="#5b6777", line_width=1
        )
        marks = Scatter(x="score", y="y", marker="diamond", size=14, fill_color=MARK, line_color="#ffffff")
        self._plot.add_tools(
            tooltip(
                [draw(self._plot, self.source, bars)],
                [("feature", "@feature"), ("values", "@n_values{0,0}"), ("adds", "@adds"), ("to a score of", "@to")],
            ),
            tooltip([draw(self._plot, self.ends, marks)], [("score", "@words")]),
        )

    @property
    def charts(self) -> Mapping[str, UIElement]:
        """The bars."""
        return {"patient_sum": self._plot}

    def questions(self, state: State) -> Mapping[str, Question]:
        """The patient's records; `UserError` without a patient, or of a run whose numbers do not add up."""
        run = self._choices.runs[state.run]
        asked = patient_question(state, self._look())
        if run["measures"] != "contribution":
            raise UserError(f"{quantity(run).capitalize()}s do not add up to the score: choose a run of contributions.")
        return {"patient": asked}

    def csv(self, state: State) -> Question:
        """The question whose answer people take along."""
        return self.questions(state)["patient"]

    def read(self, state: State, tables: Tables) -> Sum:
        """The parts of the chosen prediction's score."""
        record = record_of(tables["patient"], self._look())
        return Sum(state, record, parts_of(record))

    def put(self, data: Sum) -> Texts:
        """The card's title and its table."""
        run, head = self._choices.runs[data.state.run], data.record.head
        unit = unit_of(run)
        self.source.data = columns(data.parts)
        n = len(data.parts)
        scores = [head["baseline_score"], head["score"]]
        self.ends.data = {"score": scores, "y": [1, -n], "words": [signed(score) for score in scores]}
        every = [*scores, *(part.after for part in data.parts)]
        air = 0.06 * (max(every) - min(every)) or 1.0
        self._plot.x_range.update(start=min(every) - air, end=max(every) + air)
        self._plot.y_range.update(start=-n - 0.6, end=1.6)
        labels: dict[float, str] = {1: "baseline", -n: "this prediction"}
        labels |= {-at: shortened(part.words, 22) for at, part in enumerate(data.parts)}
        label_axis(self._plot.yaxis, labels, "feature")
        self._plot.xaxis.axis_label = f"score ({unit})"
        self._plot.height = 60 + 26 * (n + 2)
        self._plot.visible = True
        rows = [
            [html.escape(part.words), f"{part.n_values:,}", signed(part.sum), signed(part.after)] for part in data.parts
        ]
        rows = [["baseline", "", "", signed(scores[0])], *rows, ["this prediction", "", "", signed(scores[1])]]
        said = f"from {signed(scores[0])} to {signed(scores[1])} {unit}"
        return {
            "patient_sum_heading": heading(
                f"From the baseline to this prediction: {said}",
                f"{counted(len(data.record.values), 'value')} of one prediction; red raises the score, blue lowers it; "
                f"baseline: what the model says of {baseline_words(run)}",
            ),
            "patient_sum_table": in_details(
                "The bars as a table",
                table(
                    f"Summed {quantity_in_unit(run)}, the largest first.",
                    ["Feature", "Values", "Adds", "Score so far"],
                    rows,
                ),
            ),
        }


COLUMNS = ("y", "left", "right", "color", "feature", "n_values", "sum", "adds", "to")


def columns(parts: list[Part]) -> Columns:
    """The bars at their places, with the words of their tooltips."""
    return {
        "y": [-at for at in range(len(parts))],
        "left": [part.before for part in parts],
        "right": [part.after for part in parts],
        "color": [RAISES if part.sum >= 0 else LOWERS for part in parts],
        "feature": [part.words for part in parts],
        "n_values": [part.n_values for part in parts],
        "sum": [part.sum for part in parts],
        "adds": [signed(part.sum) for part in parts],
        "to": [signed(part.after) for part in parts],
    }
