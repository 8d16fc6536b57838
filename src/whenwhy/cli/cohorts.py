"""Commands that bring a cohort in: import, validate, prepare, forget; and the demonstration."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core
import typer.main
from typer.exceptions import Exit

from whenwhy.cli.shared import (
    Inline,
    RayAddress,
    WorkerCount,
    app,
    names_of,
    out,
    serve_store,
    workers_of,
)
from whenwhy.errors import UserError
from whenwhy.locations import directory, location

if TYPE_CHECKING:
    from typer._click.core import Command, Context

    from whenwhy.events.sources import Source


@app.command("demo")
def demo_command(
    folder: Annotated[Path, typer.Argument(parser=directory, help="Where everything is kept.", metavar="[DIR]")] = Path(
        "demo"
    ),
    serve: Annotated[
        bool,
        typer.Option(
            "--serve",
            help="Then serve the dashboard, to whoever opens the address with the printed token, as an analyst.",
        ),
    ] = False,
    port: Annotated[int, typer.Option(help="The dashboard's port.", min=0, max=65535)] = 5006,
    workers: WorkerCount = None,
    inline: Inline = False,
) -> None:
    """All stages on 17,549 real patients, three worked questions, and where the store lies."""
    from whenwhy.demo import demo

    store = demo(folder, workers_of(workers, inline), out)
    if serve:
        from whenwhy.server import Entrance

        # These patients are public: whoever tries the demonstration sees every page, what if included.
        analyst = Entrance(role="analyst")
        serve_store(store, port, "127.0.0.1", entrance=analyst, model=folder / "model", sequences=folder / "sequences")


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


@app.command("validate")
def validate_command(
    meds: Annotated[Path, typer.Argument(parser=directory, help="A MEDS data set.", metavar="MEDS")],
    workers: WorkerCount = None,
) -> None:
    """What is wrong with a MEDS data set, per file and with counts, and what --repair would do about it."""
    from whenwhy.events.validation import validation_lines

    sound, lines = validation_lines(meds, workers_of(workers, workers is None))
    for line in lines:
        out.print(line, soft_wrap=True)
    if not sound:
        raise Exit(2)


@app.command("prepare")
def prepare_command(
    meds: Annotated[Path, typer.Argument(parser=directory, help="A MEDS data set.", metavar="MEDS")],
    labels: Annotated[Path, typer.Option(parser=directory, help="MEDS labels: a Parquet file or a folder of them.")],
    out_path: Annotated[
        Path,
        typer.Option("--out", parser=location, help="The directory of sequences to write or resume.", metavar="SEQ"),
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
    numbers: Annotated[
        str, typer.Option(help="Codes whose numbers enter as weights too, beside their bins, or all.")
    ] = "",
    shard_size: Annotated[int, typer.Option(help="Predictions a shard, about.")] = 2048,
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

    who = workers_of(workers, inline, ray_address)
    if add:
        stage = add_generation(meds, labels, out_path, who, repair=repair, memory_limit=memory_limit)
    else:
        settings = PrepareSettings(
            outcome=outcome or labels.name.removesuffix(".parquet").replace("_", " "),
            strata=names_of(strata),
            without=names_of(without),
            bins=bins,
            cut_offs=read_cut_offs(cut_offs) if cut_offs else {},
            rare_below=rare_below,
            steps=steps,
            visit_gap_hours=visit_gap,
            anchor=anchor,
            history_hours=history_hours,
            max_steps=max_steps,
            repeats=repeats or ("once" if vocabulary else "all"),
            carry=names_of(carry),
            carry_hours=carry_hours,
            since_last=names_of(since_last),
            not_measured=tuple(_code_hours(told) for told in names_of(not_measured)),
            numbers=names_of(numbers),
            shard_size=shard_size,
        )
        stage = prepare(
            meds, labels, out_path, settings, who, vocabulary=vocabulary, repair=repair, memory_limit=memory_limit
        )
    for line in prepared_notes(stage):
        out.print(line, soft_wrap=True)
    out.print(f"Wrote {out_path} (run {stage.run_id}): {prepared_sentence(stage)}.", soft_wrap=True)


def _code_hours(text: str) -> tuple[str, float]:
    code, _, hours = text.rpartition("=")
    try:
        return code, float(hours)
    except ValueError:
        raise UserError(f"--not-measured has '{text}': write code=hours, e.g. creatinine=48.") from None


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
