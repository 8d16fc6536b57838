"""The scan's counts flow in, fitted feature values flow out, in memory that does not grow with the data."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from whenwhy.errors import UserError, unknown_name
from whenwhy.events.feature_values import (
    AGE,
    ANY_NUMBER,
    FOREIGN_OFFSET,
    NO_NUMBER,
    FittingNotes,
    Row,
    fitted_rows,
    numbered,
    numbers_of,
)
from whenwhy.events.out_of_core import connect, literal, within
from whenwhy.events.parquet_files import first_line
from whenwhy.events.sorted_numbers import changes
from whenwhy.schema import FEATURE_VALUES, RECORDED


def fitted(
    count_files: Sequence[Path],
    ages: np.ndarray,
    codes: pa.Table,
    bins: int,
    cut_offs: Mapping[str, Sequence[float]],
    scratch: Path,
    memory_limit: str,
    notes: FittingNotes,
) -> list[Row]:
    """Rows of feature values fitted on the training events that the scan counted.

    Args:
        count_files: code, number (as `ordered_bits`), events; a number may come more than once.
        ages: [training patient] age at the last prediction, NaN where it is unknown; empty: it is no feature.
        codes: columns code, description, unit, parents.
    """
    merged = scratch / "numbers.parquet"
    totals: dict[str, tuple[int, int, int]] = {}
    if count_files:
        listed = ", ".join(literal(str(file)) for file in count_files)
        with within(memory_limit, scratch), connect(memory_limit, scratch) as db:
            # Codes as numbers in their order: strings would be compared again and again.
            db.execute(f"create table codes as select distinct code::varchar as code from read_parquet([{listed}])")
            db.execute(
                "create table numbered as select code, row_number() over (order by code) - 1 as place from codes"
            )
            db.execute(
                f"""copy (
                    select place::integer as place, number, sum(events)::bigint as events
                    from read_parquet([{listed}]) join numbered using (code) group by all order by place, number
                ) to {literal(str(merged))} (format parquet)"""
            )
            names = [code for (code,) in db.execute("select code from numbered order by place").fetchall()]
            absent = int(NO_NUMBER)
            for at, *told in db.execute(
                f"""select place, coalesce(sum(events) filter (number <> {absent}), 0)::bigint,
                    count(*) filter (number <> {absent}), coalesce(sum(events) filter (number = {absent}), 0)::bigint
                from read_parquet({literal(str(merged))}) group by 1"""
            ).fetchall():
                totals[names[at]] = tuple(told)
    pieces: list[tuple[str, np.ndarray, np.ndarray]] = []
    known = ages[~np.isnan(ages)]
    if len(known):
        numbers, events = np.unique(known.astype(np.float32), return_counts=True)
        totals[AGE] = (len(known), len(numbers), 0)
        pieces = [(AGE, numbers, events)]

    def ordered() -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        yield from pieces
        if count_files:
            for batch in pq.ParquetFile(merged).iter_batches(1 << 20):
                at, number, events = (column.to_numpy() for column in batch.columns)
                begins = np.flatnonzero(changes(at))
                for begin, end in zip(begins, np.append(begins[1:], len(at)), strict=True):
                    with_number = number[begin:end] != NO_NUMBER
                    if with_number.any():
                        yield (
                            names[at[begin]],
                            numbers_of(number[begin:end][with_number]),
                            events[begin:end][with_number],
                        )

    wanted = codes.filter(pc.is_in(codes["code"], pa.array(sorted(totals), pa.string())))
    described = {row["code"]: row for row in wanted.to_pylist()}
    return fitted_rows(totals, ordered(), described, bins, cut_offs, notes)


def foreign_rows(vocabulary: pa.Table, codes: pa.Table) -> list[Row]:
    """The rows of a vocabulary that a model was trained with: its index i is the feature value id i + FOREIGN_OFFSET.

    Args:
        vocabulary: columns index, code, low, high, in the order of the index. A code without any range
            stands for its events whatever their numbers, one with ranges too for those without a number.
        codes: columns code, description, unit, parents.
    """
    described = {row["code"]: row for row in codes.to_pylist()}
    ranged = set(vocabulary.filter(pc.is_valid(vocabulary["low"]))["code"].to_pylist())
    rows = [dict.fromkeys(FEATURE_VALUES.names) | {"kind": RECORDED, "parents": []} for _ in range(FOREIGN_OFFSET)]
    rows[0] |= {"code": "(everything absent)", "description": "all that a step does not record"}
    bins: dict[str, int] = {}
    for told in vocabulary.select(["code", "low", "high"]).to_pylist():
        code, low = told["code"], told["low"]
        about = described.get(code, {})
        row = dict.fromkeys(FEATURE_VALUES.names) | {"code": code, "kind": RECORDED}
        row |= {
            "description": about.get("description"),
            "unit": about.get("unit"),
            "parents": about.get("parents") or [],
        }
        if low is not None:
            # As float32, like the numbers themselves.
            row |= {"bin": bins.get(code, 0), "low": float(np.float32(low)), "high": float(np.float32(told["high"]))}
            bins[code] = bins.get(code, 0) + 1
        elif code not in ranged:
            row["bin"] = ANY_NUMBER
        rows.append(row)
    return numbered(rows)


def read_cut_offs(file: Path) -> dict[str, list[float]]:
    """Inner edges by code, as float32, from a YAML file: `creatinine: [0.7, 1.3]`.

    A code is taken as it is written: 0371 stays four digits, `on` stays a word.

    Raises:
        UserError: no such file, or no such form.
    """
    try:
        told = _written_pairs(file.read_text())
    except FileNotFoundError:
        raise UserError(f"{file} does not exist: name a YAML file such as 'creatinine: [0.7, 1.3]'.") from None
    # PyYAML lets pass what Python says of a number or date that it cannot make, and of nesting without end.
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        raise UserError(f"{file} is no YAML ({first_line(error)}): write lines such as 'hdl: [40, 60]'.") from None
    if not told:
        raise UserError(f"{file} names no cut-offs: write lines such as 'creatinine: [0.7, 1.3]'.")
    largest = float(np.finfo(np.float32).max)
    cut_offs: dict[str, list[float]] = {}
    for code, cuts in told:
        if code in cut_offs:
            raise UserError(f"{file} has cut-offs of '{code}' more than once: keep one.")
        numbers = cuts if isinstance(cuts, list) else [cuts]
        good = numbers and all(
            isinstance(n, int | float) and not isinstance(n, bool) and -largest <= n <= largest for n in numbers
        )
        edges = [float(np.float32(n)) for n in numbers] if good else []
        if not good or sorted(set(edges)) != edges:
            raise UserError(
                f"{file}: the cut-offs of '{code}' are {reprlib.repr(cuts)}: give ascending numbers, each once, "
                "that differ and are finite as float32."
            )
        cut_offs[code] = edges
    return cut_offs


def _written_pairs(text: str) -> list[tuple[str, Any]]:
    """The keys of a YAML mapping as they are written, with their values; none where the text is no mapping."""
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            return []
        if not all(isinstance(key, yaml.ScalarNode) for key, _ in node.value):
            raise yaml.YAMLError("a key is no word")
        # By hand, because a dict would keep the last alone of keys that are written twice.
        return [(str(key.value), loader.construct_object(value, deep=True)) for key, value in node.value]
    finally:
        loader.dispose()


def require_codes(names: Sequence[str], known: Sequence[str], where: object) -> None:
    """Raises `UserError` with the nearest known code for the first name that is none."""
    for name in names:
        if name not in known:
            raise unknown_name("code", name, known, str(where))
