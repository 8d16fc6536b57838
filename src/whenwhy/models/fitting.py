"""Sequences stream in, a fitted model flows out: epochs of AdamW, stopped early by the tuning patients' log loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from sklearn.metrics import log_loss
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torch.optim.swa_utils import AveragedModel

from whenwhy.errors import UserError
from whenwhy.events.sequence_batch import SequenceBatch
from whenwhy.events.sequence_loader import loaded_batches
from whenwhy.models.architectures import ARCHITECTURES
from whenwhy.models.bag_classifier import Classifier
from whenwhy.models.fit_state import FitState
from whenwhy.models.folds import FoldSplit, class_index
from whenwhy.models.predictions import scored_shards
from whenwhy.schema import TRAIN, TUNING
from whenwhy.shards import Json, StageDirectory

#: Longest gradient of a step.
CLIP = 1.0

CLASS_WEIGHTS = ("none", "balanced")
SUPERVISE = ("last", "every")


@dataclass(frozen=True)
class FitSettings:
    """How a model is fitted.

    Attributes:
        averaging: the share of the weights' running average that a step keeps; 0: no average.
        batch: predictions a step.
        patience: epochs without a better tuning loss before training stops.
        class_weights: "balanced" gives all classes the same weight in the loss. The model learns its
            logits less the logarithms of the weights, so its probabilities are of the true prior all the same
            (Menon et al. 2021, equation 10; King and Zeng 2001, section 4.1).
        supervise: "every" asks the scores at every step of causal models, "last" the record's alone.
    """

    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    averaging: float = 0.99
    batch: int = 128
    epochs: int = 30
    patience: int = 4
    class_weights: str = "none"
    supervise: str = "last"


@dataclass(frozen=True)
class Fitted:
    """The model with the least log loss on the tuning patients, in evaluation mode, and how it was found."""

    model: Classifier
    epochs: int
    best_epoch: int
    tuning_loss: float


def weighing(class_weights: str, label: np.ndarray, n_classes: int = 2) -> tuple[float, ...]:
    """What each class weighs in the loss, the mean over the training predictions being 1.

    Args:
        label: [prediction] the place of its class.

    Example:
        >>> weighing("balanced", np.array([1, 0, 0, 0]))
        (0.6666666666666666, 2.0)
    """
    if class_weights == "none":
        return (1.0,) * n_classes
    shares = [float((label == place).mean()) for place in range(1, n_classes)]
    return tuple(1 / (n_classes * share) for share in (1 - sum(shares), *shares))


def loss_of(
    model: Classifier, batch: SequenceBatch, label: torch.Tensor, weights: Sequence[float], every_step: bool
) -> torch.Tensor:
    """The mean weighted log loss of a batch, a number.

    With `every_step` a prediction's loss is its mean over the true steps (Lipton et al. 2016, target
    replication); a record without steps has the loss of its score.

    Args:
        label: [patient] int64, the place of its class.
        weights: of the classes.
    """
    embedded = model.embed(batch)
    weight = torch.tensor(weights, device=label.device)[label]  # [patient]
    if every_step:
        steps = model.step_outputs(embedded, batch.lengths)  # [patient, step, output]
        true = torch.arange(batch.n_steps, device=steps.device) < batch.lengths.clamp(min=1).unsqueeze(1)
        empty = batch.lengths == 0
        if empty.any():
            whole = model.outputs(embedded, batch.lengths).unsqueeze(1)
            steps = torch.where(empty.view(-1, 1, 1), whole, steps)
        loss = _log_loss(steps, label.unsqueeze(1).expand(steps.shape[:2]), weights)
        loss = (loss * true).sum(1) / true.sum(1)
    else:
        loss = _log_loss(model.outputs(embedded, batch.lengths), label, weights)
    return (weight * loss).mean()


def _log_loss(outputs: torch.Tensor, label: torch.Tensor, weights: Sequence[float]) -> torch.Tensor:
    """The log loss [...] of outputs [..., output] to which the logarithms of the classes' weights are added."""
    if len(weights) == 2:
        score = outputs.squeeze(-1) + math.log(weights[1] / weights[0])
        return binary_cross_entropy_with_logits(score, label.to(score), reduction="none")
    balanced = outputs + torch.tensor(weights, device=outputs.device).log().to(outputs)
    return cross_entropy(balanced.flatten(0, -2), label.flatten(), reduction="none").view(label.shape)


def fit(
    directory: StageDirectory,
    split: FoldSplit,
    weights: Sequence[float],
    architecture: str,
    arguments: Json,
    settings: FitSettings,
    *,
    seed: tuple[int, int],
    state_path: Path,
    device: torch.device | str = "cpu",
) -> Fitted:
    """The model of a fold, whatever number of processes were killed on the way to it.

    Sequences are read from their shards every epoch, in the background: memory holds some shards. What
    an epoch draws is a function of seed, fold and epoch alone, and the state after each is kept in
    `state_path`, so the weights are those of an undisturbed training, bit for bit.

    Args:
        weights: of the classes in the loss.
        seed: the seed and the fold.

    Raises:
        UserError: the loss is not finite.
    """
    _draw_from(*seed, 0)
    model = ARCHITECTURES[architecture](**arguments).to(device)
    average = AveragedModel(model, avg_fn=_averaging(settings.averaging))
    optimizer = torch.optim.AdamW(model.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    state = FitState(model, average, optimizer, best=_copied(model))
    state.load(state_path)
    while state.epoch < settings.epochs and state.epoch - state.best_epoch < settings.patience:
        epoch = state.epoch + 1
        random = _draw_from(*seed, epoch)
        model.train()
        batches = loaded_batches(
            directory, choose=split.choose(TRAIN), patients=settings.batch, random=random, device=device
        )
        for loaded in batches:
            label = torch.from_numpy(class_index(loaded.column("label"), model.classes)).to(device)
            optimizer.zero_grad()
            for member in model.members:  # each learns from its own loss and gradient, as it would alone
                loss_of(member, loaded.batch, label, weights, settings.supervise == "every").backward()
                torch.nn.utils.clip_grad_norm_(member.parameters(), CLIP)
            optimizer.step()
            average.update_parameters(model)
        tuning_loss = _tuning_loss(cast(Classifier, average.module.eval()), directory, split, device)
        if not math.isfinite(tuning_loss):
            raise UserError(f"The loss is not finite after epoch {epoch}: train with a smaller --learning-rate.")
        if tuning_loss < state.best_loss:
            state.best, state.best_loss, state.best_epoch = _copied(average.module), tuning_loss, epoch
        state.epoch = epoch
        state.save(state_path)
    model.load_state_dict(state.best)
    return Fitted(model.eval(), state.epoch, state.best_epoch, state.best_loss)


def _tuning_loss(model: Classifier, directory: StageDirectory, split: FoldSplit, device: torch.device | str) -> float:
    label, probability = [], []
    for shard in scored_shards(model, directory, split.choose(TUNING), device):
        label.append(shard.label)
        probability.append(shard.probabilities)
    found = np.concatenate(probability)
    if not np.isfinite(found).all():
        return math.nan
    return float(log_loss(np.concatenate(label), found, labels=range(found.shape[1])))


def _draw_from(*entropy: int) -> np.random.Generator:
    """A generator of numpy, and torch's own set to the same entropy."""
    sequence = np.random.SeedSequence(entropy)
    torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> 1))
    return np.random.default_rng(sequence)


def _averaging(share: float) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor | int], torch.Tensor]:
    """A running average that forgets its first, random weights quickly: of n steps it keeps at most (1 + n) / (10 + n)."""

    def averaged(kept: torch.Tensor, new: torch.Tensor, n: torch.Tensor | int) -> torch.Tensor:
        keeps = min(share, (1 + int(n)) / (10 + int(n)))
        return torch.lerp(new, kept, keeps)

    return averaged


def _copied(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
