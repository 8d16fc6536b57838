"""The command line: the same words as in Python, one sentence and exit status 2 for bad input."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Annotated, NoReturn

import typer
from typer.exceptions import Exit, TyperException

from whenwhy import __version__
from whenwhy.cli import cohorts, models, stores, users
from whenwhy.cli.shared import app, out
from whenwhy.errors import Stopped, TimeIsUp, UserError

__all__ = ["app", "cohorts", "main", "models", "stores", "users"]

#: The exit status after Ctrl-C.
INTERRUPTED = 130

#: The exit status after SIGTERM, as a shell has it: 128 and the signal's number.
TERMINATED = 143

STOPPED = "Stopped; what was finished is kept: run the same command again to continue.\n"


@app.callback(invoke_without_command=True)
def _whenwhy(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Print the traceback of an error.")] = False,
) -> None:
    if version:
        out.print(f"whenwhy {__version__}")
        raise Exit(0)


def main() -> NoReturn:
    """Runs the command line; exits 0, or 2 with one sentence for bad input."""
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
        os.environ["WHENWHY_DEBUG"] = "1"
    signal.signal(signal.SIGTERM, _terminated)
    try:
        # Typer gives the status of an early end, 130 for Ctrl-C, as the answer.
        status = app(standalone_mode=False)
        if status == INTERRUPTED:
            sys.stderr.write(STOPPED)
        sys.exit(status if isinstance(status, int) else 0)
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except TimeIsUp:  # a second SIGTERM in the very moment in which a pass ended
        sys.stderr.write(STOPPED)
        sys.exit(TERMINATED)
    except Stopped as stopped:
        sys.stderr.write(f"{stopped}\n")
        sys.exit(TERMINATED)
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


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    """What SIGTERM does outside of the engine's passes: the end, with temporary files removed."""
    sys.stderr.write(STOPPED)
    sys.exit(TERMINATED)


def _sentence(error: Exception) -> str:
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, TyperException):
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "whenwhy"
        return f"{error.format_message().rstrip('.')}: see `{command} --help`."
    assert isinstance(error, OSError)
    return f"{error.filename or 'A file'}: {error.strerror or error}; mend that and run the same command again."
