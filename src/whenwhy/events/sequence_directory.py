"""A directory of sequences: what its entries are called, and what they hold."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pyarrow as pa

from whenwhy.events.derived_features import Layout
from whenwhy.shards import StageDirectory

VOCABULARY = "feature_values"  # the entry, and the table in it
CODE_GROUPS = "code_groups"  # beside it: the hierarchy of its codes
TABLE = "sequences"  # a shard's records
LAYOUT = "layout"  # the entry that says how events become ids: of the first generation, for all
REPORT = "report"  # the entry that says what was found in the data
LAYOUT_FILE, PLACE_FILE, PROVISIONAL_FILE, NOTES_FILE = "layout.npz", "place.npy", "provisional", "notes.json"


def shard_names(generation: int, shards: int) -> list[str]:
    """The names of a generation's shards."""
    return [f"g{generation}-{number:05d}" for number in range(shards)]


def shard_place(name: str) -> tuple[int, int]:
    """The generation and the number of a shard.

    Example:
        >>> shard_place("g1-00012")
        (1, 12)
    """
    generation, _, number = name.partition("-")
    return int(generation[1:]), int(number)


def read_layout(stage: StageDirectory) -> tuple[Layout, np.ndarray, pa.Table]:
    """How provisional feature values become final ones, and the table of those, counts still null."""
    layout = Layout.load(BytesIO(stage.read_bytes(LAYOUT, LAYOUT_FILE)))
    place = np.load(BytesIO(stage.read_bytes(LAYOUT, PLACE_FILE)))
    return layout, place, stage.read(LAYOUT, VOCABULARY)
