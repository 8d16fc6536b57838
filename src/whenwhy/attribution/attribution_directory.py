"""The names in a directory of attributions, and what is read of it by them."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load

from whenwhy.attribution.registry import Fitted
from whenwhy.events.sequence_directory import shard_place
from whenwhy.shards import StageDirectory

#: A shard's tables.
ROWS, PREDICTION_ROWS = "attributions", "predictions"

#: A shard's file of gradients, and the entry with the first layer's rows and rates, of a run that tells absence.
GRADIENT_ROWS, FIRST_LAYER_ROWS = "gradients", "first_layer"

#: The entry of a method that must be fitted first: its tensors, and what is told of the fit.
FITTED, FITTED_TENSORS = "fitted", "fitted.safetensors"

#: The entry that says how far a run in bfloat16 is from float32, on its first predictions.
ROUNDING = "rounding"

#: The entry that says what was explained: outcome, model, its measurements, and the feature values.
ABOUT = "about"


def first_prediction_id(shard: str) -> int:
    """The id of a shard's first prediction: ids tell generation, shard and row apart.

    Example:
        >>> first_prediction_id("g0-00002") >> 32, first_prediction_id("g1-00000") >> 52
        (2, 1)
    """
    generation, number = shard_place(shard)
    return (generation << 52) + (number << 32)


def read_fitted(stage: StageDirectory, device: torch.device | str = "cpu") -> Fitted | None:
    """What a run's method learned, as the run keeps it; None: the method learns nothing."""
    if FITTED not in stage.needs:
        return None
    tensors = {n: t.to(device) for n, t in load(stage.read_bytes(FITTED, FITTED_TENSORS)).items()}
    return Fitted(tensors, stage.entry(FITTED).summary)


def attribution_files(run: StageDirectory, name: str) -> list[Path]:
    """A run's files of rows, predictions or gradients, checksums verified."""
    return [run.file(shard, name) for shard in run.shards if name in run.entry(shard).files]
