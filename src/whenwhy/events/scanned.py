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
        tuple(str(file.resolve()) for file in dataset.files),
        tuple(chunks),
        str(scratch),
        tuple(without),
        tuple(name.lower() for name in strata),
    )
    names = [chunk_name(number) for number in range(len(chunks))]
    run(task, names, stage="scan", unit="rows", pool=pool)
    described = None if dataset.codes is None else set(dataset.codes["code"].to_pylist())
    births = np.full(len(cohort.subject_id), NO_BIRTH, dtype=np.int64)
    found_in: Counter[tuple[int, str]] = Counter()
    rows = kept = 0
    parts: list[Part] = []
    count_files: list[Path] = []
    codes: set[str] = set()
    known_codes: set[str] = set()
    static_codes: set[str] = set()
    strata_values: set[tuple[str, str]] = set()
    for name in names:  # one after another: a chunk names many codes, and there are many chunks
        told = json.loads((scratch / f"{name}.json").read_text())
        rows, kept = rows + told["rows"], kept + told["kept"]
        for what, count in told["findings"].items():
            found_in[told["file"], what] += count
        if described is not None:
            undescribed = sum(count for code, count in told["code_rows"].items() if code not in described)
            found_in[told["file"], UNDESCRIBED] += undescribed
        # A mended copy names the source of each row itself.
        source = "" if dataset.mended else dataset.names[told["file"]]
        parts += [Part(f"{scratch / name}-{part:04d}.arrow", source) for part in range(told["parts"])]
        if told["counts"]:
            count_files.append(scratch / f"{name}-counts.parquet")
        codes.update(told["cohort_codes"])
        known_codes.update(told["known_codes"])
        static_codes.update(told["static_codes"])
        strata_values.update((of, value) for of, value in told["strata_values"])
        patient, time = np.load(scratch / f"{name}-births.npy")
        np.minimum.at(births, patient, time)
    _count_scattered(found_in, chunks, [scratch / f"{name}-subjects.npy" for name in names])
    findings = [found(dataset.told_name(at), what, count) for (at, what), count in sorted(found_in.items()) if count]
    return Scanned(
        rows,
        kept,
        [*dataset.findings, *findings],
        tuple(parts),
        count_files,
        births,
        sorted(codes),
        sorted(known_codes),
        sorted(static_codes),
        strata_values,
    )


def _count_scattered(counts: Counter[tuple[int, str]], chunks: Sequence[Chunk], subject_files: Sequence[Path]) -> None:
    """Count the subjects that are in two chunks of a file (scattered) or in two files (found in the later one)."""
    subjects = [np.load(file) for file in subject_files]
    file = np.repeat(np.array([chunk.file for chunk in chunks], np.int32), [len(ids) for ids in subjects])
    ids = np.concatenate([np.array([], np.int64), *subjects])
    order = np.lexsort((file, ids))
    again = np.flatnonzero(ids[order][1:] == ids[order][:-1]) + 1
    same = file[order[again]] == file[order[again - 1]]
    for at, scattered in zip(file[order[again]], same, strict=True):
        counts[int(at), SCATTERED if scattered else IN_SEVERAL_FILES] += 1
