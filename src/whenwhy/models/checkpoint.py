"""Models as data: safetensors and JSON, never code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load, save

from whenwhy.errors import UserError, unknown_name
from whenwhy.locations import location
from whenwhy.models.architectures import ARCHITECTURES
from whenwhy.models.sequence_model import SequenceModel
from whenwhy.shards import Json, StageDirectory

WEIGHTS, DESCRIPTION = "weights.safetensors", "model.json"

#: The entry of a model directory that ships: the fold of the data set's own split.
SHIPPED = "fold-1"


def checkpoint_files(model: torch.nn.Module, description: Json) -> dict[str, bytes]:
    """The two files of a checkpoint. `description` names the architecture and its arguments."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    return {WEIGHTS: save(tensors), DESCRIPTION: json.dumps(description, sort_keys=True, indent=2).encode()}


def load_model(directory: StageDirectory | Path | str, device: torch.device | str = "cpu") -> SequenceModel:
    """The model that a directory of `whenwhy train` ships, in evaluation mode.

    Example: `load_model("demo/model")`
    """
    if not isinstance(directory, StageDirectory):
        directory = StageDirectory.open(location(directory), "train").require_complete()
    description = json.loads(directory.read_bytes(SHIPPED, DESCRIPTION))
    name = description["architecture"]
    if name not in ARCHITECTURES:
        raise unknown_name("architecture", name, ARCHITECTURES, str(directory.path))
    model = ARCHITECTURES[name](**description["arguments"])
    weights = load(directory.read_bytes(SHIPPED, WEIGHTS))
    broken = [tensor for tensor, values in weights.items() if not torch.isfinite(values).all()]
    if broken:
        raise UserError(f"{directory.path} has weights that are not finite ({', '.join(broken)}): train it again.")
    model.load_state_dict(weights)
    return cast(SequenceModel, model.to(device).eval())


def vocabulary_sha256(sequences: StageDirectory) -> str:
    """The hash of the feature values that a directory of sequences counts in."""
    return str(sequences.entry("feature_values").files["feature_values"]["sha256"])


def require_same_vocabulary(model: StageDirectory, sequences: StageDirectory) -> None:
    """Raises `UserError` unless the model was trained on these very feature values: ids mean nothing otherwise."""
    description = json.loads(model.read_bytes(SHIPPED, DESCRIPTION))
    if description["vocabulary_sha256"] != vocabulary_sha256(sequences):
        raise UserError(
            f"{model.path} was trained on other feature values than {sequences.path} has: "
            "train a model on these sequences, or prepare them as that model's were."
        )
