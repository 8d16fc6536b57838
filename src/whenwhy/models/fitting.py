"""Sequences stream in, a fitted model flows out: epochs of AdamW, stopped early by the tuning patients' log loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import log_loss
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.optim.swa_utils import AveragedModel

from whenwhy.errors import UserError
from whenwhy.events.sequence_batch import SequenceBatch
from whenwhy.events.sequence_loader import loaded_batches
from whenwhy.models.architectures import ARCHITECTURES
from whenwhy.models.bag_classifier import Classifier
from whenwhy.models.fit_state import FitState
from whenwhy.models.folds import FoldSplit
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
        class_weights: "balanced" gives both classes the same weight in the loss. The model learns its
            score less the log of the weights' ratio, so its probabilities are of the true prior all the same
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


@dataclass(frozen=True)
class Weighing:
    """What the classes weigh in the loss, and what balancing would do to the log-odds if it were not undone."""

    positive: float = 1.0
    negative: float = 1.0

    @property
    def offset(self) -> float:
        return math.log(self.positive / self.negative)


def weighing(class_weights: str, positive: np.ndarray) -> Weighing:
    """The classes' weights, their mean over the training predictions being 1.

    Example:
        >>> weighing("balanced", np.array([True, False, False, False]))
        Weighing(positive=2.0, negative=0.6666666666666666)
    """
    if class_weights == "none":
        return Weighing()
    share = float(positive.mean())
    return Weighing(1 / (2 * share), 1 / (2 * (1 - share)))


def loss_of(
    model: Classifier, batch: SequenceBatch, positive: torch.Tensor, weighs: Weighing, every_step: bool
) -> torch.Tensor:
    """The mean weighted log loss of a batch, a number.

    With `every_step` a prediction's loss is its mean over the true steps (Lipton et al. 2016, target
    replication); a record without steps has the loss of its score.
    """
    embedded = model.embed(batch)
    weight = torch.where(positive > 0, weighs.positive, weighs.negative)  # [patient]
    if every_step:
        steps = model.step_scores(embedded, batch.lengths)  # [patient, step]
        true = torch.arange(batch.n_steps, device=steps.device) < batch.lengths.clamp(min=1).unsqueeze(1)
        empty = batch.lengths == 0
        if empty.any():
            steps = torch.where(empty.unsqueeze(1), model.score(embedded, batch.lengths).unsqueeze(1), steps)
        loss = binary_cross_entropy_with_logits(
            steps + weighs.offset, positive.unsqueeze(1).expand_as(steps), reduction="none"
        )
        loss = (loss * true).sum(1) / true.sum(1)
    else:
        score = model.score(embedded, batch.lengths)  # [patient]
        loss = binary_cross_entropy_with_logits(score + weighs.offset, positive, reduction="none")
    return (weight * loss).mean()


def fit(
    directory: StageDirectory,
    split: FoldSplit,
    weighs: Weighing,
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
            positive = torch.from_numpy((loaded.column("label") == "true").astype(np.float32)).to(device)
            optimizer.zero_grad()
            for member in model.members:  # each learns from its own loss and gradient, as it would alone
                loss_of(member, loaded.batch, positive, weighs, settings.supervise == "every").backward()
                torch.nn.utils.clip_grad_norm_(member.parameters(), CLIP)
            optimizer.step()
            average.update_parameters(model)
        tuning_loss = _tuning_loss(average.module.eval(), directory, split, device)
        if not math.isfinite(tuning_loss):
            raise UserError(f"The loss is not finite after epoch {epoch}: train with a smaller --learning-rate.")
        if tuning_loss < state.best_loss:
            state.best, state.best_loss, state.best_epoch = _copied(average.module), tuning_loss, epoch
        state.epoch = epoch
        state.save(state_path)
    model.load_state_dict(state.best)
    return Fitted(model.eval(), state.epoch, state.best_epoch, state.best_loss)


def _tuning_loss(
    model: torch.nn.Module, directory: StageDirectory, split: FoldSplit, device: torch.device | str
) -> float:
    positive, probability = [], []
    for shard in scored_shards(model, directory, split.choose(TUNING), device):  # type: ignore[arg-type]
        positive.append(shard.column("label") == "true")
        probability.append(shard.probability)
    found = np.concatenate(probability)
    if not np.isfinite(found).all():
        return math.nan
    return float(log_loss(np.concatenate(positive), found, labels=[False, True]))


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
