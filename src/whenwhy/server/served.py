"""A model and its sequences flow in, what answers what-if for each run of a store flows out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whenwhy.attribution.what_if import Served
from whenwhy.errors import UserError

if TYPE_CHECKING:
    from whenwhy.models.foreign.named import ForeignSource


def served_of(model: Path | ForeignSource, sequences: Path, runs: Iterable[Mapping[str, Any]]) -> Mapping[str, Served]:
    """The model beside its sequences by the run_id of each run that explains it.

    Args:
        runs: rows of a store's table `runs`.

    Raises:
        UserError: no such directories, or no run explains this model of these sequences.

    Example: `served_of(Path("demo/model"), Path("demo/sequences"), store.runs())`
    """
    found: dict[str, Served] = {}
    wrong: list[UserError] = []
    for run in runs:
        try:
            found[run["run_id"]] = Served.open(model, sequences, run)
        except UserError as error:
            wrong.append(error)
    if not found and wrong:
        raise wrong[0]
    return found
