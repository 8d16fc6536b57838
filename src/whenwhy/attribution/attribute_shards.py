"""Sequences and a model flow in, attribution shards flow out: `whenwhy attribute`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import save

from whenwhy import __version__
from whenwhy.attribution.absence import first_layer_table, require_absence_told
from whenwhy.attribution.attribute import TOLERANCE, Attributions, attribute, fit_method, question_of
from whenwhy.attribution.attribution_directory import (
    ABOUT,
    FIRST_LAYER_ROWS,
    FITTED,
    FITTED_TENSORS,
    GRADIENT_ROWS,
    PREDICTION_ROWS,
    ROUNDING,
    ROWS,
    first_prediction_id,
    read_fitted,
)
from whenwhy.attribution.attribution_table import attribution_tables
from whenwhy.attribution.baselines import BASELINES, EMPTY
from whenwhy.attribution.halves import in_halves
from whenwhy.attribution.population import POPULATION, population_tables, read_population, sampled_training
from whenwhy.attribution.precision import (
    BFLOAT16,
    FLOAT32,
    PRECISIONS,
    SAMPLE,
    at_precision,
    batch_at,
    population_at,
    precision_error,
)
from whenwhy.attribution.registry import Fitted, method_named
from whenwhy.attribution.run_summary import measured_here, residuals_told, shard_residuals
from whenwhy.attribution.targets import target_named
from whenwhy.engine import Workers, reported, run, worker_threads
from whenwhy.errors import UserError, unknown_name
from whenwhy.events.sequence_batch import SequenceBatch, Sequences
from whenwhy.events.sequence_directory import TABLE, VOCABULARY
from whenwhy.locations import location, named
from whenwhy.models.checkpoint import SHIPPED, WEIGHTS, load_model, require_same_vocabulary, vocabulary_sha256
from whenwhy.models.foreign.named import ForeignSource
from whenwhy.models.measurements import measured
from whenwhy.models.sequence_model import SequenceModel
from whenwhy.shards import Json, StageDirectory

#: Training predictions that a method is fitted on, in batches of so many, and those that measure the fit.
FIT_SAMPLE, FIT_BATCH, FIT_MEASURE = 512, 32, 32


@dataclass(frozen=True)
class AttributeSettings:
    """What is asked of every prediction.

    Attributes:
        tolerance: of completeness, in score units.
        options: of the method; those that are not named have their defaults.
        seed: of methods and baselines that draw.
        absence: keep what tells, feature value by feature value, what not having it adds: the gradient of every step,
            4 bytes times the embeddings' width before compression.
        batch_patients, batch_steps: the most sequences, and padded steps, that share a batch.
        precision: float32, float64 or bfloat16, see `attribute`; the rows lie on the grid of 2^-24 in any of them.
    """

    method: str = "integrated_gradients"
    baseline: str = "empty"
    target: str = "logit"
    tolerance: float = TOLERANCE
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    absence: bool = False
    batch_patients: int = 256
    batch_steps: int = 4096
    precision: str = FLOAT32

    @property
    def needs_population(self) -> bool:
        """Whether the training patients must be known."""
        return self.baseline != EMPTY or method_named(self.method).needs_population(self.options)


def attribute_shards(
    sequences_path: Path,
    model: Path | ForeignSource,
    out: Path,
    settings: AttributeSettings,
    workers: Workers | None = None,
    part: tuple[int, int] = (1, 1),
) -> StageDirectory:
    """The directory of attributions: one entry a shard of the sequences, with its rows and its predictions.

    Args:
        model: the directory that `whenwhy train` wrote, or a model that was trained elsewhere.
        part: (k, n): of every n shards the k-th alone, so that n jobs share the work without speaking to each other;
            a run without it finishes what they left.

    Raises:
        UserError: unknown names, unfinished inputs, a model of another vocabulary, or one that cannot be adapted;
            absence of a method or a baseline that cannot tell it.

    Example: `attribute_shards(Path("seq"), Path("model"), Path("attr"), AttributeSettings())`
    """
    of = begun(sequences_path, model, out, settings)
    stage, about = of.stage, of.about
    mine = stage.shards[part[0] - 1 :: part[1]]
    missing = sorted(set(stage.missing()).intersection(mine), key=mine.index)
    finished = len(mine) - len(missing)
    with reported(out) as report:
        run(of.task, missing, stage="attribute", unit="values", workers=workers, finished=finished, publishes=True)
        if set(stage.missing()).intersection(stage.shards):  # left to other parts
            return stage
        if missing:
            report.summary |= residuals_told(stage)
    if not stage.has(ABOUT):  # a model that was trained elsewhere is measured by the predictions just made
        quality = measured_here(stage, about["foreign"]["classes"])
        stage.publish(ABOUT, _vocabulary_of(of.sequences), about | {"quality": quality})
    return stage


@dataclass(frozen=True)
class Begun:
    """A run of which all is there but its shards.

    Attributes:
        about: what its entry ABOUT says, or will say when a stranger's model has been measured.
        task: what does a shard.
    """

    stage: StageDirectory
    sequences: StageDirectory
    about: Json
    task: AttributeShard


def begun(sequences_path: Path, model: Path | ForeignSource, out: Path, settings: AttributeSettings) -> Begun:
    """What `attribute_shards` does before the first shard: inputs checked, what all shards share published."""
    method = method_named(settings.method)
    options = method.with_options(settings.options)
    target = target_named(settings.target)
    settings = replace(settings, options=options, target=target.name)
    if settings.baseline not in BASELINES:
        raise unknown_name("baseline", settings.baseline, BASELINES)
    if settings.precision not in PRECISIONS:
        raise unknown_name("precision", settings.precision, PRECISIONS)
    if not settings.tolerance > 0 or settings.batch_patients < 1 or settings.batch_steps < 1:
        raise UserError("attribute needs a tolerance above 0 and batches of at least one sequence and step.")
    if settings.absence:
        require_absence_told(method, settings.baseline)
    sequences = StageDirectory.open(sequences_path, "prepare").require_complete()
    about: Json = {"outcome": sequences.settings["outcome"], "vocabulary_sha256": vocabulary_sha256(sequences)}
    if isinstance(model, ForeignSource):
        model = model.settled()
        as_input = model.as_input()
        about |= {"model_sha256": as_input["sha256"], "foreign": model.load(sequences)[1]}
    else:
        trained = StageDirectory.open(model, "train").require_complete()
        require_same_vocabulary(trained, sequences)
        as_input = trained.as_growing_input()
        about |= {"model_sha256": trained.entry(SHIPPED).files[WEIGHTS]["sha256"], "quality": measured(trained)}
    if not StageDirectory.started(out):
        _require_answerable(sequences, model, settings)
    stage = StageDirectory.create(
        out,
        stage="attribute",
        settings=asdict(settings),
        inputs={"sequences": sequences.as_growing_input(), "model": as_input},
        shards=sequences.manifest["shards"],
        besides=[
            ABOUT,
            *([POPULATION] if settings.needs_population else []),
            *([FITTED] if method.fit else []),
            *([FIRST_LAYER_ROWS] if settings.absence else []),
            *([ROUNDING] if settings.precision == BFLOAT16 else []),
        ],
        code_version=__version__,
    )
    for number, generation in enumerate(sequences.generations, start=1):
        if number > len(stage.generations):
            stage = stage.extended(number, generation["inputs"], generation["shards"])
    if "quality" in about and not stage.has(ABOUT):
        stage.publish(ABOUT, _vocabulary_of(sequences), about)
    if settings.needs_population and not stage.has(POPULATION):
        stage.publish(POPULATION, population_tables(sequences))
    if method.fit and not stage.has(FITTED):
        fitted = _fitted(sequences, model, stage)
        stage.publish(FITTED, {FITTED_TENSORS: save(dict(fitted.tensors))}, dict(fitted.summary))
    if settings.absence and not stage.has(FIRST_LAYER_ROWS):
        table = first_layer_table(_loaded(model, sequences, torch.device("cpu")), read_population(stage))
        stage.publish(FIRST_LAYER_ROWS, {FIRST_LAYER_ROWS: table})
    if settings.precision == BFLOAT16 and not stage.has(ROUNDING):
        stage.publish(ROUNDING, {}, _rounding(sequences, model, stage))
    task = AttributeShard(
        named(sequences_path), model if isinstance(model, ForeignSource) else named(model), named(out)
    )
    return Begun(stage, sequences, about, task)


@dataclass(frozen=True)
class AttributeShard:
    """The engine's task: one shard of sequences attributed on this worker's own device."""

    sequences: str
    model: str | ForeignSource
    out: str

    def stage(self) -> StageDirectory:
        """Where the attributions go."""
        return StageDirectory.open(location(self.out), "attribute")

    def source(self) -> StageDirectory:
        """Where the sequences are."""
        return StageDirectory.open(location(self.sequences), "prepare")

    def loaded(self, device: torch.device) -> SequenceModel:
        """The model."""
        return _loaded(self.model, self.source(), device)

    def start(self) -> Callable[[str], int]:
        # One, unless more were asked for: gradients are bit-equal whatever the number of workers.
        torch.set_num_threads(worker_threads())
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        stage, source = self.stage(), self.source()
        asked = AttributeSettings(**stage.settings)
        halved: Counter[str] = Counter()
        explained = explaining(self.loaded(device), stage, device, halved)

        def one_shard(key: str) -> int:
            halved.clear()
            files, summary = shard_files(Sequences(source.read(key, TABLE)), key, asked, explained)
            # Batches that did not fit in memory: their sums may differ in the last bits.
            stage.publish(key, files, summary | {"n_halved": halved["batches"]})
            return int(summary["n_rows"])

        return one_shard


def shard_files(
    sequences: Sequences, key: str, asked: AttributeSettings, explained: Explaining
) -> tuple[dict[str, pa.Table], Json]:
    """The tables of a shard's entry, and what its manifest says of them."""
    attributed = explained(sequences, np.arange(len(sequences)), asked.precision)
    rows, predictions, gradients = attribution_tables(sequences, first_prediction_id(key), asked.target, attributed)
    summary = {"n_predictions": predictions.num_rows, "n_rows": rows.num_rows} | shard_residuals(
        predictions, asked.tolerance
    )
    files = {ROWS: rows, PREDICTION_ROWS: predictions}
    return files if gradients is None else files | {GRADIENT_ROWS: gradients}, summary


def _vocabulary_of(sequences: StageDirectory) -> dict[str, pa.Table]:
    """Feature values, and the hierarchy of their codes."""
    return {name: sequences.read(VOCABULARY, name) for name in sequences.entry(VOCABULARY).files}


def _loaded(model: Path | str | ForeignSource, sequences: StageDirectory, device: torch.device) -> SequenceModel:
    if isinstance(model, ForeignSource):
        return model.load(sequences, device)[0]
    return load_model(StageDirectory.open(location(model), "train"), device)


#: Some predictions of a table, explained in a precision: batches of like length, and what is found of each.
Explaining = Callable[[Sequences, np.ndarray, str], Iterator[tuple[SequenceBatch, Attributions]]]


def explaining(model: SequenceModel, stage: StageDirectory, device: torch.device, halved: Counter[str]) -> Explaining:
    """What a run asks, of any predictions, with what the run keeps of its population and fit.

    Args:
        halved: counts the "batches" that were taken in halves, for lack of memory.
    """
    asked = AttributeSettings(**stage.settings)
    population = read_population(stage, device) if asked.needs_population else None
    fitted = read_fitted(stage, device)
    models = {FLOAT32: model}

    def explained(
        sequences: Sequences, rows: np.ndarray, precision: str
    ) -> Iterator[tuple[SequenceBatch, Attributions]]:
        of = population_at(population, precision)

        def one_batch(some: np.ndarray) -> tuple[SequenceBatch, Attributions]:
            batch = sequences.batch(some, device)
            if precision not in models:
                models[precision] = at_precision(model, precision, batch)
            found = attribute(
                models[precision],
                batch_at(batch, precision),
                method=asked.method,
                baseline=asked.baseline,
                target=asked.target,
                tolerance=asked.tolerance,
                population=of,
                seed=asked.seed,
                options=asked.options,
                fitted=fitted,
                absence=asked.absence,
            )
            return batch, found

        for some in sequences.buckets(rows, patients=asked.batch_patients, steps=asked.batch_steps):
            yield from in_halves(some, one_batch, lambda: halved.update(["batches"]))

    return explained


@contextmanager
def _as_a_worker() -> Iterator[torch.device]:
    """A worker's device, and its one thread, so that numbers are those of a worker and the same again."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield torch.device("cuda" if torch.cuda.is_available() else "cpu")
    finally:
        torch.set_num_threads(threads)


def _first_rows(sequences: StageDirectory, number: int) -> Sequences:
    """The first predictions of the first shard that has any, at most so many."""
    for shard in sequences.shards:
        table = sequences.read(shard, TABLE)
        if table.num_rows:
            return Sequences(table.slice(0, number))
    return Sequences(sequences.read(sequences.shards[0], TABLE))


def _require_answerable(sequences: StageDirectory, model: Path | ForeignSource, settings: AttributeSettings) -> None:
    """Raises `UserError`, before anything is written, for what the model cannot be asked.

    Two short records are tried, beside the empty record, since the population is not known yet.
    """
    with _as_a_worker() as device:
        of, chosen = _first_rows(sequences, 64), method_named(settings.method)
        batch = of.batch(np.argsort(of.n_steps, kind="stable")[:2], device)
        asked = at_precision(_loaded(model, sequences, device), settings.precision, batch)
        batch = batch_at(batch, settings.precision)
        if chosen.fit or settings.needs_population or not len(batch):
            question_of(asked, batch, target=settings.target)
        else:
            attribute(asked, batch, method=chosen.name, target=settings.target, options=settings.options, tolerance=100)


def _rounding(sequences: StageDirectory, model: Path | ForeignSource, stage: StageDirectory) -> Json:
    """How far bfloat16 is from float32, on the first predictions of the run."""
    with _as_a_worker() as device:
        explained = explaining(_loaded(model, sequences, device), stage, device, Counter())
        of = _first_rows(sequences, SAMPLE)
        low, exact = (explained(of, np.arange(len(of)), precision) for precision in (BFLOAT16, FLOAT32))
        return dict(precision_error((mine, others) for (_, mine), (_, others) in zip(low, exact, strict=True)))


def _fitted(sequences: StageDirectory, model: Path | ForeignSource, stage: StageDirectory) -> Fitted:
    """A run's method fitted on a sample of its training predictions; on one thread, so that it is the same again."""
    with _as_a_worker() as device:
        asked = AttributeSettings(**stage.settings)
        of = Sequences(sampled_training(sequences, FIT_SAMPLE + FIT_MEASURE))
        measure = min(FIT_MEASURE, len(of) // 4)
        learning = of.buckets(np.arange(measure, len(of)), patients=FIT_BATCH, steps=asked.batch_steps)
        measuring = [np.arange(measure)] if measure else []
        return fit_method(
            _loaded(model, sequences, device),
            (of.batch(rows, device) for rows in [*learning, *measuring]),
            method=asked.method,
            baseline=asked.baseline,
            target=asked.target,
            tolerance=asked.tolerance,
            population=None if asked.baseline == EMPTY else read_population(stage, device),
            seed=asked.seed,
            options=asked.options,
            precision=asked.precision,
        )
