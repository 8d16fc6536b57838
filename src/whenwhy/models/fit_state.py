"""The state of a training between two epochs, on disk: whoever is killed goes on from the last finished epoch."""

from __future__ import annotations

import json
import math
import os
import uuid
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.optim.swa_utils import AveragedModel

from whenwhy.errors import UserError
from whenwhy.working_folder import fsync

Tensors = dict[str, torch.Tensor]


@dataclass
class FitState:
    """All that the next epoch depends on, besides seed, fold and epoch.

    Attributes:
        model: what is trained.
        average: its weights' running average, which is what is measured and ships.
        optimizer: AdamW, with the moments of every weight.
        best: the average's weights with the least log loss on the tuning patients.
        best_loss, best_epoch: that loss, and when it was reached.
        epoch: finished epochs.
    """

    model: torch.nn.Module
    average: AveragedModel
    optimizer: torch.optim.Optimizer
    best: Tensors
    best_loss: float = math.inf
    best_epoch: int = 0
    epoch: int = 0

    def save(self, path: Path) -> None:
        """The state in one safetensors file with JSON in its header, there as a whole or not at all."""
        moments = self.optimizer.state_dict()["state"]
        parts = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "best": self.best,
            "optimizer": {f"{number}.{name}": t for number, told in moments.items() for name, t in told.items()},
        }
        # Copies: safetensors takes no two names for the same memory.
        flat = {f"{part}/{name}": t.detach().cpu().clone() for part, told in parts.items() for name, t in told.items()}
        progress = {"epoch": self.epoch, "best_epoch": self.best_epoch, "best_loss": self.best_loss}
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{uuid.uuid4().hex}")
        try:
            save_file(flat, temporary, metadata={"progress": json.dumps(progress)})
            fsync(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        fsync(path.parent)

    def load(self, path: Path) -> None:
        """Takes on the state of an earlier process, if it left one.

        Raises:
            UserError: the file is damaged.
        """
        if not path.exists():
            return
        parts: dict[str, Tensors] = {"model": {}, "average": {}, "best": {}, "optimizer": {}}
        try:
            with safe_open(path, framework="pt") as file:
                progress = json.loads(file.metadata()["progress"])
                for key in file.keys():  # noqa: SIM118 -- no mapping, although it looks like one
                    part, _, name = key.partition("/")
                    parts[part][name] = file.get_tensor(key)
        except (SafetensorError, ValueError, KeyError, TypeError):
            raise UserError(f"{path} is damaged: remove it, and run the same command again.") from None
        self.model.load_state_dict(parts["model"])
        self.average.load_state_dict(parts["average"])
        moments: dict[int, Tensors] = {}
        for key, tensor in parts["optimizer"].items():
            number, _, name = key.partition(".")
            moments.setdefault(int(number), {})[name] = tensor
        self.optimizer.load_state_dict({"state": moments, "param_groups": self.optimizer.state_dict()["param_groups"]})
        self.best = parts["best"]
        self.epoch, self.best_epoch = int(progress["epoch"]), int(progress["best_epoch"])
        self.best_loss = float(progress["best_loss"])


def forget(path: Path) -> None:
    """Removes a saved state, and what killed processes left half written beside it."""
    for leftover in path.parent.glob(f"{path.stem}.*"):
        leftover.unlink(missing_ok=True)
