"""The gradient family equals its dense replicas, and its own promises hold."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import ModuleType

import numpy as np
import pyarrow as pa
import pytest
import torch

from method_laws.test_laws import SIZE, LinearModel, cohort, everything, model_of, population, totals
from replicas import gradient_methods as replica
from replicas.integrated_gradients import dense_score
from whenwhy.attribution import Attributions, attribute, own_steps
from whenwhy.attribution.baselines import given_baseline
from whenwhy.attribution.draws import Draws
from whenwhy.attribution.methods import (
    expected_gradients,
    prefix_integrated_gradients,
    temporal_integrated_gradients,
    timing,
)
from whenwhy.attribution.methods.smooth_grad import noisy
from whenwhy.attribution.question import Question
from whenwhy.attribution.targets import Target, has_own_step_scores
from whenwhy.errors import UserError
from whenwhy.events.sequence_batch import EVENTS, STATIC, SequenceBatch, Sequences
from whenwhy.models.ensemble import Ensemble
from whenwhy.models.recurrent import ATTENTIONS, POOLINGS, RecurrentClassifier
from whenwhy.models.retain import Retain
from whenwhy.models.sequence_model import SequenceModel
from whenwhy.schema import SEQUENCES

Record = replica.Record


def dense(record: dict[str, list[int]]) -> Record:
    """A row of sequences as counts."""
    events = torch.zeros(len(record["step_minutes"]), SIZE, dtype=torch.float64)
    static = torch.zeros(SIZE, dtype=torch.float64)
    for step, value in zip(record["event_step"], record["event_id"], strict=True):
        events[step, value] += 1
    for value in record["static_id"]:
        static[value] += 1
    return events, static


def rates_of(record: Record) -> Record:
    of = population()
    return of.step_rates.double().expand(len(record[0]), -1), of.static_rates.double()


def nothing(record: Record) -> Record:
    return torch.zeros_like(record[0]), torch.zeros_like(record[1])


BASELINES_OF = {"empty": nothing, "rates": rates_of}


class Case:
    """Some records, what a method says of them, and how the dense form compares."""

    def __init__(self, seed: int, baseline: str, method: str, **options: float) -> None:
        self.sequences, self.model = cohort(seed, patients=7, longest=5), model_of(seed, scale=2.0)
        self.batch, self.baseline = everything(self.sequences), BASELINES_OF[baseline]
        self.found = attribute(
            self.model, self.batch, method=method, baseline=baseline, population=population(), tolerance=1e-9,
            options=options,
        )  # fmt: skip
        parameters = {name: tensor.detach() for name, tensor in self.model.state_dict().items()}
        self.score: replica.Score = partial(dense_score, parameters)
        self.records = [dense(row) for row in self.sequences.table.to_pylist()]

    def equals(self, row: int, events: torch.Tensor, static: torch.Tensor | None, what: str = "streams") -> None:
        """Sums of repeats where something is recorded, and of all the rest in the rows of what is absent."""
        per_value = getattr(self.found, what)
        assert_cells(self.found, self.batch, self.records[row], row, events, static, per_value)


def assert_cells(
    found: Attributions,
    batch: SequenceBatch,
    record: Record,
    row: int,
    events: torch.Tensor,
    static: torch.Tensor | None,
    per_value: dict[str, torch.Tensor],
) -> None:
    for name, expected in ((EVENTS, events), (STATIC, static)):
        if expected is None:
            continue
        bags, per_patient = batch.streams[name], batch.n_steps if name == EVENTS else 1
        own = record[0] if name == EVENTS else record[1].unsqueeze(0)
        told = torch.zeros_like(own)
        expected = expected.view_as(own)
        ends = [*bags.offsets.tolist(), len(bags.ids)]
        for step in range(len(own)):
            bag = row * per_patient + step
            for at in range(ends[bag], ends[bag + 1]):
                told[step, bags.ids[at]] += per_value[name][at].double()
        there = own > 0
        torch.testing.assert_close(told[there], expected[there], rtol=1e-4, atol=1e-5)
        if found.absent and what_is_absent(name, static):
            absent = found.absent[name][row].double().reshape(-1)[: len(own)]
            torch.testing.assert_close(absent, (expected * ~there).sum(1), rtol=1e-4, atol=1e-5)


def what_is_absent(name: str, static: torch.Tensor | None) -> bool:
    return name == EVENTS or static is not None


@pytest.mark.parametrize("baseline", ["empty", "rates"])
def test_gradient_times_input_equals_its_replica(baseline: str) -> None:
    case = Case(4, baseline, "gradient_times_input")
    for row, record in enumerate(case.records):
        slope, begin = replica.gradients(case.score, record), case.baseline(record)
        case.equals(row, *((record[part] - begin[part]) * slope[part] for part in (0, 1)))
    assert float(case.found.streams[EVENTS].abs().max()) > 0.1


@pytest.mark.parametrize("seed", range(2))
def test_saliency_equals_its_replica_and_has_no_baseline(seed: int) -> None:
    case, other = Case(seed, "empty", "saliency"), Case(seed, "rates", "saliency")
    bags = case.batch.streams[EVENTS]
    ends = [*bags.offsets.tolist(), len(bags.ids)]
    for name in (EVENTS, STATIC):
        assert (case.found.streams[name] == other.found.streams[name]).all()
    assert (case.found.streams[EVENTS] > 0).all()
    assert not other.found.absent
    for row, record in enumerate(case.records):
        slope, of_static = replica.gradients(case.score, record)
        for step in range(len(record[0])):
            for at in range(ends[row * case.batch.n_steps + step], ends[row * case.batch.n_steps + step + 1]):
                wanted = float(slope[step, bags.ids[at]].abs())
                assert abs(float(case.found.streams[EVENTS][at]) - wanted) < 1e-5 * max(1, wanted)
        static = case.batch.streams[STATIC]
        own = [*static.offsets.tolist(), len(static.ids)]
        for at in range(own[row], own[row + 1]):
            wanted = float(of_static[static.ids[at]].abs())
            assert abs(float(case.found.streams[STATIC][at]) - wanted) < 1e-5 * max(1, wanted)


@pytest.mark.parametrize("baseline", ["empty", "rates"])
def test_expected_gradients_equals_its_replica(baseline: str) -> None:
    samples = 5
    case = Case(0, baseline, "expected_gradients", samples=samples)
    references = [dense(row) for row in cohort(98).table.to_pylist()]
    draws = Draws(case.batch.keys, 0)
    place = draws.uniform(expected_gradients.PLACES, (len(case.batch), samples))
    compared = 0
    for row, record in enumerate(case.records):
        drawn = []
        for draw in range(samples):
            which = int(draws.uniform(draw + 1, (len(case.batch), 1))[row, 0] * len(references))
            events, steps = torch.zeros_like(record[0]), min(len(record[0]), len(references[which][0]))
            if steps:
                events[-steps:] = references[which][0][-steps:]
            drawn.append((events, references[which][1]) if baseline == "empty" else case.baseline(record))
        events, static = replica.expected_gradients(case.score, record, drawn, place[row].tolist())
        case.equals(row, events, static)
        mean = sum(float(case.score(*reference)) for reference in drawn) / samples
        assert abs(mean - float(case.found.baseline_score[row])) < 1e-6
        each = [
            replica.expected_gradients(case.score, record, [reference], [at])
            for reference, at in zip(drawn, place[row].tolist(), strict=True)
        ]
        if len(record[0]) and float(record[0].max()) == 1:  # without repeats in a step a cell is a value
            deviation = torch.stack([one[0] for one in each]).std(0) / samples**0.5
            spread = {EVENTS: case.found.spread[EVENTS], STATIC: case.found.spread[STATIC]}
            bags = case.batch.streams[EVENTS]
            ends = [*bags.offsets.tolist(), len(bags.ids)]
            for step in range(len(record[0])):
                bag = row * case.batch.n_steps + step
                for at in range(ends[bag], ends[bag + 1]):
                    assert abs(float(spread[EVENTS][at]) - float(deviation[step, bags.ids[at]])) < 1e-5
                    compared += 1
    assert compared > 3


def test_expected_gradients_are_complete_on_average() -> None:
    """Over seeds the residual has no mean, whatever the references; against another baseline's score it has."""
    batch, model = everything(cohort(3)), model_of(3, scale=2.0)
    residual, others = [], []
    of = population()
    for seed in range(40):
        found = attribute(model, batch, method="expected_gradients", population=of, seed=seed, options={"samples": 6})
        torch.testing.assert_close(
            found.residual, totals(batch, found) - (found.score - found.baseline_score), rtol=0, atol=1e-9
        )
        residual.append(found.residual)
        others.append(
            found.baseline_score - model.score({n: 0 * t for n, t in model.embed(batch).items()}, batch.lengths)
        )
    told = torch.stack(residual)
    error = told.std(0) / len(told) ** 0.5
    assert (told.mean(0).abs() < 4.5 * error + 1e-6).all()
    assert (torch.stack(others).mean(0).abs() > 6 * error).any()


def test_more_samples_of_expected_gradients_have_less_spread() -> None:
    batch, model, of = everything(cohort(4)), model_of(4), population()
    few = attribute(model, batch, method="expected_gradients", population=of)
    many = attribute(model, batch, method="expected_gradients", population=of, options={"samples": 256})
    ratio = float(few.spread[EVENTS].mean() / many.spread[EVENTS].mean())
    assert 2.5 < ratio < 6  # the root of 256 / 16
    off = ((few.streams[EVENTS] - many.streams[EVENTS]).abs() / few.spread[EVENTS].clamp(min=1e-9)).median()
    assert 0.3 < float(off) < 1.2


@pytest.mark.parametrize("baseline", ["empty", "rates"])
def test_smooth_grad_equals_the_dense_one(baseline: str) -> None:
    """The same noise, as a multi-hot vector over the whole vocabulary and in the embeddings."""
    samples, sigma = 4, 0.1
    case = Case(1, baseline, "smooth_grad", samples=samples, sigma=sigma)
    given = given_baseline("empty", case.model, case.batch)
    question = Question(case.model, case.batch, given, Target(), 1e-4, 0)
    tables = {name: table.detach() for name, table in case.model.tables.items()}
    with torch.no_grad():
        clean = case.model.embed(case.batch)
    drawn = [
        {name: (one[name] - clean[name]) @ torch.linalg.pinv(tables[name]) for name in (EVENTS, STATIC)}
        for one in noisy(question, samples, sigma)
    ]
    for row, record in enumerate(case.records):
        noises = [(one[EVENTS][row, : len(record[0])], one[STATIC][row]) for one in drawn]
        case.equals(row, *replica.smooth_grad(case.score, record, case.baseline(record), noises))


def test_the_noise_of_smooth_grad_is_that_of_every_feature_value() -> None:
    """Its covariance is sigma^2 W^T W, of everything that can be recorded, one step's apart from another's."""
    batch, model, sigma = everything(cohort(6, patients=40)), model_of(6), 0.3
    question = Question(model, batch, given_baseline("empty", model, batch), Target(), 1e-4, 0)
    noise = [
        {name: one[name] - question.embedded[name] for name in one} for one in noisy(question, samples=100, sigma=sigma)
    ]
    true = torch.arange(batch.n_steps) < batch.lengths.unsqueeze(1)
    assert all((one[EVENTS][~true] == 0).all() for one in noise)
    for name in (EVENTS, STATIC):
        rows = torch.cat([one[name][true] if name == EVENTS else one[name] for one in noise])
        wanted = sigma**2 * model.tables[name][1:].T @ model.tables[name][1:]
        found = rows.T @ rows / len(rows)
        assert float(((found - wanted).norm() / wanted.norm()).detach()) < 0.06
    first, second = (torch.stack([one[EVENTS][batch.lengths > 1, at].flatten() for one in noise]) for at in (0, 1))
    assert abs(float((first * second).mean() / first.square().mean())) < 0.05
    assert abs(float((first[0] * first[1]).mean() / first.square().mean())) < 0.3  # nor one sample's another's


@pytest.mark.parametrize("baseline", ["empty", "rates"])
def test_timing_equals_its_replica(baseline: str) -> None:
    samples, segments, part = 6, 3, 0.4
    case = Case(2, baseline, "timing", samples=samples, segments=segments, features=part)
    drawn = Draws(case.batch.keys, 0).uniform(0, (len(case.batch), samples, segments, 3))
    held = 0.0
    for row, record in enumerate(case.records):
        masks = []
        for sample in range(samples):
            circle = timing._circle(SIZE, sample).tolist()
            assert len(set(circle)) == SIZE
            events, static = replica.stays(len(record[0]), SIZE, drawn[row, sample].tolist(), circle, part)
            masks.append((events * (record[0] > 0), static * (record[1] > 0)))  # what is absent moves
            held += float(masks[-1][0].sum())
        case.equals(row, *replica.timing(case.score, record, case.baseline(record), masks))
    assert held > 10


def test_timing_without_segments_is_integrated_gradients_by_midpoints() -> None:
    batch, model = everything(cohort(4)), model_of(4)
    found = attribute(model, batch, method="timing", options={"samples": 400, "segments": 0})
    path = attribute(model, batch, tolerance=1e-7)
    for name in (EVENTS, STATIC):
        torch.testing.assert_close(found.streams[name], path.streams[name], rtol=1e-3, atol=1e-3)
    held = attribute(model, batch, method="timing", options={"segments": 1, "features": 1.0, "samples": 3})
    assert (held.streams[STATIC] == 0).all()  # all of it stays in every draw


@pytest.mark.parametrize("baseline", ["empty", "rates"])
@pytest.mark.parametrize("method", ["temporal_integrated_gradients", "prefix_integrated_gradients"])
def test_the_methods_of_every_step_equal_their_replicas(method: str, baseline: str) -> None:
    case = Case(3, baseline, method)
    steps = 0
    for row, record in enumerate(case.records):
        begin = case.baseline(record)
        case.equals(row, getattr(replica, method)(case.score, record, begin, nodes=24), None)
        for step in range(len(record[0])):
            steps += 1
            own = record[0][: step + 1]
            if method.startswith("temporal"):
                other = torch.cat([own[:-1], begin[0][step : step + 1]]), record[1]
            else:
                other = begin[0][: step + 1], begin[1]
            assert abs(float(case.found.notes["step_score"][row, step] - case.score(own, record[1]))) < 1e-6
            assert abs(float(case.found.notes["step_baseline_score"][row, step] - case.score(*other))) < 1e-6
        assert case.found.notes["step_score"][row, len(record[0]) :].isnan().all()
    assert steps > 5
    assert all((case.found.streams[STATIC] == 0).tolist())


@pytest.mark.parametrize("module", [temporal_integrated_gradients, prefix_integrated_gradients])
def test_the_methods_of_every_step_take_the_nodes_that_they_need(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What bends is walked in more steps than what does not, until it is as with very many."""
    batch, model = everything(cohort(8)), model_of(8, scale=4.0)
    ask = partial(attribute, model, batch, method=module.__name__.rpartition(".")[2])
    found, hasty = ask(tolerance=1e-6), ask(tolerance=100.0)
    monkeypatch.setattr(module, "LADDER", (400,))
    exact = ask()
    assert len(torch.unique(found.n_evaluations)) > 1
    assert (hasty.n_evaluations <= 16).all()
    assert float((found.streams[EVENTS] - exact.streams[EVENTS]).abs().max()) < 1e-4
    assert float((hasty.streams[EVENTS] - exact.streams[EVENTS]).abs().max()) > 1e-3


def bent(make: Callable[[], torch.nn.Module], seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = make().double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.6)
    return model


ARCHITECTURES: dict[str, Callable[[], torch.nn.Module]] = {
    f"{cell}-{pooling}": partial(RecurrentClassifier, SIZE, hidden=5, cell=cell, layers=2, pooling=pooling)
    for cell, pooling in [*(("lstm", one) for one in (*POOLINGS, *ATTENTIONS)), ("gru", "last"), ("gru", "max")]
} | {"ensemble": lambda: Ensemble(partial(RecurrentClassifier, SIZE, hidden=5, pooling="dot"), 2)}


@pytest.mark.parametrize(
    ("name", "target"),
    [(name, "logit") for name in ARCHITECTURES]
    + [(name, target) for name in ("lstm-mean", "ensemble") for target in ("probability", "unit:3")],
)
def test_one_pass_says_what_prefix_after_prefix_says(name: str, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = bent(ARCHITECTURES[name]), everything(cohort(5, patients=6, longest=5))
    for method in ("temporal_integrated_gradients", "prefix_integrated_gradients"):
        ask = partial(
            attribute, model, batch, method=method, target=target, baseline="rates", population=population(),
            tolerance=100.0,  # the first nodes will do
        )  # fmt: skip
        assert has_own_step_scores(model, Target("unit" if target == "unit:3" else "logit"))
        at_once = ask()
        with monkeypatch.context() as patched:
            for module in (own_steps, prefix_integrated_gradients):
                patched.setattr(module, "has_own_step_scores", lambda *_: False)
            one_by_one = ask()
        torch.testing.assert_close(at_once.streams, one_by_one.streams, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(at_once.notes, one_by_one.notes, rtol=1e-6, atol=1e-8, equal_nan=True)
        torch.testing.assert_close(at_once.absent, one_by_one.absent, rtol=1e-5, atol=1e-6)
        assert float(at_once.streams[EVENTS].abs().max()) > 0.01


@pytest.mark.parametrize(
    "make",
    [lambda: Retain(SIZE, hidden=5), lambda: RecurrentClassifier(SIZE, hidden=5, bidirectional=True)],
    ids=["retain", "bidirectional"],
)
def test_prefixes_of_models_that_are_not_causal_are_records_of_their_own(make: Callable[[], torch.nn.Module]) -> None:
    """What the last step of each cut record gets from integrated gradients."""
    model, sequences = bent(make), cohort(11, patients=4, longest=4)
    batch = everything(sequences)
    assert not has_own_step_scores(model, Target())  # type: ignore[arg-type]
    found = attribute(model, batch, method="prefix_integrated_gradients", tolerance=1e-8)  # type: ignore[arg-type]
    bags = batch.streams[EVENTS]
    at = 0
    for record in sequences.table.to_pylist():
        for step in range(len(record["step_minutes"])):
            values = sum(at_step <= step for at_step in record["event_step"])
            own = sum(at_step == step for at_step in record["event_step"])
            cut = record | {
                "step_minutes": record["step_minutes"][: step + 1], "event_step": record["event_step"][:values],
                "event_id": record["event_id"][:values], "event_value": record["event_value"][:values],
            }  # fmt: skip
            single = Sequences(pa.Table.from_pylist([cut], schema=SEQUENCES)).batch(np.array([0]))
            alone = attribute(model, single, tolerance=1e-8).streams[EVENTS]  # type: ignore[arg-type]
            torch.testing.assert_close(
                found.streams[EVENTS][at : at + own], alone[values - own :], rtol=1e-4, atol=1e-5
            )
            at += own
    assert at == len(bags.ids)


def test_a_linear_model_gets_its_effects_from_the_methods_of_every_step() -> None:
    batch, model = everything(cohort(2)), LinearModel(2)
    for method in ("temporal_integrated_gradients", "prefix_integrated_gradients"):
        found = attribute(model, batch, method=method)  # type: ignore[arg-type]
        torch.testing.assert_close(
            found.streams[EVENTS].double(), model.effect[EVENTS][batch.streams[EVENTS].ids, 0], rtol=1e-6, atol=1e-7
        )


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"method": "expected_gradients"}, "name the baseline 'reference', and give a population"),
        ({"method": "expected_gradients", "options": {"samples": 0}}, "at least 1 of samples"),
        ({"method": "smooth_grad", "options": {"sigma": -0.1}}, "a sigma from 0"),
        ({"method": "smooth_grad", "options": {"samples": 0}}, "at least 1 of samples"),
        ({"method": "timing", "options": {"features": 1.5}}, "features from 0 to 1"),
        ({"method": "temporal_integrated_gradients", "target": "logit@1"}, "without @1"),
        ({"method": "prefix_integrated_gradients", "target": "logit@-1"}, "without @-1"),
    ],
)
def test_what_cannot_be_asked_is_said(asked: dict[str, object], sentence: str) -> None:
    model: SequenceModel = model_of(0)
    with pytest.raises(UserError, match=sentence):
        attribute(model, everything(cohort(0)), **asked)  # type: ignore[arg-type]


def test_noise_needs_counts_of_what_is_not_recorded() -> None:
    model = model_of(0)
    model.mean = True  # type: ignore[assignment]
    with pytest.raises(UserError, match="averages the values of a step"):
        attribute(model, everything(cohort(0)), method="smooth_grad")
