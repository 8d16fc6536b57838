"""Masks that one network predicts for any record, once it has learned to on a sample.

The objective is that of Enguehard, ICML 2023, equation 2, its expectation over records minimised by one network
instead of each record's own by itself: what `extremal_mask` needs hundreds of passes for takes one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from whenwhy.attribution.contributions import Contributions
from whenwhy.attribution.gradients import recurrence_with_gradients
from whenwhy.attribution.masks import PRESERVATION, SQUARED, MaskGame, descend, objective_of, shown
from whenwhy.attribution.methods.extremal_mask import extremal_mask
from whenwhy.attribution.question import Question
from whenwhy.attribution.registry import Explanation, Fitted, method
from whenwhy.errors import UserError
from whenwhy.events.sequence_batch import EVENTS, STATIC
from whenwhy.models.sequence_model import Embedded


class _WithinOne(torch.autograd.Function):
    """0.5 + x held in [0, 1]; beyond an end it still listens to what calls it back, and to nothing that drives it on."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return (0.5 + x).clamp(0, 1)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        driven_on = ((x < -0.5) & (gradient > 0)) | ((x > 0.5) & (gradient < 0))
        return gradient.masked_fill(driven_on, 0)


def within_one(x: torch.Tensor) -> torch.Tensor:
    """0.5 + x, held in [0, 1] as the masks of `extremal_mask` are, so that 0 and 1 are reached and can be left again.

    Example:
        >>> within_one(torch.tensor([-2.0, 0.0, 0.25])).tolist()
        [0.0, 0.5, 0.75]
    """
    held: torch.Tensor = _WithinOne.apply(x)  # type: ignore[no-untyped-call]
    return held


class MaskNetwork(nn.Module):
    """Reads a record's embeddings in both directions; tells the masks of its values, and the perturbation.

    A mask is one half, plus <query of the value's place, embedding of the value>, plus a number of the place, held
    within 0 and 1. So it fits any vocabulary, and values of like embeddings in one place have like masks; of dense inputs, whose values
    are places themselves, the query is the answer.

    Args:
        events, static: widths of the flattened embeddings.
    """

    middle: torch.Tensor
    spread: torch.Tensor

    def __init__(self, events: int, static: int, hidden: int) -> None:
        super().__init__()
        self.widths = events, static
        self.register_buffer("middle", torch.zeros(events + static))
        self.register_buffer("spread", torch.ones(events + static))
        self.cell = nn.GRU(events + static + 2, hidden, batch_first=True, bidirectional=True)
        self.of_step = nn.Linear(2 * hidden, 2 * events + 2)
        self.of_record = nn.Linear(2 * hidden + static, 2 * static + 2)

    def forward(self, question: Question) -> tuple[Contributions, Embedded]:
        """The masks, and the perturbation shaped as the embeddings."""
        events, static = (question.embedded[name] for name in (EVENTS, STATIC))
        x, record = events.flatten(2), static.flatten(1)  # [patient, step, width], [patient, width]
        x = torch.cat([x, record.unsqueeze(1).expand(-1, x.shape[1], -1)], dim=2)
        x = (x - self.middle) / self.spread
        # Where a step stands, from the begin and from the end: a recurrent layer alone is long in learning to count.
        before = torch.arange(1, x.shape[1] + 1, device=x.device, dtype=x.dtype).expand(len(x), -1)  # [patient, step]
        after = (question.lengths.unsqueeze(1) + 1 - before).clamp(min=1)
        x = torch.cat([x, 1 / before.unsqueeze(2), 1 / after.unsqueeze(2)], dim=2)
        # A record without steps is given one, since cells take no fewer, and its states are not read.
        lengths = question.lengths.clamp(min=1).cpu()
        states, _ = self.cell(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
        states, _ = pad_packed_sequence(states, batch_first=True, total_length=x.shape[1])
        true = question.true_steps.unsqueeze(2)
        states = states * true  # [patient, step, 2 * hidden]
        mean = states.sum(1) / question.lengths.clamp(min=1).unsqueeze(1)
        own = x[:, 0, self.widths[0] : sum(self.widths)]
        by_step, by_record = self.of_step(states), self.of_record(torch.cat([mean, own], dim=1))
        queries, perturbation, bias, absent = {}, {}, {}, {}
        for name, made, like in ((EVENTS, by_step, events), (STATIC, by_record, static)):
            width = like[0].numel() // (like.shape[1] if name == EVENTS else 1) if len(like) else 0
            query, change, numbers = made.split([width, width, 2], dim=-1)
            queries[name], perturbation[name] = query.reshape(like.shape), change.reshape(like.shape)
            bias[name], absent[name] = numbers.unbind(-1)
        logits = question.slopes(queries)
        values = {}
        for name, logit in logits.items():
            at = question.values[name]
            place = bias[name][at.patient, at.step] if name == EVENTS else bias[name][at.patient]
            values[name] = within_one(logit + place)
        return Contributions(values, {name: within_one(absent[name]) for name in question.extra}), perturbation


def fit_amortised_mask(
    questions: Sequence[Question],
    *,
    mode: str,
    loss: str,
    epochs: int,
    l1: float,
    l2: float,
    learning_rate: float,
    hidden: int,
    refine: int,
    refine_rate: float,
    gap_epochs: int,
    objective: bool,
) -> Fitted:
    """The network, learned on all questions but the last, and how far it is from the optimum on that one.

    The summary tells, as means over the records of the last question: `objective` of the network's masks,
    `optimum`, that of `gap_epochs` steps on each record by itself, `gap` (objective - optimum), and
    `mask_difference`, the mean |difference| of the two masks of a value. Of one question alone the network learned
    on it too, and `held_out` is 0. With `gap_epochs` 0 nothing is measured; what `objective` says is of no matter here.
    """
    learning, last = questions[:-1] or questions, questions[-1]
    games = [MaskGame(question, mode, loss, l1, l2) for question in learning]
    like = last.embedded[EVENTS]
    # The first weights are drawn apart from what else draws in this process.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(last.seed)
        network = MaskNetwork(like[0, 0].numel(), last.embedded[STATIC][0].numel(), hidden)
    network.to(like)
    _standardise(network, learning)
    parameters = list(network.parameters())
    optimizer = torch.optim.Adam(parameters, learning_rate)
    for _ in range(epochs):
        for game in games:
            with torch.enable_grad(), recurrence_with_gradients(game.question.model):
                found = game.objective(*network(game.question)).mean()
                gradients = torch.autograd.grad(found, parameters, materialize_grads=True)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    summary: dict[str, float] = {"n_records": sum(len(question) for question in learning)}
    if gap_epochs:
        game = MaskGame(last, mode, loss, l1, l2)
        with torch.no_grad():
            masks, perturbation = network(last)
        mine, worth = shown(game, masks), objective_of(game, masks, perturbation)
        optimal = extremal_mask(last, mode=mode, loss=loss, epochs=gap_epochs, l1=l1, l2=l2)
        optimum = optimal.notes["objective"]
        pairs = [(mine.values[name], optimal.contributions.values[name]) for name in mine.values]
        difference = torch.cat([(own - best).abs() for own, best in pairs])
        summary |= {
            "n_compared": len(last),
            "held_out": float(len(questions) > 1),
            "objective": float(worth.mean()),
            "optimum": float(optimum.mean()),
            "gap": float((worth - optimum).mean()),
            "mask_difference": float(difference.mean()) if len(difference) else 0.0,
        }
    return Fitted(tensors, summary)


def _standardise(network: MaskNetwork, questions: Sequence[Question]) -> None:
    """Middle and spread of every input over the true steps of the records; what never varies is left as it is."""
    for name, begin in ((EVENTS, 0), (STATIC, network.widths[0])):
        parts = [
            question.embedded[name][question.true_steps].flatten(1)
            if name == EVENTS
            else question.embedded[name].flatten(1)
            for question in questions
        ]
        x = torch.cat(parts)  # [row, width]
        if len(x) > 1 and x.shape[1]:
            place = slice(begin, begin + x.shape[1])
            spread = x.std(0)
            network.middle[place] = x.mean(0)
            network.spread[place] = torch.where(spread > 0, spread, torch.ones_like(spread))


def network_of(fitted: Mapping[str, torch.Tensor], question: Question) -> MaskNetwork:
    """The network that was fitted, on the question's device.

    Raises:
        UserError: it was fitted to a model with embeddings of other widths.
    """
    like = question.embedded[EVENTS]
    widths = like.shape[2:].numel(), question.embedded[STATIC].shape[1:].numel()
    hidden = fitted["cell.weight_hh_l0"].shape[1]
    network = MaskNetwork(*widths, hidden).to(like)
    known = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    if known != {name: tuple(tensor.shape) for name, tensor in fitted.items()}:
        raise UserError(
            "The mask network was fitted to another model, whose embeddings have other widths: fit it again."
        )
    network.load_state_dict(dict(fitted))
    return network.eval()


@method(
    "learned",
    "the masks of extremal_mask as one network predicts them, fitted once on a sample: one pass a record",
    laws={"zero_on_padding", "alone_equals_batched", "symmetry", "share"},
    measures="share",
    fit=fit_amortised_mask,
)
def amortised_mask(
    question: Question,
    *,
    mode: str = PRESERVATION,
    loss: str = SQUARED,
    epochs: int = 100,
    l1: float = 1.0,
    l2: float = 1.0,
    learning_rate: float = 0.003,
    hidden: int = 32,
    refine: int = 0,
    refine_rate: float = 0.01,
    gap_epochs: int = 500,
    objective: bool = True,
) -> Explanation:
    """A mask for each value and a perturbation, predicted by the network that `fit_amortised_mask` fitted.

    Options are those of `extremal_mask`; what it is worth is told as the note "objective", to be compared with
    that method's.

    Args:
        epochs: passes over the sample in the fit, `learning_rate` that of the network, `hidden` its states a
            direction, and `gap_epochs` the steps on each record that it is compared with.
        refine: steps of Adam from there, of masks and perturbation of each record by themselves.
        objective: tell it, which takes a pass through the model; the masks alone need none.
    """
    game = MaskGame(question, mode, loss, l1, l2)
    with torch.no_grad():
        masks, perturbation = network_of(question.fitted, question)(question)
    if refine:
        masks = Contributions(
            {name: mask.detach().clone() for name, mask in masks.values.items()},
            {name: mask.detach().clone() for name, mask in masks.absent.items()},
        )
        free = {name: tensor.detach().clone() for name, tensor in perturbation.items()}
        descend(game, masks, lambda: free, list(free.values()), refine, refine_rate)
        perturbation = free
    notes = {"objective": objective_of(game, masks, perturbation)} if objective else {}
    return Explanation(shown(game, masks), question.evaluations(refine + 1), notes=notes)
