"""One patient and changes of the record flow in; the prediction before and after them flows out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from whenwhy.attribution.recurrences import unit_states
from whenwhy.attribution.targets import UNIT, Target, has_own_step_scores, target_named
from whenwhy.errors import UserError
from whenwhy.events.changed_records import Change, ChangeableRecords
from whenwhy.events.sequence_batch import SequenceBatch, Sequences
from whenwhy.events.sequence_directory import patient_records
from whenwhy.models.checkpoint import SHIPPED, WEIGHTS, load_model, vocabulary_sha256
from whenwhy.models.foreign.named import ForeignSource
from whenwhy.models.sequence_model import Embedded, SequenceModel, classes_of, logits_of, step_logits_of
from whenwhy.shards import StageDirectory

#: Values, records and padded steps of cut records that are read together: few records, so that little is padding.
VALUES_TOGETHER, RECORDS_TOGETHER, STEPS_TOGETHER = 1 << 20, 32, 1 << 15

#: Predictions whose answers are remembered: a person changes one again and again.
MOST_TOLD = 64


@dataclass(frozen=True)
class PatientPrediction:
    """A prediction of a patient, and what the record held then.

    Attributes:
        values: a table of `changed_records.VALUES`, a row a place; of kinds other than "recorded" and "rare" it says
            what follows from these.
    """

    prediction_time: datetime
    label: str
    split: str
    values: pa.Table


@dataclass(frozen=True)
class Course:
    """What the model says of the record cut after each of its steps.

    Attributes:
        time: [step] datetime64[us], each step's own, of its minute.
        score, probability: [step] float64, as in `Answer`.
    """

    time: np.ndarray
    score: np.ndarray
    probability: np.ndarray


@dataclass(frozen=True)
class Answer:
    """What the model says of a record.

    Attributes:
        score: the number that the run explains.
        probability: of the class that the target names, else of the later of two, else of the predicted one.
        probabilities: class -> probability.
        values: a table of `changed_records.VALUES`: the record itself, its places its own.
    """

    score: float
    probability: float
    probabilities: dict[str, float]
    course: Course
    values: pa.Table


@dataclass(frozen=True)
class WhatIf:
    """A prediction before and after changes.

    Attributes:
        remarks: sentences for people: what the model does not know or was not trained on, and what else moved.
    """

    before: Answer
    after: Answer
    remarks: tuple[str, ...]


class Served:
    """The model of a run beside the sequences that it reads: what it would say of a patient, had the record been another.

    Answers of several threads come one after another, since a stranger's network may keep something while it reads.

    Example: `Served.open(Path("model"), Path("sequences"), run).prediction(42, time, [Remove(place=3)]).after.score`
    """

    def __init__(self, sequences: StageDirectory, model: SequenceModel, target: str | Target = "logit") -> None:
        self.sequences, self.model = sequences, model
        self.target = target_named(target) if isinstance(target, str) else target
        self.records = ChangeableRecords(sequences)
        self._alone = threading.Lock()
        self._told: dict[tuple[int, datetime], tuple[pa.Table, Answer]] = {}

    @classmethod
    def open(cls, model: Path | ForeignSource, sequences_path: Path, run: Mapping[str, Any]) -> Served:
        """The model and the sequences of a run, nothing of which is written to.

        Args:
            model: the directory that `whenwhy train` wrote, or a model that was trained elsewhere.
            run: the run's row in the store's table `runs`: of it run_id, target, model_sha256, vocabulary_sha256.

        Raises:
            UserError: no such directories, or the store's run is of another model or other feature values.

        Example: `Served.open(Path("model"), Path("sequences"), store.runs()[0])`
        """
        sequences = StageDirectory.open(sequences_path, "prepare").require_complete()
        if vocabulary_sha256(sequences) != run["vocabulary_sha256"]:
            raise UserError(
                f"{sequences_path} has other feature values than run {run['run_id']} of the store was made with: give "
                "--sequences the directory that was attributed."
            )
        if isinstance(model, ForeignSource):
            named, model = model.name, model.settled()
            sha256 = model.weights_sha256()
        else:
            trained = StageDirectory.open(model, "train").require_complete()
            named, sha256 = str(model), trained.entry(SHIPPED).files[WEIGHTS]["sha256"]
        if sha256 != run["model_sha256"]:
            raise UserError(
                f"{named} has other weights than the model that run {run['run_id']} of the store explains: give --model "
                "the one that was attributed."
            )
        loaded = model.load(sequences)[0] if isinstance(model, ForeignSource) else load_model(trained)
        return cls(sequences, loaded, run["target"])

    def patient(self, subject_id: int) -> list[PatientPrediction]:
        """The patient's predictions by time, with what the record held at each.

        Raises:
            UserError: the sequences do not have the patient.

        Example: `served.patient(42)[-1].values.to_pylist()`
        """
        table = patient_records(self.sequences, subject_id)
        told = table.select(["prediction_time", "label", "split"]).to_pylist()
        return [
            PatientPrediction(**of_one, values=self.records.values(table.slice(at, 1)))
            for at, of_one in enumerate(told)
        ]

    def prediction(self, subject_id: int, prediction_time: datetime, changes: Sequence[Change] = ()) -> WhatIf:
        """What the model says of the patient at a time, and what it would say had the record been changed.

        Args:
            changes: all at once; places are those of `patient`.

        Raises:
            UserError: the sequences do not have the prediction, or a change is impossible.

        Example: `served.prediction(42, time, [SetNumber(place=12, number=0.9)]).remarks`
        """
        table = patient_records(self.sequences, subject_id)
        times = table["prediction_time"].to_pylist()
        if prediction_time not in times:
            raise UserError(
                f"{self.sequences.path} has no prediction of patient {subject_id} at {prediction_time}: choose one of "
                f"{', '.join(map(str, times))}."
            )
        record = table.take(pa.array([times.index(prediction_time)]))
        changed = self.records.changed(record, changes)
        told = self._told.get((subject_id, prediction_time))
        if told is None or told[0] is not table:  # the patient's shard is another now
            if len(self._told) >= MOST_TOLD:
                self._told.clear()
            told = self._told[subject_id, prediction_time] = (table, self._answer(record))
        before = told[1]
        if not changes:
            return WhatIf(before, before, ())
        same = equal_steps(record, changed.table)
        course = Course(before.course.time[:same], before.course.score[:same], before.course.probability[:same])
        return WhatIf(before, self._answer(changed.table, course), changed.remarks)

    def _answer(self, record: pa.Table, known: Course | None = None) -> Answer:
        """What the model says of a record; `known` is the course of its first steps."""
        batch, names = Sequences(record).batch(np.arange(1)), classes_of(self.model)
        with self._alone, torch.no_grad():
            embedded, lengths = self.model.embed(batch), _told_lengths(self.model, batch)
            score = float(self.target.score(self.model, embedded, lengths))
            probabilities = logits_of(self.model, embedded, lengths).double().softmax(1)
            course = self._course(record, embedded, lengths, known)
        return Answer(
            score,
            float(self._shown(probabilities)[0]),
            dict(zip(names, probabilities[0].tolist(), strict=True)),
            course,
            self.records.values(record),
        )

    def _course(self, record: pa.Table, embedded: Embedded, lengths: torch.Tensor, known: Course | None) -> Course:
        """The model's answers to the record cut after each step: at once if it is causal, else of what is not known."""
        target = replace(self.target, step=None)
        scores: list[np.ndarray] = []
        shown: list[np.ndarray] = []

        def take(logits: torch.Tensor, unit: Callable[[], torch.Tensor]) -> None:
            score = unit() if target.kind == UNIT else target.of_outputs(self.model, logits)
            scores.append(score.double().numpy())
            shown.append(self._shown(logits.double().softmax(1)))

        if has_own_step_scores(self.model, target):
            n_steps = int(lengths[0])
            take(
                step_logits_of(self.model, embedded, lengths)[0, :n_steps],
                lambda: unit_states(self.model, embedded, lengths)[0, :n_steps, target.unit],
            )
        else:
            if known is not None:
                scores, shown = [known.score], [known.probability]
            for cut in cut_records(record, sum(map(len, scores))):
                sequences = Sequences(cut)
                # Ordered by their lengths, which is the order that they have.
                for rows in sequences.buckets(
                    np.arange(len(sequences)), patients=RECORDS_TOGETHER, steps=STEPS_TOGETHER
                ):
                    some = sequences.batch(rows)
                    given = self.model.embed(some), _told_lengths(self.model, some)
                    take(logits_of(self.model, *given), partial(target.score, self.model, *given))
        minutes = Sequences(record).step_minutes.astype("m8[m]")
        nothing = np.zeros(0)
        return Course(
            record["prediction_time"].to_numpy() - minutes,
            np.concatenate([nothing, *scores]),
            np.concatenate([nothing, *shown]),
        )

    def _shown(self, probabilities: torch.Tensor) -> np.ndarray:
        """Of the probabilities [patient, class] the one that is shown [patient]."""
        place = self.target.shown_class(classes_of(self.model), probabilities)
        return np.asarray(probabilities.gather(1, place.unsqueeze(1)).squeeze(1).numpy())


def equal_steps(record: pa.Table, other: pa.Table) -> int:
    """How many first steps two records have alike, none where their undated values differ: what a model has read is equal.

    Args:
        record, other: one row each with the columns that a model reads.

    Example:
        >>> from whenwhy.schema import SEQUENCES
        >>> row = dict(subject_id=1, prediction_time=0, label="true", split="train", strata=[], step_minutes=[60, 0],
        ...            event_step=[0, 1, 1], event_id=[5, 6, 7], event_value=[None] * 3, static_id=[2], static_value=[None])
        >>> both = (pa.Table.from_pylist([of], schema=SEQUENCES) for of in (row, row | {"event_id": [5, 6, 8]}))
        >>> equal_steps(*both)
        1
    """
    first, second = Sequences(record), Sequences(other)
    for name in ("static_id", "static_weight"):
        if not record[name].equals(other[name]):
            return 0
    found = _equal(first.step_minutes, second.step_minutes)
    events = min(_equal(getattr(first, name), getattr(second, name)) for name in ("event_step", "event_id"))
    if first.event_weight is not None and second.event_weight is not None:
        events = min(events, _equal(first.event_weight, second.event_weight))
    for steps in (first.event_step, second.event_step):
        if events < len(steps):
            found = min(found, int(steps[events]))
    return found


def _equal(first: np.ndarray, second: np.ndarray) -> int:
    """How many first elements are equal."""
    both = min(len(first), len(second))
    differ = np.flatnonzero(first[:both] != second[:both])
    return int(differ[0]) if len(differ) else both


def cut_records(record: pa.Table, known: int = 0) -> Iterator[pa.Table]:
    """The record cut after each of its steps but the first `known`, the shortest first, in tables of some rows each.

    Args:
        record: one row with the columns that a model reads.

    Example:
        >>> from whenwhy.schema import SEQUENCES
        >>> row = dict(subject_id=1, prediction_time=0, label="true", split="train", strata=[], step_minutes=[60, 0],
        ...            event_step=[0, 1, 1], event_id=[5, 6, 7], event_value=[None] * 3, static_id=[2], static_value=[None])
        >>> [table["event_id"].to_pylist() for table in cut_records(pa.Table.from_pylist([row], schema=SEQUENCES))]
        [[[5], [5, 6, 7]]]
    """
    of = Sequences(record)
    every = np.arange(known, len(of.step_minutes))
    ends = np.searchsorted(of.event_step, every, side="right")
    together = (np.cumsum(ends) - 1) // VALUES_TOGETHER
    for number in np.unique(together):
        steps, counts = every[together == number], ends[together == number]
        lengths = {"step_minutes": steps + 1} | dict.fromkeys(("event_step", "event_id"), counts)
        if of.event_weight is not None:
            lengths["event_weight"] = counts
        table = record.take(pa.array(np.zeros(len(steps), dtype=np.int64)))
        for name, counts in lengths.items():
            flat = record[name].combine_chunks().flatten()
            at = np.concatenate([np.arange(count) for count in counts])
            offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
            column = pa.ListArray.from_arrays(offsets, flat.take(pa.array(at)))
            table = table.set_column(table.column_names.index(name), name, column)
        yield table


def _told_lengths(model: SequenceModel, batch: SequenceBatch) -> torch.Tensor:
    """The lengths that a model is told [patient]."""
    seen: SequenceBatch = getattr(model, "seen", lambda same: same)(batch)
    return seen.lengths
