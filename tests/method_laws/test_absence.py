"""Not having a feature value adds -p W . g: with what is recorded it sums to the score less the baseline's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from foreign_models import stranger
from method_laws.test_gradient_methods import bent
from method_laws.test_laws import SIZE, cohort, everything, population
from quick_methods import explained
from replicas import absence as replica
from whenwhy.attribution import absent_contributions, attribute, population_of, registered_methods
from whenwhy.errors import UserError
from whenwhy.events.feature_values import FOREIGN_OFFSET
from whenwhy.events.sequence_batch import EVENTS, STATIC, SequenceBatch
from whenwhy.models.ensemble import Ensemble
from whenwhy.models.foreign.adapter import ForeignModel
from whenwhy.models.recurrent import GRUClassifier, RecurrentClassifier
from whenwhy.models.retain import Retain

pytestmark = pytest.mark.usefixtures("one_thread")

TELLING = [name for name, method in registered_methods().items() if method.tells_absence]
OTHERS = [name for name in registered_methods() if name not in TELLING]
ALL = torch.arange(1, SIZE)
MODELS = {
    "gru": lambda: GRUClassifier(SIZE, hidden=5),
    "stacked lstm both ways": lambda: RecurrentClassifier(SIZE, hidden=4, cell="lstm", layers=2, bidirectional=True),
    "attention": lambda: RecurrentClassifier(SIZE, hidden=4, pooling="additive"),
    "retain": lambda: Retain(SIZE, hidden=4),
    "ensemble": lambda: Ensemble(lambda: GRUClassifier(SIZE, hidden=3), 3),
}


def weighed(seed: int) -> SequenceBatch:
    """Records with repeats in a step and without steps, whose values have weights that are numbers."""
    batch, generator = everything(cohort(seed)), torch.Generator().manual_seed(seed)
    streams = {
        name: replace(bags, weights=torch.randn(len(bags.ids), generator=generator) + 0.5)
        for name, bags in batch.streams.items()
    }
    return replace(batch, streams=streams)


@pytest.mark.parametrize("method", TELLING)
@pytest.mark.parametrize("model", MODELS)
def test_absence_of_all_feature_values_is_everything_absent(method: str, model: str) -> None:
    """Feature value by feature value, and of methods that are complete, with what is recorded the score's change."""
    batch, network, of = weighed(3), bent(MODELS[model]), population()
    found = explained(network, batch, batch, method=method, baseline="rates", population=of, absence=True)
    told = absent_contributions(network, batch, found, of, ALL)
    total = torch.zeros(len(batch), dtype=torch.float64)
    for name, parts in told.items():
        own = parts.nansum(-1)  # [patient, step] or [patient]
        torch.testing.assert_close(own, found.absent[name].double(), rtol=1e-6, atol=1e-9)
        total += own.flatten(1).sum(1) if name == EVENTS else own
        values = found.streams[name].double()
        total.index_add_(0, batch.streams[name].bag // (batch.n_steps if name == EVENTS else 1), values)
        assert (parts.isnan() == recorded_or_padding(batch, name)).all()
    assert any((found.absent[name] != 0).any() for name in told)
    if "completeness" in registered_methods()[method].laws:
        torch.testing.assert_close(total, (found.score - found.baseline_score).double(), rtol=0, atol=1e-4)


def recorded_or_padding(batch: SequenceBatch, name: str) -> torch.Tensor:
    """Where absence has nothing to say, one place and value at a time."""
    bags, places = batch.streams[name], batch.n_steps if name == EVENTS else 1
    mask = torch.zeros(len(batch) * places, SIZE - 1, dtype=torch.bool)
    ends = [*bags.offsets.tolist(), len(bags.ids)]
    for bag in range(len(mask)):
        for value in bags.ids[ends[bag] : ends[bag + 1]].tolist():
            mask[bag, value - 1] = True
        if name == EVENTS and bag % places >= int(batch.lengths[bag // places]):
            mask[bag] = True
    return mask.view(len(batch), places, -1) if name == EVENTS else mask


@pytest.mark.parametrize("method", ["integrated_gradients", "deep_lift"])
def test_absence_equals_the_dense_replica(method: str) -> None:
    """Every feature value that a step or a record lacks, one by one."""
    sequences, of = cohort(8, patients=7, longest=4), population()
    batch, network = everything(sequences), bent(MODELS["gru"])
    found = attribute(
        network, batch, method=method, baseline="rates", population=of, tolerance=1e-9, absence=True
    )  # fmt: skip
    told = absent_contributions(network, batch, found, of, ALL)
    slow = getattr(replica, method)
    weights = {name: tensor.double() for name, tensor in network.state_dict().items()}
    for at, row in enumerate(sequences.table.to_pylist()):
        record = replica.dense(row, SIZE)
        baseline = np.tile(of.step_rates.double().numpy(), (len(record[0]), 1)), of.static_rates.double().numpy()
        options = {"nodes": 40} if method == "integrated_gradients" else {}
        events, static = slow(weights, record, baseline, **options)
        for parts, expected in ((told[EVENTS][at, : len(events)], events), (told[STATIC][at], static)):
            expected = torch.from_numpy(expected[..., 1:])
            lacks = ~parts.isnan()
            torch.testing.assert_close(parts[lacks], expected[lacks], rtol=2e-4, atol=1e-6)


def test_slopes_are_what_one_more_of_a_value_adds() -> None:
    """Contributions of what is recorded are the way times the slope."""
    batch, network, of = weighed(5), bent(MODELS["gru"]), population()
    found = attribute(network, batch, method="deep_lift", baseline="rates", population=of, absence=True)
    for name, rates in ((EVENTS, of.step_rates), (STATIC, of.static_rates)):
        bags = batch.streams[name]
        repeats = torch.stack(
            [((bags.bag == bag) & (bags.ids == i)).sum() for bag, i in zip(bags.bag, bags.ids, strict=True)]
        )
        way = bags.weights - rates[bags.ids.long()] / repeats
        torch.testing.assert_close(found.streams[name], way * found.slopes[name], rtol=1e-5, atol=1e-6)


def test_an_adapted_network_tells_absence_of_records_without_steps_too() -> None:
    """A record of undated values alone is one step to the network, at which nothing could have been recorded."""
    network = ForeignModel(bent(lambda: stranger.LinearGRU(SIZE - FOREIGN_OFFSET, 5)), SIZE - FOREIGN_OFFSET).eval()
    batch = everything(cohort(2))
    alone = (batch.lengths == 0) & (batch.streams[STATIC].sizes > 0)
    assert alone.any()
    of = population_of([everything(cohort(99))], SIZE, np.zeros(SIZE))
    found = attribute(network, batch, baseline="rates", population=of, absence=True)
    told = absent_contributions(network, batch, found, of, ALL)
    assert (found.residual.abs() < 1e-4).all()
    assert (found.absent[EVENTS][alone] == 0).all()
    torch.testing.assert_close(told[EVENTS].nansum(-1), found.absent[EVENTS].double(), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(told[STATIC].nansum(-1), found.absent[STATIC].double(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("method", OTHERS)
def test_a_method_that_cannot_tell_absence_says_why(method: str) -> None:
    with pytest.raises(UserError, match=rf"'{method}' does not tell .* one gradient a step: use one of deep_lift"):
        attribute(
            bent(MODELS["gru"]), weighed(1), method=method, baseline="rates", population=population(), absence=True,
        )  # fmt: skip


@pytest.mark.parametrize("baseline", ["empty", "carried_forward", "reference"])
def test_absence_is_told_against_rates_alone(baseline: str) -> None:
    with pytest.raises(UserError, match=rf"'{baseline}' does not say how much .*: use the baseline 'rates'\.$"):
        attribute(bent(MODELS["gru"]), weighed(1), baseline=baseline, population=population(), absence=True)


def test_attributions_that_were_not_asked_for_absence_say_so() -> None:
    batch, network, of = weighed(1), bent(MODELS["gru"]), population()
    found = attribute(network, batch, baseline="rates", population=of)
    assert not found.gradients
    assert not found.slopes
    with pytest.raises(UserError, match=r"absence=True\.$"):
        absent_contributions(network, batch, found, of, ALL)
