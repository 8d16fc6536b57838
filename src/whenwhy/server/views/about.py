"""A state flows in, what was explained, how well it predicts and who is counted flow out as words."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bokeh.models.ui.ui_element import UIElement

from whenwhy.server.answers import Asks
from whenwhy.server.labels import capitalised, class_words, counted, quantity_in_unit, split_words, stratum_words
from whenwhy.server.state import State
from whenwhy.server.view import text


@dataclass(frozen=True)
class Told:
    """The run's row of `runs`, and how many patients and predictions the cohort and its whole split have."""

    state: State
    run: Mapping[str, Any]
    n_patients: int | None
    n_predictions: int | None
    n_patients_of_split: int | None


class About:
    """The head of the page: outcome, run, cohort."""

    def __init__(self, version: str) -> None:
        self._version = version
        self._run, self._cohort = text(), text("", "cohort")

    @property
    def roots(self) -> Mapping[str, UIElement]:
        """The run's head, and the active cohort as chips."""
        return {"about": self._run, "cohort": self._cohort}

    def query(self, store: Asks, state: State) -> Told:
        """The run, and the counts of the cohort."""
        run = next(row for row in store.ask("runs").to_pylist() if row["run_id"] == state.run)
        here = _everybody(store, state.cohort)
        whole = _everybody(store, {**state.cohort, "class": "all", "stratum": "all"})
        return Told(
            state, run, here.get("n_patients"), here.get("n_predictions"), whole.get("n_patients") if whole else None
        )

    def put(self, data: Told) -> None:
        """Nothing; the words follow."""
        run = data.run
        outcome = str(run["outcome"])
        facts = [
            f"<b>{html.escape(str(run['method']).replace('_', ' '))}</b>, baseline: {html.escape(str(run['baseline']))}",
            *(
                []
                if run["measures"] == "contribution"
                else [f"the numbers: <b>{html.escape(quantity_in_unit(run))}</b>"]
            ),
            _auroc(run),
            f"version <b>{html.escape(self._version)}</b>",
        ]
        chips = "".join(f"<li>{fact}</li>" for fact in facts)
        title = html.escape(capitalised(outcome))
        self._run.text = f'<div class="head"><h1>{title}</h1><ul class="chips">{chips}</ul></div>'
        cohort = [
            split_words(data.state.split),
            class_words(data.state.class_label, outcome),
            stratum_words(data.state.stratum),
        ]
        words = "".join(f"<li>{html.escape(word)}</li>" for word in cohort)
        self._cohort.text = f'<ul class="chips">{words}<li><b>{html.escape(counts(data))}</b></li></ul>'


def counts(data: Told) -> str:
    """How many patients and predictions the cohort has, and its share of the split.

    Example:
        >>> counts(Told(None, {}, 143, 143, 2104))
        '143 patients, 143 predictions (7 % of the split)'
    """
    if data.n_patients is None or data.n_predictions is None:
        return "fewer than 11 patients, or not shown"
    told = f"{counted(data.n_patients, 'patient')}, {counted(data.n_predictions, 'prediction')}"
    if not data.n_patients_of_split or data.n_patients >= data.n_patients_of_split:
        return told
    share = 100 * data.n_patients / data.n_patients_of_split
    return f"{told} ({'under 1' if share < 0.5 else format(share, '.0f')} % of the split)"


def _everybody(store: Asks, cohort: Mapping[str, Any]) -> dict[str, Any]:
    """The last row of number_at_risk, which has no bin; empty where it is not shown."""
    rows = store.ask("number_at_risk", **cohort).to_pylist()
    return dict(rows[-1]) if rows and rows[-1]["time_bin"] is None else {}


def _auroc(run: Mapping[str, Any]) -> str:
    if run["auroc"] is None:
        return "held-out AUROC not measured"
    said = f"held-out AUROC <b>{run['auroc']:.3f}</b>"
    return said if run["reference_auroc"] is None else f"{said} (logistic regression {run['reference_auroc']:.3f})"
