"""A directory of sequences flows in; what baselines know of its training patients flows out, and is kept with a run."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch

from whenwhy.attribution.baselines import Population, population_of
from whenwhy.errors import UserError
from whenwhy.events.sequence_batch import Sequences
from whenwhy.events.sequence_directory import TABLE, VOCABULARY
from whenwhy.events.sequence_loader import COLUMNS, loaded_batches
from whenwhy.schema import EVERYTHING_ABSENT, TRAIN
from whenwhy.shards import StageDirectory

#: The entry that holds it, and its tables.
POPULATION, RATES_TABLE, REFERENCES_TABLE = "population", "rates", "references"

#: Training records that stand for all others.
REFERENCES = 256

_RATES = pa.schema([("code", pa.int32()), ("step_rate", pa.float32()), ("static_rate", pa.float32())])


def population_tables(sequences: StageDirectory) -> dict[str, pa.Table]:
    """The tables of the entry POPULATION: rates by feature value, and references, of training predictions.

    The references are those with the least hash of patient and time: a sample that depends on nothing else.

    Raises:
        UserError: no training prediction.
    """
    codes = sequences.read(VOCABULARY, VOCABULARY, ["code"])["code"].to_pylist()
    number = {code: at for at, code in enumerate(dict.fromkeys(codes))}
    code = np.array([number[name] for name in codes], dtype=np.int32)
    code[EVERYTHING_ABSENT] = -1
    batches = (loaded.batch for loaded in loaded_batches(sequences, choose=_training, patients=512))
    found = population_of(batches, len(code), code)
    references = sampled_training(sequences, REFERENCES)
    rates = {"code": code, "step_rate": found.step_rates.numpy(), "static_rate": found.static_rates.numpy()}
    return {RATES_TABLE: pa.table(rates, schema=_RATES), REFERENCES_TABLE: references}


def sampled_training(sequences: StageDirectory, number: int) -> pa.Table:
    """The training predictions with the least hash of patient and time, at most so many, in that order.

    Raises:
        UserError: there is none.
    """
    kept: list[tuple[int, pa.Table]] = []
    for shard in sequences.shards:
        table = sequences.read(shard, TABLE, COLUMNS)
        of = Sequences(table)
        rows = _training(of)
        rows = rows[np.argsort(of.keys[rows], kind="stable")[:number]]
        kept += [(int(of.keys[row]), table.slice(row, 1)) for row in rows]
        kept = sorted(kept, key=lambda one: one[0])[:number]
    if not kept:
        raise UserError(
            f"{sequences.path} has no training prediction, so there is none to compare with or to learn from."
        )
    return pa.concat_tables([table for _, table in kept])


def _training(of: Sequences) -> np.ndarray:
    return np.flatnonzero(of.column("split") == TRAIN)


def read_population(stage: StageDirectory, device: torch.device | str = "cpu") -> Population:
    """What `population_tables` told, as a run keeps it."""
    rates = stage.read(POPULATION, RATES_TABLE)
    references = Sequences(stage.read(POPULATION, REFERENCES_TABLE))
    step, static, code = (
        torch.from_numpy(rates[name].to_numpy().copy()).to(device) for name in ("step_rate", "static_rate", "code")
    )
    return Population(step, static, code, references.batch(np.arange(len(references)), device))
