"""Commands of stores: aggregate, query, sql, serve, info."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
import typer.core
import typer.main

from whenwhy.cli.shared import (
    AccessLogFile,
    OutputFile,
    OutputFormat,
    StorePath,
    TimeLimit,
    app,
    out,
    serve_store,
)
from whenwhy.errors import UserError, unknown_name
from whenwhy.locations import directory, location

if TYPE_CHECKING:
    import pyarrow as pa

    from whenwhy.store.open import Role


@app.command("aggregate")
def aggregate_command(
    attributions: Annotated[
        list[Path],
        typer.Argument(parser=location, help="What `whenwhy attribute` wrote, one a run.", metavar="ATTR..."),
    ],
    out_path: Annotated[
        Path, typer.Option("--out", parser=directory, help="The store to publish a version in.", metavar="STORE")
    ],
    time_bin_hours: Annotated[
        int | None, typer.Option(help="Width of a time bin; by default the store's, or a readable one.")
    ] = None,
    since: Annotated[
        list[str] | None, typer.Option(help="Count time from the first record of this code too; may be repeated.")
    ] = None,
    min_patients: Annotated[
        int | None,
        typer.Option(help="The fewest patients of a cell that viewers see; by default the store's, or 11."),
    ] = None,
    allow_small_cells: Annotated[
        bool, typer.Option("--allow-small-cells", help="Let --min-patients be below 11; the store says so.")
    ] = False,
    memory_limit: Annotated[str, typer.Option(help="Of each DuckDB.")] = "500MB",
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Dask's workers; by default one a core.")
    ] = None,
    dask_scheduler: Annotated[
        str | None,
        typer.Option(help="'processes', or the address of a Dask scheduler whose workers see the same folders."),
    ] = None,
) -> None:
    """Attributions become cells per feature value, time, class and cohort, published in a store."""
    from whenwhy.statistics import aggregate_cells
    from whenwhy.store import publish_store
    from whenwhy.store.publish import shown_from

    shown_from(out_path, min_patients, allow_small_cells)  # before anything is computed
    cells = aggregate_cells(
        attributions,
        out_path,
        time_bin_hours=time_bin_hours,
        since=since or (),
        memory_limit=memory_limit,
        workers=workers,
        scheduler=dask_scheduler,
    )
    version = publish_store(
        out_path, cells, attributions, memory_limit, min_patients=min_patients, allow_small_cells=allow_small_cells
    )
    out.print(f"Published version {version.name} of the store {out_path}.", soft_wrap=True)


@app.command("query", context_settings={"allow_extra_args": True})
def query_command(
    store: StorePath,
    name: Annotated[str, typer.Argument(help="A named query: see `whenwhy info queries`.")],
    arguments: Annotated[list[str] | None, typer.Argument(help="Its arguments, e.g. feature=hdl class=true.")] = None,
    output: OutputFormat = None,
    file: OutputFile = None,
    time_limit: TimeLimit = 300,
    access_log: AccessLogFile = None,
) -> None:
    """The answer of a named query."""
    from whenwhy.store import open_store

    given = {}
    for argument in arguments or []:
        key, equals, value = argument.partition("=")
        if not equals:
            raise UserError(f"'{argument}' is no argument: write name=value, e.g. feature=hdl.")
        given[key] = value
    form = _form(output, file)
    _give(open_store(store, seconds=time_limit, access_log=access_log).ask(name, **given), form, file)


@app.command("sql")
def sql_command(
    store: StorePath,
    statement: Annotated[str, typer.Argument(help="One SELECT.")],
    output: OutputFormat = None,
    file: OutputFile = None,
    time_limit: TimeLimit = 300,
    access_log: AccessLogFile = None,
) -> None:
    """The answer of one SELECT over the store's tables: read-only, nothing outside the store."""
    from whenwhy.store import open_store

    form = _form(output, file)
    _give(open_store(store, seconds=time_limit, access_log=access_log).sql(statement), form, file)


@app.command("serve")
def serve_command(
    store: StorePath,
    port: Annotated[int, typer.Option(help="The port; 0 takes a free one.", min=0, max=65535)] = 5006,
    address: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    role: Annotated[
        str | None,
        typer.Option(
            help="Print an address with a token: whoever opens it is a viewer (cells that may be shown) or an analyst "
            "(patients' rows too), and nobody else on this machine is."
        ),
    ] = None,
    users: Annotated[
        Path | None,
        typer.Option(
            parser=Path,
            help="People log in by name and password: a file that `whenwhy users add` made.",
            metavar="FILE",
        ),
    ] = None,
    proxy_header: Annotated[
        str | None,
        typer.Option(help="A proxy has asked, and names one of --users in this header.", metavar="NAME"),
    ] = None,
    proxy_address: Annotated[
        str, typer.Option(help="The proxy's: nobody else's headers are believed.", metavar="IP")
    ] = "127.0.0.1",
    origin: Annotated[
        list[str] | None,
        typer.Option(
            help="Another name by which browsers come, as in their address line; may be repeated.",
            metavar="HOST[:PORT]",
        ),
    ] = None,
    tls_certificate: Annotated[
        Path | None, typer.Option(parser=Path, help="Serve by https, with this PEM file.", metavar="FILE")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(parser=Path, help="The certificate's key.", metavar="FILE")] = None,
    secret_file: Annotated[
        Path | None,
        typer.Option(
            parser=Path,
            help="Signs sessions, so that they survive a restart; made if it is not there.",
            metavar="FILE",
        ),
    ] = None,
    allow_anyone: Annotated[
        bool, typer.Option("--allow-anyone", help="Whoever reaches the address is a viewer, unasked.")
    ] = False,
    allow_plain_http: Annotated[
        bool, typer.Option("--allow-plain-http", help="Let passwords travel over a network unencrypted.")
    ] = False,
    access_log: AccessLogFile = None,
    model: Annotated[
        Path | None,
        typer.Option(
            parser=location, help="The model that was attributed; analysts then ask what if.", metavar="MODEL"
        ),
    ] = None,
    sequences: Annotated[
        Path | None, typer.Option(parser=location, help="The sequences that --model reads.", metavar="SEQ")
    ] = None,
) -> None:
    """The dashboard of a store: to viewers on this machine, or to whom the options name.

    What is counted from single patients (their records, calibration, pairs of values, conditions of one's own) is shown to
    analysts alone: add --role analyst, and open the address that is printed.
    """
    if (model is None) != (sequences is None):
        raise UserError("--model and --sequences go together: give both, or neither.")
    from whenwhy.server import Entrance

    entrance = Entrance(
        role=None if role is None else _role(role),
        users=users,
        proxy_header=proxy_header,
        proxy_address=proxy_address,
        origins=tuple(origin or ()),
        tls_certificate=tls_certificate,
        tls_key=tls_key,
        secret_file=secret_file,
        allow_anyone=allow_anyone,
        allow_plain_http=allow_plain_http,
    )
    serve_store(store, port, address, access_log, entrance, model, sequences)


@app.command("report")
def report_command(
    store: StorePath,
    file: Annotated[Path, typer.Option("--out", parser=Path, help="The HTML file to write.", metavar="FILE")],
    feature: Annotated[
        list[str] | None, typer.Option(help="A code to tell of; may be repeated. By default those that carry most.")
    ] = None,
    class_label: Annotated[str, typer.Option("--class", help="The class of patients.")] = "all",
    stratum: Annotated[str, typer.Option(help="A stratum that is ready, e.g. sex=F.")] = "all",
    split: Annotated[str | None, typer.Option(help="By default the held-out patients.")] = None,
    run: Annotated[str | None, typer.Option(help="By default the store's first.")] = None,
    access_log: AccessLogFile = None,
) -> None:
    """The main views in one file for those who cannot run a server: of what viewers may see, and nothing else."""
    from whenwhy.server.report import write_report

    n = write_report(
        store,
        file,
        features=feature or (),
        class_label=class_label,
        stratum=stratum,
        split=split,
        run=run,
        access_log=access_log,
    )
    told = "1 feature" if n == 1 else f"{n} features"
    out.print(f"Wrote a report of {told} to {file}.", soft_wrap=True)


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


def _role(text: str) -> Role:
    """The role of that name."""
    from whenwhy.store.open import ROLES

    if text not in ROLES:
        raise unknown_name("role", text, ROLES)
    return ROLES[text]


def _form(output: str | None, file: Path | None) -> str:
    """The format of an answer, before it is asked for."""
    from whenwhy.answers import BINARY, FORMATS

    ending = file.suffix.removeprefix(".") if file is not None else ""
    form = output or (ending if ending in FORMATS else "table")
    if form not in FORMATS:
        raise UserError(f"There is no format '{form}': choose {', '.join(FORMATS)}.")
    if form in BINARY and file is None and sys.stdout.isatty():
        raise UserError(f"{form} is not for a terminal: add --out FILE, or send it to another program.")
    if file is not None and not file.parent.is_dir():
        raise UserError(f"{file.parent} is no folder: give --out a file in one that is there.")
    return form


def _give(answer: pa.Table, form: str, file: Path | None) -> None:
    from whenwhy.answers import BINARY, as_bytes, as_text
    from whenwhy.locations import replace

    if file is not None:
        replace(file, as_bytes(answer, form))
        out.print(f"Wrote {answer.num_rows:,} rows to {file}.", soft_wrap=True)
    elif form in BINARY:
        sys.stdout.buffer.write(as_bytes(answer, form))
    else:
        # Neither folded nor coloured: another program may read it.
        sys.stdout.write(as_text(answer, form, out.width if out.is_terminal else None) + "\n")
