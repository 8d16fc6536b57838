"""A state flows in, predictions in the plane flow out: alike stand close, coloured by label or score."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import pyarrow as pa
from bokeh.events import SelectionGeometry
from bokeh.models import BasicTicker, LassoSelectTool, LinearColorMapper
from bokeh.models.glyphs import MultiLine, Scatter
from bokeh.models.ui.ui_element import UIElement

from whenwhy.errors import UserError
from whenwhy.server.answers import Answers, Question, question
from whenwhy.server.charts import chart, color_bar, draw, empty, tooltip
from whenwhy.server.choices import Choices
from whenwhy.server.cohort import Cohort
from whenwhy.server.feature_names import feature_words
from whenwhy.server.labels import class_words, counted, percent, shortened, signed, unit_of
from whenwhy.server.markup import choice, heading, in_details, table
from whenwhy.server.outcomes import colors_of
from whenwhy.server.patient import FOR_ANALYSTS
from whenwhy.server.projection import AXES, Plane, Profiles, fit_plane, inside, profiles_of
from whenwhy.server.state import COLORS, State
from whenwhy.server.view import Tables, Texts
from whenwhy.server.views.heat_map import PALETTE

BEHIND_COLOR: Final = "#c3cad3"

#: Codes of an axis that its name tells, and that the table does.
NAMED, TOLD = 3, 15

#: Predictions drawn at most, of the cohort and of everybody.
SAMPLE: Final = 3_000

#: Patients whose predictions are joined by a line.
MOST_LINES: Final = 500

#: Marks predictions: pairs of a patient's id and the prediction's time in microseconds.
MarkMembers = Callable[[list[tuple[int, int]]], None]


@dataclass(frozen=True)
class Placed:
    """Places in the plane.

    Attributes:
        plane: fitted to everybody of the split, so that nobody moves when the cohort changes.
        behind: [prediction, axis] of everybody who is not in the cohort.
        profiles, places: of the cohort's predictions, [prediction, axis].
        selected: [prediction] which are marked; None: nothing is.
        lines: the indices of the predictions of one patient in time, of each who has several.
    """

    state: State
    plane: Plane
    behind: np.ndarray
    profiles: Profiles
    places: np.ndarray
    selected: np.ndarray | None
    lines: list[np.ndarray]


def _everybody(state: State) -> Question:
    """The profiles of the split, whatever is chosen of it."""
    return profiles_question(replace(state, panel=None), Cohort())


class Projection:
    """Predictions placed by what each code contributes to them."""

    name = "projection"

    def __init__(self, choices: Choices, answers: Answers, mark: MarkMembers) -> None:
        self._choices, self._answers, self._mark = choices, answers, mark
        self._shown: Placed | None = None
        self.behind, self.lines, self.source = empty("x", "y"), empty("xs", "ys"), empty(*COLUMNS)
        for source, name in ((self.behind, "behind"), (self.lines, "lines"), (self.source, "points")):
            source.name = f"projection_{name}"
        self.mapper = LinearColorMapper(palette=PALETTE, low=-1.0, high=1.0, name="projection_colors")
        self._plot = chart(508, left=84, min_border_top=12, min_border_bottom=68)
        for axis in self._plot.axis:
            axis.ticker = BasicTicker(desired_num_ticks=6)
        draw(self._plot, self.behind, Scatter(x="x", y="y", size=4, line_color=None, fill_color=BEHIND_COLOR))
        draw(self._plot, self.lines, MultiLine(xs="xs", ys="ys", line_color="#5b6777", line_alpha=0.35))
        points = Scatter(
            x="x",
            y="y",
            size=7,
            fill_color="color",
            fill_alpha="alpha",
            line_color="#384252",
            line_alpha="alpha",
            line_width="ring",
        )
        told = tooltip(
            [draw(self._plot, self.source, points)],
            [("score", "@score_words"), ("label", "@label"), ("carried most by", "@carrier")],
        )
        told.update(limit=3)  # a pointer is over many where they are dense
        self._plot.add_tools(told)
        self.bar = color_bar(self._plot, self.mapper)
        lasso = LassoSelectTool(continuous=False)
        self._plot.add_tools(lasso)
        self._plot.toolbar.active_drag = lasso
        self._plot.on_event(SelectionGeometry, self._drawn)

    @property
    def charts(self) -> Mapping[str, UIElement]:
        """The plane."""
        return {"projection": self._plot}

    def questions(self, state: State) -> Mapping[str, Question]:
        """What codes contribute to everybody of the split, to the cohort, and to who is marked in it.

        Raises:
            UserError: nobody may see single predictions.
        """
        if not self._choices.has_rows:
            raise UserError(FOR_ANALYSTS)
        whom = {"cohort": state.cohort, "selected": state.selected_cohort}
        asked = {name: profiles_question(state, cohort) for name, cohort in whom.items() if cohort is not None}
        return {"everybody": _everybody(state), **asked}

    def csv(self, state: State) -> Question:
        """The question whose answer people take along."""
        return self.questions(state)["cohort"]

    def read(self, state: State, tables: Tables) -> Placed:
        """The places of the cohort in the plane of everybody.

        Raises:
            UserError: too few predictions or codes for a plane.
        """

        def fitted() -> tuple[Plane, np.ndarray, np.ndarray]:
            everybody = profiles_of(tables["everybody"])
            plane = fit_plane(everybody)
            return plane, everybody.predictions["prediction_id"].to_numpy(), plane.places(everybody)

        plane, ids, behind = self._answers.once(_everybody(state), fitted)
        profiles = profiles_of(tables["cohort"])
        own = profiles.predictions["prediction_id"].to_numpy()
        selected = None
        if "selected" in tables:
            selected = np.isin(own, tables["selected"]["prediction_id"].to_numpy())
        return Placed(
            state,
            plane,
            behind[~np.isin(ids, own)],
            profiles,
            plane.places(profiles),
            selected,
            lines_of(profiles.predictions),
        )

    def put(self, data: Placed) -> Texts:
        """The card's title, the legend of colours, and the codes of the axes."""
        self._shown = data
        state, run = data.state, self._choices.runs[data.state.run]
        unit = unit_of(run)
        n = len(data.places)
        self._plot.visible = n > 0
        if not n:
            return {
                "projection_heading": heading("Nobody is here", ""),
                "projection_words": '<p class="words">No prediction is in this cohort: choose another class, stratum or '
                "split, or clear the filters.</p>",
                "projection_table": "",
            }
        limit = max(map(abs, data.profiles.predictions["score"].to_pylist())) or 1.0
        self.mapper.update(low=-limit, high=limit)
        by_score = state.color == "score"
        self.bar.update(visible=by_score, title=f"score ({unit})")
        self._plot.min_border_top = 64 if by_score else 12
        self._plot.height = 560 if by_score else 508
        labels = [name for name in self._choices.offered[state.run].classes if name != "all"]
        labels += sorted(set(data.profiles.predictions["label"].to_pylist()) - set(labels), key=str)
        color_of = colors_of(labels)
        self.behind.data = {"x": data.behind[:, 0].astype("f4"), "y": data.behind[:, 1].astype("f4")}
        self.lines.data = {
            "xs": [data.places[line, 0].round(4).tolist() for line in data.lines],
            "ys": [data.places[line, 1].round(4).tolist() for line in data.lines],
        }
        self.source.data = columns(data, color_of, limit, self._choices)
        self._put_axes(data, unit)
        outcome = str(run["outcome"])
        told = (
            f"{n:,} predictions of {counted(len(set(data.profiles.predictions['subject_id'].to_pylist())), 'patient')}"
        )
        marked = "" if data.selected is None else f", {int(data.selected.sum()):,} of them marked"
        return {
            "projection_heading": heading(
                f"Predictions by what carries them: {told}{marked}",
                f"{'all' if n < SAMPLE else 'a sample'} of the cohort; predictions that the same codes carry stand close",
            ),
            "projection_words": self._legend(data, {label: class_words(label, outcome) for label in labels}, color_of),
            "projection_table": _table(data, self._choices, unit),
        }

    def _put_axes(self, data: Placed, unit: str) -> None:
        every = np.concatenate([data.behind, data.places])
        for at, (axis, span) in enumerate(
            ((self._plot.xaxis, self._plot.x_range), (self._plot.yaxis, self._plot.y_range))
        ):
            low, high = float(every[:, at].min()), float(every[:, at].max())
            air = 0.04 * (high - low) or 1.0
            span.update(start=low - air, end=high + air)
            loads = ", ".join(
                f"{shortened(self._choices.offered[data.state.run].name_of(code), 13)} {'+' if by > 0 else '−'}"
                for code, by in data.plane.loading(at, NAMED)
            )
            axis.axis_label = f"axis {at + 1}: {percent(data.plane.shares[at])} of variance, {unit}\n{loads}"

    def _legend(self, data: Placed, words: Mapping[str, str], color_of: Mapping[str, str]) -> str:
        state = data.state
        by = " · ".join(
            f"<b>{name}</b>" if name == state.color else choice("choose", name, name="color", value=name)
            for name in COLORS
        )
        keys = "".join(
            f'<span class="key dot" style="--mark:{color_of[label]}">{html.escape(said)}</span>'
            for label, said in words.items()
            if state.color == "label"
        )
        others = f'<span class="key dot" style="--mark:{BEHIND_COLOR}">everybody else of the split</span>'
        lines = "<span class='quiet'>thin lines join a patient's predictions in time</span>" if data.lines else ""
        keys += others if len(data.behind) else ""
        return (
            f'<p class="quiet">Coloured by {by}</p><p>{keys}{lines}</p><p class="quiet">Draw a line around predictions to '
            "mark them, here and on every page; Esc clears the mark. This store holds no hidden states, so places come from contributions "
            "alone.</p>"
        )

    def _drawn(self, event: Any) -> None:
        """Marks the cohort's predictions within a line."""
        if not event.final or self._shown is None or event.geometry.get("type") != "poly":
            return
        xs, ys = (np.asarray(event.geometry[name], dtype=float).tolist() for name in ("x", "y"))
        if xs:
            self._mark(members_within(self._shown, xs, ys))


def profiles_question(state: State, cohort: Cohort) -> Question:
    """The question of what codes contribute to a sample of a cohort."""
    return question("contribution_profiles", sample=SAMPLE, **state.of_rows(cohort))


def members_within(data: Placed, xs: list[float], ys: list[float]) -> list[tuple[int, int]]:
    """The patient's id and the time of each of the cohort's predictions within a line."""
    at = pa.array(np.flatnonzero(inside(data.places, xs, ys)))
    found = data.profiles.predictions.take(at)
    times = found["prediction_time"].cast(pa.timestamp("us")).cast(pa.int64())
    return list(zip(found["subject_id"].to_pylist(), times.to_pylist(), strict=True))


def lines_of(predictions: pa.Table) -> list[np.ndarray]:
    """Of each patient with several predictions their indices in time, the patients of the least ids first.

    Example:
        >>> table = pa.table({"subject_id": [4, 7, 4], "prediction_time": [9, 1, 3]})
        >>> [line.tolist() for line in lines_of(table)]
        [[2, 0]]
    """
    subjects = predictions["subject_id"].to_numpy()
    order = np.lexsort((predictions["prediction_time"].to_numpy(), subjects))
    ends = np.flatnonzero(np.diff(subjects[order])) + 1
    return [line for line in np.split(order, ends) if len(line) > 1][:MOST_LINES]


#: Of predictions that are not marked: where many lie above each other they still look paler than a marked one.
BESIDE: Final = 0.12

COLUMNS = ("x", "y", "color", "alpha", "ring", "score", "score_words", "label", "carrier")


def columns(data: Placed, color_of: Mapping[str, str], limit: float, choices: Choices) -> dict[str, Any]:
    """The cohort's predictions at their places, with the words of their tooltips; no patient is named."""
    predictions, features = data.profiles.predictions, choices.offered[data.state.run].features
    scores, labels = predictions["score"].to_numpy(), predictions["label"].to_pylist()
    shade = np.clip((scores / limit + 1) / 2 * len(PALETTE), 0, len(PALETTE) - 1).astype(int).tolist()
    words = {code: feature_words(code, features.get(code, {}).get("description")) for code in data.profiles.codes}
    return {
        "x": data.places[:, 0].astype("f4"),
        "y": data.places[:, 1].astype("f4"),
        "color": [color_of[label] for label in labels] if data.state.color == "label" else [PALETTE[i] for i in shade],
        "alpha": np.ones(len(scores), "f4")
        if data.selected is None
        else np.where(data.selected, 1.0, BESIDE).astype("f4"),
        "ring": np.full(len(scores), 0.6, "f4")
        if data.selected is None
        else np.where(data.selected, 2.0, 0.6).astype("f4"),
        "score": scores,
        "score_words": [signed(score) for score in scores.tolist()],
        "label": [str(label) for label in labels],
        "carrier": [
            "nothing recorded" if one is None else f"{words[one[0]]}: {signed(one[1])}"
            for one in data.profiles.carriers
        ],
    }


def _table(data: Placed, choices: Choices, unit: str) -> str:
    """The codes that the axes consist of."""
    features = choices.offered[data.state.run].features
    loads = [dict(data.plane.loading(axis, TOLD)) for axis in range(AXES)]
    names = list(dict.fromkeys(code for of in loads for code in of))
    column = {code: at for at, code in enumerate(data.plane.codes)}
    rows = [
        [
            choice(
                "choose", feature_words(code, features.get(code, {}).get("description")), name="feature", value=code
            ),
            *(signed(float(data.plane.axes[axis, column[code]])) for axis in range(AXES)),
        ]
        for code in names
    ]
    head = ["Feature", *(f"Axis {axis + 1} ({percent(data.plane.shares[axis])} of variance)" for axis in range(AXES))]
    return in_details(
        "The axes as a table",
        table(
            f"How far one more unit ({unit}) of a feature's contribution moves a prediction along each axis.",
            head,
            rows,
        ),
    )
