"""Made-up patients with a known outcome mechanism, as many as are asked for, in constant memory.

The truth lies beside the data, where no reader of MEDS looks: truth.json says the mechanism, truth/*.parquet each
prediction's logit and every effect's contribution to it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import typer

from whenwhy.events.sources import synthetic_outcome as outcome
from whenwhy.events.sources.meds_writer import MedsWriter, write_events, write_labels
from whenwhy.events.sources.processes import in_processes
from whenwhy.events.sources.registry import NOT_RECORDED, source
from whenwhy.events.sources.synthetic_codes import Vocabulary
from whenwhy.events.sources.synthetic_records import made_up, times
from whenwhy.schema import HELD_OUT, TRAIN, TUNING

EVENTS_A_FILE = 500_000
#: Numbers of draws: of the patients who set the intercept, of the splits, and from there on of each file.
PILOT, SPLIT, FIRST_FILE = 0, 1, 2
PILOT_EVENTS = 400_000

Patients = Annotated[int, typer.Option(help="How many patients.", min=100, max=100_000_000)]
Length = Annotated[int, typer.Option(help="Mean events a patient; the lengths are lognormal.", min=10, max=100_000)]
Codes = Annotated[int, typer.Option(help="Diagnoses and drugs, by Zipf's law.", min=50, max=8000)]
Prevalence = Annotated[float, typer.Option(help="Share of patients with the outcome, about.", min=0.001, max=0.999)]
Longest = Annotated[int | None, typer.Option(help="Gives one patient this many events.", min=1000, max=10_000_000)]
Seed = Annotated[int, typer.Option(help="The same seed and settings give the same bytes.", min=0)]
PerFile = Annotated[int | None, typer.Option(help="By default as many as have 500,000 events.", min=1, max=4_000_000)]
Workers = Annotated[int | None, typer.Option(help="Processes; by default one a core.", min=1), NOT_RECORDED]


@source("synthetic", "made-up patients, 100 to 100 million, whose outcome follows a mechanism that is written beside")
def synthetic(
    writer: MedsWriter,
    *,
    patients: Patients = 10_000,
    events_per_patient: Length = 100,
    codes: Codes = 1000,
    prevalence: Prevalence = 0.15,
    longest: Longest = None,
    seed: Seed = 0,
    patients_per_file: PerFile = None,
    workers: Workers = None,
) -> None:
    """Writes the patients, labels/death_within_90_days, and the truth; splits 70/10/20."""
    size = patients_per_file or max(1, EVENTS_A_FILE // events_per_patient)
    vocabulary = Vocabulary(codes)
    pilot = made_up(_random(seed, PILOT), vocabulary, max(50, PILOT_EVENTS // events_per_patient), events_per_patient)
    intercept = outcome.intercept_for(prevalence, pilot.logit)
    task = WriteFile(writer.folder, seed, patients, size, events_per_patient, codes, intercept, longest)

    writer.describe("made-up patients", f"seed {seed}", "made up, so nobody's")
    writer.codes(vocabulary.described())
    files = range(-(-patients // size))
    writer.splits(_splits(seed, patients, size))
    writer.progress.expect(len(files))
    counts = np.zeros(2 * outcome.GRID_SIZE, dtype=np.int64)
    for file, n_events, placed in in_processes(task, files, workers):
        np.add.at(counts, placed, 1)
        writer.progress.advance(f"{name_of(file)}.parquet", n_events)
    truth = {"seed": seed, "prevalence_wanted": prevalence} | outcome.described(intercept, counts.reshape(2, -1))
    (writer.folder / "truth.json").write_text(json.dumps(truth, indent=2) + "\n")


@dataclass(frozen=True)
class WriteFile:
    """Writes one file of events, labels and truth: its number, events, and where its predictions lie on the grid of logits."""

    folder: Path
    seed: int
    patients: int
    size: int
    events_per_patient: int
    codes: int
    intercept: float
    longest: int | None

    def __call__(self, file: int) -> tuple[int, int, np.ndarray]:
        vocabulary = Vocabulary(self.codes)
        first = file * self.size
        count = min(self.size, self.patients - first)
        longest = self.longest if file == 0 else None
        random = _random(self.seed, FIRST_FILE + file)
        records = made_up(random, vocabulary, count, self.events_per_patient, self.intercept, longest)
        name = name_of(file)
        write_events(self.folder, name, records.table(vocabulary, first + 1))
        subject = np.arange(first + 1, first + count + 1)
        when = times(records.prediction).astype("datetime64[us]")
        write_labels(self.folder, outcome.TASK, name, subject, when, records.label)
        effects = {effect.name: records.contributions[:, i] for i, effect in enumerate(outcome.EFFECTS)}
        truth = {"subject_id": subject, "prediction_time": pa.array(when), "logit": records.logit, **effects}
        (self.folder / "truth").mkdir(exist_ok=True)
        pq.write_table(pa.table(truth), self.folder / "truth" / f"{name}.parquet")
        return file, len(records.key), outcome.placed(records.logit, records.label)


def name_of(file: int) -> str:
    """A file's name: in order of its number."""
    return f"{file:05d}"


def _random(seed: int, draw: int) -> np.random.Generator:
    """Random numbers that depend on the seed and the file alone, so that it does not matter who draws them."""
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence((seed, draw))))


def _splits(seed: int, patients: int, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    random = _random(seed, SPLIT)
    for first in range(0, patients, size):
        subject = np.arange(first + 1, min(first + size, patients) + 1)
        share = random.random(len(subject))
        yield subject, np.where(share < 0.2, HELD_OUT, np.where(share < 0.3, TUNING, TRAIN))
