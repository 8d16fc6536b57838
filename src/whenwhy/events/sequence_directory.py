"""A directory of sequences: what its entries are called, and what they hold."""

from __future__ import annotations

from functools import lru_cache
from io import BytesIO

import numpy as np
import pyarrow as pa

from whenwhy.errors import UserError
from whenwhy.events.cohort import shard_of
from whenwhy.events.derived_features import Layout
from whenwhy.schema import SEQUENCES
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


def patient_records(stage: StageDirectory, subject_id: int) -> pa.Table:
    """One patient's rows of `schema.SEQUENCES`, by prediction time; the same table until its shard is another.

    Of each generation, the newest first, one shard alone is read: the one that a patient of this id is in.

    Raises:
        UserError: no generation has the patient, or no longer.

    Example: `patient_records(StageDirectory.open(Path("seq")), 42)["prediction_time"]`
    """
    if -(2**63) <= subject_id < 2**63:
        for told in reversed([stage.manifest, *stage.generations]):
            [number] = shard_of(np.array([subject_id]), len(told["shards"]))
            name = told["shards"][number]
            found = _records_in(stage, name, stage.entry(name).files[TABLE]["sha256"], subject_id)
            if found.num_rows:
                return found
    raise UserError(f"{stage.path} has no patient {subject_id}: check the id.")


@lru_cache(maxsize=256)
def _records_in(stage: StageDirectory, name: str, sha256: str, subject_id: int) -> pa.Table:
    """The patient's rows in a shard whose table has this hash: of one that a patient left, nothing is remembered."""
    at = np.flatnonzero(stage.read(name, TABLE, ["subject_id"])["subject_id"].to_numpy() == subject_id)
    if not len(at):
        return SEQUENCES.empty_table()
    return stage.read(name, TABLE).slice(at[0], len(at)).take(pa.array(np.arange(len(at)))).cast(SEQUENCES)
