"""The files of a MEDS data set flow in, chunk by chunk; what predictions may know flows out, sorted by shard.

Every row is checked, and only events of predicted patients up to their last prediction are kept. The
scratch files are columns of plain numbers that a shard's reader maps into memory.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import meds
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from whenwhy.events.cohort import Cohort
from whenwhy.events.feature_values import NO_FEATURES, NO_NUMBER, packed
from whenwhy.events.findings import INCOMPLETE, NOT_FINITE, OUT_OF_ORDER, REPEATED, SCATTERED
from whenwhy.events.meds_dataset import EVENT_COLUMNS
from whenwhy.events.parquet_files import reading
from whenwhy.events.sorted_numbers import changes
from whenwhy.working_folder import appears_whole

#: Rows a worker holds at a time, and rows of a chunk, about.
ROWS_AT_ONCE = 1 << 20
ROWS_A_CHUNK = 1 << 22

#: The time of undated rows: before all others.
UNDATED = np.iinfo(np.int64).min

#: The column of a mended copy that says which shard a row came from.
SOURCE = "whenwhy_source"


@dataclass(frozen=True)
class Chunk:
    """Some row groups of one file: number `file` in order, row groups from `begin` up to `end`."""

    file: int
    begin: int
    end: int


def planned_chunks(files: Sequence[Path]) -> list[Chunk]:
    """The chunks of these files, in order: about ROWS_A_CHUNK rows each."""
    chunks = []
    for number, file in enumerate(files):
        told = pq.read_metadata(file)
        begin = rows = 0
        for group in range(told.num_row_groups):
            rows += told.row_group(group).num_rows
            if rows >= ROWS_A_CHUNK or group + 1 == told.num_row_groups:
                chunks.append(Chunk(number, begin, group + 1))
                begin, rows = group + 1, 0
    return chunks


def chunk_name(number: int) -> str:
    """The name of a chunk's scratch files and progress line."""
    return f"chunk-{number:05d}"


@dataclass(frozen=True)
class ScanChunk:
    """The engine's task: one chunk checked, and what predictions may know of it written to scratch.

    Attributes:
        files, chunks: of the data set; keys are names by `chunk_name`.
        scratch: holds the cohort; receives for each chunk NAME.json (findings and codes),
            NAME-subjects.npy, NAME-births.npy, NAME-counts.parquet and NAME-PART.arrow.
        left_out: codes that are no features.
        strata: first parts of static codes, in lower case, whose values make cohorts.
    """

    files: tuple[str, ...]
    chunks: tuple[Chunk, ...]
    scratch: str
    left_out: tuple[str, ...]
    strata: tuple[str, ...]

    def start(self) -> Callable[[str], int]:
        cohort = Cohort.load(Path(self.scratch))

        def one_chunk(key: str) -> int:
            chunk = self.chunks[int(key.rpartition("-")[2])]
            scan = _Scan(cohort, Path(self.scratch) / key, set(self.left_out), self.strata)
            file = Path(self.files[chunk.file])
            # The mended copy lies in scratch; in a data set's own files a column of this name says nothing.
            for table in whole_subjects(file, chunk, with_source=file.parent == Path(self.scratch)):
                scan.take(table)
            return scan.finish(chunk.file)

        return one_chunk


def whole_subjects(file: Path, chunk: Chunk, with_source: bool = False) -> Iterator[pa.Table]:
    """Tables of whole runs of subjects: a run belongs to the chunk in which it begins.

    Columns: subject_id, time, code (dictionary), numeric_value, and SOURCE if it is asked for.

    Raises:
        UserError: a part of the file cannot be read.
    """
    with reading(file):
        yield from _whole_subjects(file, chunk, [*EVENT_COLUMNS, *([SOURCE] if with_source else [])])


def _whole_subjects(file: Path, chunk: Chunk, wanted: Sequence[str]) -> Iterator[pa.Table]:
    names = pq.read_schema(file).names
    columns = [name for name in wanted if name in names]
    parquet = pq.ParquetFile(file, read_dictionary=[name for name in ("code", SOURCE) if name in columns])
    groups = range(parquet.num_row_groups)
    previous: int | None = None
    for group in reversed(groups[: chunk.begin]):
        ids = parquet.read_row_group(group, columns=["subject_id"])["subject_id"]
        if len(ids):
            previous = ids[-1].as_py()
            break
    waiting: list[pa.Table] = []
    inside = chunk.begin == 0  # until the previous chunk's last run has ended
    row_group_ends = np.cumsum([parquet.metadata.row_group(g).num_rows for g in groups[chunk.begin :]])
    own_rows = int(row_group_ends[chunk.end - chunk.begin - 1]) if len(row_group_ends) else 0
    read = 0
    for batch in parquet.iter_batches(ROWS_AT_ONCE, groups[chunk.begin :], columns):
        table = pa.Table.from_batches([batch])
        table["code"].validate(full=True)  # a damaged page may give indexes beyond the codes, or no UTF-8
        first = read
        read += table.num_rows
        subject = table["subject_id"].to_numpy(zero_copy_only=False)
        if not inside:
            other = np.flatnonzero(subject != previous)
            if not len(other):
                if first >= own_rows:
                    break
                continue
            table, subject, inside = table.slice(other[0]), subject[other[0] :], True
            first += int(other[0])
            if first >= own_rows:
                return
        if first >= own_rows or read > own_rows:
            # Beyond the chunk's end only the last run goes on.
            own = max(0, own_rows - first)
            last = subject[own - 1] if own else waiting[-1]["subject_id"][-1].as_py()
            other = np.flatnonzero(subject[own:] != last)
            table = table.slice(0, own + (int(other[0]) if len(other) else len(subject)))
            waiting.append(table)
            if len(other):
                break
            continue
        # The last run may go on in the next batch, if there is one: many small tables would be slow to gather.
        other = subject != subject[-1]
        cut = len(subject) - int(np.argmax(other[::-1])) if other.any() else 0
        if cut and read < row_group_ends[-1]:
            yield pa.concat_tables([*waiting, table.slice(0, cut)])
            waiting = [table.slice(cut)]
        else:
            waiting.append(table)
    if waiting:
        yield pa.concat_tables(waiting)


class _Scan:
    """What is found in the tables of one chunk."""

    def __init__(self, cohort: Cohort, path: Path, left_out: set[str], strata: tuple[str, ...]) -> None:
        self.cohort, self.path, self.left_out, self.strata = cohort, path, left_out, strata
        self.findings: Counter[str] = Counter()
        self.rows = self.kept = self.parts = 0
        self.code_rows: Counter[str] = Counter()  # all rows
        self.cohort_codes: set[str] = set()  # codes of predicted patients, whenever
        self.known_codes: set[str] = set()  # those that predictions may know
        self.static_codes: set[str] = set()  # undated ones of predicted patients
        self.strata_values: set[tuple[str, str]] = set()
        self.subjects: list[np.ndarray] = []
        self.births: list[np.ndarray] = []
        self.counts: list[pa.Table] = []

    def take(self, table: pa.Table) -> None:
        """Check a table of whole runs, and write the events that predictions may know."""
        incomplete = pc.or_(table["subject_id"].is_null(), table["code"].is_null())
        if missing := pc.sum(incomplete).as_py():
            self.findings[INCOMPLETE] += missing
            table = table.filter(pc.invert(incomplete))
        if not table.num_rows:
            return
        self.rows += table.num_rows
        subject = table["subject_id"].to_numpy()
        time = pc.fill_null(table["time"].cast(pa.int64()), UNDATED).to_numpy()
        code, codes = _codes(table["code"])
        value = _numbers(table)
        infinite = ~np.isfinite(value)
        if infinite.any():
            if "numeric_value" in table.column_names:
                self.findings[NOT_FINITE] += int(infinite.sum()) - table["numeric_value"].null_count
            value[infinite] = np.nan
        begins = np.flatnonzero(changes(subject))
        lengths = np.diff(np.append(begins, len(subject)))
        self.subjects.append(subject[begins])
        earlier = time[1:] < time[:-1]
        earlier[begins[1:] - 1] = False
        self.findings[OUT_OF_ORDER] += int(earlier.sum())
        run = np.repeat(np.arange(len(begins)), lengths)
        self.findings[REPEATED] += repeated(run, time, code, value)
        for name, count in zip(codes, np.bincount(code, minlength=len(codes)).tolist(), strict=True):
            if count:
                self.code_rows[name] += count

        patient = np.searchsorted(self.cohort.subject_id, subject[begins])
        patient = np.minimum(patient, len(self.cohort.subject_id) - 1)
        known_run = self.cohort.subject_id[patient] == subject[begins]
        in_cohort = np.repeat(known_run, lengths)
        self.cohort_codes.update(self._used(code[in_cohort], codes))
        undated = time == UNDATED
        self.static_codes.update(self._used(code[in_cohort & undated], codes))
        for at in np.flatnonzero(np.bincount(code[in_cohort & undated], minlength=len(codes))):
            name = codes[at].split("//")[0].lower()
            if name in self.strata:
                self.strata_values.update(
                    (name, stratum_value(codes[at], v)) for v in np.unique(value[in_cohort & undated & (code == at)])
                )

        keep = in_cohort & (time <= np.repeat(self.cohort.latest[patient], lengths))
        born = np.array([text == meds.birth_code for text in codes])[code]
        rows = np.flatnonzero(keep & born & ~undated)
        self.births.append(np.stack([patient[run[rows]].astype(np.int64), time[rows]]))
        # Codes that are left out stay in scratch, since they may anchor records or tell cohorts apart.
        keep &= np.array([text not in NO_FEATURES for text in codes])[code]
        self.known_codes.update(self._used(code[keep], codes))

        training = keep & np.array([text not in self.left_out for text in codes])[code]
        training &= np.repeat(self.cohort.training[patient], lengths)
        self._count(code[training], codes, value[training])
        # By shard, the order within a patient kept: runs move, rows follow.
        shard = self.cohort.shard[patient]
        order = np.argsort(np.where(known_run, shard, -1), kind="stable")
        starts = np.repeat(begins[order] - np.concatenate([[0], np.cumsum(lengths[order])[:-1]]), lengths[order])
        moved = starts + np.arange(len(subject))
        moved = moved[keep[moved]]
        self._write(
            {
                "patient": patient[run[moved]].astype(np.int32),
                "time": time[moved],
                "code": code[moved].astype(np.int32),
                "value": value[moved],
            },
            shard[run[moved]],
            codes,
            table[SOURCE].combine_chunks().take(pa.array(moved)) if SOURCE in table.column_names else None,
        )

    @staticmethod
    def _used(code: np.ndarray, codes: list[str]) -> list[str]:
        return [codes[at] for at in np.flatnonzero(np.bincount(code, minlength=len(codes)))]

    def _count(self, code: np.ndarray, codes: list[str], value: np.ndarray) -> None:
        """How often training events have each distinct number of a code."""
        without = np.isnan(value)  # most events; they need no sorting
        key = np.sort(packed(code[~without], value[~without]))
        first = np.flatnonzero(changes(key))
        plain = np.bincount(code[without], minlength=len(codes))
        plain_at = np.flatnonzero(plain)
        times = np.concatenate([np.diff(np.append(first, len(key))), plain[plain_at]])
        at = np.concatenate([key[first] >> np.uint64(32), plain_at.astype(np.uint64)])
        low = np.concatenate([key[first].astype(np.uint32), np.full(len(plain_at), NO_NUMBER)])
        dictionary = pa.DictionaryArray.from_arrays(pa.array(at.astype(np.int32)), pa.array(codes, pa.string()))
        self.counts.append(pa.table({"code": dictionary, "number": low, "events": times}))

    def _write(
        self, columns: dict[str, np.ndarray], shard: np.ndarray, codes: list[str], source: pa.Array | None
    ) -> None:
        offsets = np.searchsorted(shard, np.arange(self.cohort.shards + 1))
        table = pa.table(columns)
        if source is not None:
            table = table.append_column(SOURCE, source)
        told = {"offsets": offsets.astype("<i8").tobytes(), "codes": json.dumps(codes).encode()}
        table = table.replace_schema_metadata(told)
        with (
            appears_whole(Path(f"{self.path}-{self.parts:04d}.arrow")) as path,
            pa.OSFile(str(path), "wb") as file,
            pa.ipc.new_file(file, table.schema) as out,
        ):
            out.write_table(table.combine_chunks())
        self.parts += 1
        self.kept += table.num_rows

    def finish(self, file: int) -> int:
        """Write what was found; returns the rows that were read."""
        subjects = np.concatenate(self.subjects) if self.subjects else np.array([], np.int64)
        self.findings[SCATTERED] += len(subjects) - len(np.unique(subjects))
        self._save("subjects", np.unique(subjects))
        births = np.concatenate(self.births, axis=1) if self.births else np.zeros((2, 0), np.int64)
        self._save("births", births)
        if self.counts:
            with appears_whole(Path(f"{self.path}-counts.parquet")) as path:
                pq.write_table(pa.concat_tables(self.counts).unify_dictionaries(), path)
        told = {
            "file": file,
            "rows": self.rows,
            "kept": self.kept,
            "parts": self.parts,
            "findings": {what: count for what, count in self.findings.items() if count},
            "code_rows": dict(self.code_rows),
            "counts": bool(self.counts),
            "cohort_codes": sorted(self.cohort_codes),
            "known_codes": sorted(self.known_codes),
            "static_codes": sorted(self.static_codes),
            "strata_values": sorted(self.strata_values),
        }
        with appears_whole(Path(f"{self.path}.json")) as path:
            path.write_text(json.dumps(told))
        return self.rows

    def _save(self, name: str, numbers: np.ndarray) -> None:
        with appears_whole(Path(f"{self.path}-{name}.npy")) as path, path.open("wb") as file:
            np.save(file, numbers)


def stratum_value(code: str, value: float) -> str:
    """What a static code says of a patient: its part after "//", else its number, else "recorded".

    Example:
        >>> stratum_value("SITE//A//1", float("nan")), stratum_value("SMOKER", 2.0), stratum_value("MALE", float("nan"))
        ('A//1', '2.0', 'recorded')
    """
    _, parts, rest = code.partition("//")
    if parts:
        return rest
    return "recorded" if np.isnan(value) else str(np.float32(value))


def repeated(run: np.ndarray, time: np.ndarray, code: np.ndarray, value: np.ndarray) -> int:
    """How many rows equal an earlier one in every column.

    A row is told apart by a hash first: only those whose hash meets another row's are compared.

    Example:
        >>> one = np.array([1, 1, 1])
        >>> repeated(one, one, np.array([3, 3, 4]), np.float32([np.nan, np.nan, 5]))
        1
    """
    bits = value.view(np.uint32).astype(np.uint64)
    mixed = run.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    for column in (time.view(np.uint64), code.astype(np.uint64), bits):
        mixed = (mixed ^ column) * np.uint64(0xBF58476D1CE4E5B9)
        mixed ^= mixed >> np.uint64(29)
    at = _meeting(mixed)
    if not len(at):
        return 0
    at = at[np.lexsort((bits[at], code[at], time[at], run[at], mixed[at]))]
    same = np.ones(len(at) - 1, dtype=bool)
    for column in (run, time, code, bits):
        same &= column[at][1:] == column[at][:-1]
    return int(same.sum())


#: Bits of a hash that choose a place in a table small enough for a processor's cache.
_PLACE_BITS = 20


def _meeting(mixed: np.ndarray) -> np.ndarray:
    """The positions of hashes [row] uint64 that equal another one, ascending, and of a few others.

    Each hash writes its position into a place that some of its bits choose, and who finds another's position
    there stays: three rounds with other bits are much quicker than sorting them all.
    """
    at = np.arange(len(mixed))
    for lowest in (64 - _PLACE_BITS, 64 - 2 * _PLACE_BITS, 64 - 3 * _PLACE_BITS):
        place = (mixed[at] >> np.uint64(lowest)).astype(np.int64) & ((1 << _PLACE_BITS) - 1)
        number = np.arange(len(at), dtype=np.int32)
        written = np.empty(1 << _PLACE_BITS, dtype=np.int32)
        written[place] = number
        found = written[place]
        meets = found != number
        meets[found[meets]] = True
        at = at[meets]
    return at


def _codes(column: pa.ChunkedArray) -> tuple[np.ndarray, list[str]]:
    """The index of each row's code [row] int32, and the codes."""
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    whole = column.unify_dictionaries().combine_chunks()
    if isinstance(whole, pa.ChunkedArray):  # no rows
        return np.array([], np.int32), []
    return whole.indices.to_numpy(zero_copy_only=False).astype(np.int32), whole.dictionary.to_pylist()


def _numbers(table: pa.Table) -> np.ndarray:
    """The number of each row [row] float32; NaN where there is none."""
    if "numeric_value" not in table.column_names:
        return np.full(table.num_rows, np.nan, np.float32)
    column = table["numeric_value"].cast(pa.float32())
    return np.array(column.to_numpy(zero_copy_only=False), dtype=np.float32)
