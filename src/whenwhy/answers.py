"""An Arrow table flows in; text for people, or bytes for programs, flows out."""

from __future__ import annotations

import io
import json
import math
from typing import Any

import pyarrow as pa
import pyarrow.csv as csv
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

FORMATS = ("table", "csv", "json", "parquet", "arrow")

#: Formats that are no text.
BINARY = ("parquet", "arrow")

#: A table for people shows no more rows than this; csv and json give all.
MOST_ROWS = 200


def as_text(answer: pa.Table, form: str = "table", width: int | None = None) -> str:
    """The answer as a table for people, as CSV, or as one JSON object a line.

    Example:
        >>> print(as_text(pa.table({"code": ["hdl"], "n": [3]}), "csv"))
        "code","n"
        "hdl",3
    """
    if form == "csv":
        buffer = io.BytesIO()
        csv.write_csv(_flat(answer), buffer)
        return buffer.getvalue().decode().rstrip("\n")
    if form == "json":
        return "\n".join(json.dumps(_plain(row), default=str) for row in answer.to_pylist())
    table = Table(show_edge=False, pad_edge=False)
    for field in answer.schema:
        numeric = pa.types.is_integer(field.type) or pa.types.is_floating(field.type) or pa.types.is_decimal(field.type)
        table.add_column(field.name, justify="right" if numeric else "left", overflow="fold")
    for row in answer.slice(0, MOST_ROWS).to_pylist():
        table.add_row(*(_cell(value) for value in row.values()))
    buffer_text = io.StringIO()
    # Without a terminal a table is as wide as it needs to be.
    Console(file=buffer_text, width=width or 400).print(table)
    text = "\n".join(line.rstrip() for line in buffer_text.getvalue().splitlines())
    if answer.num_rows > MOST_ROWS:
        text += f"\n... {answer.num_rows - MOST_ROWS:,} more rows: add --format csv to see all."
    return text


def as_bytes(answer: pa.Table, form: str) -> bytes:
    """The answer as a Parquet file, as an Arrow file (IPC, also called Feather), or as UTF-8 text.

    Example:
        >>> pa.ipc.open_file(as_bytes(pa.table({"n": [3]}), "arrow")).read_all().to_pylist()
        [{'n': 3}]
    """
    if form not in BINARY:
        return (as_text(answer, form) + "\n").encode()
    buffer = io.BytesIO()
    if form == "parquet":
        pq.write_table(answer, buffer)
    else:
        with pa.ipc.new_file(buffer, answer.schema) as file:
            file.write_table(answer)
    return buffer.getvalue()


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """A row that JSON can say: infinities and NaN are null there."""
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}


def _flat(answer: pa.Table) -> pa.Table:
    """The answer with nested columns as text, since CSV has no lists."""
    for at, field in enumerate(answer.schema):
        if pa.types.is_nested(field.type):
            texts = [None if value is None else str(value) for value in answer.column(at).to_pylist()]
            answer = answer.set_column(at, field.name, pa.array(texts, pa.string()))
    return answer
