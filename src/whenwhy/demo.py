"""`whenwhy demo`: real patients go all the way, from events to a store with three worked questions."""

from __future__ import annotations

import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from whenwhy.answers import as_text
from whenwhy.attribution.attribute_shards import AttributeSettings, attribute_shards
from whenwhy.attribution.run_summary import residual_sentence
from whenwhy.engine import Workers
from whenwhy.events.sequences import PrepareSettings, prepare
from whenwhy.events.sources import import_source
from whenwhy.events.sources.nafld import LABELS, REPEATED_CODES
from whenwhy.models.measurements import measured, measured_sentence
from whenwhy.models.training import TrainSettings, train
from whenwhy.statistics import aggregate_cells
from whenwhy.store import Store, publish_store

FOLDS = 5


@dataclass(frozen=True)
class Question:
    """A question in words and the SQL that answers it."""

    words: str
    sql: str


QUESTIONS = (
    Question(
        "Which features carry the predictions of held-out patients?",
        "select rank, code, description, n_patients, round(mean_abs_per_prediction, 3) as mean_abs_contribution "
        "from top_features(top := 6)",
    ),
    Question(
        "When did an HDL measurement matter, and how sure is that?",
        "select round(low_hours / 8766) as from_years, round(high_hours / 8766) as to_years, n_patients, "
        "round(mean_per_event, 3) as mean_contribution, "
        "round(mean_per_event_low, 3) as low_95, round(mean_per_event_high, 3) as high_95 "
        "from feature_timeline('hdl') limit 8",
    ),
    Question(
        "Do a patient's contributions add up to what the model said?",
        "select p.subject_id, count(*) as n_values, round(sum(a.attribution), 4) as sum_of_contributions, "
        "round(any_value(p.score - p.baseline_score), 4) as score_minus_baseline "
        "from attributions a join predictions p using (run_id, subject_id, prediction_time, target) "
        "where p.split = 'held_out' group by p.subject_id order by p.subject_id limit 5",
    ),
)


def demo(folder: Path, workers: Workers, out: Console) -> Path:
    """The path of the published store of the NAFLD cohort, everything below `folder` made or resumed.

    Prints each stage's result, the held-out AUROC beside a logistic regression's, the completeness of the
    attributions, and three questions with their answers.
    """
    started = time.monotonic()
    meds, sequences, model = folder / "meds", folder / "sequences", folder / "model"
    attributions, store = folder / "attributions", folder / "store"

    out.print("1/6 import  the NAFLD cohort as a MEDS data set")
    import_source("nafld", meds)
    out.print(
        f"2/6 prepare sequences of feature values; {' and '.join(REPEATED_CODES)} are left out, "
        "since the published tables repeat hdl and sbp under these names"
    )
    settings = PrepareSettings("death within five years", strata=("age_band", "sex"), without=REPEATED_CODES)
    prepare(meds, meds / "labels" / LABELS, sequences, settings, workers)
    out.print(f"3/6 train   a GRU, {FOLDS} folds of patients, beside a logistic regression on the same inputs")
    trained = train(sequences, model, TrainSettings(folds=FOLDS), workers)
    out.print("          " + measured_sentence(measured(trained)), soft_wrap=True)
    out.print("4/6 attribute every feature value by integrated gradients")
    attributed = attribute_shards(sequences, model, attributions, AttributeSettings(), workers)
    out.print("          " + residual_sentence(attributed), soft_wrap=True)
    out.print("5/6 aggregate cells per feature value, time, class and cohort")
    cells = aggregate_cells([attributions], store, workers=workers.count)
    out.print("6/6 publish a version of the store")
    version = publish_store(store, cells, [attributions])

    # As this shell can run it: `make demo` installs into a virtual environment that is on nobody's path.
    command = "whenwhy" if shutil.which("whenwhy") else os.path.relpath(sys.argv[0])
    opened = Store(store)
    for number, question in enumerate(QUESTIONS, 1):
        out.print(f"\nQuestion {number}. {question.words}", style="bold")
        out.print(f'{command} sql {store} "{question.sql}"', style="dim", soft_wrap=True)
        out.print(as_text(opened.sql(question.sql)), markup=False, soft_wrap=True)
    opened.close()
    out.print("\nContributions are to this model's prediction, in log-odds: they are not causes.")
    out.print(
        f"The store is {store} (version {version.name}), made in {time.monotonic() - started:.0f} s. "
        f"See it: {command} demo {folder} --serve",
        soft_wrap=True,
    )
    return store
