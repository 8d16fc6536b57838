"""A run's residuals and measurements flow in, how far its numbers may be believed flows out in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bokeh.models.ui.ui_element import UIElement

from whenwhy.server.answers import Question, question
from whenwhy.server.labels import (
    capitalised,
    counted,
    is_complete,
    number,
    percent,
    quantity_in_unit,
    signed,
    unit_of,
)
from whenwhy.server.markup import heading, table
from whenwhy.server.state import State
from whenwhy.server.view import Tables, Texts


@dataclass(frozen=True)
class Measured:
    """The row of the run."""

    run: Mapping[str, Any]


class Completeness:
    """Whether contributions add up to what they explain, and how well the model that they explain predicts."""

    name = "completeness"

    @property
    def charts(self) -> Mapping[str, UIElement]:
        """None."""
        return {}

    def questions(self, state: State) -> Mapping[str, Question]:
        """The runs."""
        return {"runs": question("runs")}

    def csv(self, state: State) -> Question:
        """The question whose answer people take along."""
        return self.questions(state)["runs"]

    def read(self, state: State, tables: Tables) -> Measured:
        """The page's own."""
        return Measured(next(row for row in tables["runs"].to_pylist() if row["run_id"] == state.run))

    def put(self, data: Measured) -> Texts:
        """Verdicts first, then the numbers behind them."""
        run = data.run
        return {
            "completeness_heading": heading(*completeness(run)),
            "completeness_table": _residuals(run),
            "model_heading": heading(*model(run)),
            "model_table": _measurements(run),
        }


def completeness(run: Mapping[str, Any]) -> tuple[str, str]:
    """The verdict on a run's sums, and what it means.

    Example:
        >>> completeness({"measures": "attention", "target": "logit", "residual_maximum": None, "tolerance": 0.1})[0]
        'Nothing to add up: attention weight, not a contribution'
    """
    complete, over, all_of_them = is_complete(run), run.get("n_over_tolerance"), run.get("n_predictions")
    if complete is None:
        return (
            f"Nothing to add up: {quantity_in_unit(run)}",
            "these numbers are not meant to sum to a prediction: they rank and place, and their sums mean nothing",
        )
    if complete:
        return (
            "Complete: contributions add up to what they explain",
            "for every prediction the sum over all its rows is its score less the score of the baseline, within the "
            "tolerance: a sum over features, values or times is a part of the prediction",
        )
    whose = (
        "for some predictions"
        if over is None or not all_of_them
        else f"for {over:,} of {counted(all_of_them, 'prediction')} ({percent(over / all_of_them)})"
    )
    return (
        f"Not complete {whose}: contributions miss what they explain",
        "their sums are off by the gaps below, so read them as a ranking and not as parts of a prediction: some methods "
        "(gradients, occlusion) do not promise to add up, and those that do need more model evaluations here",
    )


def model(run: Mapping[str, Any]) -> tuple[str, str]:
    """The verdict on the model that is explained, and what it means.

    Example:
        >>> model({"auroc": 0.9, "reference_auroc": 0.88})[0]
        'The model: AUROC 0.900 on held-out patients, +0.020 beside a logistic regression'
    """
    means = (
        "contributions explain this model and nothing else: what one says that hardly predicts is hardly about patients"
    )
    if run["auroc"] is None:
        return "The model: no AUROC was measured", means
    said = f"The model: AUROC {run['auroc']:.3f} on held-out patients"
    if run["reference_auroc"] is None:
        return said, means
    return f"{said}, {run['auroc'] - run['reference_auroc']:+.3f} beside a logistic regression".replace(
        "-0.", "−0."
    ), means


def _residuals(run: Mapping[str, Any]) -> str:
    if is_complete(run) is None:
        return ""
    over = run["n_over_tolerance"]
    rows = [
        ["Tolerance", number(run["tolerance"], 3)],
        ["Median gap", number(run["residual_median"], 3)],
        ["Largest gap", number(run["residual_maximum"], 3)],
        ["Predictions over the tolerance", "for analysts alone" if over is None else f"{over:,}"],
    ]
    return table(
        f"Gap: |sum of contributions − (score − baseline score)|, in {unit_of(run)}, of all splits.",
        ["What", capitalised(unit_of(run))],
        rows,
    )


def _measurements(run: Mapping[str, Any]) -> str:
    def cells(own: float | None, reference: float | None) -> list[str]:
        gap = None if own is None or reference is None else own - reference
        told = ["not measured" if one is None else f"{one:.3f}" for one in (own, reference)]
        return [*told, "" if gap is None else signed(gap, 2)]

    rows = [["This model, on held-out patients", *cells(run["auroc"], run["reference_auroc"])]]
    if (run["n_folds"] or 0) > 1:
        folds = f"Mean over {counted(run['n_folds'], 'fold')}, each with a model of its own"
        rows.append([folds, *cells(run["mean_auroc"], run["mean_reference_auroc"])])
    return table(
        "AUROC: 0.5 is chance, 1 is perfect; the logistic regression sees the same inputs.",
        ["Measured on", "The model", "Logistic regression", "Difference"],
        rows,
    )
