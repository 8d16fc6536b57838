"""A state flows in, the courses in time of the ranked features flow out, drawn beside the bars of a ranking."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bokeh.models.ui.ui_element import UIElement

from whenwhy.server.answers import Question
from whenwhy.server.charts import CHOSEN, MARK, Columns
from whenwhy.server.state import State
from whenwhy.server.view import Tables, Texts
from whenwhy.server.views.ranking import LINES, Ranking, courses_of, drawn_for, ranking_of


@dataclass(frozen=True)
class Courses:
    """The ranked features, and the means of each by bin of time."""

    state: State
    rows: list[Mapping[str, Any]]
    means: Mapping[str, list[tuple[int, float]]]


class Sparklines:
    """The courses at the right of a ranking's bars, drawn once they are there: of own cohorts they take longest of all."""

    name = "sparklines"

    def __init__(self, ranking: Ranking) -> None:
        self._ranking = ranking

    @property
    def charts(self) -> Mapping[str, UIElement]:
        """None of its own."""
        return {}

    def questions(self, state: State) -> Mapping[str, Question]:
        """The courses of the first features of the order."""
        return {"rows": ranking_of(state), "courses": courses_of(state)}

    def csv(self, state: State) -> Question:
        """The question whose answer is drawn."""
        return courses_of(state)

    def read(self, state: State, tables: Tables) -> Courses:
        """The courses of those features that are shown."""
        rows = tables["rows"].to_pylist()
        means: dict[str, list[tuple[int, float]]] = {row["code"]: [] for row in rows}
        for row in tables["courses"].to_pylist():
            if row["code"] in means and row["mean_per_prediction"] is not None:
                means[row["code"]].append((row["time_bin"], row["mean_per_prediction"]))
        return Courses(state, rows, means)

    def put(self, data: Courses) -> Texts:
        """Nothing in words."""
        self._ranking.lines.data, self._ranking.lines_of = sparkline_columns(data), drawn_for(data.state)
        return {}


def sparkline_columns(data: Courses) -> Columns:
    """The course of each feature within its row, around its middle, as high as its largest bin."""
    told: Columns = {name: [] for name in LINES}
    for row in data.rows:
        course = sorted(data.means[row["code"]], reverse=True)
        largest = max((abs(mean) for _, mean in course), default=0.0)
        if len(course) < 2 or not largest:
            continue
        told["code"].append(row["code"])
        told["xs"].append([-time_bin - 0.5 for time_bin, _ in course])
        told["ys"].append([-row["rank"] + 0.36 * mean / largest for _, mean in course])
        told["color"].append(CHOSEN if row["code"] == data.state.feature else MARK)
    return told
