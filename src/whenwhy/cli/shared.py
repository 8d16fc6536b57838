"""What commands share: the application, the options of several commands, and how they speak."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from whenwhy.errors import UserError
from whenwhy.locations import directory, location

if TYPE_CHECKING:
    from whenwhy.engine import Workers
    from whenwhy.server import Entrance

# Heavy modules (torch, Ray, Bokeh...) are imported by the command that needs them, so that --help is quick.

app = typer.Typer(
    name="whenwhy",
    help="When did a feature's value matter, and why did the model predict what it did, for a million patients at once.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
out = Console(highlight=False, markup=False)

Sequences = Annotated[
    Path,
    typer.Argument(
        parser=location, help="What `whenwhy prepare` wrote: a directory, or s3://bucket/folder.", metavar="SEQ"
    ),
]
StorePath = Annotated[
    Path,
    typer.Argument(parser=directory, help="The store that `whenwhy aggregate` published.", metavar="STORE"),
]
WorkerCount = Annotated[
    int | None, typer.Option("--workers", min=1, help="Workers; by default one a GPU, or one a core.")
]
Inline = Annotated[bool, typer.Option("--inline", help="Work in this process, without Ray.")]
GpusPerWorker = Annotated[
    float | None,
    typer.Option(min=0.01, max=1.0, help="What part of a GPU a worker has; by default one, or an equal share."),
]
Threads = Annotated[int, typer.Option(min=1, help="Of each worker, where it computes on cores.")]
RayAddress = Annotated[str | None, typer.Option("--ray-address", help="Join this Ray cluster instead of starting one.")]
OutputFormat = Annotated[
    str | None,
    typer.Option("--format", help="table, csv, json (one object a line), parquet or arrow; by default as --out ends."),
]
OutputFile = Annotated[
    Path | None, typer.Option("--out", help="Write the answer into this file.", parser=Path, metavar="FILE")
]
AccessLogFile = Annotated[
    Path | None,
    typer.Option("--access-log", help="Add the question to this file, not the store's.", parser=Path, metavar="FILE"),
]
TimeLimit = Annotated[float, typer.Option(min=0.001, help="Seconds after which a question is given up.")]


def workers_of(
    count: int | None,
    inline: bool,
    ray_address: str | None = None,
    gpus_per_worker: float | None = None,
    threads: int = 1,
) -> Workers:
    """Who does the work, by the options of a command."""
    from whenwhy.engine import Workers

    if inline and (count or ray_address or gpus_per_worker):
        raise UserError(
            "--inline works in this process alone: leave out --workers, --gpus-per-worker and --ray-address."
        )
    return Workers(count, inline, ray_address, gpus_per_worker, threads)


def names_of(text: str) -> tuple[str, ...]:
    """Names separated by commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def serve_store(
    store: Path,
    port: int,
    address: str,
    access_log: Path | None = None,
    entrance: Entrance | None = None,
    model: Path | None = None,
    sequences: Path | None = None,
) -> None:
    """The dashboard, until it is stopped."""
    from whenwhy.server import serve

    serve(
        store,
        port=port,
        address=address,
        entrance=entrance,
        access_log=access_log,
        model=model,
        sequences=sequences,
        on_ready=lambda url: out.print(f"The dashboard is at {url} (stop it by Ctrl-C).", soft_wrap=True),
    )
