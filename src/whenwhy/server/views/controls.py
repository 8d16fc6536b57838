"""A state flows in, the controls that show and change it flow out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bokeh.models import InlineStyleSheet
from bokeh.models.ui.ui_element import UIElement
from bokeh.models.widgets.buttons import Button
from bokeh.models.widgets.inputs import Select

from whenwhy.server.answers import Asks
from whenwhy.server.labels import class_words, feature_words, split_words, stratum_words
from whenwhy.server.session import Session
from whenwhy.server.state import State, default_state

#: As many features as a list can offer; any other one can be named in the address.
OFFERED_FEATURES = 500

CONTROL_STYLE = """
:host { font: inherit; color: #1c2430; width: 100%; margin: 0; }
.bk-input-group { width: 100%; }
label { font-size: 13px; font-weight: 600; color: #384252; margin-bottom: 3px; padding: 0; }
.bk-input { font: inherit; font-size: 14px; height: 38px; width: 100%; padding: 0 30px 0 10px; color: #1c2430;
  border: 1px solid #737f8e; border-radius: 6px; background-color: #fff; text-overflow: ellipsis; }
.bk-input:hover { border-color: #14568c; }
.bk-input:focus, .bk-input:focus-visible, .bk-btn:focus-visible { border-color: #14568c;
  outline: 3px solid #14568c; outline-offset: 1px; box-shadow: none; }
.bk-btn { font: inherit; font-size: 14px; height: 38px; padding: 0 16px; border-radius: 6px; color: #14568c;
  background: #fff; border: 1px solid #14568c; }
.bk-btn:hover { background: #e8f1f9; }
"""


@dataclass(frozen=True)
class Offer:
    """The features that have cells in this cohort, the one that carries most first."""

    state: State
    ranked: list[Mapping[str, Any]]


class Controls:
    """Feature, class, split, stratum (and run, where there are several); and the way back."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._selects = {name: _select(title) for name, title in TITLES.items()}
        self._clear = Button(
            label="Clear filters", visible=False, stylesheets=[InlineStyleSheet(css=CONTROL_STYLE)], name="clear"
        )
        for name, select in self._selects.items():
            select.on_change("value", self._changed(name))
        self._clear.on_click(lambda: session.clear_filters())

    @property
    def roots(self) -> Mapping[str, UIElement]:
        """The controls by their names."""
        return {**self._selects, "clear": self._clear}

    def query(self, store: Asks, state: State) -> Offer:
        """The ranking, as long as a list can be."""
        return Offer(state, store.ask("top_features", **state.cohort, top=OFFERED_FEATURES).to_pylist())

    def put(self, data: Offer) -> None:
        """Nothing; the controls show the state, and what it may become."""
        state, choices = data.state, self._session.version.choices
        offered = choices.offered[state.run]
        outcome = str(choices.runs[state.run]["outcome"])
        features = {row["code"]: feature_words(row["code"], row["description"]) for row in data.ranked}
        if state.feature not in features:
            features = {
                state.feature: f"{feature_words(state.feature, offered.name_of(state.feature))}: not shown",
                **features,
            }
        options = {
            "feature": list(features.items()),
            "class_label": [(name, class_words(name, outcome)) for name in offered.classes],
            "split": [(name, split_words(name)) for name in offered.splits],
            "stratum": [(name, stratum_words(name)) for name in offered.strata],
            "run": [(name, _run_words(row)) for name, row in choices.runs.items()],
        }
        for name, select in self._selects.items():
            # Both at once: an option list without the value would show another one for a moment.
            select.update(options=options[name], value=getattr(state, name))
        self._selects["run"].visible = len(choices.runs) > 1
        self._clear.visible = state != state.without_filters(choices)

    def _changed(self, name: str) -> Any:
        def changed(attribute: str, old: str, new: str) -> None:
            if name == "run":
                self._change_run(new)
            else:
                self._session.choose(**{name: new})

        return changed

    def _change_run(self, run: str) -> None:
        """Another run may have other codes, classes and strata: what it does not know becomes its default."""
        choices, state = self._session.version.choices, self._session.state
        offered, default = choices.offered[run], default_state(choices, run)
        self._session.choose(
            run=run,
            split=state.split if state.split in offered.splits else default.split,
            class_label=state.class_label if state.class_label in offered.classes else default.class_label,
            stratum=state.stratum if state.stratum in offered.strata else default.stratum,
            feature=state.feature if state.feature in offered.features else default.feature,
        )


TITLES = {
    "feature": "Feature",
    "class_label": "Class of patients",
    "split": "Split",
    "stratum": "Stratum",
    "run": "Run",
}


def _select(title: str) -> Select:
    return Select(title=title, stylesheets=[InlineStyleSheet(css=CONTROL_STYLE)], sizing_mode="stretch_width")


def _run_words(row: Mapping[str, Any]) -> str:
    method = str(row["method"]).replace("_", " ")
    return f"{row['outcome']}: {method} from the {row['baseline']} baseline ({row['run_id'][:8]})"
