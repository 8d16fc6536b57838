"""The scan's scratch files flow in, each shard's events flow out in one order, whatever the files' layout.

An event is here a patient, a time, a provisional feature value and a number. Who has which feature value
is counted on the way, since what is rare is folded before records are written.
"""

from __future__ import annotations

import json
import resource
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa

from whenwhy.events.cohort import Cohort
from whenwhy.events.event_scan import SOURCE, UNDATED, stratum_value
from whenwhy.events.feature_values import Lookup, ordered_bits
from whenwhy.events.sorted_numbers import changes, rows_with
from whenwhy.working_folder import appears_whole

PROVISIONAL = "provisional.parquet"  # the table of feature values before folding
CODES = "codes.json"  # the codes that a position stands for


@dataclass(frozen=True)
class Part:
    """A scratch file of the scan, and the name of the MEDS shard that it came from."""

    file: str
    source: str


@dataclass(frozen=True)
class _Opened:
    """A scratch file mapped into memory: patient, time, code, value [event]; shards' offsets; codes' positions."""

    columns: list[np.ndarray]
    offsets: np.ndarray
    place: np.ndarray
    source: pa.ChunkedArray | None


@dataclass(frozen=True)
class GatherShard:
    """The engine's task: the events of one shard's patients, in order, in SHARD.arrow; counts in SHARD.npz.

    Attributes:
        anchors: codes one of whose events anchors a record.
        strata: first parts of static codes, in lower case, whose values make cohorts.
        left_out: codes that are no features, though they may anchor and make cohorts.
    """

    scratch: str
    parts: tuple[Part, ...]
    left_out: tuple[str, ...]
    anchors: tuple[str, ...]
    strata: tuple[str, ...]

    def start(self) -> Callable[[str], int]:
        scratch = Path(self.scratch)
        cohort = Cohort.load(scratch)
        codes: list[str] = json.loads((scratch / CODES).read_text())
        position = {code: at for at, code in enumerate(codes)}
        table = pa.parquet.read_table(scratch / PROVISIONAL)
        lookup = Lookup(table, codes)
        # [id] the position of its code
        code_of = np.array([position.get(code, -1) for code in table["code"].to_pylist()], dtype=np.int32)
        anchor = np.array([code in self.anchors for code in codes], dtype=bool)
        left_out = np.array([code in self.left_out for code in codes], dtype=bool)
        names = [code.split("//")[0].lower() for code in codes]
        of_strata = np.array([name in self.strata for name in names], dtype=bool)

        _allow_open_files(len(self.parts))

        @cache  # each shard reads a slice of every file
        def opened(file: str) -> _Opened:
            part = pa.ipc.open_file(pa.memory_map(file)).read_all().combine_chunks()
            told = part.schema.metadata
            # A file may name codes of other patients alone, which no kept event has.
            place = [position.get(code, -1) for code in json.loads(told[b"codes"])]
            columns = [part[name].to_numpy() for name in ("patient", "time", "code", "value")]
            source = part[SOURCE] if SOURCE in part.column_names else None
            return _Opened(columns, np.frombuffer(told[b"offsets"], "<i8"), np.array(place, dtype=np.int32), source)

        def one_shard(key: str) -> int:
            number = int(key.rpartition("-")[2])
            patients = cohort.patients_of(number)
            slices: list[list[np.ndarray]] = [
                [np.array([], kind)] for kind in (np.int32, np.int64, np.int32, np.float32)
            ]
            sources = np.full(len(patients), "", dtype=object)
            for part in self.parts:
                whole = opened(part.file)
                begin, end = whole.offsets[number], whole.offsets[number + 1]
                if begin == end:
                    continue
                who, time, code, value = (column[begin:end] for column in whole.columns)
                for held, column in zip(slices, (who, time, whole.place[code], value), strict=True):
                    held.append(column)
                # Runs of one patient are together in a slice.
                here = np.searchsorted(patients, who[changes(who)])
                if whole.source is None:
                    sources[here] = part.source
                else:
                    # A subject of several files comes from the first of those that predictions may know.
                    rows = zip(np.searchsorted(patients, who), whole.source[begin:end].to_pylist(), strict=True)
                    for at, source in set(rows):
                        sources[at] = min(sources[at] or source, source)
            who, time, code, value = (np.concatenate(held) for held in slices)
            begins = np.flatnonzero(changes(who))
            lengths = np.diff(np.append(begins, len(who)))
            patient = np.repeat(np.searchsorted(patients, who[begins]), lengths)
            ids = np.where(left_out[code], -1, lookup.ids(code, value)).astype(np.int32)
            order = _order(patient, time, ids, value)
            patient, time, code, value, ids = (column[order] for column in (patient, time, code, value, ids))

            strata: list[dict[str, str]] = [{} for _ in patients]
            for at in np.flatnonzero((time == UNDATED) & of_strata[code]):
                told = stratum_value(codes[code[at]], value[at])
                of_patient = strata[patient[at]]
                of_patient[names[code[at]]] = min(told, of_patient.get(names[code[at]], told))

            known = ids >= 0
            training = np.flatnonzero(cohort.training[patients][patient] & known)
            trained = patient[training], ids[training]
            with appears_whole(scratch / f"{key}.npz") as path, path.open("wb") as counts:
                np.savez(
                    counts,
                    patients=rows_with(*trained, len(patients), len(code_of)),
                    code_patients=rows_with(trained[0], code_of[trained[1]], len(patients), len(codes)),
                    unknown=np.bincount(code[~known & ~left_out[code]], minlength=len(codes)),
                )
            keep = known | anchor[code]
            table = pa.table(
                {
                    "patient": patient[keep].astype(np.int32),
                    "time": time[keep],
                    "id": ids[keep],
                    "value": value[keep],
                    "anchor": (anchor[code] & (time != UNDATED))[keep],
                }
            ).replace_schema_metadata({"patients": json.dumps({"sources": list(sources), "strata": strata}).encode()})
            with (
                appears_whole(scratch / f"{key}.arrow") as path,
                pa.OSFile(str(path), "wb") as file,
                pa.ipc.new_file(file, table.schema) as out,
            ):
                out.write_table(table.combine_chunks())
            return len(patient)

        return one_shard


def _allow_open_files(count: int) -> None:
    """Let this process map so many files, as far as the system does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < 2 * count + 256:
        most = hard if hard != resource.RLIM_INFINITY else 2 * count + 256
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(2 * count + 256, most), hard))


def _order(patient: np.ndarray, time: np.ndarray, ids: np.ndarray, value: np.ndarray) -> np.ndarray:
    """The order of events by patient, time, feature value and number; within a run of a patient times ascend."""
    if not len(patient):
        return np.array([], dtype=np.int64)
    # Runs of one patient move as a whole; most are whole patients.
    begins = np.flatnonzero(changes(patient))
    lengths = np.diff(np.append(begins, len(patient)))
    moved = np.argsort(patient[begins], kind="stable")
    starts = begins[moved] - np.concatenate([[0], np.cumsum(lengths[moved])[:-1]])
    order = np.repeat(starts, lengths[moved]) + np.arange(len(patient))
    new = changes(patient[order]) | changes(time[order])
    key = (np.cumsum(new).astype(np.int64) << 32) | (ids[order].astype(np.int64) + 1)
    within = np.argsort(key, kind="stable")
    order, key = order[within], key[within]
    tied = np.concatenate([[False], key[1:] == key[:-1]])
    tied |= np.append(tied[1:], False)
    at = np.flatnonzero(tied)
    order[at] = order[at][np.lexsort((ordered_bits(value[order[at]]), key[at]))]
    return order


def read_gathered(file: Path) -> tuple[dict[str, np.ndarray], list[str], list[dict[str, str]]]:
    """What a GatherShard wrote: the columns, and each patient's source and strata."""
    table = pa.ipc.open_file(pa.memory_map(str(file))).read_all()
    told = json.loads(table.schema.metadata[b"patients"])
    columns = {name: table[name].to_numpy(zero_copy_only=False) for name in table.column_names}
    return columns, told["sources"], told["strata"]
