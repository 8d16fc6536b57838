"""Every method keeps the laws it declares, equals its replica, and the suite tells methods apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quick_methods import QUICK, explained
from replicas.integrated_gradients import dense_integrated_gradients, dense_score
from whenwhy.attribution import BASELINES, LAWS, Attributions, Population, attribute, population_of, registered_methods
from whenwhy.attribution.attribute import TOLERANCE
from whenwhy.attribution.baselines import given_baseline
from whenwhy.attribution.draws import Draws
from whenwhy.attribution.gradients import recurrence_with_gradients
from whenwhy.attribution.methods import integrated_gradients as integrated_gradients_module
from whenwhy.errors import UserError
from whenwhy.events.sequence_batch import EVENTS, STATIC, SequenceBatch, Sequences
from whenwhy.models.bag_classifier import BagClassifier
from whenwhy.models.recurrent import GRUClassifier
from whenwhy.models.retain import Retain
from whenwhy.models.sequence_model import Embedded, embed_bags
from whenwhy.schema import SEQUENCES

SIZE = 30

#: Methods that hold the static values, so that these get nothing.
HOLD_STATIC = {"prefix_integrated_gradients", "temporal_integrated_gradients"}
pytestmark = pytest.mark.usefixtures("one_thread")


def cohort(seed: int, patients: int = 12, longest: int = 9, least: int = 1) -> Sequences:
    """Random records of ids from `least`: some without steps, some without static values, duplicates within a step."""
    random = np.random.default_rng(seed)
    rows = []
    for subject in range(patients):
        steps = 0 if subject == 0 else int(random.integers(0, longest + 1))
        at = np.repeat(np.arange(steps), random.integers(1, 4, size=steps))
        static = random.integers(least, SIZE, size=0 if subject == 1 else int(random.integers(0, 4)))
        rows.append(
            {
                "subject_id": subject, "prediction_time": 0, "label": "true", "split": "train", "strata": [],
                "step_minutes": list(range(steps, 0, -1)),
                "event_step": at.tolist(), "event_id": random.integers(least, SIZE, size=len(at)).tolist(),
                "event_value": [None] * len(at),
                "static_id": static.tolist(), "static_value": [None] * len(static),
            }
        )  # fmt: skip
    return Sequences(pa.Table.from_pylist(rows, schema=SEQUENCES))


#: Models of methods that explain no others.
OWN_MODELS: dict[str, Callable[..., BagClassifier]] = {
    "attention": partial(GRUClassifier, pooling="additive"),
    "retain_contributions": Retain,
}


def model_of(seed: int, scale: float = 3.0, method: str = "") -> BagClassifier:
    """A model in float64 whose score bends strongly along the path; a GRU, unless the method wants another."""
    torch.manual_seed(seed)
    model = OWN_MODELS.get(method, GRUClassifier)(SIZE, hidden=6).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, scale / 4)
        for table in model.tables.values():
            table.normal_(0, scale / 2)
    return model


class LinearModel:
    """The score is a plain sum of effects, one a feature value and stream."""

    vocabulary_size = SIZE

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.effect = {
            name: torch.randn(SIZE, 1, generator=generator, dtype=torch.float64) for name in (EVENTS, STATIC)
        }

    def embed(self, batch: SequenceBatch, weights: dict[str, torch.Tensor] | None = None) -> Embedded:
        given = weights or {}
        events, static = (embed_bags(self.effect[n], batch.streams[n], given.get(n)) for n in (EVENTS, STATIC))
        return {EVENTS: events.view(len(batch), batch.n_steps, 1), STATIC: static}

    def score(self, embedded: Embedded, lengths: torch.Tensor) -> torch.Tensor:
        return embedded[EVENTS].sum((1, 2)) + embedded[STATIC].sum(1) + 0.5


def everything(sequences: Sequences) -> SequenceBatch:
    return sequences.batch(np.arange(len(sequences)))


def population(least: int = 1) -> Population:
    """Other patients than those of the tests."""
    batch, references = everything(cohort(99, least=least)), everything(cohort(98, least=least))
    return population_of([batch], SIZE, np.arange(SIZE) % 7 - 1, references)


def wider(batch: SequenceBatch, more: int) -> SequenceBatch:
    """The same records with more padding."""
    bags = batch.streams[EVENTS]
    begins = bags.offsets.view(len(batch), batch.n_steps)
    ends = torch.cat([begins[1:, :1], begins.new_tensor([[len(bags.ids)]])])
    offsets = torch.cat([begins, ends.expand(-1, more)], dim=1).flatten()
    hours = torch.nn.functional.pad(batch.hours, (0, more))
    streams = batch.streams | {EVENTS: replace(bags, offsets=offsets)}
    return replace(batch, streams=streams, hours=hours, n_steps=batch.n_steps + more)


def sample() -> SequenceBatch:
    """Records of others still, to fit methods on."""
    return everything(cohort(97))


def totals(batch: SequenceBatch, found: Attributions) -> torch.Tensor:
    """The sum of each prediction's attributions [patient]."""
    total = torch.zeros(len(batch), dtype=torch.float64)
    for parts in found.absent.values():
        total += parts.double().reshape(len(batch), -1).sum(1)
    for name, per_patient in ((EVENTS, batch.n_steps), (STATIC, 1)):
        bags = batch.streams[name]
        ends = torch.cat([bags.offsets[1:], torch.tensor([len(bags.ids)])])
        bag = torch.repeat_interleave(torch.arange(len(bags.offsets)), ends - bags.offsets)
        total.index_add_(0, bag // per_patient, found.streams[name].double())
    return total


def keeping(law: str) -> list[str]:
    return [name for name, method in registered_methods().items() if law in method.laws]


def test_every_law_is_kept_by_some_method_and_every_method_states_some() -> None:
    assert all(keeping(law) for law in LAWS)
    assert all(method.laws for method in registered_methods().values())


@pytest.mark.parametrize("method", keeping("completeness"))
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.5, 4), baseline=st.sampled_from(sorted(BASELINES)))
def test_completeness(method: str, seed: int, scale: float, baseline: str) -> None:
    batch, model = everything(cohort(seed)), model_of(seed, scale, method)
    if baseline != "empty" and method in OWN_MODELS:
        with pytest.raises(UserError, match="use the baseline 'empty'"):
            attribute(model, batch, method=method, baseline=baseline, population=population())
        return
    found = explained(model, batch, sample(), method=method, baseline=baseline, population=population(), tolerance=1e-4)
    residual = (totals(batch, found) - (found.score - found.baseline_score)).abs()
    torch.testing.assert_close(found.residual.abs(), residual, rtol=0, atol=1e-9)
    missed = residual > 1e-4
    # Only a sequence that was given every node there is may miss, and it is the one that is reported.
    assert (found.n_evaluations[missed] == integrated_gradients_module.LADDER[-1]).all()
    assert missed.sum() <= 1


def test_only_what_is_complete_declares_it() -> None:
    """The suite would notice if a method were swapped: gradient times input is far from complete here."""
    batch = everything(cohort(1))
    residual = {}
    for name in registered_methods():
        found = explained(model_of(1, method=name), batch, sample(), method=name, population=population())
        residual[name] = float((totals(batch, found) - (found.score - found.baseline_score)).abs().max())
    assert residual["integrated_gradients"] <= TOLERANCE
    assert residual["gradient_times_input"] > 0.1


@pytest.mark.parametrize("method", keeping("linearity"))
def test_linearity(method: str) -> None:
    batch, model = everything(cohort(2)), LinearModel(2)
    found = explained(model, batch, sample(), method=method, population=population())  # type: ignore[arg-type]
    for name in (EVENTS, STATIC):
        expected = model.effect[name][batch.streams[name].ids, 0]
        torch.testing.assert_close(found.streams[name].double(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("method", keeping("alone_equals_batched"))
@pytest.mark.parametrize("seed", range(3))
def test_alone_equals_batched_in_any_order(method: str, seed: int) -> None:
    sequences, model = cohort(seed), model_of(seed, method=method)
    order = np.random.default_rng(seed).permutation(len(sequences))
    batch = sequences.batch(order)
    together = explained(model, batch, sample(), method=method, population=population(), tolerance=1e-9)
    flat = {EVENTS: np.zeros(len(sequences.event_id)), STATIC: np.zeros(len(sequences.static_id))}
    for name in flat:
        flat[name][batch.streams[name].at] = together.streams[name]
    for row in range(len(sequences)):
        single = sequences.batch(np.array([row]))
        alone = explained(model, single, sample(), method=method, population=population(), tolerance=1e-9)
        for name in flat:
            np.testing.assert_allclose(alone.streams[name], flat[name][single.streams[name].at], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", keeping("zero_on_padding"))
def test_zero_on_padding(method: str) -> None:
    model, batch = model_of(4, method=method), everything(cohort(4))
    padded = torch.arange(batch.n_steps)[None] >= batch.lengths[:, None]
    assert padded.any()
    for baseline in ("empty", "rates"):
        asked = {"method": method, "baseline": baseline, "population": population()}
        try:
            found, more = (explained(model, of, sample(), **asked) for of in (batch, wider(batch, 3)))  # type: ignore[arg-type]
        except UserError:
            if baseline == "empty":
                raise
            continue  # a method that knows the empty record alone
        for name in (EVENTS, STATIC):
            torch.testing.assert_close(more.streams[name], found.streams[name], rtol=1e-6, atol=1e-7)
        if found.absent:  # a method without a baseline has nothing to tell of absence
            assert (found.absent[EVENTS][padded] == 0).all()
            assert (found.absent[EVENTS][~padded] != 0).any()


@pytest.mark.parametrize("method", keeping("dummy"))
def test_dummy(method: str) -> None:
    sequences, model = cohort(5), model_of(5, method=method)
    batch = everything(sequences)
    with torch.no_grad():
        for table in model.tables.values():
            table[7] = 0
    found = explained(model, batch, sample(), method=method, population=population())
    for name in (EVENTS, STATIC):
        idle = batch.streams[name].ids == 7
        assert (found.streams[name][idle] == 0).all()
        assert (found.streams[name][~idle] != 0).any() != (name == STATIC and method in HOLD_STATIC)
    assert (batch.streams[EVENTS].ids == 7).any()


@pytest.mark.parametrize("method", keeping("symmetry"))
def test_symmetry(method: str) -> None:
    """Values 3 and 4 have the same embedding; wherever both stand in a step they share equally."""
    row = {
        "subject_id": 1, "prediction_time": 0, "label": "true", "split": "train", "strata": [],
        "step_minutes": [2, 1], "event_step": [0, 0, 0, 1, 1], "event_id": [3, 4, 9, 3, 4],
        "event_value": [None] * 5, "static_id": [3, 4], "static_value": [None] * 2,
    }  # fmt: skip
    model = model_of(6, 1.0, method)  # gently bent, so that shares held within 0 and 1 stay between
    with torch.no_grad():
        for table in model.tables.values():
            table[3] = table[4]
    batch = Sequences(pa.Table.from_pylist([row], schema=SEQUENCES)).batch(np.array([0]))
    # A baseline that held one of the two and not the other would tell them apart.
    found = explained(model, batch, sample(), method=method, population=population(least=5))
    events, static = found.streams[EVENTS], found.streams[STATIC]
    same = lambda a, b: bool(torch.isclose(a, b, rtol=1e-9, atol=1e-12))  # noqa: E731
    assert same(events[0], events[1])
    assert not same(events[1], events[2])
    assert same(events[3], events[4])
    assert not same(events[4], events[0])
    assert same(static[0], static[1])
    assert bool(static[0] == 0) == (method in HOLD_STATIC)


@pytest.mark.parametrize("method", keeping("steps_complete"))
@pytest.mark.parametrize("baseline", sorted(BASELINES))
def test_steps_complete(method: str, baseline: str) -> None:
    """Each step's sum is what the prediction made at it changes, asked of the model by replacing that step."""
    batch, model, of = everything(cohort(12)), model_of(12), population()
    found = attribute(model, batch, method=method, baseline=baseline, population=of, tolerance=1e-6)
    values = batch.streams[EVENTS]
    ends = torch.cat([values.offsets[1:], torch.tensor([len(values.ids)])])
    bag = torch.repeat_interleave(torch.arange(len(values.offsets)), ends - values.offsets)
    total = torch.zeros(len(values.offsets), dtype=torch.float64).index_add_(0, bag, found.streams[EVENTS].double())
    total = total.view(len(batch), batch.n_steps)
    if baseline != "empty":
        total = total + found.absent[EVENTS]
    embedded = model.embed(batch)
    begin = given_baseline(baseline, model, batch, of).embedded or {n: 0 * t for n, t in embedded.items()}
    changes = 0
    with torch.no_grad():
        for row, length in enumerate(batch.lengths.tolist()):
            for step in range(length):
                own = {name: tensor[row : row + 1].clone() for name, tensor in embedded.items()}
                other = {name: tensor.clone() for name, tensor in own.items()}
                other[EVENTS][0, step] = begin[EVENTS][row, step]
                cut = torch.tensor([step + 1])
                change = float(model.score(own, cut) - model.score(other, cut))
                assert abs(change - float(total[row, step])) < 1e-5
                changes += abs(change) > 0.1
    assert changes > 10


@pytest.mark.parametrize("baseline", ["empty", "rates"])
@pytest.mark.parametrize("method", keeping("share"))
def test_share(method: str, baseline: str) -> None:
    batch, model = everything(cohort(11)), model_of(11, method=method)
    found = explained(model, batch, sample(), method=method, baseline=baseline, population=population())
    shares = torch.cat([*found.streams.values(), *(part.flatten() for part in found.absent.values())])
    assert ((shares >= 0) & (shares <= 1)).all()
    assert ((shares > 0) & (shares < 1)).any()


def test_quick_options_are_of_methods_that_there_are() -> None:
    assert set(QUICK) <= set(registered_methods())


@pytest.mark.parametrize("seed", range(3))
def test_integrated_gradients_equals_its_replica(seed: int) -> None:
    sequences, model = cohort(seed, patients=5, longest=5), model_of(seed, scale=2.0)
    batch = everything(sequences)
    found = attribute(model, batch, tolerance=1e-12)
    parameters = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    for row, record in enumerate(sequences.table.to_pylist()):
        events, static = torch.zeros(len(record["step_minutes"]), SIZE), torch.zeros(SIZE)
        events, static = events.double(), static.double()
        for step, place in zip(record["event_step"], record["event_id"], strict=True):
            events[step, place] += 1
        for place in record["static_id"]:
            static[place] += 1
        assert abs(dense_score(parameters, events, static) - found.score[row]) < 1e-9
        dense_events, dense_static = dense_integrated_gradients(parameters, events, static, nodes=400)
        single = sequences.batch(np.array([row]))
        own = attribute(model, single, tolerance=1e-12)
        sparse = torch.zeros_like(events).view(-1)
        bag = torch.tensor(record["event_step"], dtype=torch.long) * SIZE + torch.tensor(
            record["event_id"], dtype=torch.long
        )
        sparse.index_add_(0, bag, own.streams[EVENTS].double())
        torch.testing.assert_close(sparse.view_as(events), dense_events, rtol=1e-4, atol=1e-5)
        sparse = torch.zeros(SIZE, dtype=torch.float64)
        sparse.index_add_(0, torch.tensor(record["static_id"], dtype=torch.long), own.streams[STATIC].double())
        torch.testing.assert_close(sparse, dense_static, rtol=1e-4, atol=1e-5)


def test_nodes_are_added_only_where_they_are_needed() -> None:
    batch, model = everything(cohort(8)), model_of(8, scale=3.0)
    nodes = attribute(model, batch, tolerance=1e-7).n_evaluations
    assert nodes[0] == 8 or len(batch.streams[STATIC].ids)  # the record without steps is nearly straight
    assert len(torch.unique(nodes)) > 1


def test_a_model_that_is_not_finite_is_named() -> None:
    batch, model = everything(cohort(9)), model_of(9)
    with torch.no_grad():
        model.head.weight[0, 0] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        attribute(model, batch)


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"method": "integrated_gradient"}, "did you mean 'integrated_gradients'"),
        ({"baseline": "emty"}, "did you mean 'empty'"),
        ({"target": "logits"}, "did you mean 'logit'"),
    ],
)
def test_unknown_names_are_answered_with_the_nearest(asked: dict[str, str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        attribute(model_of(0), everything(cohort(0)), **asked)  # type: ignore[arg-type]


def test_evaluation_mode_is_left_as_it_was() -> None:
    model = model_of(0)
    attribute(model, everything(cohort(0)))
    assert not any(module.training for module in model.modules())
    with recurrence_with_gradients(model):
        assert not model.training


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here")
def test_gradients_on_a_gpu_work_in_evaluation_mode_and_agree() -> None:
    sequences, model = cohort(10), model_of(10).float()
    here = attribute(model, everything(sequences))
    there = attribute(model.cuda(), sequences.batch(np.arange(len(sequences)), "cuda"))
    for name in here.streams:
        torch.testing.assert_close(there.streams[name].cpu(), here.streams[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("baseline", sorted(set(BASELINES) - {"empty"}))
def test_baselines_are_those_of_dense_records(baseline: str) -> None:
    """Each baseline as a multi-hot record: the linear model's effects tell what every value and absence adds."""
    sequences, model, of = cohort(7), LinearModel(7), population()
    batch = everything(sequences)
    found = attribute(model, batch, method="gradient_times_input", baseline=baseline, population=of)  # type: ignore[arg-type]
    code = np.arange(SIZE) % 7 - 1
    references = cohort(98).table.to_pylist()
    dense: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for row, record in enumerate(sequences.table.to_pylist()):
        steps = len(record["step_minutes"])
        events, static = np.zeros((steps, SIZE)), np.zeros(SIZE)
        here: list[list[int]] = [[] for _ in range(steps)]
        for step, place in zip(record["event_step"], record["event_id"], strict=True):
            here[step].append(place)
        if baseline == "rates":
            others = cohort(99).table.to_pylist()
            total = sum(len(other["step_minutes"]) for other in others)
            for other in others:
                for place in other["event_id"]:
                    events[:, place] += 1 / total
                for place in other["static_id"]:
                    static[place] += 1 / len(others)
        elif baseline == "carried_forward":
            for step in range(steps):
                for kind in {code[place] for place in here[step]} - {-1}:
                    before = [s for s in range(step) if any(code[p] == kind for p in here[s])]
                    for place in here[before[-1]] if before else []:
                        events[step, place] += code[place] == kind
            for place in record["static_id"]:
                static[place] += 1
        else:
            drawn = None  # the one whose score it is
            for other in references:
                length = len(other["step_minutes"])
                tried, tried_static = np.zeros((steps, SIZE)), np.zeros(SIZE)
                for step, place in zip(other["event_step"], other["event_id"], strict=True):
                    if step + steps - length >= 0:
                        tried[step + steps - length, place] += 1
                for place in other["static_id"]:
                    tried_static[place] += 1
                score = float(np.sum(tried @ model.effect[EVENTS].numpy())) + 0.5
                score += float((tried_static @ model.effect[STATIC].numpy()).sum())
                if abs(score - float(found.baseline_score[row])) < 1e-6:
                    drawn = tried, tried_static
            assert drawn is not None
            events, static = drawn
        dense[row] = events, static
        score = float((events @ model.effect[EVENTS].numpy()).sum() + (static @ model.effect[STATIC].numpy()).sum())
        assert abs(score + 0.5 - float(found.baseline_score[row])) < 1e-5
        # What each step's values and absence add, together and apart.
        own = np.zeros((steps, SIZE))
        for step, places in enumerate(here):
            for place in places:
                own[step, place] += 1
        effect = model.effect[EVENTS].numpy()[:, 0]
        absent = -(np.where(own > 0, 0, events) @ effect)
        np.testing.assert_allclose(found.absent[EVENTS][row, :steps], absent, atol=1e-5)
    for name, per_patient in ((EVENTS, batch.n_steps), (STATIC, 1)):
        bags = batch.streams[name]
        ends = np.append(bags.offsets.numpy(), len(bags.ids))
        for bag in range(len(bags.offsets)):
            row, step = divmod(bag, per_patient)
            ids = bags.ids[ends[bag] : ends[bag + 1]].tolist()
            for at, place in enumerate(ids, start=ends[bag]):
                theirs = dense[row][0][step] if name == EVENTS else dense[row][1]
                expected = (1 - theirs[place] / ids.count(place)) * float(model.effect[name][place])
                assert abs(float(found.streams[name][at]) - expected) < 1e-5


def test_draws_belong_to_predictions_and_are_uniform() -> None:
    keys = everything(cohort(3, patients=400)).keys
    whole = Draws(keys, 5).uniform(2, (400, 7, 3)).numpy()
    some = Draws(keys[[9, 4]], 5).uniform(2, (2, 9, 3)).numpy()
    assert (some[:, :7] == whole[[9, 4]]).all()
    flat = np.sort(whole.ravel())
    assert np.abs(flat - (np.arange(len(flat)) + 0.5) / len(flat)).max() < 0.02
    assert len(np.unique(flat)) == len(flat)
    assert abs(np.corrcoef(whole.reshape(400, -1).T) - np.eye(21)).max() < 0.25
    assert (Draws(keys, 6).uniform(2, (400, 7, 3)).numpy() != whole).all()
    normal = Draws(keys, 5).normal(2, (400, 7, 3)).numpy()
    assert abs(normal.mean()) < 0.05
    assert abs(normal.std() - 1) < 0.05


@pytest.mark.parametrize(
    ("name", "given", "told"),
    [
        ("integrated_gradients", "rates", "rates"),
        ("saliency", "rates", "nothing"),
        ("expected_gradients", "empty", "reference"),
        ("expected_gradients", "rates", "rates"),
        ("augmented_occlusion", "empty", "other patients"),
    ],
)
def test_what_a_record_is_compared_with_is_told(name: str, given: str, told: str) -> None:
    """Not what was asked for: some methods draw their own, or compare with nothing."""
    assert registered_methods()[name].compares_with(given) == told
