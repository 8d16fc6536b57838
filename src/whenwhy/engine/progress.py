"""Progress with rate and time left: a bar where a person watches, one plain line a shard where nobody does."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import (
    Progress as Bar,
)

#: People read progress on standard error, so that standard output holds results alone.
console = Console(stderr=True, highlight=False, markup=False)


class Progress:
    """A stage's progress over `total` entries, `finished` of which an earlier call had done.

    Example:
        >>> with Progress("attribute", total=2, unit="predictions") as progress:
        ...     progress.advance("g0-00000", 1024)
        ...     progress.advance("g0-00001", 1000)
    """

    def __init__(self, stage: str, *, total: int, unit: str, finished: int = 0) -> None:
        self.stage, self.total, self.unit, self.finished = stage, total, unit, finished
        self.skipped = finished
        self.amount = 0
        self.device_bytes = 0
        self.started = time.monotonic()
        self.bar: Bar | None = None
        if console.is_terminal:
            self.bar = Bar(
                TextColumn("{task.description:<10}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(elapsed_when_finished=False),
                console=console,
            )

    def __enter__(self) -> Progress:
        self.started = time.monotonic()
        if self.bar:
            self.bar.start()
            self.task = self.bar.add_task(self.stage, total=self.total, completed=self.finished, rate="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar:
            self.bar.stop()

    def expect(self, total: int) -> None:
        """There will be `total` entries, as is known only now."""
        self.total = total
        if self.bar:
            self.bar.update(self.task, total=total)

    def advance(self, name: str, amount: int, device_bytes: int = 0) -> None:
        """One more entry is finished, with `amount` units of work; its worker held at most so much GPU memory."""
        self.finished += 1
        self.amount += amount
        self.device_bytes = max(self.device_bytes, device_bytes)
        seconds = max(time.monotonic() - self.started, 1e-9)
        rate = f"{self.amount / seconds:,.0f} {self.unit}/s"
        if self.device_bytes:
            rate += f", {decimal(self.device_bytes)} on a GPU"
        if self.bar:
            self.bar.update(self.task, completed=self.finished, rate=rate)
        else:
            left = seconds / (self.finished - self.skipped) * (self.total - self.finished)
            console.print(
                f"{self.stage} {self.finished}/{self.total} {name}: {amount:,} {self.unit}, {rate}, {left:.0f} s left",
                soft_wrap=True,
            )
