"""What a record is compared with: nothing, the population's rates, its own earlier values, or other patients.

A baseline other than the empty record records something itself. What both record cancels value by value; what the
baseline records and the record does not is told in rows of "everything absent".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch

from whenwhy.attribution.draws import Draws
from whenwhy.errors import UserError, unknown_name
from whenwhy.events.sequence_batch import EVENTS, STATIC, Bags, SequenceBatch
from whenwhy.models.sequence_model import Embedded, SequenceModel

EMPTY, RATES, CARRIED_FORWARD, REFERENCE = "empty", "rates", "carried_forward", "reference"
BASELINES = {
    EMPTY: "the same steps with nothing recorded, and nothing static",
    RATES: "each step records what training patients record in a step on average",
    CARRIED_FORWARD: "each step records what the last step before it that recorded the same codes did; static values held",
    REFERENCE: "the records of training patients, aligned at the prediction",
}


@dataclass(frozen=True)
class Given:
    """A batch's baselines.

    Attributes:
        embedded: a tensor a stream, shaped as the records' embeddings; empty where nothing is recorded.
        matched: [value] a stream, what the baseline weighs of the record's own values.
    """

    embedded: Embedded
    matched: dict[str, torch.Tensor]


@dataclass(frozen=True)
class Population:
    """What baselines know of the training patients.

    Attributes:
        step_rates: [feature value] float32, the mean weight in a step of a record; static_rates: in a record.
        code: [feature value] the number of the code that a value belongs to, -1 for none.
        references: records of training patients.
    """

    step_rates: torch.Tensor
    static_rates: torch.Tensor
    code: torch.Tensor
    references: SequenceBatch | None = None

    def to(self, device: torch.device) -> Population:
        """The same on this device.

        Example: `population_of(batches, 100, codes).to(torch.device("cuda"))`
        """
        if self.step_rates.device == device:
            return self
        of = self.references
        return Population(
            self.step_rates.to(device),
            self.static_rates.to(device),
            self.code.to(device),
            None if of is None else of.to(device),
        )


def given_baseline(
    name: str,
    model: SequenceModel,
    batch: SequenceBatch,
    population: Population | None = None,
    seed: int = 0,
    draw: int = 0,
) -> Given:
    """The baselines of a batch by the name of their kind.

    Args:
        draw: of those that are drawn; another number, other references.

    Raises:
        UserError: no such baseline, one that needs a population, or a model that averages the values of a step.
    """
    if name not in BASELINES:
        raise unknown_name("baseline", name, BASELINES)
    if name == EMPTY:
        return Given({}, {stream: torch.zeros_like(bags.weights) for stream, bags in batch.streams.items()})
    if population is None:
        raise UserError(f"The baseline '{name}' needs the training patients: give a population.")
    if getattr(model, "mean", False):
        raise UserError(
            f"The model averages the values of a step, so a step of the baseline '{name}' has no counts of its own: "
            "use the baseline 'empty'."
        )
    return _KINDS[name](model, batch, population, seed, draw)


def _rates(model: SequenceModel, batch: SequenceBatch, population: Population, seed: int, draw: int) -> Given:
    """Every true step holds the mean step of training patients, every record their mean static values."""
    everything = _bag_batch(batch, population.step_rates, population.static_rates)
    with torch.no_grad():
        mean = model.embed(everything)
    true = batch.true_steps  # [patient, step]
    step = mean[EVENTS][0, 0]
    events = true.view(*true.shape, *[1] * step.ndim) * step
    embedded = {EVENTS: events, STATIC: mean[STATIC][:1].expand(len(batch), *mean[STATIC].shape[1:])}
    matched = {}
    for stream, rates in ((EVENTS, population.step_rates), (STATIC, population.static_rates)):
        bags = batch.streams[stream]
        # A value that a bag holds twice shares its rate, so that what is absent is counted once.
        matched[stream] = rates[bags.ids.long()] / _repeats(bags)
    return Given(embedded, matched)


def _carried_forward(model: SequenceModel, batch: SequenceBatch, population: Population, seed: int, draw: int) -> Given:
    """A step's baseline holds, for each code that it records, what the record's last step before it held of that code.

    A code's first record is compared with nothing. Static values have no earlier ones and are held.
    """
    bags = batch.streams[EVENTS]
    bag = bags.bag
    code = population.code[bags.ids.long()].long()
    patient, step = bag // batch.n_steps, bag % batch.n_steps
    keys = torch.stack([patient, code, step]).cpu().numpy()
    known = np.flatnonzero(keys[1] >= 0)
    order = known[np.lexsort((known, keys[2][known], keys[1][known], keys[0][known]))]
    p, c, s = (row[order] for row in keys)
    new = np.concatenate([[True], (np.diff(p) != 0) | (np.diff(c) != 0) | (np.diff(s) != 0)]) if len(order) else p > 0
    begins = np.flatnonzero(new)  # runs of one patient, code and step
    ends = np.append(begins[1:], len(order))
    same = np.concatenate([[False], (p[begins[1:]] == p[begins[:-1]]) & (c[begins[1:]] == c[begins[:-1]])])[
        : len(begins)
    ]
    later = np.flatnonzero(same)  # a run whose code was recorded before: it is compared with the run before it
    lengths = (ends - begins)[later - 1] if len(later) else np.array([], int)
    source = (
        order[np.concatenate([np.arange(begins[run - 1], ends[run - 1]) for run in later])] if len(later) else order[:0]
    )
    at_bag = np.repeat(bag.cpu().numpy()[order[begins[later]]], lengths) if len(later) else np.array([], int)
    by_bag = np.argsort(at_bag, kind="stable")
    at_bag, source = at_bag[by_bag], source[by_bag]
    return _against(model, batch, (torch.from_numpy(at_bag), torch.from_numpy(source), bags), None)


def _reference(model: SequenceModel, batch: SequenceBatch, population: Population, seed: int, draw: int) -> Given:
    """Each record beside one training patient's, drawn at random, the last steps side by side."""
    of = population.references
    if of is None or not len(of):
        raise UserError("The baseline 'reference' needs records of training patients: give references.")
    drawn = (Draws(batch.keys, seed).uniform(draw, (len(batch), 1))[:, 0] * len(of)).long()
    return _against(model, batch, *_aligned(batch, of, drawn))


def references_beside(batch: SequenceBatch, of: SequenceBatch, drawn: torch.Tensor) -> SequenceBatch:
    """For each record the drawn one [patient], aligned at the prediction and cut to the record's steps.

    `Bags.at` says which of the values of `of` each is.
    """
    return replace(batch, streams=_bags_beside(batch, *_aligned(batch, of, drawn)))


def _aligned(batch: SequenceBatch, of: SequenceBatch, drawn: torch.Tensor) -> list[_Placed]:
    """The values of the drawn records, events and static, in the bags of the records."""
    lengths, own = batch.lengths.cpu(), of.lengths.cpu()[drawn]
    events, static = of.streams[EVENTS], of.streams[STATIC]
    parts = []
    for stream, bags, per_patient in ((EVENTS, events, of.n_steps), (STATIC, static, 1)):
        bag = bags.bag.cpu()
        begins = torch.searchsorted(bag // per_patient, torch.arange(len(of) + 1))
        counts = (begins[1:] - begins[:-1])[drawn]
        patient = torch.repeat_interleave(torch.arange(len(batch)), counts)
        first = torch.cumsum(counts, 0) - counts
        source = torch.arange(len(patient)) - first[patient] + begins[drawn][patient]
        step = bag[source] % per_patient
        if stream == EVENTS:
            step = step + (lengths - own)[patient]  # the last steps meet
            inside = (step >= 0) & (step < lengths[patient])
            patient, source, step = patient[inside], source[inside], step[inside]
        place = patient * (batch.n_steps if stream == EVENTS else 1) + step
        parts.append((place, source, bags))
    return parts


_KINDS: dict[str, Callable[[SequenceModel, SequenceBatch, Population, int, int], Given]] = {
    RATES: _rates,
    CARRIED_FORWARD: _carried_forward,
    REFERENCE: _reference,
}

#: Which bag [value], ascending, holds which value [value] of which other bags.
_Placed = tuple[torch.Tensor, torch.Tensor, Bags]


def _against(model: SequenceModel, batch: SequenceBatch, events: _Placed, static: _Placed | None) -> Given:
    """Baselines whose bags hold these values; None: the record's own, held."""
    streams, matched = _bags_beside(batch, events, static), {}
    for stream, theirs in streams.items():
        own = batch.streams[stream]
        matched[stream] = own.weights.clone() if theirs is own else _matched(own, theirs)
    with torch.no_grad():
        embedded = dict(model.embed(replace(batch, streams=streams)))
    return Given(embedded, matched)


def _bags_beside(batch: SequenceBatch, events: _Placed, static: _Placed | None) -> dict[str, Bags]:
    """The streams of a batch whose bags hold these values; None: the record's own."""
    streams = {}
    for stream, placed in ((EVENTS, events), (STATIC, static)):
        own = batch.streams[stream]
        if placed is None:
            streams[stream] = own
            continue
        bag, source, other = placed
        counts = torch.bincount(bag, minlength=len(own.offsets))
        offsets = (torch.cumsum(counts, 0) - counts).to(torch.int32)
        device = own.ids.device
        ids, weights = (known.cpu()[source].to(device) for known in (other.ids, other.weights))
        streams[stream] = Bags(ids.to(torch.int32), weights, offsets.to(device), source.numpy())
    return streams


def _matched(own: Bags, theirs: Bags) -> torch.Tensor:
    """What a baseline's bags weigh of each of the record's values [value]; one that repeats shares it."""
    ids, weights = theirs.ids, theirs.weights
    size = int(max(int(own.ids.max()) if len(own.ids) else 0, int(ids.max()) if len(ids) else 0)) + 1
    key = own.bag * size + own.ids.long()
    known, place = torch.unique(theirs.bag * size + ids.long(), return_inverse=True)
    total = weights.new_zeros(len(known)).index_add_(0, place, weights)
    if not len(known):
        return torch.zeros_like(own.weights)
    at = torch.searchsorted(known, key).clamp(max=len(known) - 1)
    return torch.where(known[at] == key, total[at], torch.zeros_like(own.weights)) / _repeats(own)


def _repeats(bags: Bags) -> torch.Tensor:
    """How often each value's bag holds the same feature value [value]."""
    if not len(bags.ids):
        return torch.ones_like(bags.weights)
    key = bags.bag * (int(bags.ids.max()) + 1) + bags.ids.long()
    _, place, counts = torch.unique(key, return_inverse=True, return_counts=True)
    found: torch.Tensor = counts[place].to(bags.weights)
    return found


def _bag_batch(batch: SequenceBatch, step_rates: torch.Tensor, static_rates: torch.Tensor) -> SequenceBatch:
    """One record of one step that holds every feature value at its rate."""
    streams = {}
    for stream, rates in ((EVENTS, step_rates), (STATIC, static_rates)):
        ids = torch.nonzero(rates).squeeze(1)
        begin = torch.zeros(1, dtype=torch.int32, device=rates.device)
        streams[stream] = Bags(ids.to(torch.int32), rates[ids], begin, np.arange(len(ids)))
    one = batch.lengths.new_ones(1)
    return SequenceBatch(streams, batch.hours.new_zeros(1, 1), one, 1, np.zeros(1, int), np.zeros(1, np.uint64))


def one_value_each(stream: str, ids: torch.Tensor) -> SequenceBatch:
    """Records of one step that hold one feature value each, in this stream, and nothing in the other."""
    number, device = len(ids), ids.device
    full = torch.arange(number, dtype=torch.int32, device=device)
    own = Bags(ids.to(torch.int32), torch.ones(number, device=device), full, np.arange(number))
    none = Bags(full[:0], torch.ones(0, device=device), torch.zeros_like(full), np.arange(0))
    streams = {name: own if name == stream else none for name in (EVENTS, STATIC)}
    lengths = torch.ones(number, dtype=torch.int64, device=device)
    return SequenceBatch(
        streams, torch.zeros(number, 1, device=device), lengths, 1, np.arange(number), np.zeros(number, np.uint64)
    )


def first_layer_rows(model: SequenceModel, stream: str, ids: torch.Tensor) -> torch.Tensor:
    """What one of each feature value adds to its place's embedding in this stream, without gradient [id, width]."""
    with torch.no_grad():
        return model.embed(one_value_each(stream, ids))[stream].flatten(1)


def population_of(
    batches: Iterable[SequenceBatch], size: int, code: np.ndarray, references: SequenceBatch | None = None
) -> Population:
    """What the records of these batches have on average: of training patients.

    Args:
        size: number of feature values.
        code: [feature value] the number of each one's code, -1 for none.

    Example: `population_of([sequences.batch(train)], 100, codes, sequences.batch(train[:20]))`
    """
    sums = {EVENTS: torch.zeros(size, dtype=torch.float64), STATIC: torch.zeros(size, dtype=torch.float64)}
    steps = records = 0
    for batch in batches:
        for stream, total in sums.items():
            bags = batch.streams[stream]
            total.index_add_(0, bags.ids.long().cpu(), bags.weights.double().cpu())
        steps, records = steps + int(batch.lengths.sum()), records + len(batch)
    return Population(
        (sums[EVENTS] / max(1, steps)).float(),
        (sums[STATIC] / max(1, records)).float(),
        torch.from_numpy(np.asarray(code, np.int64)),
        references,
    )
