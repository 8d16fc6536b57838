"""A state flows in, whether predicted probabilities come true flows out: observed shares on the diagonal, counts below."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from bokeh.models import Range1d
from bokeh.models.annotations.geometry import Slope
from bokeh.models.glyphs import Quad, Scatter, Segment
from bokeh.models.ui.ui_element import UIElement

from whenwhy.errors import UserError
from whenwhy.server.answers import Question, question
from whenwhy.server.charts import CHOSEN, MARK, ZERO_LINE, Columns, chart, draw, empty, tooltip
from whenwhy.server.choices import Choices
from whenwhy.server.labels import capitalised, class_words, counted, no_cells, number
from whenwhy.server.markup import heading, in_details, table, words
from whenwhy.server.outcomes import need_rows, of_marked, rows_of, tells_one_class, who
from whenwhy.server.state import State
from whenwhy.server.view import Tables, Texts

#: What axes of probabilities may tell.
TICKS: Final = (0.0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
#: The chart's left side must stand above that of the counts.
ROOM: Final = 76
COLORS: Final = {"cohort": MARK, "marked": CHOSEN}
OF: Final = {"cohort": "the cohort", "marked": "marked predictions"}


@dataclass(frozen=True)
class Calibrated:
    """The rows of calibration of the cohort, and of who is marked in it."""

    state: State
    rows: Mapping[str, list[dict[str, Any]]]


def stretched(probability: float) -> float:
    """Where a probability stands on an axis that has room for small ones: at its square root.

    Example:
        >>> stretched(0.25)
        0.5
    """
    return math.sqrt(probability)


class Calibration:
    """Observed shares by predicted probability, in bins of equal count."""

    name = "calibration"

    def __init__(self, choices: Choices) -> None:
        self._choices = choices
        self.source, self.whiskers = empty(*COLUMNS), empty("x", "low", "high", "color")
        self.counts = empty("left", "right", "n_predictions", "n_patients", "range")
        self.source.name, self.counts.name = "calibration_bins", "calibration_counts"
        both = Range1d(start=0, end=1)
        self._plot = chart(380, left=ROOM, x_range=both, y_range=both, min_border_top=8)
        self._strip = chart(136, left=ROOM, grid="", x_range=both, min_border_top=4)
        self._plot.add_layout(Slope(gradient=1, y_intercept=0, line_color=ZERO_LINE, line_dash="dashed", line_width=1))
        whisker = Segment(x0="x", x1="x", y0="low", y1="high", line_color="color", line_width=2)
        draw(self._plot, self.whiskers, whisker)
        point = Scatter(x="x", y="y", size=9, line_color="color", fill_color="color", line_width=2)
        points = draw(self._plot, self.source, point)
        self._plot.add_tools(
            tooltip(
                [points],
                [
                    ("of", "@who"),
                    ("predicted", "@range, mean @predicted"),
                    ("observed share", "@observed"),
                    ("95 % interval", "@interval"),
                    ("patients", "@n_patients{0,0}"),
                    ("predictions", "@n_predictions{0,0}"),
                ],
            )
        )
        bar = Quad(
            left="left", right="right", bottom=0, top="n_predictions", line_color="#ffffff", fill_color="#8fb0d0"
        )
        bars = draw(self._strip, self.counts, bar)
        self._strip.add_tools(
            tooltip(
                [bars],
                [("predicted", "@range"), ("predictions", "@n_predictions{0,0}"), ("patients", "@n_patients{0,0}")],
            )
        )

    @property
    def charts(self) -> Mapping[str, UIElement]:
        """The observed shares, and how many predictions they are of."""
        return {"calibration": self._plot, "calibration_counts_strip": self._strip}

    def questions(self, state: State) -> Mapping[str, Question]:
        """The calibration of predictions of all classes: within one class, all shares would be 0 or 1."""
        need_rows(self._choices, "Calibration")
        if not tells_one_class(self._choices, state.run):
            raise UserError(
                "Predictions of this run tell the probability of whichever class is predicted, and calibration is of one: "
                "explain a target such as logit:CLASS."
            )
        asked = {"cohort": question("calibration", **state.of(state.cohort.whatever_outcome))}
        marked = of_marked(state)
        if marked is not None:
            asked["marked"] = question("calibration", **marked)
        return asked

    def csv(self, state: State) -> Question:
        """The question whose answer people take along."""
        return self.questions(state)["cohort"]

    def read(self, state: State, tables: Tables) -> Calibrated:
        """The bins."""
        return Calibrated(state, {name: rows_of(tables, name) for name in tables})

    def put(self, data: Calibrated) -> Texts:
        """The card's title, which class this is of, and the same as a table."""
        rows = data.rows["cohort"]
        self._plot.visible = self._strip.visible = bool(rows)
        self.source.data = columns(data)
        self.whiskers.data = {
            "x": self.source.data["x"],
            "low": [stretched(row["observed_share_low"]) for _, row in _each(data)],
            "high": [stretched(row["observed_share_high"]) for _, row in _each(data)],
            "color": self.source.data["color"],
        }
        self.counts.data = {
            "left": [stretched(row["low"]) for row in rows],
            "right": [stretched(row["high"]) for row in rows],
            "n_predictions": [row["n_predictions"] for row in rows],
            "n_patients": [row["n_patients"] for row in rows],
            "range": [_range(row) for row in rows],
        }
        if not rows:
            none = words(capitalised(no_cells(data.state.min_patients)) + ".")
            return {"calibration_heading": "", "calibration_words": none, "calibration_table": ""}
        most = max(max(row["observed_share_high"], row["high"]) for _, row in _each(data))
        self._plot.x_range.update(start=-0.02, end=min(1.02, stretched(most) * 1.04))
        self._strip.y_range.update(start=0, end=max(row["n_predictions"] for row in rows) * 1.08)
        ticks = [tick for tick in TICKS if tick <= most * 1.02]
        labels: dict[Any, Any] = {stretched(tick): f"{100 * tick:g} %" for tick in ticks}
        for axis in (self._plot.xaxis, self._plot.yaxis, self._strip.xaxis):
            axis[0].ticker.update(ticks=list(labels))  # type: ignore[union-attr]
            axis.major_label_overrides = labels
        fullest = max(row["n_predictions"] for row in rows)
        self._strip.yaxis[0].ticker.update(ticks=[0, fullest])  # type: ignore[union-attr]
        self._strip.yaxis.major_label_overrides = {0: "0", fullest: f"{fullest:,}"}
        outcome = str(self._choices.runs[data.state.run]["outcome"])
        label = class_words(rows[0]["label"], outcome)
        self._plot.yaxis.axis_label = "observed share (square-root scale)"
        self._plot.xaxis.axis_label = "predicted probability (square-root scale)"
        self._strip.xaxis.axis_label = "predicted probability (square-root scale)"
        self._strip.yaxis.axis_label = "predictions"
        n_patients, n = (sum(row[name] for row in rows) for name in ("n_patients", "n_predictions"))
        # A patient may have predictions in several bins.
        of = counted(n, "prediction") if n_patients != n else f"{counted(n, 'patient')}, {counted(n, 'prediction')}"
        told = (
            f"{who(data.state)}, all classes (within one, every share would be 0 or 1). Probabilities are those of "
            f"{label}; this run tells no other class's. A point: one of {len(rows)} bins of about equally many predictions; "
            "on the dashed line as many come true as predicted; whiskers: 95 % interval, patients as units"
        )
        key = ""
        if "marked" in data.rows:
            key = "".join(f'<span class="key" style="--mark:{COLORS[name]}">{OF[name]}</span>' for name in data.rows)
        return {
            "calibration_heading": heading(f"Do predictions come true: {of}", told + ".")
            + (f"<p>{key}</p>" if key else ""),
            "calibration_words": "",
            "calibration_table": _table(data, label),
        }


COLUMNS: Final = (
    *("x", "y", "color", "who", "mean_probability", "observed_share", "n_patients", "n_predictions", "range"),
    *("predicted", "observed", "interval"),
)


def _each(data: Calibrated) -> list[tuple[str, Mapping[str, Any]]]:
    return [(name, row) for name, rows in data.rows.items() for row in rows]


def _range(row: Mapping[str, Any]) -> str:
    return f"{share(row['low'])} to {share(row['high'])}"


def share(probability: float) -> str:
    """A probability in words.

    Example:
        >>> share(0.1234), share(0.0047)
        ('12.3 %', '0.47 %')
    """
    return f"{number(100 * probability, 3)} %"


def _interval(row: Mapping[str, Any]) -> str:
    return f"{share(row['observed_share_low'])} to {share(row['observed_share_high'])}"


def columns(data: Calibrated) -> Columns:
    """The points at their places, with the words of their tooltips."""
    each = _each(data)
    rows = [row for _, row in each]
    kept = ("mean_probability", "observed_share", "n_patients", "n_predictions")
    return {
        "x": [stretched(row["mean_probability"]) for row in rows],
        "y": [stretched(row["observed_share"]) for row in rows],
        "color": [COLORS[name] for name, _ in each],
        "who": [OF[name] for name, _ in each],
        **{name: [row[name] for row in rows] for name in kept},
        "range": [_range(row) for row in rows],
        "predicted": [share(row["mean_probability"]) for row in rows],
        "observed": [share(row["observed_share"]) for row in rows],
        "interval": [_interval(row) for row in rows],
    }


def _table(data: Calibrated, label: str) -> str:
    several = len(data.rows) > 1
    rows = [
        [
            _range(row),
            *([OF[name]] if several else []),
            share(row["mean_probability"]),
            share(row["observed_share"]),
            _interval(row),
            f"{row['n_patients']:,}",
            f"{row['n_predictions']:,}",
        ]
        for name, row in _each(data)
    ]
    head = ["Predicted", *(["Of"] if several else []), "Mean predicted", "Observed share", "95 % interval", "Patients"]
    caption = f"Predicted probability and observed share of {label}; intervals: 95 %, patients as units."
    content = table(caption, [*head, "Predictions"], [[html.escape(cell) for cell in row] for row in rows])
    return in_details("The calibration as a table", content)
