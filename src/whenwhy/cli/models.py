"""Commands of models: train, predict, attribute."""

from __future__ import annotations

from dataclasses import fields
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core
import typer.main

from whenwhy.cli.shared import (
    GpusPerWorker,
    Inline,
    RayAddress,
    Sequences,
    Threads,
    WorkerCount,
    app,
    out,
    workers_of,
)
from whenwhy.errors import UserError
from whenwhy.locations import directory, location

if TYPE_CHECKING:
    from whenwhy.models.foreign.named import ForeignSource


@app.command("train")
def train_command(
    sequences: Sequences,
    out_path: Annotated[
        Path, typer.Option("--out", parser=location, help="The model directory to write or resume.", metavar="MODEL")
    ],
    architecture: Annotated[str, typer.Option(help="gru, lstm, gru_attention or retain.")] = "gru",
    hidden: Annotated[int, typer.Option(help="Width of embeddings and state.")] = 64,
    layers: Annotated[int, typer.Option(help="Recurrent layers, one upon the other.")] = 1,
    bidirectional: Annotated[bool, typer.Option("--bidirectional", help="Read backwards too.")] = False,
    pooling: Annotated[
        str | None, typer.Option(help="How states become one: last, mean or max; additive or dot for gru_attention.")
    ] = None,
    dropout: Annotated[float, typer.Option(help="Of embeddings and of what the head reads, in training.")] = 0.5,
    input_dropout: Annotated[
        float, typer.Option(help="Share of the feature values that a record lacks, in training.")
    ] = 0.0,
    members: Annotated[int, typer.Option(help="Models that learn apart; the score is the mean of theirs.")] = 1,
    learning_rate: Annotated[float, typer.Option(help="Of AdamW.")] = 3e-3,
    weight_decay: Annotated[float, typer.Option(help="Of AdamW.")] = 1e-2,
    averaging: Annotated[
        float, typer.Option(help="Share of the weights' running average that a step keeps; 0: no average.")
    ] = 0.99,
    batch: Annotated[int, typer.Option(help="Predictions a step.")] = 128,
    epochs: Annotated[int, typer.Option(help="The most epochs; training stops early.")] = 30,
    patience: Annotated[int, typer.Option(help="Epochs without a better tuning loss before it stops.")] = 4,
    class_weights: Annotated[
        str, typer.Option(help="none, or balanced: classes weigh alike; probabilities keep the true prior.")
    ] = "none",
    supervise: Annotated[str, typer.Option(help="last: the record's score; every: the scores at its steps.")] = "last",
    folds: Annotated[int, typer.Option(help="Folds of patients to measure on; the first is the data set's split.")] = 1,
    seed: Annotated[int, typer.Option(help="Of initial weights, order and folds.", min=0)] = 0,
    workers: WorkerCount = None,
    gpus_per_worker: GpusPerWorker = None,
    threads: Threads = 1,
    inline: Inline = False,
    ray_address: RayAddress = None,
) -> None:
    """A recurrent model is trained, and measured on held-out patients beside a logistic regression."""
    from whenwhy.models.measurements import measured, measured_sentence
    from whenwhy.models.training import TrainSettings, train

    settings = TrainSettings(
        architecture=architecture,
        hidden=hidden,
        layers=layers,
        bidirectional=bidirectional,
        pooling=pooling,
        dropout=dropout,
        input_dropout=input_dropout,
        members=members,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        averaging=averaging,
        batch=batch,
        epochs=epochs,
        patience=patience,
        class_weights=class_weights,
        supervise=supervise,
        folds=folds,
        seed=seed,
    )
    stage = train(sequences, out_path, settings, workers_of(workers, inline, ray_address, gpus_per_worker, threads))
    out.print(f"Wrote {out_path} (run {stage.run_id}): {measured_sentence(measured(stage))}.", soft_wrap=True)


@app.command("predict")
def predict_command(
    sequences: Sequences,
    model: Annotated[
        Path, typer.Option(parser=location, help="The directory that `whenwhy train` wrote.", metavar="MODEL")
    ],
    out_path: Annotated[
        Path, typer.Option("--out", parser=directory, help="The Parquet file to write.", metavar="FILE")
    ],
    split: Annotated[
        str, typer.Option(help="train, tuning, held_out or all, of the data set's own split.")
    ] = "held_out",
) -> None:
    """A model's predictions, beside the labels, in the form that meds-evaluation reads.

    Of more than two classes, which that form does not know, they are the predicted class and a probability a class.
    """
    from whenwhy.models.predictions import predict

    written = predict(sequences, model, out_path, split)
    out.print(f"Wrote {out_path}: {written:,} predictions.", soft_wrap=True)


@app.command("attribute")
def attribute_command(
    sequences: Sequences,
    model: Annotated[
        str,
        typer.Option(
            help="The directory that `whenwhy train` wrote; or your own network, module:callable; or pyhealth:rnn, "
            "pyhealth:retain.",
            metavar="MODEL",
        ),
    ],
    out_path: Annotated[
        Path, typer.Option("--out", parser=location, help="The attributions to write or resume.", metavar="ATTR")
    ],
    method: Annotated[str, typer.Option(help="See `whenwhy info methods`.")] = "integrated_gradients",
    option: Annotated[
        list[str] | None,
        typer.Option(help="An option of the method, name=value; may be given again.", metavar="NAME=VALUE"),
    ] = None,
    baseline: Annotated[
        str, typer.Option(help="What the record is compared with: empty, rates, carried_forward or reference.")
    ] = "empty",
    target: Annotated[
        str,
        typer.Option(
            help="What is explained: logit, probability, log_odds:CLASS:OTHER or unit:K; of several classes logit:CLASS or "
            "probability:CLASS; @STEP cuts the record after a step (from 0, or -1 for the last)."
        ),
    ] = "logit",
    tolerance: Annotated[float, typer.Option(help="Of completeness, in score units.")] = 1e-4,
    seed: Annotated[int, typer.Option(help="Of methods and baselines that draw.", min=0)] = 0,
    absence: Annotated[
        bool,
        typer.Option(
            "--absence", help="Keep also what not having each feature value adds; needs --baseline rates, and space."
        ),
    ] = False,
    precision: Annotated[
        str, typer.Option(help="What is computed in: float32, float64, or bfloat16, whose error is measured and told.")
    ] = "float32",
    weights: Annotated[
        Path | None, typer.Option(help="Your network's weights: .safetensors, or .pt, .pth, .ckpt, .bin.")
    ] = None,
    arguments: Annotated[str, typer.Option(help="Keyword arguments for your callable, as JSON.")] = "{}",
    output: Annotated[
        str | None, typer.Option(help="What your network answers: logit or probability; by default a logit.")
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            help="Names of your network's classes, in the order of its answers: a,b,c; by default false,true, or of more "
            "than two 0,1,2 and so on.",
            metavar="NAMES",
        ),
    ] = None,
    static_in: Annotated[
        str, typer.Option(help="Where your network finds undated values: first (step), every (step) or none.")
    ] = "first",
    vocabulary: Annotated[
        Path | None, typer.Option(help="The file that SEQ was prepared with; PyHealth's models need it.")
    ] = None,
    trust: Annotated[bool, typer.Option("--trust", help="Run code that the weights file holds.")] = False,
    part: Annotated[
        str,
        typer.Option(help="Of every N shards the K-th alone, for N jobs that share the work.", metavar="K/N"),
    ] = "1/1",
    workers: WorkerCount = None,
    gpus_per_worker: GpusPerWorker = None,
    threads: Threads = 1,
    inline: Inline = False,
    ray_address: RayAddress = None,
) -> None:
    """The contribution of every recorded feature value to every prediction."""
    from whenwhy.attribution.attribute_shards import AttributeSettings, attribute_shards
    from whenwhy.attribution.attribution_directory import ABOUT
    from whenwhy.attribution.run_summary import fitted_sentence, residual_sentence, rounding_sentence
    from whenwhy.models.foreign.named import ForeignSource, proof_sentence

    settings = AttributeSettings(
        method, baseline, target, tolerance, _named_options(option or []), seed, absence, precision=precision
    )
    source = _source(model, weights, arguments, output, static_in, classes, vocabulary, trust)
    who, mine = workers_of(workers, inline, ray_address, gpus_per_worker, threads), _part(part)
    stage = attribute_shards(sequences, source, out_path, settings, who, mine)
    others = len(set(stage.missing()).intersection(stage.shards))
    if others:
        out.print(
            f"Wrote part {part} of {out_path} (run {stage.run_id}): {others} of {len(stage.shards)} shards are left to "
            "other parts; when they have ended, the same command without --part ends the run.",
            soft_wrap=True,
        )
        return
    if isinstance(source, ForeignSource):
        out.print(f"{proof_sentence(stage.entry(ABOUT).summary['foreign'])}.", soft_wrap=True)
    if fitted_sentence(stage):
        out.print(f"{fitted_sentence(stage)}.", soft_wrap=True)
    if rounding_sentence(stage):
        out.print(f"{rounding_sentence(stage)}.", soft_wrap=True)
    out.print(f"Wrote {out_path} (run {stage.run_id}): {residual_sentence(stage)}.", soft_wrap=True)


def _part(text: str) -> tuple[int, int]:
    """The part of the shards that "K/N" names."""
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise UserError(f"--part {text} is no K/N with K from 1 to N: write e.g. --part 2/8.")
    return int(part), int(parts)


def _named_options(told: list[str]) -> dict[str, str]:
    """Options by name, as they are written."""
    options = {}
    for text in told:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UserError(f"--option {text} is no NAME=VALUE: write e.g. --option samples=25.")
        options[name] = value
    return options


def _source(
    model: str,
    weights: Path | None,
    arguments: str,
    output: str | None,
    static_in: str,
    classes: str | None,
    vocabulary: Path | None,
    trust: bool,
) -> Path | ForeignSource:
    """The directory of a model that was trained here, or what a stranger's is made of."""
    from whenwhy.models.foreign.named import ForeignSource

    foreign = ForeignSource(model, weights, arguments, output, static_in, classes, vocabulary, trust)
    if ":" in model and "://" not in model and not Path(model).exists():
        return foreign
    if foreign != ForeignSource(model):
        raise UserError(
            f"--model {model} is a directory of `whenwhy train`: --weights, --arguments, --output, --static-in, "
            "--classes, --vocabulary and --trust are for module:callable."
        )
    return location(model)


def plan_command(sequences: Path, **asked: Any) -> None:
    """How long `whenwhy attribute` would take, and what disk and memory: some batches are really attributed, and timed.

    The options are those of `whenwhy attribute`. Nothing is written.
    """
    from whenwhy.attribution.attribute_shards import AttributeSettings
    from whenwhy.attribution.plan import plan, plan_sentence

    who = ("workers", "inline", "ray_address", "gpus_per_worker", "threads")
    workers = workers_of(*(asked.pop(name) for name in who))
    options = _named_options(asked.pop("option") or [])
    named = {field.name: asked.pop(field.name) for field in fields(AttributeSettings) if field.name in asked}
    found = plan(sequences, _source(**asked), AttributeSettings(**named, options=options), workers)
    out.print(f"{plan_sentence(found, named['method'])}.", soft_wrap=True)


# It takes what `attribute` takes, but for the place to write and the part.
_signature = signature(attribute_command, eval_str=True)
plan_command.__signature__ = _signature.replace(  # type: ignore[attr-defined]
    parameters=[parameter for name, parameter in _signature.parameters.items() if name not in ("out_path", "part")]
)
plan_command.__annotations__ = attribute_command.__annotations__
app.command("plan")(plan_command)
