"""SIGTERM, as Slurm sends it before it takes a node away: no new shard begins, and those begun may end in time."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from whenwhy.errors import TimeIsUp

#: Slurm kills 30 seconds after it has asked, unless its administrator says otherwise.
GRACE_SECONDS = 25.0


class Stopping:
    """Whether a stop was asked for, and whether what is under way is to be dropped."""

    asked = late = False


@contextmanager
def stopping_on_signal(raises: bool, grace: float = GRACE_SECONDS) -> Iterator[Stopping]:
    """While this lasts, SIGTERM asks for a stop; what is under way `grace` seconds later, or at a second one, is late.

    Outside the main thread no signal arrives, and nothing changes.

    Args:
        raises: `TimeIsUp` where the main thread is when it is late. Ray's waiting loses an exception of a signal's
            handler, so whoever waits for Ray looks at `late` instead.
    """
    stopping = Stopping()
    if threading.current_thread() is not threading.main_thread():
        yield stopping
        return

    def late(number: int, frame: FrameType | None) -> None:
        stopping.late = True
        if raises:
            raise TimeIsUp

    def asked(number: int, frame: FrameType | None) -> None:
        if stopping.asked:
            late(number, frame)
        stopping.asked = True
        signal.setitimer(signal.ITIMER_REAL, grace)

    before = signal.signal(signal.SIGTERM, asked), signal.signal(signal.SIGALRM, late)
    try:
        yield stopping
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in zip((signal.SIGTERM, signal.SIGALRM), before, strict=True):
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
