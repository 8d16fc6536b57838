"""`python tests/benchmarks/run.py NAME [--small]`: measures side by side, prints a table, and one JSON object last."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))  # as a script it finds its neighbours as tests do
NAMES = ("attribution", "dashboard", "engine", "ingest", "store")


def main() -> None:
    """Runs one benchmark by its name."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("name", choices=NAMES)
    asked.add_argument("--small", action="store_true", help="under a minute, at a smaller size, with the same keys")
    asked.add_argument("--folder", type=Path, help="keep made-up data here for the next call")
    given = asked.parse_args()
    if given.folder:
        given.folder.mkdir(parents=True, exist_ok=True)
    figures = importlib.import_module(f"benchmarks.{given.name}").measure(given.small, given.folder)
    table = Table("figure", "value")
    for name, value in figures.items():
        table.add_row(name, "not measured" if value is None else f"{value:,.4g}")
    Console().print(table)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
