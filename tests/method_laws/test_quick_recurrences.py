"""Recurrent layers with a way back of their own equal torch's, of all kinds, and methods by them those by torch."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from method_laws.test_laws import SIZE, cohort, everything, population
from test_precision import MODELS
from whenwhy.attribution import attribute, paths, quick_recurrences
from whenwhy.attribution.quick_recurrences import QuickRecurrences
from whenwhy.attribution.recurrences import GRU, LSTM
from whenwhy.attribution.walks import Walk
from whenwhy.events.sequence_batch import EVENTS, STATIC, SequenceBatch
from whenwhy.models.recurrent import RecurrentClassifier
from whenwhy.models.sequence_model import Embedded

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS = [nn.GRU, nn.LSTM]


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small layers are computed here too."""
    monkeypatch.setattr(quick_recurrences, "LEAST_STATE", {GRU: 0, LSTM: 0})


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch, always: None) -> list[int]:
    """Grows with every layer that is computed here."""
    calls: list[int] = []
    before = quick_recurrences.answered

    def answered(*arguments: Any) -> Any:
        calls.append(1)
        return before(*arguments)

    monkeypatch.setattr(quick_recurrences, "answered", answered)
    return calls


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    """Random ones in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mixed(answers: list[torch.Tensor]) -> torch.Tensor:
    """A number to which each element of the answers contributes another share."""
    return sum((answer * numbers(*answer.shape, seed=5)).sum() for answer in answers)  # type: ignore[return-value]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("packed", [True, False])
def test_answers_and_gradients_are_torchs(kind: type[nn.RNNBase], packed: bool, counted: list[int]) -> None:
    """Layers, directions, orders, biases; states and last states; packed sequences that end early."""
    lengths = torch.tensor([3, 6, 1, 6])
    for layers, both, first, bias in product((1, 2), *[(True, False)] * 3):
        network = kind(5, 7, layers, bidirectional=both, batch_first=first, bias=bias).double().eval()
        x = numbers(4, 6, 5) if first else numbers(6, 4, 5)
        starts = [numbers(layers * (2 if both else 1), 4, 7, seed=at) for at in (1, 2)[: 1 + (kind is nn.LSTM)]]
        leaves = [tensor.requires_grad_() for tensor in (x, *starts)]

        def answers(
            network: nn.RNNBase = network, leaves: list[torch.Tensor] = leaves, first: bool = first
        ) -> tuple[list[torch.Tensor], tuple[torch.Tensor, ...]]:
            x, *start = leaves
            given = pack_padded_sequence(x, lengths, first, enforce_sorted=False) if packed else x
            states, last = network(given, tuple(start) if len(start) == 2 else start[0])
            states = pad_packed_sequence(states, first)[0] if packed else states
            found = [states, *(last if isinstance(last, tuple) else (last,))]
            return found, torch.autograd.grad(mixed(found), leaves)

        wanted = answers()
        counted.clear()
        with QuickRecurrences():
            found = answers()
        assert counted
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("begins", [True, False])
def test_a_walk_is_projected_once_and_brings_back_the_mean_gradient(
    kind: type[nn.RNNBase], begins: bool, counted: list[int]
) -> None:
    shares, at = numbers(4).abs(), torch.tensor([0.1, 0.4, 0.7, 0.9], dtype=torch.float64)
    begin = numbers(3, 6, 5, seed=3) if begins else None
    for layers, both in product((1, 2), (True, False)):
        network = kind(5, 7, layers, bidirectional=both, batch_first=True).double().eval()
        way = numbers(3, 6, 5).requires_grad_()
        walk = Walk(way, begin, at, shares)
        with QuickRecurrences():
            states, _ = network(walk)
            (found,) = torch.autograd.grad(mixed([states]), way)
        assert counted
        places = torch.cat([(0 if begin is None else begin) + place * way.detach() for place in at]).requires_grad_()
        wanted, _ = network(places)
        torch.testing.assert_close(states, wanted, rtol=1e-12, atol=1e-12)
        (gradients,) = torch.autograd.grad(mixed([wanted]), places)
        mean = (gradients.view(4, 3, 6, 5) * shares.view(4, 1, 1, 1)).sum(0)
        torch.testing.assert_close(found, mean, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_of_own_steps_the_states_before_are_constants(kind: type[nn.RNNBase], counted: list[int]) -> None:
    """The gradient of each step's state, through two layers, is that of one step of both cells after the true past."""
    network = kind(5, 7, 2, batch_first=True).double().eval()
    x = numbers(3, 6, 5).requires_grad_()
    with QuickRecurrences(own_steps=True):
        states, _ = network(x)
        (found,) = torch.autograd.grad(mixed([states]), x)
    assert counted
    shares, wanted = numbers(3, 6, 7, seed=5), torch.zeros_like(x)
    for step in range(6):
        past = None
        if step:
            with torch.no_grad():
                _, past = network(x[:, :step])
        own = x.detach()[:, step : step + 1].clone().requires_grad_()
        after, _ = network(own, past)
        torch.testing.assert_close(after[:, 0], states[:, step], rtol=1e-12, atol=1e-12)
        wanted[:, step] = torch.autograd.grad((after[:, 0] * shares[:, step]).sum(), own)[0][:, 0]
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_what_is_not_quick_is_torchs(counted: list[int]) -> None:
    """Dropout in training, projections, bfloat16, no gradient, no rows."""
    x = numbers(4, 6, 5).requires_grad_()
    with QuickRecurrences():
        nn.GRU(5, 7, 2, dropout=0.5, batch_first=True).double().train()(x)
        nn.LSTM(5, 7, proj_size=3, batch_first=True).double()(x)
        nn.GRU(5, 7, batch_first=True).bfloat16()(x.bfloat16())
        nn.GRU(5, 7, batch_first=True).double()(x[:0])
        with torch.no_grad():
            nn.GRU(5, 7, batch_first=True).double()(x)
    assert not counted


def test_the_way_back_is_gone_once(always: None) -> None:
    x = numbers(4, 6, 5).requires_grad_()
    with QuickRecurrences():
        states, _ = nn.GRU(5, 7, batch_first=True).double()(x)
    torch.autograd.grad(states.sum(), x, retain_graph=True)
    with pytest.raises(RuntimeError, match="goes back once"):
        torch.autograd.grad(states.sum(), x)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("method", "baseline"),
    [
        ("integrated_gradients", "empty"),
        ("integrated_gradients", "rates"),
        ("prefix_integrated_gradients", "empty"),
        ("expected_gradients", "reference"),
        ("smooth_grad", "empty"),
        ("timing", "empty"),
        ("kernel_shap", "empty"),
    ],
)
def test_methods_by_quick_layers_are_those_by_torch(
    name: str, method: str, baseline: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(2)
    model = MODELS[name]().double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.5)
    batch = everything(cohort(8))
    known = population() if baseline != "empty" else None
    found = []
    for least in (0, 1 << 60):
        monkeypatch.setattr(quick_recurrences, "LEAST_STATE", {GRU: least, LSTM: least})
        asked = attribute(model, batch, method=method, baseline=baseline, population=known, precision="float64")
        found.append((asked.streams, asked.absent, asked.score))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-10)


def test_a_walk_answers_like_its_places() -> None:
    """Of its shape without numbers; all of it, and dropout outside training, leave it a walk."""
    walk = Walk(numbers(3, 4, 2), numbers(3, 4, 2, seed=1), torch.tensor([0.1, 0.5]), torch.tensor([0.5, 0.5]))
    places = walk.places()
    assert type(places) is torch.Tensor
    assert walk.shape == places.shape
    assert (len(walk), walk.ndim, walk.dtype, walk.size(1)) == (6, 3, torch.float64, 4)
    assert walk[:, 0:4] is walk
    assert walk[:] is walk
    assert nn.Dropout(0.3).eval()(walk) is walk
    assert type(nn.Dropout(0.3).train()(walk)) is torch.Tensor
    for asked in (
        lambda x: x[:, :2], lambda x: x[1], lambda x: torch.cat([x, x]), lambda x: x.unbind(1)[0], lambda x: x.flip(1),
        lambda x: 1 - x, lambda x: nn.functional.linear(x, torch.ones(3, 2, dtype=torch.float64)), lambda x: x.mean(),
        lambda x: x[torch.tensor([0, 4])], lambda x: torch.stack([x, 2 * x]), lambda x: x.float(),
    ):  # fmt: skip
        assert torch.equal(asked(walk), asked(places))


def test_a_stranger_gets_numbers_and_torchs_own_layers(always: None) -> None:
    """Code that changes in place what it is given, and what a layer answers, explains as it always did."""

    class Stranger(nn.Module):
        vocabulary_size = SIZE

        def __init__(self) -> None:
            super().__init__()
            self.inner = RecurrentClassifier(SIZE, 8)

        def embed(self, batch: SequenceBatch, weights: Any = None) -> Embedded:
            return self.inner.embed(batch, weights)

        def score(self, embedded: Embedded, lengths: torch.Tensor) -> torch.Tensor:
            assert type(embedded[EVENTS]) is torch.Tensor
            x = 1 * embedded[EVENTS]
            x.clamp_(min=-10)
            states, _ = self.inner.cell(x)
            states *= 0.5
            return states.sum((1, 2)) + 0 * embedded[STATIC].sum(1)

    torch.manual_seed(2)
    found = attribute(Stranger().eval(), everything(cohort(8)))
    assert found.streams[EVENTS].abs().max() > 1e-4
    assert found.residual.abs().max() < 1e-3


def test_one_long_record_is_walked_a_few_nodes_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded by padded steps: a flat batch is of as many nodes as fit, and the mean is the same."""
    model, batch, rows = RecurrentClassifier(SIZE, 8).double().eval(), everything(cohort(8)), []
    seen = model.outputs

    def outputs(embedded: dict[str, torch.Tensor], lengths: torch.Tensor) -> torch.Tensor:
        rows.append(len(lengths))
        return seen(embedded, lengths)

    wanted = attribute(model, batch, precision="float64")
    monkeypatch.setattr(model, "outputs", outputs)
    monkeypatch.setattr(paths, "STEPS_AT_ONCE", 4 * batch.n_steps)
    found = attribute(model, batch, precision="float64")
    assert max(rows) <= max(4, len(batch))
    torch.testing.assert_close(found.streams, wanted.streams, rtol=1e-9, atol=1e-12)
