"""DuckDB for what may not fit in memory: an explicit limit, a folder to spill to, and nothing fetched."""

from __future__ import annotations

from pathlib import Path

import duckdb

from whenwhy.errors import UserError


def connect(memory_limit: str, scratch: Path, threads: int | None = None) -> duckdb.DuckDBPyConnection:
    """A DuckDB in memory that spills to `scratch` and never fetches an extension.

    Args:
        memory_limit: such as "2GB".
        threads: None: one a core.

    Raises:
        UserError: the limit is not understood.
    """
    config: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": memory_limit,
        "temp_directory": str(scratch),
        "autoinstall_known_extensions": "false",
    }
    if threads is not None:
        config["threads"] = threads
    try:
        return duckdb.connect(config=config)
    except duckdb.Error as error:
        raise UserError(f"--memory-limit '{memory_limit}' is not understood ({error}): write it as '2GB'.") from None


def literal(text: str) -> str:
    """A SQL string literal.

    Example:
        >>> literal("it's")
        "'it''s'"
    """
    return "'" + text.replace("'", "''") + "'"
