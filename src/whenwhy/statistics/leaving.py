"""Patients who withdraw flow in; the sums of a store's cells without them flow out, and nobody else's rows are read.

What they add up to is found while their rows are still there, and taken away when they are gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from whenwhy.attribution.attribution_directory import ABOUT, GRADIENT_ROWS, PREDICTION_ROWS, ROWS
from whenwhy.events.out_of_core import connect
from whenwhy.events.sequence_directory import VOCABULARY, shard_place
from whenwhy.shards import StageDirectory
from whenwhy.statistics.aggregate import (
    Generation,
    directory_of,
    exposure_of,
    features_of,
    recorded_codes,
)
from whenwhy.statistics.cells import CODE, cell_sums
from whenwhy.statistics.cohorts import define_cohorts
from whenwhy.statistics.places import place_sums
from whenwhy.statistics.store_axes import stored_axes
from whenwhy.statistics.sums import CELL_ROWS, EXPOSURE_ROWS, HISTOGRAM_ROWS, PLACE_ROWS, merged, negated
from whenwhy.statistics.time_axis import TimeAxis


@dataclass(frozen=True)
class Leaving:
    """What the patients who leave a run's generation add up to.

    Attributes:
        before: the generation's cells with them.
        sums: by table and level.
    """

    before: StageDirectory
    generation: Generation
    axes: list[TimeAxis]
    vocabulary: pa.Table
    sums: dict[tuple[str, str], pa.Table]


def leaving(
    store: Path, run: StageDirectory, shards: Sequence[str], subjects: pa.Array, memory_limit: str = "500MB"
) -> list[Leaving]:
    """What some patients add up to in a store's cells, for each generation of a run that has them in these shards."""
    axes, vocabulary, found = stored_axes(store), run.read(ABOUT, VOCABULARY), []
    for number in sorted({shard_place(name)[0] for name in shards}):
        of = Generation(run, number)
        before = directory_of(store / "cells", of, axes, [])
        if not before.shards or before.missing():
            continue  # these cells were never made: they are made anew
        own = [name for name in shards if shard_place(name)[0] == number]
        rows, predictions, gradients = (
            [run.file(name, table) for name in own if table in run.entry(name).files]
            for table in (ROWS, PREDICTION_ROWS, GRADIENT_ROWS)
        )
        sums: dict[tuple[str, str], pa.Table] = {}
        with connect(memory_limit, store) as db:
            define_cohorts(db, predictions, rows, axes, recorded_codes(vocabulary), subjects)
            sums[EXPOSURE_ROWS, ""] = exposure_of(db, run, gradients, axes)
            for level, features in features_of(vocabulary).items():
                if features.num_rows:
                    cells, histograms = cell_sums(db, rows, features, level, axes)
                    sums[CELL_ROWS, level], sums[HISTOGRAM_ROWS, level] = cells, histograms
            if run.settings.get("absence", False):
                sums[PLACE_ROWS, CODE] = place_sums(db, rows, features_of(vocabulary)[CODE], axes[0])
        found.append(Leaving(before, of, axes, vocabulary, sums))
    return found


def leave(store: Path, leavers: Sequence[Leaving]) -> None:
    """The cells without them are there, as if made from the rows that are left; those rows must be gone by now."""
    for told in leavers:
        run = StageDirectory.open(told.generation.run.path, "attribute")
        now = directory_of(store / "cells", Generation(run, told.generation.number), told.axes, told.before.shards)
        for entry in now.missing():
            was = told.before.entry(entry)
            files: dict[str, pa.Table | bytes] = {}
            for name in was.files:
                gone = _within(told, name, entry, was.summary.get("codes"))
                files[name] = merged(name, [told.before.read(entry, name), negated(name, gone)])
            now.publish(entry, files, was.summary)


def _within(told: Leaving, name: str, entry: str, codes: Sequence[str] | None) -> pa.Table:
    """Of what leaves, the rows that belong to an entry: those of its codes."""
    level = "" if codes is None else entry.partition("-")[0]
    gone = told.sums[name, level]
    if codes is None:
        return gone
    if name == PLACE_ROWS:
        ids = told.vocabulary["feature_value_id"].filter(_between(told.vocabulary["code"], codes))
        return gone.filter(pc.is_in(gone["feature_value_id"], ids.combine_chunks()))
    return gone.filter(_between(gone["code"], codes))


def _between(column: pa.ChunkedArray, codes: Sequence[str]) -> pa.ChunkedArray:
    return pc.and_(pc.greater_equal(column, codes[0]), pc.less_equal(column, codes[1]))
