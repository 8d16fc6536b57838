"""Records of which some is set to the baseline's: the players of occlusion and of Shapley values.

A record differs from its baseline by items: each recorded value, from the baseline's weight of it to its own, and what
is absent of each step and of the static values, where the baseline records it. A player is some items that come and go
together. The first layer is linear, so an item comes and goes by adding its own way to an embedding.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from whenwhy.attribution.contributions import Contributions
from whenwhy.attribution.question import Question
from whenwhy.errors import UserError, unknown_name
from whenwhy.events.hashing import mixed
from whenwhy.events.sequence_batch import EVENTS, SequenceBatch
from whenwhy.models.sequence_model import Embedded, SequenceModel
from whenwhy.schema import EVERYTHING_ABSENT

#: Padded steps that are scored together, so that memory does not grow with the number of players.
STEPS_AT_ONCE = 1 << 15

#: A reading is shared where so many rows or more have it in common.
ROWS_A_READING = (32, 4)

VALUE, CELL, FEATURE_VALUE, STEP = "value", "cell", "feature_value", "step"
CODE, CODE_CELL = "code", "code_cell"

#: What may come and go together. Events and static values never do, nor do values and what is absent.
UNITS = {
    VALUE: "each value alone",
    CELL: "a feature value's records in a step",
    FEATURE_VALUE: "a feature value's records in the whole sequence",
    CODE: "a code's records in the whole sequence",
    CODE_CELL: "a code's records in a step",
    STEP: "all that a step records, and all static values",
}


@dataclass(frozen=True)
class Items:
    """What of a stream differs between records and baselines: the values first, then what is absent of each bag.

    Attributes:
        bag: [item] which bag; patient, step: [item] whose and where, step 0 for static items.
        id: [item] feature value, EVERYTHING_ABSENT for what is absent.
        way: [item, ...] from the baseline to the record, embedded.
        n_values: how many of them are values.
    """

    bag: torch.Tensor
    patient: torch.Tensor
    step: torch.Tensor
    id: torch.Tensor
    way: torch.Tensor
    n_values: int

    def __len__(self) -> int:
        return len(self.bag)


class Players:
    """What of each record can be set to the baseline's, in groups; numbered by patient, in an order of its own record.

    An item that moves nothing (its weight is the baseline's, or the first layer does not know it) is in no
    group: the score cannot depend on it, and it gets exactly 0.

    Args:
        unit: one of UNITS.
        past: [patient], the first steps that are one player together, whatever the unit; None: none are.
        items: what differs; None: the records from their baselines.

    Attributes:
        patient: [player] whose it is; first: [patient] the first player; count: [patient] players.
        first_step: [player] where its earliest item stands, -1 of static items.
    """

    def __init__(
        self,
        question: Question,
        unit: str,
        past: torch.Tensor | None = None,
        items: Mapping[str, Items] | None = None,
    ) -> None:
        if unit not in UNITS:
            raise unknown_name("unit", unit, UNITS)
        self.question, self.unit = question, unit
        self.past = torch.zeros_like(question.lengths) if past is None else past
        self.items = items_of(question) if items is None else items
        self._tells_absence = items is None
        keys = _keys(question, self.items, unit)
        if past is not None:
            own = self.items[EVENTS]
            keys[EVENTS][own.step < past[own.patient], 2:] = -1
        moves = torch.cat([of.way.flatten(1).ne(0).any(1) for of in self.items.values()])
        whole = torch.cat(list(keys.values()))  # [item, 5]
        self._known, of_moving = torch.unique(whole[moves], dim=0, return_inverse=True)
        self._place(of_moving.new_full((len(whole),), -1).masked_scatter(moves, of_moving))
        self.patient = self._known[:, 0]
        self.count = torch.bincount(self.patient, minlength=len(question))
        self.first = torch.cumsum(self.count, 0) - self.count
        self.sizes = torch.bincount(of_moving, minlength=len(self))
        step = torch.cat([of.step if name == EVENTS else of.step - 1 for name, of in self.items.items()])[moves]
        latest = torch.full_like(self.patient, question.batch.n_steps)
        self.first_step = latest.scatter_reduce(0, of_moving, step, "amin")
        number = np.arange(1, len(self) + 1, dtype=np.uint64)
        self._mark = torch.from_numpy(mixed(number).view(np.int64)).to(step.device)

    def _place(self, player: torch.Tensor) -> None:
        """Takes down whose each item is [item], -1 for none."""
        sizes = [len(of) for of in self.items.values()]
        self.player = dict(zip(self.items, player.split(sizes), strict=True))
        self._moves = {name: _moves(of, self.items[name], len(self._known)) for name, of in self.player.items()}

    def beside(self, items: Mapping[str, Items]) -> Players:
        """The same players with other items: those that stand where theirs do; the others are nobody's."""
        whole = torch.cat([self._known, *_keys(self.question, items, self.unit).values()])
        _, place = torch.unique(whole, dim=0, return_inverse=True)
        here = torch.arange(len(self), device=place.device)
        player = torch.full_like(place, -1).scatter(0, place[: len(self)], here)[place[len(self) :]]
        others = copy.copy(self)
        others.items = items
        others._place(player)
        return others

    def __len__(self) -> int:
        return len(self._known)

    def move(self, embedded: Embedded, row: torch.Tensor, player: torch.Tensor, sign: int) -> None:
        """Players come (sign 1) into rows of an embedding [row, ...], or go (-1), in place.

        Args:
            row, player: [move] which player in which row.
        """
        for name, (begins, step, way) in self._moves.items():
            counts = begins[player + 1] - begins[player]
            move = torch.repeat_interleave(torch.arange(len(player), device=row.device), counts)
            within = torch.arange(len(move), device=row.device) - (torch.cumsum(counts, 0) - counts)[move]
            part = begins[player][move] + within
            axes = 2 if name == EVENTS else 1
            places = embedded[name].flatten(0, axes - 1)  # [bag, ...]
            bag = row[move] * self.question.batch.n_steps + step[part] if axes == 2 else row[move]
            places.index_add_(0, bag, way[part], alpha=sign)

    def marks(self, players: torch.Tensor, steps: int) -> torch.Tensor:
        """Numbers [move] whose sums tell coalitions apart by who of them stands before a step, 0 for who does not."""
        return torch.where(self.first_step[players] < steps, self._mark[players], 0)

    def common_past(self, rows: torch.Tensor) -> int:
        """The first steps that all of these patients have in one player, if the model can restart behind them."""
        return int(self.past[rows].min()) if self.question.restarts and len(rows) else 0

    def stops(self, rows: torch.Tensor) -> list[int]:
        """Steps before which many of these rows are alike, ascending: `common_past`, and of one patient two more.

        Before the step of a patient's player number j there are 2^j coalitions at most.
        """
        found = [steps for steps in [self.common_past(rows)] if steps]
        if self.question.restarts and len(rows) and bool((rows == rows[0]).all()):
            own = slice(int(self.first[rows[0]]), int(self.first[rows[0]] + self.count[rows[0]]))
            begins = self.first_step[own].sort().values.tolist()
            for share in ROWS_A_READING:
                player = int(np.log2(max(1, len(rows) / share)))
                if 0 < player < len(begins) and begins[player] > max([0, *found]):
                    found.append(begins[player])
        return found

    def score_of(
        self, embedded: Embedded, rows: torch.Tensor, stops: Sequence[int], marks: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """As `Question.score_of`; up to each stop, a patient's rows with the same sum of marks are read once.

        Args:
            stops: ascending, such as those of `stops`.
            marks: of each stop [row], the sum of the `marks` of who is there.
        """
        question = self.question
        past, known, row = None, torch.zeros_like(rows), torch.arange(len(rows), device=rows.device)
        for steps, told in zip(stops, marks, strict=True):
            _, like = torch.unique(torch.stack([rows, told], dim=1), dim=0, return_inverse=True)
            one = torch.zeros(int(like.max()) + 1, dtype=torch.long, device=rows.device).scatter(0, like, row)
            begun = past if past is None else past.of(known[one])
            past = question.read(steps, begun, {name: tensor[one] for name, tensor in embedded.items()})
            known = like
        return question.score_of(embedded, rows) if past is None else question.score_after(past, known, embedded, rows)

    def contributions(self, totals: torch.Tensor) -> Contributions:
        """Each player's total [player] in equal shares to its items."""
        share = torch.cat([totals / self.sizes, totals.new_zeros(1)])  # the last is for items that move nothing
        values, absent = {}, {}
        for name, items in self.items.items():
            told = share[self.player[name]]
            values[name] = told[: items.n_values]
            if self._tells_absence and self.question.given.embedded:
                shape = self.question.embedded[name].shape[: 2 if name == EVENTS else 1]
                absent[name] = told.new_zeros(shape)
                absent[name].view(-1)[items.bag[items.n_values :]] = told[items.n_values :]
        return Contributions(values, absent)


def scores_without(players: Players, *, instead: Players | None = None, restart: bool = True) -> torch.Tensor:
    """The score of each player's record without it [player].

    Players are taken in the order of their first steps, so many at a time that memory is bounded. A model that restarts reads the
    records once, and goes on from there.

    Args:
        instead: the same players with what comes in place of each.
        restart: False: from the start of the record in any case.
    """
    question = players.question
    found = question.score.new_zeros(len(players))
    order = torch.argsort(players.first_step, stable=True)
    restart = restart and question.restarts
    question.require_affordable(
        players.count / (2 if restart else 1), "set more to the baseline's at a time, or use integrated_gradients"
    )
    past, done = None, 0
    while done < len(players):
        begin = max(0, int(players.first_step[order[done]])) if restart else 0
        chosen = order[done : done + rows_at_once(question)]
        rows = players.patient[chosen]
        embedded = {name: tensor[rows] for name, tensor in question.embedded.items()}
        row = torch.arange(len(rows), device=rows.device)
        players.move(embedded, row, chosen, -1)
        if instead is not None:
            instead.move(embedded, row, chosen, 1)
        # Static values are read before any step.
        if restart and begin and int(players.first_step[order[done]]) >= 0:
            past = question.read(begin, past)
            found[chosen] = question.score_after(past, rows, embedded, rows)
        else:
            found[chosen] = question.score_of(embedded, rows)
        done += len(chosen)
    return found


def rows_at_once(question: Question) -> int:
    """How many embeddings of the batch's padded length are scored together."""
    return max(1, STEPS_AT_ONCE // question.batch.n_steps)


def items_of(question: Question) -> dict[str, Items]:
    """What differs between the records of a question and their baselines, a stream each."""
    way = {name: weights - question.given.matched[name] for name, weights in question.weights.items()}
    found = recorded(question.batch, value_ways(question.model, question.batch, way))
    for name, extra in question.extra.items():
        values, n_steps = found[name], 1
        there = torch.ones_like(question.lengths, dtype=torch.bool)
        if name == EVENTS:
            n_steps, extra = question.batch.n_steps, extra.flatten(0, 1)
            there = question.true_steps.flatten()
        absent = torch.nonzero(there).squeeze(1)  # bags of true steps
        bag = torch.cat([values.bag, absent])
        ids = torch.cat([values.id, torch.full_like(absent, EVERYTHING_ABSENT)])
        ways = torch.cat([values.way, -extra[absent].to(values.way)])
        found[name] = Items(bag, bag // n_steps, bag % n_steps, ids, ways, len(values))
    return found


def recorded(batch: SequenceBatch, ways: Mapping[str, torch.Tensor]) -> dict[str, Items]:
    """The values of a batch as items, with these ways [value, ...]."""
    found = {}
    for name, bags in batch.streams.items():
        bag, n_steps = bags.bag, batch.n_steps if name == EVENTS else 1
        found[name] = Items(bag, bag // n_steps, bag % n_steps, bags.ids.long(), ways[name], len(bag))
    return found


def value_ways(
    model: SequenceModel, batch: SequenceBatch, weights: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Each value's own part of its bag's embedding, at these weights: a tensor [value, ...] a stream.

    The batch is embedded as often as its largest bag has values: each time with one value of every bag, so that
    a model that counts the values of a bag counts the same ones.
    """
    bags = {name: of.bag for name, of in batch.streams.items()}
    rank = {
        name: torch.arange(len(bag), device=bag.device) - batch.streams[name].offsets.long()[bag]
        for name, bag in bags.items()
    }
    largest = max((int(of.max()) + 1 for of in rank.values() if len(of)), default=0)
    found: dict[str, torch.Tensor] = {}
    for turn in range(max(1, largest)):
        with torch.no_grad():
            embedded = model.embed(batch, {name: weights[name] * (of == turn) for name, of in rank.items()})
        for name, bag in bags.items():
            flat = embedded[name].flatten(0, 1) if name == EVENTS else embedded[name]  # [bag, ...]
            if turn == 0:
                found[name] = flat.new_zeros(len(bag), *flat.shape[1:])
            chosen = torch.nonzero(rank[name] == turn).squeeze(1)
            found[name][chosen] = flat[bag[chosen]]
    return found


def _keys(question: Question, items: Mapping[str, Items], unit: str) -> dict[str, torch.Tensor]:
    """What the items of a player have in common: patient, stream, absence, step, feature value or code [item, 5]."""
    keys = {}
    for number, (name, of) in enumerate(items.items()):
        at = torch.arange(len(of), device=of.id.device)
        key = torch.zeros(len(of), 5, dtype=torch.long, device=of.id.device)
        key[:, 0], key[:, 1], key[:, 2] = of.patient, number, at >= of.n_values
        if unit in (VALUE, CELL, CODE_CELL, STEP):
            key[:, 3] = of.step
        if unit == VALUE:
            key[:, 4] = at
        elif unit in (CELL, FEATURE_VALUE):
            key[:, 4] = of.id
        elif unit in (CODE, CODE_CELL):
            if question.population is None:
                raise UserError(
                    "To set a code's records together, its feature values must be known: give a population."
                )
            code = question.population.code
            own = len(code) + torch.arange(len(code), device=code.device)
            key[:, 4] = torch.where(code < 0, own, code)[of.id]
        keys[name] = key
    return keys


def _moves(player: torch.Tensor, items: Items, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Each player's items of a bag as one: where each player's begin [player + 1], their steps and ways [part, ...]."""
    own = torch.nonzero(player >= 0).squeeze(1)
    pairs, part = torch.unique(torch.stack([player[own], items.bag[own]], dim=1), dim=0, return_inverse=True)
    step = torch.zeros(len(pairs), dtype=torch.long, device=own.device).scatter(0, part, items.step[own])
    way = items.way.new_zeros(len(pairs), *items.way.shape[1:]).index_add(0, part, items.way[own])
    begins = torch.searchsorted(pairs[:, 0].contiguous(), torch.arange(count + 1, device=own.device))
    return begins, step, way
