"""Folders that people give flow in; their Parquet files, tables and converted columns flow out, or one sentence."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pyarrow as pa
import pyarrow.parquet as pq

from whenwhy.errors import UserError


def parquet_files(folder: Path) -> list[Path]:
    """The Parquet files below a folder, sorted, through links too; none where there is no such folder.

    Hidden names are left aside, such as a notebook's checkpoints. A folder that several links reach is
    taken once, so that links in a circle end.

    Raises:
        UserError: a link leads nowhere, or a folder may not be listed, so that files would be missed.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in ("b.PARQUET", "a.parquet", "._a.parquet", "notes.txt"):
        ...     (folder / name).touch()
        >>> [file.name for file in parquet_files(folder)]
        ['a.parquet', 'b.PARQUET']
    """
    if not folder.is_dir():
        return []
    files: list[Path] = []
    taken: set[str] = set()
    for above, folders, names in os.walk(folder, onerror=_refuse_unlisted, followlinks=True):
        real = os.path.realpath(above)
        if real in taken:
            folders.clear()
            continue
        taken.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            file = Path(above, name)
            if name.startswith("."):
                continue
            if not os.path.exists(file) and file.is_symlink():
                raise UserError(f"{file} is a link that leads nowhere ({os.readlink(file)}): mend or remove it.")
            if file.suffix.lower() == ".parquet" and file.is_file():
                files.append(file)
    return sorted(files)


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Whatever Arrow says of the file in this block becomes a sentence.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        yield
    except MemoryError:  # says nothing of the file, though Arrow counts it among its own errors
        raise
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is no readable Parquet file ({first_line(error)}): write it again.") from None


def read_schema(file: Path) -> pa.Schema:
    """The columns and types of a Parquet file.

    Raises:
        UserError: it cannot be read.
    """
    with reading(file):
        return pq.read_schema(file)


def read_columns(file: Path, columns: Sequence[str]) -> pa.Table:
    """These columns of one Parquet file, every page read and checked.

    Raises:
        UserError: it cannot be read.
    """
    with reading(file):
        table = pq.ParquetFile(file).read(columns=list(columns))
        table.validate(full=True)  # pages that were damaged may give text that is no UTF-8
    return table


def read_pieces(file: Path, columns: Sequence[str], rows: int) -> Iterator[pa.Table]:
    """These columns piece by piece, of at most so many rows each, every page checked.

    Raises:
        UserError: it cannot be read.
    """
    with reading(file):
        for batch in pq.ParquetFile(file).iter_batches(rows, columns=list(columns)):
            table = pa.Table.from_batches([batch])
            table.validate(full=True)
            yield table


def converted(table: pa.Table, name: str, kind: pa.DataType, file: Path) -> pa.ChunkedArray:
    """A column as `kind`: times with a zone as UTC, times finer than a microsecond cut, numbers rounded.

    Raises:
        UserError: an integer or a time is beyond what `kind` holds.
    """
    column = table[name]
    if column.type == kind:
        return column
    # Digits may get lost; an integer or a time that wraps around would be another one.
    cut = pa.types.is_timestamp(column.type) and column.type.unit == "ns"
    try:
        return column.cast(kind, safe=not (cut or pa.types.is_floating(kind)))
    except pa.ArrowInvalid as error:
        raise UserError(
            f"{file}: column '{name}' is {column.type} with values beyond {kind} ({first_line(error)}): "
            "mend or remove those rows."
        ) from None


def first_line(error: Exception) -> str:
    """What an error says first, for a sentence; its kind where it says nothing.

    Example:
        >>> first_line(ValueError())
        'ValueError'
    """
    return next(iter(str(error).splitlines()), type(error).__name__)


def _refuse_unlisted(error: OSError) -> NoReturn:
    raise UserError(f"{error.filename} cannot be listed ({error.strerror}): make it readable.") from None
