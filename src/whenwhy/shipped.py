"""Where the queries and dashboards lie: inside the package in a wheel, beside src/ in an editable install."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent


def shipped(folder: str) -> Path:
    """The folder "queries" or "dashboards" that belongs to this installation.

    Example:
        >>> (shipped("queries") / "top_features.sql").exists()
        True
    """
    inside = _PACKAGE / folder
    return inside if inside.is_dir() else _PACKAGE.parents[1] / folder
