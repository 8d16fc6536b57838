"""A state flows in, how many patients are still under observation in each bin of time flows out: counts in a strip."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bokeh.core.properties import value
from bokeh.models import ColumnDataSource, CustomJS, FixedTicker
from bokeh.models.ui.ui_element import UIElement

from whenwhy.server.answers import Asks
from whenwhy.server.labels import compact
from whenwhy.server.state import State
from whenwhy.server.time_scale import TimeFrame, TimeScale
from whenwhy.server.view import TYPEFACE, Columns, grey_cells, tooltip


@dataclass(frozen=True)
class Counts:
    """The rows of number_at_risk that have a bin, and whether the feature has any time to stand under."""

    scale: TimeScale
    rows: list[Mapping[str, Any]]
    is_timed: bool


class AtRisk:
    """The number of patients whose history reaches back to each bin."""

    def __init__(self, frame: TimeFrame) -> None:
        self.source = ColumnDataSource(columns(None), name="at_risk_counts")
        self.hidden = ColumnDataSource({"x": [], "y": [], "time": []}, name="at_risk_hidden")
        self._plot = frame.chart(58, min_border_top=2, min_border_bottom=2)
        self._plot.y_range.update(start=0, end=1)
        self._plot.xaxis.visible = False
        self._plot.grid.visible = False
        self._plot.yaxis.ticker = FixedTicker(ticks=[0.5])
        self._plot.yaxis.major_label_overrides = {0.5: "patients\nat risk"}
        self._plot.outline_line_color = None
        missing = grey_cells(self._plot, self.hidden)
        shares = self._plot.vbar(x="x", top="share", bottom=0, width=0.96, color="#c9d8e8", source=self.source)
        counts = self._plot.text(
            x="x",
            y=0.5,
            text="label",
            text_align="center",
            text_baseline="middle",
            text_font=value(TYPEFACE),
            text_font_size="11px",
            text_color="#1c2430",
            source=self.source,
        )
        self._plot.add_tools(
            tooltip(
                [shares],
                [
                    ("time", "@time"),
                    ("patients at risk", "@n_patients{0,0}"),
                    ("predictions at risk", "@n_predictions{0,0}"),
                ],
            ),
            tooltip([missing], [("time", "@time"), ("", "fewer than 11 patients, or hidden to protect others")]),
        )
        # Counts stand upright where a bin is too narrow for four digits.
        turn = CustomJS(
            args={"plot": self._plot, "glyph": counts.glyph, "times": frame.range},
            code="""
            const width = plot.inner_width / Math.max(1, times.end - times.start)
            const angle = width < 33 ? Math.PI / 2 : 0
            if (width > 0 && glyph.angle.value !== angle) glyph.angle = {value: angle}
            """,
        )
        self._plot.js_on_change("inner_width", turn)
        frame.range.js_on_change("start", turn)

    @property
    def roots(self) -> Mapping[str, UIElement]:
        """The strip."""
        return {"at_risk": self._plot}

    def query(self, store: Asks, state: State) -> Counts:
        """The counts of the cohort."""
        rows = store.ask("number_at_risk", **state.cohort).to_pylist()
        timed = store.ask("feature_timeline", feature=state.feature, **state.cohort).num_rows > 0
        scale = TimeScale.of(store.ask("time_bins", run=state.run).to_pylist())
        return Counts(scale, [row for row in rows if row["time_bin"] is not None], timed)

    def put(self, data: Counts) -> None:
        """Nothing; the counts follow."""
        self.source.data = columns(data)
        there = {row["time_bin"] for row in data.rows}
        gone = [time_bin for time_bin in range(data.scale.n_bins) if time_bin not in there]
        self.hidden.data = {
            "x": [-b - 0.5 for b in gone],
            "y": [0.5 for _ in gone],
            "time": [data.scale.words(b) for b in gone],
        }
        self._plot.visible = data.is_timed


def columns(data: Counts | None) -> Columns:
    """The counts at their places; a bar's height is the share of the fullest bin."""
    rows, scale = (data.rows, data.scale) if data else ([], TimeScale(0, 1.0))
    most = max((row["n_patients"] for row in rows), default=1)
    return {
        "x": [-row["time_bin"] - 0.5 for row in rows],
        "time_bin": [row["time_bin"] for row in rows],
        "n_patients": [row["n_patients"] for row in rows],
        "n_predictions": [row["n_predictions"] for row in rows],
        "share": [row["n_patients"] / most for row in rows],
        "label": [compact(row["n_patients"]) for row in rows],
        "time": [scale.words(row["time_bin"]) for row in rows],
    }
