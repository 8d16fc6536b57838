"""Tasks flow in, and are done by Dask: by threads of this process, by processes, or by a cluster's workers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import dask
from dask.callbacks import Callback

from whenwhy.engine import Progress
from whenwhy.errors import UserError


def compute(
    tasks: Sequence[Callable[[], tuple[str, int]]], progress: Progress, workers: int | None, scheduler: str | None
) -> None:
    """All tasks done by Dask: by threads of this process, by processes, or by a cluster's workers."""
    if scheduler is None:
        with Callback(posttask=lambda key, made, *_: progress.advance(made[0], made[1])):
            delayed = [dask.delayed(task)() for task in tasks]
            dask.compute(*delayed, scheduler="threads", num_workers=workers or os.cpu_count(), optimize_graph=False)
        return
    with _client(scheduler, workers) as client:
        from distributed import as_completed

        futures = [client.submit(task, pure=False, retries=2) for task in tasks]
        for _, made in as_completed(futures, with_results=True):
            progress.advance(*made)


@contextmanager
def _client(scheduler: str, workers: int | None) -> Iterator[Any]:
    try:
        from distributed import Client, LocalCluster
    except ImportError:
        raise UserError("--dask-scheduler needs the package distributed: pip install 'whenwhy[cluster]'.") from None
    if scheduler == "processes":
        with (
            LocalCluster(
                n_workers=workers or os.cpu_count(), threads_per_worker=1, dashboard_address=None, memory_limit=0
            ) as cluster,
            Client(cluster) as client,
        ):
            yield client
        return
    try:
        client = Client(scheduler, timeout=5)
    except (OSError, TimeoutError, ValueError) as error:
        raise UserError(
            f"No Dask scheduler answers at {scheduler} ({error}): check the address, or leave --dask-scheduler out."
        ) from None
    with client:
        yield client
