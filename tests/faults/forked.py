"""`whenwhy` as a process of its own, forked from one that has imported torch: it starts at once."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import sys
import time
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path

#: What every `attribute` and every `train` imports.
PRELOADED = [
    "whenwhy.cli",
    "whenwhy.attribution.attribute_shards",
    "whenwhy.attribution.run_summary",
    "whenwhy.models.training",
]

#: Of prctl: any process may trace this one. Otherwise some systems let only parents do so.
_PR_SET_PTRACER, _ANY = 0x59616D61, ctypes.c_ulong(-1)


def process(
    asked: Sequence[str], printed: Path, said: Path, environment: Mapping[str, str], traced: bool = False
) -> ForkServerProcess:
    """The command, started: its standard output and error go to files; if `traced`, it waits until a tracer is there.

    Args:
        environment: what differs from this process's.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    made = context.Process(target=_command, args=(list(asked), str(printed), str(said), dict(environment), traced))
    made.start()
    return made


def _command(asked: list[str], printed: str, said: str, environment: dict[str, str], traced: bool) -> None:
    os.environ.update(environment)
    for descriptor, file in ((1, printed), (2, said)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    sys.argv = ["whenwhy", *asked]
    sys.dont_write_bytecode = True  # so that the calls of a trace are the same each time
    if traced:
        ctypes.CDLL(None).prctl(_PR_SET_PTRACER, _ANY, 0, 0, 0)
        while "TracerPid:\t0\n" in Path("/proc/self/status").read_text():
            time.sleep(0.01)
    from whenwhy.cli import main

    main()
