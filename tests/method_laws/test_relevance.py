"""Relevance and DeepLIFT equal their unit-by-unit replicas, and hold on networks of strangers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from method_laws.test_laws import SIZE, cohort, everything, population, totals
from replicas.relevance import deep_lift, relevance
from whenwhy.attribution import attribute, registered_methods
from whenwhy.attribution.recurrences import RecurrentCall, unrolled
from whenwhy.errors import UserError
from whenwhy.events.sequence_batch import EVENTS, STATIC, SequenceBatch
from whenwhy.models.recurrent import RecurrentClassifier
from whenwhy.models.retain import Retain


def model_of(seed: int, **arguments: object) -> RecurrentClassifier:
    torch.manual_seed(seed)
    model = RecurrentClassifier(SIZE, hidden=5, **arguments).double().eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.7)
    return model


def shares(model: RecurrentClassifier, batch: SequenceBatch, row: int, step: int | None) -> tuple[torch.Tensor, slice]:
    """The embeddings of the values of one bag, and where those values are."""
    name = STATIC if step is None else EVENTS
    bags = batch.streams[name]
    ends = np.append(bags.offsets.numpy(), len(bags.ids))
    bag = row if step is None else row * batch.n_steps + step
    where = slice(int(ends[bag]), int(ends[bag + 1]))
    return model.tables[name][bags.ids[where].long()].detach(), where


def as_values(
    model: RecurrentClassifier, batch: SequenceBatch, row: int, per_x: np.ndarray, per_static: np.ndarray
) -> dict[str, list[tuple[slice, np.ndarray]]]:
    """A number per embedding and unit, handed to the values: each has the share that its embedding has of the sum."""
    told: dict[str, list[tuple[slice, np.ndarray]]] = {EVENTS: [], STATIC: []}
    for step in [*range(int(batch.lengths[row])), None]:
        embedded, where = shares(model, batch, row, step)
        total = embedded.sum(0)
        found = per_static if step is None else per_x[step]
        parts = (embedded / total).numpy() * found
        told[STATIC if step is None else EVENTS].append((where, parts.sum(1)))
    return told


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize(
    ("epsilon", "target"), [(0.0, "logit"), (0.05, "logit"), (0.0, "unit:2@1"), (0.05, "unit:0@-1")]
)
def test_relevance_equals_messages_unit_by_unit(cell: str, epsilon: float, target: str) -> None:
    batch, model = everything(cohort(3)), model_of(3, cell=cell)
    found = attribute(model, batch, method="layerwise_relevance", options={"epsilon": epsilon}, target=target)
    weights = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    embedded = {name: tensor.detach().numpy() for name, tensor in model.embed(batch).items()}
    some = 0
    for row in range(len(batch)):
        steps = int(batch.lengths[row])
        xs, static = embedded[EVENTS][row, :steps], embedded[STATIC][row]
        unit = None
        if target.startswith("unit") and steps:
            place = int(target.split("@")[1])
            unit = (min(place, steps - 1) if place >= 0 else steps + place, int(target[5]))
        elif target.startswith("unit"):
            continue
        per_x, per_static = relevance(weights, xs, static, cell, epsilon, unit)
        for name, told in as_values(model, batch, row, per_x, per_static).items():
            for where, expected in told:
                if len(expected):
                    np.testing.assert_allclose(found.streams[name][where], expected, rtol=2e-5, atol=1e-7)
                    some += int(np.abs(expected).max() > 1e-3)
        score = float(found.score[row])
        lost = 1 - (per_x.sum() + per_static.sum()) / score
        assert float(found.notes["bias_share"][row]) == pytest.approx(lost, rel=1e-4, abs=1e-5)
    assert some > 10


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("baseline", ["empty", "carried_forward"])
def test_deep_lift_equals_its_replica(cell: str, baseline: str) -> None:
    batch, model, of = everything(cohort(4)), model_of(4, cell=cell), population()
    found = attribute(model, batch, method="deep_lift", baseline=baseline, population=of)
    weights = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    from whenwhy.attribution.baselines import given_baseline

    embedded = {name: tensor.detach().numpy() for name, tensor in model.embed(batch).items()}
    given = given_baseline(baseline, model, batch, of).embedded or {n: np.zeros_like(t) for n, t in embedded.items()}
    base = {name: np.asarray(tensor) for name, tensor in given.items()}
    for row in range(len(batch)):
        steps = int(batch.lengths[row])
        xs, static = embedded[EVENTS][row, :steps], embedded[STATIC][row]
        other = base[EVENTS][row, :steps], base[STATIC][row]
        per_x, per_static = deep_lift(weights, xs, static, other, cell)
        if baseline == "empty":
            for name, told in as_values(model, batch, row, per_x, per_static).items():
                for where, expected in told:
                    np.testing.assert_allclose(found.streams[name][where], expected, rtol=1e-4, atol=1e-6)
            continue
        bags = batch.streams[EVENTS]
        ends = np.append(bags.offsets.numpy(), len(bags.ids))
        for step in range(steps):
            bag = row * batch.n_steps + step
            own = float(found.streams[EVENTS][ends[bag] : ends[bag + 1]].sum() + found.absent[EVENTS][row, step])
            assert own == pytest.approx(per_x[step].sum(), rel=1e-4, abs=1e-6)


ARCHITECTURES = [
    {}, {"cell": "lstm"}, {"layers": 2, "pooling": "mean"}, {"bidirectional": True, "layers": 2, "pooling": "max"},
    {"cell": "lstm", "bidirectional": True, "pooling": "additive"}, {"pooling": "dot"},
]  # fmt: skip


@pytest.mark.parametrize("arguments", ARCHITECTURES)
def test_deep_lift_is_complete_on_every_architecture(arguments: dict[str, object]) -> None:
    batch, model = everything(cohort(5)), model_of(5, **arguments)
    for baseline in ("empty", "rates", "reference"):
        found = attribute(model, batch, method="deep_lift", baseline=baseline, population=population())
        assert float(found.residual.abs().max()) < 1e-5
        assert float((found.score - found.baseline_score).abs().max()) > 0.05
        difference = totals(batch, found) - (found.score - found.baseline_score)
        assert float(difference.abs().max()) < 1e-5


def test_deep_lift_is_complete_on_retain() -> None:
    torch.manual_seed(0)
    model = Retain(SIZE, hidden=5).double().eval()
    found = attribute(model, everything(cohort(5)), method="deep_lift")
    assert float(found.residual.abs().max()) < 1e-6


@pytest.mark.parametrize("arguments", [a for a in ARCHITECTURES if a.get("pooling") != "dot"])
def test_the_score_under_relevance_is_the_networks_own(arguments: dict[str, object]) -> None:
    """A rule changes gradients, never the numbers: what is unrolled is what torch computes."""
    from whenwhy.attribution.baselines import given_baseline
    from whenwhy.attribution.methods.layerwise_relevance import Relevance
    from whenwhy.attribution.question import Question
    from whenwhy.attribution.targets import Target

    batch, model = everything(cohort(6)), model_of(6, **arguments)
    question = Question(model, batch, given_baseline("empty", model, batch), Target(), 1e-4, 0)
    for rule in (Relevance(), Relevance(0.1), Relevance(0.1, 0.3)):
        torch.testing.assert_close(question.scored_under(rule, question.embedded), question.score, rtol=0, atol=1e-12)


def test_what_relevance_cannot_tell_is_refused() -> None:
    batch = everything(cohort(1))
    for model in (Retain(SIZE, hidden=4).eval(), model_of(1, pooling="dot").float()):
        with pytest.raises(UserError, match="no rule for a product of two signals"):
            attribute(model, batch, method="layerwise_relevance")
    with pytest.raises(UserError, match="not told against a baseline"):
        attribute(model_of(1), batch, method="layerwise_relevance", baseline="rates", population=population())
    with pytest.raises(UserError, match="at least 0"):
        attribute(model_of(1), batch, method="layerwise_relevance", options={"epsilon": -1.0})


def test_dropout_leaves_the_mean_and_tells_a_spread() -> None:
    batch, model = everything(cohort(7)), model_of(7)
    exact = attribute(model, batch, method="layerwise_relevance")
    few = attribute(model, batch, method="relevance_dropout", options={"runs": 10, "dropout": 0.2})
    many = attribute(model, batch, method="relevance_dropout", options={"runs": 200, "dropout": 0.2})
    for name in exact.streams:
        error = many.spread[name] / 200**0.5
        beyond = (many.streams[name] - exact.streams[name]).abs() > 5 * error + 1e-9
        assert not beyond.any()
        assert (many.spread[name] > 0).double().mean() > 0.8
        assert (few.streams[name] != many.streams[name]).any()
    # All values together: the mean of so many runs is within a tenth of what it tends to.
    mean, wanted = (torch.cat(list(found.streams.values())) for found in (many, exact))
    assert 0.9 < float((mean * wanted).sum() / wanted.square().sum()) < 1.1
    torch.testing.assert_close(
        attribute(model, batch, method="relevance_dropout", options={"runs": 10}).streams[EVENTS],
        attribute(model, batch, method="relevance_dropout", options={"runs": 10}).streams[EVENTS],
        rtol=0, atol=0,
    )  # fmt: skip
    other = attribute(model, batch, method="relevance_dropout", options={"runs": 10}, seed=1)
    assert (other.streams[EVENTS] != few.streams[EVENTS]).any()


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
@pytest.mark.parametrize("arguments", [{}, {"num_layers": 2, "bidirectional": True}, {"bias": False}])
@pytest.mark.parametrize("batch_first", [True, False])
def test_unrolled_layers_are_torchs(kind: type[nn.RNNBase], arguments: dict[str, object], batch_first: bool) -> None:
    torch.manual_seed(1)
    layer = kind(3, 4, batch_first=batch_first, **arguments).double().eval()  # type: ignore[arg-type]
    x, lengths = torch.randn(5, 6, 3, dtype=torch.float64), torch.tensor([2, 6, 1, 6, 4])
    function = torch.gru if kind is nn.GRU else torch.lstm
    calls: list[tuple[RecurrentCall, tuple[torch.Tensor, ...]]] = []

    class Watching(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, called: object, types: object, given: tuple = (), named: object = None) -> object:
            answer = called(*given, **(named or {}))  # type: ignore[operator]
            if called is function:
                calls.append((RecurrentCall.of(called, given), answer))  # type: ignore[arg-type]
            return answer

    with Watching():
        layer(x if batch_first else x.transpose(0, 1))
        layer(nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
    assert [call.packed for call, _ in calls] == [False, True]
    for call, answer in calls:
        for mine, theirs in zip(unrolled(call), answer, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


def test_both_are_registered_in_their_families() -> None:
    families = {name: method.family for name, method in registered_methods().items()}
    assert families["deep_lift"] == "gradients"
    assert families["layerwise_relevance"] == families["relevance_dropout"] == "relevance"
