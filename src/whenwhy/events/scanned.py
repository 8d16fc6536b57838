"""A MEDS data set and a cohort flow in; what the scan of all its files found flows out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from whenwhy.engine import Pool, run
from whenwhy.events.cohort import Cohort
from whenwhy.events.event_scan import Chunk, ScanChunk, chunk_name, planned_chunks
from whenwhy.events.findings import IN_SEVERAL_FILES, SCATTERED, UNDESCRIBED, Finding, found
from whenwhy.events.gathered_events import Part
from whenwhy.events.meds_dataset import MedsDataset
from whenwhy.events.strata import NO_BIRTH
from whenwhy.shards import Json


@dataclass(frozen=True)
class Scanned:
    """What the scan found.

    Attributes:
        rows, kept: rows that were read, and events that predictions may know.
        findings: what is wrong, of files and of rows.
        parts: the scratch files of known events.
        count_files: the scratch files of the numbers of training events.
        births: [patient] microseconds; NO_BIRTH where none is recorded.
        codes, known_codes, static_codes: of the cohort, whenever recorded; those that predictions may
            know; those without a time.
        strata_values: (name, value) of the strata asked for.
    """

    rows: int
    kept: int
    findings: list[Finding]
    parts: tuple[Part, ...]
    count_files: list[Path]
    births: np.ndarray
    codes: list[str]
    known_codes: list[str]
    static_codes: list[str]
    strata_values: set[tuple[str, str]]


def scanned(
    dataset: MedsDataset,
    cohort: Cohort,
    scratch: Path,
    pool: Pool,
    without: Sequence[str] = (),
    strata: Sequence[str] = (),
) -> Scanned:
    """Every row of the data set checked, what the cohort's predictions may know written to `scratch`.

    Args:
        without: codes that are left out.
        strata: names of static codes that make cohorts.
    """
    cohort.save(scratch)
    chunks = planned_chunks(dataset.files)
    task = ScanChunk(
        tuple(str(file) for file in dataset.files),
        tuple(chunks),
        str(scratch),
        tuple(without),
        tuple(name.lower() for name in strata),
    )
    names = [chunk_name(number) for number in range(len(chunks))]
    run(task, names, stage="scan", unit="rows", pool=pool)
    told = [json.loads((scratch / f"{name}.json").read_text()) for name in names]
    births = np.full(len(cohort.subject_id), NO_BIRTH, dtype=np.int64)
    for name in names:
        patient, time = np.load(scratch / f"{name}-births.npy")
        np.minimum.at(births, patient, time)
    return Scanned(
        sum(each["rows"] for each in told),
        sum(each["kept"] for each in told),
        [*dataset.findings, *_findings(dataset, chunks, told, [scratch / f"{name}-subjects.npy" for name in names])],
        tuple(
            # A mended copy names the source of each row itself.
            Part(f"{scratch / name}-{part:04d}.arrow", "" if dataset.mended else dataset.names[each["file"]])
            for name, each in zip(names, told, strict=True)
            for part in range(each["parts"])
        ),
        [scratch / f"{name}-counts.parquet" for name, each in zip(names, told, strict=True) if each["counts"]],
        births,
        sorted({code for each in told for code in each["cohort_codes"]}),
        sorted({code for each in told for code in each["known_codes"]}),
        sorted({code for each in told for code in each["static_codes"]}),
        {(name, value) for each in told for name, value in each["strata_values"]},
    )


def _findings(
    dataset: MedsDataset, chunks: Sequence[Chunk], told: Sequence[Json], subject_files: Sequence[Path]
) -> list[Finding]:
    counts: Counter[tuple[int, str]] = Counter()
    described = None if dataset.codes is None else set(dataset.codes["code"].to_pylist())
    for each in told:
        for what, count in each["findings"].items():
            counts[each["file"], what] += count
        if described is not None:
            counts[each["file"], UNDESCRIBED] += sum(
                rows for code, rows in each["code_rows"].items() if code not in described
            )
    # A subject in two chunks of a file is scattered there; in two files it is found in the later one.
    subjects = [np.load(file) for file in subject_files]
    file = np.repeat([chunk.file for chunk in chunks], [len(ids) for ids in subjects])
    ids = np.concatenate([np.array([], np.int64), *subjects])
    order = np.lexsort((file, ids))
    again = np.flatnonzero(ids[order][1:] == ids[order][:-1]) + 1
    same = file[order[again]] == file[order[again - 1]]
    for at, scattered in zip(file[order[again]], same, strict=True):
        counts[int(at), SCATTERED if scattered else IN_SEVERAL_FILES] += 1
    return [found(dataset.told_name(at), what, count) for (at, what), count in sorted(counts.items()) if count]
