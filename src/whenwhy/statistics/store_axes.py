"""Runs flow in; the axes of time of their store flow out: those that it has already, and those that are new."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from whenwhy.attribution.attribution_directory import PREDICTION_ROWS, ROWS, attribution_files
from whenwhy.errors import unknown_name
from whenwhy.events.out_of_core import connect
from whenwhy.manifests import unsealed
from whenwhy.schema import RECORDED
from whenwhy.shards import StageDirectory
from whenwhy.statistics.cohorts import list_of
from whenwhy.statistics.time_axis import (
    AFTER_ANCHOR,
    BEFORE_PREDICTION,
    SINCE,
    TimeAxis,
    readable_axis,
    readable_two_sided_axis,
)

AXES_FILE = "time_axes.json"


def stored_axes(store: Path) -> list[TimeAxis]:
    """The axes of a store's cells; none where it has no cells."""
    file = store / AXES_FILE
    if not file.exists():
        return []
    told = unsealed(file, file.read_bytes(), f"remove {file}, and run `whenwhy aggregate` again")
    return [TimeAxis(**axis) for axis in told["axes"]]


def time_axes(
    store: Path,
    runs: Sequence[StageDirectory],
    vocabulary: pa.Table,
    width: int | None,
    since: Sequence[str],
    memory_limit: str,
) -> list[TimeAxis]:
    """The store's axes as they are, so that cells stay; those that are new or asked for otherwise are made."""
    codes = vocabulary.filter(pc.equal(vocabulary["kind"], RECORDED))["code"].unique().to_pylist()
    for code in since:
        if code not in codes:
            raise unknown_name("code", code, codes, "these attributions")
    before = {axis.name: axis for axis in stored_axes(store)}
    if width is not None and any(axis.width_hours != width for axis in before.values()):
        before = {}
    known = [name.removeprefix(SINCE) for name in before if name.startswith(SINCE)]
    wanted = [*(code for code in known if code in codes), *(code for code in dict.fromkeys(since) if code not in known)]
    history, anchor = (_minutes(runs, name) for name in ("history_minutes", "anchor_minutes"))
    axes = [before.get(BEFORE_PREDICTION) or readable_axis(history[~np.isnan(history)], width)]
    if not np.isnan(anchor).all():
        axes.append(before.get(AFTER_ANCHOR) or _beginning_at(AFTER_ANCHOR, anchor, history, width))
    for code in wanted:
        axis = before.get(f"{SINCE}{code}")
        if axis is None:
            of_code = pc.equal(vocabulary["code"], code)
            ids = vocabulary.filter(pc.and_(of_code, pc.equal(vocabulary["kind"], RECORDED)))["feature_value_id"]
            axis = _beginning_at(f"{SINCE}{code}", *_first_records(runs, ids.to_pylist(), memory_limit, store), width)
        axes.append(axis)
    return axes


def _beginning_at(name: str, origin: np.ndarray, history: np.ndarray, width: int | None) -> TimeAxis:
    known = ~np.isnan(origin) & ~np.isnan(history)
    origin, history = origin[known], history[known]
    return readable_two_sided_axis(name, np.maximum(history - origin, 0), np.maximum(origin, 0), width)


def _minutes(runs: Sequence[StageDirectory], name: str) -> np.ndarray:
    """A column of all predictions, NaN where it is null."""
    return np.concatenate(
        [
            run.read(shard, PREDICTION_ROWS, [name])[name].cast(pa.float64()).to_numpy()
            for run in runs
            for shard in run.shards
        ]
    )


def _first_records(
    runs: Sequence[StageDirectory], ids: Sequence[int], memory_limit: str, scratch: Path
) -> tuple[np.ndarray, np.ndarray]:
    """Minutes before the prediction of a code's first record, and of the whole history [prediction with the code]."""
    found = []
    with connect(memory_limit, scratch) as db:
        for run in runs:
            rows, predictions = (list_of(attribution_files(run, name)) for name in (ROWS, PREDICTION_ROWS))
            found.append(
                db.execute(
                    f"""select f.first::double as first, p.history_minutes::double as history from (
                        select prediction_id, max(minutes) as first from read_parquet({rows})
                        where feature_value_id in ({", ".join(map(str, ids))}) group by 1) f
                    join read_parquet({predictions}) p using (prediction_id)
                    where f.first is not null and p.history_minutes is not null"""
                ).fetchnumpy()
            )
    return tuple(np.concatenate([np.asarray(one[name]) for one in found]) for name in ("first", "history"))  # type: ignore[return-value]
