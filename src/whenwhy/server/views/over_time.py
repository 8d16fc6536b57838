"""A state flows in, how predictions and outcomes run over the calendar flows out: counts by class, and both as shares."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from bokeh.models import BasicTicker, Range1d
from bokeh.models.glyphs import Line, Scatter, VBar
from bokeh.models.ui.ui_element import UIElement

from whenwhy.server.answers import Question, question
from whenwhy.server.charts import FADED, Columns, brushed, chart, draw, empty, tooltip
from whenwhy.server.choices import Choices
from whenwhy.server.labels import capitalised, class_words, counted, no_cells
from whenwhy.server.markup import heading, in_details, table, words
from whenwhy.server.outcomes import classes_of, colors_of, key, need_rows, of_marked, rows_of, tells_one_class, who
from whenwhy.server.state import State
from whenwhy.server.view import Mark, Tables, Texts
from whenwhy.server.views.calibration import share

#: With fewer years than this, months are told.
FEWEST_YEARS: Final = 3
ROOM: Final = 76
TEXTS: Final = ("over_time_heading", "over_time_words", "over_time_lines", "over_time_table")
#: Of mean probabilities.
PREDICTED: Final = "#1c2430"
SHIFTED: Final = "Dates that were shifted to protect patients tell no calendar."


@dataclass(frozen=True)
class Periods:
    """Rows of predictions_over_time by year or month, those of who is marked, and the class whose probability is told.

    `label` is None where predictions tell the probability of whatever class is predicted.
    """

    state: State
    unit: str
    classes: list[str]
    rows: list[dict[str, Any]]
    marked: list[dict[str, Any]]
    label: str | None

    @property
    def first(self) -> int:
        """The number of the first period."""
        return min((self.number(row["time"]) for row in self.rows), default=0)

    @property
    def n(self) -> int:
        """How many periods there are from the first to the last."""
        return max((self.number(row["time"]) + 1 - self.first for row in self.rows), default=0)

    def number(self, time: datetime) -> int:
        """The number of the year or month that begins then."""
        return time.year if self.unit == "year" else 12 * time.year + time.month - 1

    def begin(self, number: int) -> str:
        """The day when a year or month begins.

        Example:
            >>> Periods(State("r", "held_out", "hdl"), "month", [], [], [], None).begin(12 * 2004 + 2)
            '2004-03-01'
        """
        year, month = (number, 0) if self.unit == "year" else divmod(number, 12)
        return f"{year:04d}-{month + 1:02d}-01"

    def words(self, at: int) -> str:
        """The period that many after the first."""
        return self.begin(self.first + at)[: 4 if self.unit == "year" else 7]

    def place(self, row: Mapping[str, Any]) -> int:
        """How many periods after the first a row's is."""
        return self.number(row["time"]) - self.first


class OverTime:
    """Predictions of each class in every year or month, and the mean probability beside the observed share."""

    name = "over_time"

    def __init__(self, choices: Choices, mark: Mark) -> None:
        self._choices, self._mark = choices, mark
        self._shown: Periods | None = None
        self._unit = "year"
        self.source, self.marked = empty(*COLUMNS), empty("x", "bottom", "top")
        self.shares = empty(*SHARES)
        self.source.name, self.shares.name = "over_time_counts", "over_time_shares"
        both = Range1d(start=0, end=1)
        self._counts = chart(220, left=ROOM, x_range=both, grid="y", min_border_top=8)
        self._lines = chart(220, left=ROOM, x_range=both, grid="y", min_border_top=8)
        for plot in (self._counts, self._lines):
            plot.yaxis.ticker = BasicTicker(desired_num_ticks=4)
            brushed(plot, self._brushed, "width")
        bar = VBar(
            x="x", bottom="bottom", top="top", width=0.9, line_color="#ffffff", fill_color="color", fill_alpha="alpha"
        )
        bars = draw(self._counts, self.source, bar)
        draw(
            self._counts,
            self.marked,
            VBar(x="x", bottom="bottom", top="top", width=0.4, line_color=None, fill_color="#1c2430"),
        )
        self._counts.add_tools(
            tooltip(
                [bars],
                [
                    ("time", "@time"),
                    ("class", "@label"),
                    ("predictions", "@n_predictions{0,0}, @share of all then"),
                    ("patients", "@n_patients{0,0}"),
                    ("mean probability", "@probability"),
                ],
            )
        )
        # What is observed has its class's own colour.
        self._observed = Line(x="x", y="observed", line_width=2)
        observed = Scatter(x="x", y="observed", size=7, line_color="color", fill_color="color")
        draw(self._lines, self.shares, Line(x="x", y="predicted", line_color=PREDICTED, line_width=2))
        draw(self._lines, self.shares, self._observed)
        predicted = Scatter(x="x", y="predicted", size=7, line_color=PREDICTED, fill_color="#ffffff", line_width=2)
        points = [draw(self._lines, self.shares, point) for point in (observed, predicted)]
        self._lines.add_tools(
            tooltip(
                points,
                [
                    ("time", "@time"),
                    ("mean probability", "@predicted_words"),
                    ("observed share", "@observed_words"),
                    ("predictions", "@n_predictions{0,0}"),
                ],
            )
        )

    @property
    def charts(self) -> Mapping[str, UIElement]:
        """The counts, and the shares below."""
        return {"over_time": self._counts, "over_time_shares_chart": self._lines}

    def questions(self, state: State) -> Mapping[str, Question]:
        """Years and months, of all and of who is marked; calibration knows whose probability is told."""
        need_rows(self._choices, "The course over the calendar")
        whole, marked = of_whom(state.of(state.cohort.whatever_outcome)), of_marked(state)
        asked = {unit: question("predictions_over_time", unit=unit, **whole) for unit in ("year", "month")}
        if marked is not None:
            for unit in ("year", "month"):
                asked[f"marked {unit}"] = question("predictions_over_time", unit=unit, **of_whom(marked))
        if tells_one_class(self._choices, state.run):
            asked["calibration"] = question("calibration", **state.of(state.cohort.whatever_outcome))
        return asked

    def csv(self, state: State) -> Question:
        """The question whose answer is shown."""
        return self.questions(state)[self._unit]

    def read(self, state: State, tables: Tables) -> Periods:
        """The periods: years, or months where there are few years."""
        years = {row["time"] for row in rows_of(tables, "year")}
        unit = "year" if len(years) >= FEWEST_YEARS else "month"
        rows, told = rows_of(tables, unit), rows_of(tables, "calibration")
        known = classes_of(self._choices, state.run)
        classes = known + sorted({row["label"] for row in rows} - set(known))
        label = told[0]["label"] if told else None
        return Periods(state, unit, classes, rows, rows_of(tables, f"marked {unit}"), label)

    def put(self, data: Periods) -> Texts:
        """The card's title, or words where there is no course; the same as a table."""
        self._shown, self._unit = data if data.n > 1 else None, data.unit
        self._counts.visible, self._lines.visible = data.n > 1, data.n > 1 and data.label is not None
        self.source.data, self.shares.data = columns(data), share_columns(data)
        self.marked.data = marked_columns(data)
        if data.n < 2:
            said = capitalised(no_cells(data.state.min_patients)) + "."
            if data.n:
                said = f"All these predictions lie in {data.words(0)}, so there is no course over time. {SHIFTED}"
            return dict.fromkeys(TEXTS, "") | {"over_time_words": words(said)}
        self._counts.x_range.update(start=-0.6, end=data.n - 0.4)
        labels: dict[Any, Any] = {at: data.words(at) for at in range(data.n)}
        for plot in (self._counts, self._lines):
            plot.xaxis[0].ticker.update(ticks=list(labels))  # type: ignore[union-attr]
            plot.xaxis.major_label_overrides = labels
            plot.xaxis.axis_label = f"{data.unit} of the prediction"
        self._counts.y_range.update(start=0, end=max(self.source.data["top"]) * 1.06)
        self._counts.yaxis.axis_label = "predictions"
        both = [one for name in ("predicted", "observed") for one in self.shares.data[name] if one == one]
        self._lines.y_range.update(start=0, end=max(both, default=100.0) * 1.1)
        self._lines.yaxis.axis_label = "% of predictions"
        outcome = str(self._choices.runs[data.state.run]["outcome"])
        told = (
            f"{who(data.state)}; stacked; of fewer than 11 patients of a class nothing is shown. {SHIFTED} "
            f"Draw over {data.unit}s, or click on one, to mark them; dark: marked"
        )
        lines = ""
        if data.label is not None:
            color = colors_of(data.classes)[data.label]
            self._observed.line_color = color
            lines = (
                f'<p><span class="key" style="--mark:{PREDICTED}">mean probability of {html.escape(class_words(data.label, outcome))}'
                f'</span><span class="key" style="--mark:{color}">observed share</span></p>'
            )
        classes = key(data.classes, outcome, data.state.cohort.class_label)
        return {
            "over_time_heading": heading(f"Over the calendar: {_counted(data)}", told + ".") + f"<p>{classes}</p>",
            "over_time_words": "",
            "over_time_lines": lines,
            "over_time_table": _table(data),
        }

    def _brushed(self, left: float, right: float, bottom: float, top: float) -> None:
        """Marks the periods that a stretch touches."""
        if self._shown is None:
            return
        data = self._shown
        first, last = max(0, math.floor(left + 0.5)), min(data.n - 1, math.floor(right + 0.5))
        if first <= last:
            begin, end = data.begin(data.first + first), data.begin(data.first + last + 1)
            self._mark(f"range:prediction_time@{begin}..{end}")


def of_whom(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments without a class, which this query does not have: it tells all."""
    return {name: value for name, value in arguments.items() if name != "class"}


COLUMNS: Final = (
    *("x", "bottom", "top", "color", "alpha", "label", "time", "n_predictions", "n_patients", "share", "probability"),
)
SHARES: Final = ("x", "predicted", "observed", "color", "time", "predicted_words", "observed_words", "n_predictions")


def _counted(data: Periods) -> str:
    return f"{counted(sum(row['n_predictions'] for row in data.rows), 'prediction')} in {counted(data.n, data.unit)}"


def _stacked(data: Periods) -> list[tuple[Mapping[str, Any], int]]:
    """Each row, and how many predictions of its period lie below it."""
    below: dict[int, int] = {}
    stacked: list[tuple[Mapping[str, Any], int]] = []
    for row in sorted(data.rows, key=lambda row: data.classes.index(row["label"])):
        at = data.place(row)
        stacked.append((row, below.get(at, 0)))
        below[at] = below.get(at, 0) + row["n_predictions"]
    return stacked


def columns(data: Periods) -> Columns:
    """The bars at their places, with the words of their tooltips."""
    stacked, colors, chosen = _stacked(data), colors_of(data.classes), data.state.cohort.class_label
    rows = [row for row, _ in stacked]
    is_marking = data.state.selected is not None
    return {
        "x": [data.place(row) for row in rows],
        "bottom": [below for _, below in stacked],
        "top": [below + row["n_predictions"] for row, below in stacked],
        "color": [colors[row["label"]] for row in rows],
        "alpha": [1.0 if chosen in ("all", row["label"]) and not is_marking else FADED for row in rows],
        "label": [row["label"] for row in rows],
        "time": [data.words(data.place(row)) for row in rows],
        "n_predictions": [row["n_predictions"] for row in rows],
        "n_patients": [row["n_patients"] for row in rows],
        "share": [share(row["observed_share"]) for row in rows],
        "probability": [share(row["mean_probability"]) for row in rows],
    }


def marked_columns(data: Periods) -> Columns:
    """The marked part of each bar, half as wide."""
    n = {(row["label"], row["time"]): row["n_predictions"] for row in data.marked}
    known = [
        (data.place(row), below, below + n[row["label"], row["time"]])
        for row, below in _stacked(data)
        if (row["label"], row["time"]) in n
    ]
    return {"x": [x for x, *_ in known], "bottom": [b for _, b, _ in known], "top": [t for *_, t in known]}


def share_columns(data: Periods) -> Columns:
    """In %: the mean probability of all of a period's predictions, and the observed share, where all may be told."""
    told: Columns = {name: [] for name in SHARES}
    for at in range(data.n if data.label is not None else 0):
        rows = [row for row in data.rows if data.place(row) == at]
        predicted, observed, n = shares(rows, data.label)
        for name, one in (
            ("x", at),
            ("predicted", math.nan if predicted is None else 100 * predicted),
            ("observed", math.nan if observed is None else 100 * observed),
            ("color", colors_of(data.classes).get(str(data.label), PREDICTED)),
            ("time", data.words(at)),
            ("predicted_words", "not shown" if predicted is None else share(predicted)),
            ("observed_words", "not shown" if observed is None else share(observed)),
            ("n_predictions", n),
        ):
            told[name].append(one)
    return told


def shares(rows: Sequence[Mapping[str, Any]], label: str | None) -> tuple[float | None, float | None, int]:
    """The mean probability and the observed share of a period's rows, one a class, and how many predictions it has.

    The mean is None where a class is not shown, and the share where the one that is asked for is not.

    Example:
        >>> shares([{"label": "true", "n_predictions": 20, "mean_probability": 0.5, "observed_share": 1.0}], "true")
        (0.5, 1.0, 20)
    """
    n = sum(row["n_predictions"] for row in rows)
    whole = not rows or math.isclose(sum(row["observed_share"] for row in rows), 1)
    predicted = sum(row["n_predictions"] * row["mean_probability"] for row in rows) / n if n and whole else None
    observed = next((row["observed_share"] for row in rows if row["label"] == label), None)
    return predicted, observed, n


def _table(data: Periods) -> str:
    rows = [
        [
            data.words(data.place(row)),
            html.escape(row["label"]),
            f"{row['n_patients']:,}",
            f"{row['n_predictions']:,}",
            share(row["observed_share"]),
            share(row["mean_probability"]),
        ]
        for row in data.rows
    ]
    head = [data.unit.capitalize(), "Class", "Patients", "Predictions", "Share of all then", "Mean probability"]
    return in_details("The course over the calendar as a table", table("Predictions by time and class.", head, rows))
