"""The command line: the same words as in Python, one sentence and exit status 2 for bad input."""

from __future__ import annotations

import inspect
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
import typer.core
import typer.main
from rich.console import Console
from typer.exceptions import Exit, TyperException

from whenwhy import __version__
from whenwhy.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa
    from typer._click.core import Command, Context

    from whenwhy.engine import Workers
    from whenwhy.events.sources import Source

# Heavy modules (torch, Ray, Bokeh...) are imported by the command that needs them, so that --help is quick.

app = typer.Typer(
    name="whenwhy",
    help="When did a feature's value matter, and why did the model predict what it did, for a million patients at once.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
#: The exit status after Ctrl-C.
INTERRUPTED = 130

out = Console(highlight=False, markup=False)

Sequences = Annotated[Path, typer.Argument(help="The directory that `whenwhy prepare` wrote.", metavar="SEQ")]
StorePath = Annotated[Path, typer.Argument(help="The store that `whenwhy aggregate` published.", metavar="STORE")]
WorkerCount = Annotated[
    int | None, typer.Option("--workers", min=1, help="Workers; by default one a GPU, or one a core.")
]
Inline = Annotated[bool, typer.Option("--inline", help="Work in this process, without Ray.")]
RayAddress = Annotated[str | None, typer.Option("--ray-address", help="Join this Ray cluster instead of starting one.")]
OutputFormat = Annotated[str, typer.Option("--format", help="table, csv or json (one object a line).")]


@app.callback(invoke_without_command=True)
def _whenwhy(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Print the traceback of an error.")] = False,
) -> None:
    if version:
        out.print(f"whenwhy {__version__}")
        raise Exit(0)


@app.command("demo")
def demo_command(
    folder: Annotated[Path, typer.Argument(help="Where everything is kept.", metavar="[DIR]")] = Path("demo"),
    serve: Annotated[bool, typer.Option("--serve", help="Then serve the dashboard.")] = False,
    port: Annotated[int, typer.Option(help="The dashboard's port.", min=0, max=65535)] = 5006,
    workers: WorkerCount = None,
    inline: Inline = False,
) -> None:
    """All stages on 17,549 real patients, three worked questions, and where the store lies."""
    from whenwhy.demo import demo

    store = demo(folder, _workers(workers, inline), out)
    if serve:
        _serve(store, port, "127.0.0.1")


class SourceCommands(typer.core.TyperGroup):
    """One command for each source, with that source's own options; sources are imported when one is asked for."""

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:
        if not args:
            raise UserError(
                f"Name a source, {', '.join(self.list_commands(ctx))}: `whenwhy info sources` describes them."
            )
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: Context) -> list[str]:
        from whenwhy.events.sources import registered_sources

        return list(registered_sources())

    def get_command(self, ctx: Context, cmd_name: str) -> Command | None:
        from whenwhy.events.sources import named_source

        return _source_command(named_source(cmd_name))


# A group, so that `whenwhy import SOURCE --help` shows the source's options; registered as a command like the others.
@app.command("import", cls=SourceCommands)  # type: ignore[arg-type]
def import_command() -> None:
    """A named source becomes a MEDS data set: `whenwhy import SOURCE --help` lists its options."""


def _source_command(source: Source) -> Command:
    """`whenwhy import SOURCE`: the paths, --out, and the options that the source's function names."""

    def command(paths: list[Path] | Path | None, out_path: Path | None, **options: Any) -> None:
        from whenwhy.events.sources import import_source

        given = paths if isinstance(paths, list) else [paths] if paths else []
        *inputs, out_meds = _inputs_and_out(source, given, out_path)
        wrote = import_source(source.name, out_meds, *inputs, **options)
        labels = ", ".join(str(path) for path in sorted((out_meds / "labels").glob("*"))) or "none"
        out.print(f"{'Wrote' if wrote else 'Found'} the MEDS data set {out_meds} (labels: {labels}).", soft_wrap=True)

    paths: Any = Annotated[Path | None, typer.Argument(help="The new MEDS data set.", metavar="OUT_MEDS")]
    if source.reads_files:
        told = "The new MEDS data set; before it, if you like, what to read."
        if source.needs_files:
            told = "What to read, then the new MEDS data set; alone, the data set is named after it, in this directory."
        paths = Annotated[list[Path] | None, typer.Argument(help=told, metavar="PATH")]
    out_path = Annotated[
        Path | None, typer.Option("--out", help="The new MEDS data set; then every path is read.", metavar="OUT_MEDS")
    ]
    by_position = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [
        inspect.Parameter("paths", by_position, default=None, annotation=paths),
        inspect.Parameter("out_path", by_position, default=None, annotation=out_path),
        *source.options.values(),
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    alone = typer.Typer(add_completion=False, context_settings={"help_option_names": ["-h", "--help"]})
    alone.command(source.name, help=source.describes[:1].upper() + source.describes[1:])(command)
    return typer.main.get_command(alone)


def _inputs_and_out(source: Source, paths: list[Path], out_path: Path | None) -> list[Path]:
    """The paths to read, then the data set's."""
    if out_path is not None:
        return [*paths, out_path]
    if not paths:
        raise UserError(f"The source '{source.name}' needs a place for its data set: name a new directory, OUT_MEDS.")
    if len(paths) == 1 and source.needs_files:
        return [paths[0], Path(f"{paths[0].resolve().name.split('.')[0]}_meds")]
    return paths


@app.command("prepare")
def prepare_command(
    meds: Annotated[Path, typer.Argument(help="A MEDS data set.", metavar="MEDS")],
    labels: Annotated[Path, typer.Option(help="MEDS labels: a Parquet file or a folder of them.")],
    out_path: Annotated[
        Path, typer.Option("--out", help="The directory of sequences to write or resume.", metavar="SEQ")
    ],
    outcome: Annotated[
        str | None, typer.Option(help="The outcome's name for people; by default the labels' name.")
    ] = None,
    strata: Annotated[str, typer.Option(help="Cohorts to be, e.g. sex,age_band: static codes, or age_band.")] = "",
    without: Annotated[str, typer.Option(help="Codes to leave out, e.g. of a leak, separated by commas.")] = "",
    bins: Annotated[int, typer.Option(help="Quantile bins of a numeric code.")] = 10,
    cut_offs: Annotated[
        Path | None, typer.Option(help="A YAML file of cut-offs by code, such as 'creatinine: [0.7, 1.3]'.")
    ] = None,
    rare_below: Annotated[int, typer.Option(help="Fold feature values of fewer training patients than this.")] = 5,
    vocabulary: Annotated[
        Path | None,
        typer.Option(help="The feature values that your own model was trained on (index, code[, low, high])."),
    ] = None,
    steps: Annotated[str, typer.Option(help="A step is: event, visit, or a width such as 6h or 1d.")] = "event",
    visit_gap: Annotated[float, typer.Option(help="Hours without events that end a visit.")] = 24.0,
    anchor: Annotated[
        str, typer.Option(help="Steps align with: prediction, admission (the latest), or a code's first occurrence.")
    ] = "prediction",
    history_hours: Annotated[float | None, typer.Option(help="Leave out events longer before the prediction.")] = None,
    max_steps: Annotated[int, typer.Option(help="The most recent steps that are kept.")] = 1000,
    repeats: Annotated[
        str | None,
        typer.Option(
            help="Of several values in a step count: all, once (each feature value), last (of each code). "
            "By default all, with --vocabulary once."
        ),
    ] = None,
    carry: Annotated[
        str, typer.Option(help="Codes whose last value is carried forward to steps without one, or all.")
    ] = "",
    carry_hours: Annotated[float | None, typer.Option(help="Carry values no longer than this.")] = None,
    since_last: Annotated[
        str, typer.Option(help="Codes that tell the hours since their previous record, or all.")
    ] = "",
    not_measured: Annotated[
        str, typer.Option(help="Say when a code was not recorded for so many hours, e.g. creatinine=48,lactate=12.")
    ] = "",
    shard_size: Annotated[int, typer.Option(help="Predictions a shard, about.")] = 1024,
    add: Annotated[
        bool, typer.Option("--add", help="Add these patients to SEQ as a further generation, by its own settings.")
    ] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Work on a mended copy where rules of MEDS are broken.")
    ] = False,
    memory_limit: Annotated[str, typer.Option(help="Of DuckDB, which merges counts and mends copies.")] = "1GB",
    workers: WorkerCount = None,
    inline: Inline = False,
    ray_address: RayAddress = None,
) -> None:
    """MEDS events become sequences of feature values; nothing after a prediction time is seen."""
    from whenwhy.events.fitting import read_cut_offs
    from whenwhy.events.prepare_report import prepared_notes, prepared_sentence
    from whenwhy.events.sequences import PrepareSettings, add_generation, prepare

    who = _workers(workers, inline, ray_address)
    if add:
        stage = add_generation(meds, labels, out_path, who, repair=repair, memory_limit=memory_limit)
    else:
        settings = PrepareSettings(
            outcome=outcome or labels.name.removesuffix(".parquet").replace("_", " "),
            strata=_names(strata),
            without=_names(without),
            bins=bins,
            cut_offs=read_cut_offs(cut_offs) if cut_offs else {},
            rare_below=rare_below,
            steps=steps,
            visit_gap_hours=visit_gap,
            anchor=anchor,
            history_hours=history_hours,
            max_steps=max_steps,
            repeats=repeats or ("once" if vocabulary else "all"),
            carry=_names(carry),
            carry_hours=carry_hours,
            since_last=_names(since_last),
            not_measured=tuple(_code_hours(told) for told in _names(not_measured)),
            shard_size=shard_size,
        )
        stage = prepare(
            meds, labels, out_path, settings, who, vocabulary=vocabulary, repair=repair, memory_limit=memory_limit
        )
    for line in prepared_notes(stage):
        out.print(line, soft_wrap=True)
    out.print(f"Wrote {out_path} (run {stage.run_id}): {prepared_sentence(stage)}.", soft_wrap=True)


@app.command("validate")
def validate_command(
    meds: Annotated[Path, typer.Argument(help="A MEDS data set.", metavar="MEDS")],
    workers: WorkerCount = None,
) -> None:
    """What is wrong with a MEDS data set, per file and with counts, and what --repair would do about it."""
    from whenwhy.events.validation import validation_lines

    sound, lines = validation_lines(meds, _workers(workers, workers is None))
    for line in lines:
        out.print(line, soft_wrap=True)
    if not sound:
        raise Exit(2)


@app.command("train")
def train_command(
    sequences: Sequences,
    out_path: Annotated[Path, typer.Option("--out", help="The model directory to write or resume.", metavar="MODEL")],
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
    learning_rate: Annotated[float, typer.Option(help="Of AdamW.")] = 3e-3,
    weight_decay: Annotated[float, typer.Option(help="Of AdamW.")] = 1e-2,
    averaging: Annotated[
        float, typer.Option(help="Share of the weights' running average that a step keeps; 0: no average.")
    ] = 0.99,
    batch: Annotated[int, typer.Option(help="Predictions a step.")] = 128,
    epochs: Annotated[int, typer.Option(help="The most epochs; training stops early.")] = 30,
    patience: Annotated[int, typer.Option(help="Epochs without a better tuning loss before it stops.")] = 4,
    class_weights: Annotated[str, typer.Option(help="none, or balanced; probabilities keep the true prior.")] = "none",
    supervise: Annotated[str, typer.Option(help="last: the record's score; every: the scores at its steps.")] = "last",
    folds: Annotated[int, typer.Option(help="Folds of patients to measure on; the first is the data set's split.")] = 1,
    seed: Annotated[int, typer.Option(help="Of initial weights, order and folds.")] = 0,
    workers: WorkerCount = None,
    inline: Inline = False,
    ray_address: RayAddress = None,
) -> None:
    """A recurrent model is trained, and measured on held-out patients beside a logistic regression."""
    from whenwhy.models.training import TrainSettings, measured, measured_sentence, train

    settings = TrainSettings(
        architecture=architecture,
        hidden=hidden,
        layers=layers,
        bidirectional=bidirectional,
        pooling=pooling,
        dropout=dropout,
        input_dropout=input_dropout,
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
    stage = train(sequences, out_path, settings, _workers(workers, inline, ray_address))
    out.print(f"Wrote {out_path} (run {stage.run_id}): {measured_sentence(measured(stage))}.", soft_wrap=True)


@app.command("predict")
def predict_command(
    sequences: Sequences,
    model: Annotated[Path, typer.Option(help="The directory that `whenwhy train` wrote.", metavar="MODEL")],
    out_path: Annotated[Path, typer.Option("--out", help="The Parquet file to write.", metavar="FILE")],
    split: Annotated[
        str, typer.Option(help="train, tuning, held_out or all, of the data set's own split.")
    ] = "held_out",
) -> None:
    """A model's predictions, beside the labels, in the form that meds-evaluation reads."""
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
    out_path: Annotated[Path, typer.Option("--out", help="The attributions to write or resume.", metavar="ATTR")],
    method: Annotated[str, typer.Option(help="See `whenwhy info methods`.")] = "integrated_gradients",
    baseline: Annotated[str, typer.Option(help="What the record is compared with.")] = "empty",
    target: Annotated[str, typer.Option(help="The score that is explained.")] = "logit",
    tolerance: Annotated[float, typer.Option(help="Of completeness, in score units.")] = 1e-4,
    weights: Annotated[
        Path | None, typer.Option(help="Your network's weights: .safetensors, or .pt, .pth, .ckpt, .bin.")
    ] = None,
    arguments: Annotated[str, typer.Option(help="Keyword arguments for your callable, as JSON.")] = "{}",
    output: Annotated[
        str | None, typer.Option(help="What your network answers: logit or probability; by default a logit.")
    ] = None,
    static_in: Annotated[
        str, typer.Option(help="Where your network finds undated values: first (step), every (step) or none.")
    ] = "first",
    vocabulary: Annotated[
        Path | None, typer.Option(help="The file that SEQ was prepared with; PyHealth's models need it.")
    ] = None,
    trust: Annotated[bool, typer.Option("--trust", help="Run code that the weights file holds.")] = False,
    workers: WorkerCount = None,
    inline: Inline = False,
    ray_address: RayAddress = None,
) -> None:
    """The contribution of every recorded feature value to every prediction."""
    from whenwhy.attribution.attribute_shards import ABOUT, AttributeSettings, attribute_shards, residual_sentence
    from whenwhy.models.foreign.named import ForeignSource, proof_sentence

    settings = AttributeSettings(method, baseline, target, tolerance)
    foreign = ForeignSource(model, weights, arguments, output, static_in, vocabulary, trust)
    own = Path(model).exists() or ":" not in model
    if own and foreign != ForeignSource(model):
        raise UserError(
            f"--model {model} is a directory of `whenwhy train`: --weights, --arguments, --output, --static-in, "
            "--vocabulary and --trust are for module:callable."
        )
    stage = attribute_shards(
        sequences, Path(model) if own else foreign, out_path, settings, _workers(workers, inline, ray_address)
    )
    if not own:
        out.print(f"{proof_sentence(stage.entry(ABOUT).summary['foreign'])}.", soft_wrap=True)
    out.print(f"Wrote {out_path} (run {stage.run_id}): {residual_sentence(stage)}.", soft_wrap=True)


@app.command("aggregate")
def aggregate_command(
    attributions: Annotated[
        list[Path], typer.Argument(help="What `whenwhy attribute` wrote, one a run.", metavar="ATTR...")
    ],
    out_path: Annotated[Path, typer.Option("--out", help="The store to publish a version in.", metavar="STORE")],
    time_bin_hours: Annotated[int | None, typer.Option(help="Width of a time bin; by default a readable one.")] = None,
    memory_limit: Annotated[str, typer.Option(help="Of each DuckDB.")] = "1GB",
    workers: WorkerCount = None,
) -> None:
    """Attributions become cells per feature value, time, class and cohort, published in a store."""
    from whenwhy.statistics import aggregate_cells
    from whenwhy.store import publish_store

    cells = aggregate_cells(
        attributions, out_path, time_bin_hours=time_bin_hours, memory_limit=memory_limit, workers=workers
    )
    version = publish_store(out_path, cells, attributions)
    out.print(f"Published version {version.name} of the store {out_path}.", soft_wrap=True)


@app.command("forget")
def forget_command(
    subject: Annotated[int, typer.Argument(help="The id of the patient who withdrew.", metavar="SUBJECT_ID")],
    paths: Annotated[
        list[Path], typer.Argument(help="MEDS data sets, directories that stages wrote, and stores.", metavar="DIR...")
    ],
) -> None:
    """A patient is removed from data sets, sequences, predictions, attributions and stores."""
    from whenwhy.forget import forget

    for line in forget({subject}, paths):
        out.print(line, soft_wrap=True)
    out.print(f"Subject {subject} is forgotten in {', '.join(map(str, paths))}.", soft_wrap=True)


@app.command("query", context_settings={"allow_extra_args": True})
def query_command(
    store: StorePath,
    name: Annotated[str, typer.Argument(help="A named query: see `whenwhy info queries`.")],
    arguments: Annotated[list[str] | None, typer.Argument(help="Its arguments, e.g. feature=hdl class=true.")] = None,
    output: OutputFormat = "table",
) -> None:
    """The answer of a named query."""
    from whenwhy.store import open_store

    given = {}
    for argument in arguments or []:
        key, equals, value = argument.partition("=")
        if not equals:
            raise UserError(f"'{argument}' is no argument: write name=value, e.g. feature=hdl.")
        given[key] = value
    _print_answer(open_store(store).ask(name, **given), output)


@app.command("sql")
def sql_command(
    store: StorePath,
    statement: Annotated[str, typer.Argument(help="One SELECT.")],
    output: OutputFormat = "table",
) -> None:
    """The answer of one SELECT over the store's tables: read-only, nothing outside the store."""
    from whenwhy.store import open_store

    _print_answer(open_store(store).sql(statement), output)


@app.command("serve")
def serve_command(
    store: StorePath,
    port: Annotated[int, typer.Option(help="The port; 0 takes a free one.", min=0, max=65535)] = 5006,
    address: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
) -> None:
    """The dashboard of a store."""
    _serve(store, port, address)


@app.command("info")
def info_command(
    what: Annotated[
        str,
        typer.Argument(
            help="A directory or store, or: methods, queries, sources.", metavar="DIR|methods|queries|sources"
        ),
    ],
) -> None:
    """What a directory holds, or what methods, queries and sources there are."""
    from whenwhy.information import information

    for line in information(what):
        out.print(line, markup=False, soft_wrap=True)


def _serve(store: Path, port: int, address: str) -> None:
    from whenwhy.server import serve

    serve(
        store,
        port=port,
        address=address,
        on_ready=lambda url: out.print(f"The dashboard is at {url} (stop it by Ctrl-C)."),
    )


def _workers(count: int | None, inline: bool, ray_address: str | None = None) -> Workers:
    from whenwhy.engine import Workers

    if inline and (count or ray_address):
        raise UserError("--inline works in this process alone: leave out --workers and --ray-address.")
    return Workers(count, inline, ray_address)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _code_hours(text: str) -> tuple[str, float]:
    code, _, hours = text.rpartition("=")
    try:
        return code, float(hours)
    except ValueError:
        raise UserError(f"--not-measured has '{text}': write code=hours, e.g. creatinine=48.") from None


def _print_answer(answer: pa.Table, output: str) -> None:
    from whenwhy.answers import FORMATS, as_text

    if output not in FORMATS:
        raise UserError(f"There is no format '{output}': choose {', '.join(FORMATS)}.")
    # Neither folded nor coloured: another program may read it.
    sys.stdout.write(as_text(answer, output, out.width if out.is_terminal else None) + "\n")


def main() -> NoReturn:
    """Runs the command line; exits 0, or 2 with one sentence for bad input."""
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
        os.environ["WHENWHY_DEBUG"] = "1"
    try:
        # Typer gives the status of an early end, 130 for Ctrl-C, as the answer.
        status = app(standalone_mode=False)
        if status == INTERRUPTED:
            sys.stderr.write("Stopped; what was finished is kept: run the same command again to continue.\n")
        sys.exit(status if isinstance(status, int) else 0)
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except (UserError, OSError, TyperException) as error:
        if debug:
            raise
        sys.stderr.write(_sentence(error) + "\n")
        sys.exit(2)
    except Exception as error:
        if debug:
            raise
        sys.stderr.write(f"Unexpected {type(error).__name__}: {error} (add --debug for the traceback).\n")
        sys.exit(1)


def _sentence(error: Exception) -> str:
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, TyperException):
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "whenwhy"
        return f"{error.format_message().rstrip('.')}: see `{command} --help`."
    assert isinstance(error, OSError)
    return f"{error.filename or 'A file'}: {error.strerror or error}; mend that and run the same command again."
