"""A file that says what a stranger's model counts flows in, one table of its indexes flows out."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from whenwhy.errors import UserError
from whenwhy.events.parquet_files import first_line

#: One row an index of the model's first layer, ascending and without gaps.
FOREIGN_VOCABULARY = pa.schema(
    [
        ("index", pa.int32()),
        ("code", pa.string()),
        ("low", pa.float64()),  # low <= number < high; null: recorded without a number
        ("high", pa.float64()),
        ("stream", pa.string()),  # the feature key, where each key has a vocabulary of its own
    ]
)

FLOAT32_MAXIMUM = float(np.finfo(np.float32).max)

#: What stands at index 0 where a vocabulary begins at 1: no event has this code.
PADDING = "<pad>"

#: Tokens that every feature key of a several-key vocabulary may have; they are told apart by their key.
SHARED_TOKENS = (PADDING, "<unk>")


def foreign_vocabulary(path: Path) -> pa.Table:
    """The table of `FOREIGN_VOCABULARY` that a file describes, row i for index i.

    A CSV or Parquet file has the columns index and code, and low and high where numbers are binned. A JSON
    file is {code: index}, [code, ...] or {feature key: {code: index}}; of several keys, in the file's order,
    each one's indexes follow those of the key before.

    Raises:
        UserError: no such file, another form, duplicates, gaps, negative indexes, or ranges that overlap.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "vocabulary.json"
        >>> _ = path.write_text('{"conditions": {"<pad>": 0, "I10": 1}, "drugs": {"<pad>": 0, "C09": 1}}')
        >>> foreign_vocabulary(path).select(["index", "code", "stream"]).to_pylist()[2:]
        [{'index': 2, 'code': 'drugs <pad>', 'stream': 'drugs'}, {'index': 3, 'code': 'C09', 'stream': 'drugs'}]
    """
    if not path.is_file():
        raise UserError(f"{path} is no file: name the model's vocabulary, a .csv, .json or .parquet file.")
    kind = path.suffix.lower()
    if kind == ".json":
        told = _json(path)
        keyed = isinstance(told, dict) and bool(told) and all(isinstance(value, dict) for value in told.values())
        rows = _of_keys(told, path) if keyed else _without_gaps(_of_codes(told, path), str(path))
    elif kind in (".csv", ".parquet"):
        rows = _without_gaps(_of_columns(path), str(path))
    else:
        raise UserError(f"{path} is no vocabulary: give a .csv, .json or .parquet file with index and code.")
    _check_ranges(rows, path)
    return pa.Table.from_pylist(rows, schema=FOREIGN_VOCABULARY)


def stream_sizes(vocabulary: pa.Table) -> dict[str, int]:
    """How many indexes each feature key has, in order.

    Example: `stream_sizes(foreign_vocabulary(path))` gives `{"conditions": 2, "drugs": 2}`
    """
    sizes: dict[str, int] = {}
    for stream in vocabulary["stream"].to_pylist():
        sizes[stream] = sizes.get(stream, 0) + 1
    return sizes


def _json(path: Path) -> Any:
    def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        # JSON itself would keep the last alone, and the model's index of the others would be another code's.
        told = dict(pairs)
        if len(told) < len(pairs):
            twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
            raise UserError(f"{path} names {twice!r} more than once: keep one.")
        return told

    try:
        return json.loads(path.read_bytes(), object_pairs_hook=without_repeats)
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): mend the file.") from None
    except RecursionError:
        raise UserError(f"{path} is nested too deep: write {{code: index}} or {{key: {{code: index}}}}.") from None


def _row(index: Any, code: Any, where: str, low: Any = None, high: Any = None) -> dict[str, Any]:
    """One row, its types checked."""
    # An index of more digits than a float holds is an int, and whole.
    whole = isinstance(index, int) or (isinstance(index, float) and index.is_integer())
    if not whole or isinstance(index, bool) or index < 0:
        raise UserError(f"{where}: the code '{code}' has the index {index!r}: an index is a whole number from 0.")
    if not isinstance(code, str) or not code:
        raise UserError(f"{where}: index {index} has no code: give every index a code.")
    _require_text(code, where)
    return {"index": int(index), "code": code, "low": low, "high": high, "stream": None}


def _require_text(name: str, where: str) -> None:
    """JSON may tell half a character, which no table holds."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise UserError(f"{where}: {name!r} holds half a character (a lone surrogate): mend that name.") from None


def _of_codes(told: Any, path: Path) -> list[dict[str, Any]]:
    if isinstance(told, list):
        return [_row(index, code, str(path)) for index, code in enumerate(told)]
    if isinstance(told, dict):
        return [_row(index, code, str(path)) for code, index in told.items()]
    raise UserError(f"{path} is no vocabulary: write {{code: index}}, [code, ...] or {{key: {{code: index}}}}.")


def _of_keys(told: Mapping[str, Mapping[str, Any]], path: Path) -> list[dict[str, Any]]:
    """Each key's indexes behind those of the key before."""
    rows: list[dict[str, Any]] = []
    key_of: dict[str, str] = {}
    for key, codes in told.items():
        _require_text(key, str(path))
        own = _without_gaps([_row(index, code, f"{path}, {key}") for code, index in codes.items()], f"{path}, {key}")
        offset = len(rows)
        for row in own:
            code = f"{key} {row['code']}" if row["code"] in SHARED_TOKENS else row["code"]
            if code in key_of:
                raise UserError(
                    f"{path}: the code '{code}' is in '{key_of[code]}' and in '{key}', so an event of it would belong "
                    "to both: give it two names, in this file and in the events."
                )
            key_of[code] = key
            rows.append(row | {"index": row["index"] + offset, "code": code, "stream": key})
    return rows


def _of_columns(path: Path) -> list[dict[str, Any]]:
    try:
        if path.suffix.lower() == ".csv":
            texts = pa.csv.ConvertOptions(column_types={"code": pa.string()}, strings_can_be_null=False)
            table = pa.csv.read_csv(path, convert_options=texts)
        else:
            table = pq.ParquetFile(path).read()
        table.validate(full=True)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as a table ({first_line(error)}): mend the file.") from None
    columns = [name for name in ("index", "code", "low", "high") if name in table.column_names]
    for name in columns:
        if table.column_names.count(name) > 1:
            raise UserError(f"{path} has the column '{name}' {table.column_names.count(name)} times: keep one.")
    missing = [name for name in ("index", "code") if name not in table.column_names]
    if missing:
        raise UserError(f"{path} has no column '{missing[0]}': a vocabulary has index, code and, if binned, low, high.")
    rows = []
    for told in table.select(columns).to_pylist():
        low, high = (_bound(told.get(name), name, told["code"], path) for name in ("low", "high"))
        if (low is None) != (high is None):  # one end is open
            low, high = (-math.inf if low is None else low), (math.inf if high is None else high)
        rows.append(_row(told["index"], told["code"], str(path), low, high))
    return rows


def _bound(told: Any, name: str, code: Any, path: Path) -> float | None:
    if told is None or told == "":
        return None
    try:
        number = float(told)
    except (TypeError, ValueError):
        raise UserError(f"{path}: the code '{code}' has {name} = {told!r}: give a number, or nothing.") from None
    if math.isnan(number):
        return None
    # Numbers are float32: a bound beyond them is the same as none.
    return number if abs(number) <= FLOAT32_MAXIMUM else math.copysign(math.inf, number)


def _without_gaps(rows: Iterable[dict[str, Any]], where: str) -> list[dict[str, Any]]:
    """The rows by index, with padding at 0 where they begin at 1."""
    ordered = sorted(rows, key=lambda row: row["index"])
    if not ordered:
        raise UserError(f"{where} holds no code: give the model's vocabulary.")
    if ordered[0]["index"] == 1:
        ordered.insert(0, _row(0, PADDING, where))
    for expected, row in enumerate(ordered):
        if row["index"] < expected:
            other = ordered[expected - 1]["code"]
            raise UserError(f"{where}: index {row['index']} has two codes ('{other}', '{row['code']}'): keep one.")
        if row["index"] > expected:
            raise UserError(
                f"{where}: index {expected} is missing (the next is {row['index']}): name what the model has there."
            )
    return ordered


def _check_ranges(rows: Iterable[dict[str, Any]], path: Path) -> None:
    """A number of a code belongs to one index."""
    by_code: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_code.setdefault(row["code"], []).append(row)
    for code, same in by_code.items():
        plain = [row for row in same if row["low"] is None]
        if len(plain) > 1:
            raise UserError(
                f"{path}: the code '{code}' has the indexes {plain[0]['index']} and {plain[1]['index']}: "
                "keep one, or give them ranges."
            )
        ranges = sorted((row for row in same if row["low"] is not None), key=lambda row: row["low"])
        for row in ranges:
            if not np.float32(row["low"]) < np.float32(row["high"]):
                rounded = " as float32, which numbers are" if row["low"] < row["high"] else ""
                raise UserError(
                    f"{path}: index {row['index']} ('{code}') has low {row['low']} not below its high "
                    f"{row['high']}{rounded}: mend low and high."
                )
        for row, after in pairwise(ranges):
            if after["low"] < row["high"]:
                raise UserError(
                    f"{path}: the ranges of '{code}' at the indexes {row['index']} and {after['index']} overlap: "
                    "a number would belong to both; mend their low and high."
                )
