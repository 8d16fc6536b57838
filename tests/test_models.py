"""Models: each equals its replica, sees true steps alone, knows which are causal, and can be explained completely."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from replicas.recurrent import ensemble_score, recurrent_score, retain_score
from whenwhy.attribution import attribute
from whenwhy.errors import UserError
from whenwhy.events.sequence_batch import EVENTS, STATIC, Sequences
from whenwhy.models.architectures import ARCHITECTURES, model_arguments
from whenwhy.models.bag_classifier import Classifier
from whenwhy.models.retain import Retain
from whenwhy.models.sequence_model import Embedded
from whenwhy.schema import SEQUENCES

SIZE, HIDDEN = 20, 5
CELL = {"gru": "gru", "gru_attention": "gru", "lstm": "lstm"}

#: Every architecture, pooling, depth and direction, and ensembles.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    f"{name}-{pooling}-{layers}{'-bidirectional' if both else ''}": (
        name,
        {"pooling": pooling, "layers": layers, "bidirectional": both},
    )
    for name in ("gru", "lstm", "gru_attention")
    for pooling in ARCHITECTURES[name].poolings
    for layers in (1, 2)
    for both in (False, True)
} | {f"retain-{layers}": ("retain", {"layers": layers}) for layers in (1, 2)}
MODELS |= {
    f"{name}-members": (MODELS[name][0], MODELS[name][1] | {"members": 3})
    for name in ("gru-mean-1", "lstm-last-1-bidirectional", "retain-1")
}
CAUSAL = [name for name in MODELS if "bidirectional" not in name and "retain" not in name]
every_model = pytest.mark.parametrize("name", MODELS)


def model_of(name: str, scale: float = 0.7) -> Classifier:
    """A model in float64 whose every parameter matters."""
    architecture, options = MODELS[name]
    torch.manual_seed(3)
    arguments = model_arguments(architecture, vocabulary_size=SIZE, hidden=HIDDEN, dropout=0.5, **options)
    model = ARCHITECTURES[architecture](**arguments).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, scale)
    return model


def records() -> Sequences:
    """Records of 0 to 7 steps: one has static values alone, one nothing at all, some no static value."""
    random = np.random.default_rng(5)
    rows = []
    for subject, steps in enumerate((0, 0, 1, 3, 7, 5)):
        at = np.repeat(np.arange(steps), random.integers(1, 4, size=steps))
        static = random.integers(1, SIZE, size=[2, 0, 1, 0, 3, 2][subject])
        rows.append(
            {
                "subject_id": subject, "prediction_time": 0, "label": "true", "split": "train", "strata": [],
                "step_minutes": list(range(steps, 0, -1)),
                "event_step": at.tolist(), "event_id": random.integers(1, SIZE, size=len(at)).tolist(),
                "event_value": [None] * len(at), "static_id": static.tolist(), "static_value": [None] * len(static),
            }
        )  # fmt: skip
    return Sequences(pa.Table.from_pylist(rows, schema=SEQUENCES))


def embedded_of(model: Classifier, sequences: Sequences) -> tuple[Embedded, torch.Tensor]:
    batch = sequences.batch(np.arange(len(sequences)))
    with torch.no_grad():
        return model.embed(batch), batch.lengths


def multi_hot(record: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Events [step, feature value] and static [feature value]."""
    events, static = np.zeros((len(record["step_minutes"]), SIZE)), np.zeros(SIZE)
    np.add.at(events, (np.array(record["event_step"], int), np.array(record["event_id"], int)), 1)
    np.add.at(static, np.array(record["static_id"], int), 1)
    return events, static


@every_model
def test_a_model_equals_its_replica(name: str) -> None:
    model, sequences = model_of(name), records()
    architecture, options = MODELS[name]
    parameters = {key: tensor.numpy() for key, tensor in model.state_dict().items()}
    score = model.score(*embedded_of(model, sequences)).detach().numpy()
    for row, record in enumerate(sequences.table.to_pylist()):
        inputs, of_one = multi_hot(record), {key: value for key, value in options.items() if key != "members"}
        replica = (
            partial(retain_score, events=inputs[0], static=inputs[1], **of_one)
            if architecture == "retain"
            else partial(recurrent_score, events=inputs[0], static=inputs[1], cell=CELL[architecture], **of_one)
        )
        members = options.get("members", 1)
        expected = ensemble_score(parameters, members, replica) if members > 1 else replica(parameters)
        assert score[row] == pytest.approx(expected, abs=1e-10)
    assert len(set(np.round(score, 6))) == len(score)  # the records are told apart


@every_model
def test_padding_changes_nothing(name: str) -> None:
    model = model_of(name)
    embedded, lengths = embedded_of(model, records())
    n_steps = embedded[EVENTS].shape[1]
    wider = torch.randn(len(lengths), n_steps + 4, embedded[EVENTS].shape[2], dtype=torch.float64) * 9
    true = torch.arange(n_steps) < lengths[:, None]
    wider[:, :n_steps][true] = embedded[EVENTS][true]
    found = model.score({EVENTS: wider.requires_grad_(), STATIC: embedded[STATIC]}, lengths)
    torch.testing.assert_close(found, model.score(embedded, lengths), rtol=0, atol=1e-12)
    (gradient,) = torch.autograd.grad(found.sum(), wider)
    padded = torch.arange(n_steps + 4) >= lengths[:, None]
    assert (gradient[padded] == 0).all()
    assert (gradient[~padded] != 0).any()


@every_model
def test_alone_equals_batched(name: str) -> None:
    model, sequences = model_of(name), records()
    together = model.score(*embedded_of(model, sequences))
    for row in range(len(sequences)):
        batch = sequences.batch(np.array([row]))
        torch.testing.assert_close(model(batch)[0], together[row], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", CAUSAL)
def test_a_step_score_is_the_score_of_the_record_cut_there(name: str) -> None:
    model = model_of(name)
    embedded, lengths = embedded_of(model, records())
    steps = model.step_scores(embedded, lengths)
    assert steps.shape == embedded[EVENTS].shape[:2]
    for step in range(int(lengths.max())):
        cut = {EVENTS: embedded[EVENTS][:, : step + 1], STATIC: embedded[STATIC]}
        long = lengths > step
        expected = model.score(cut, lengths.clamp(max=step + 1))
        torch.testing.assert_close(steps[long, step], expected[long], rtol=0, atol=1e-12)
    ends = torch.arange(len(lengths)), (lengths - 1).clamp(min=0)
    true = lengths > 0
    torch.testing.assert_close(steps[ends][true], model.score(embedded, lengths)[true], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", CAUSAL)
def test_causal_models_do_not_look_ahead(name: str) -> None:
    model = model_of(name)
    embedded, lengths = embedded_of(model, records())
    before = model.step_scores(embedded, lengths)
    embedded[EVENTS][:, 3:] += 5
    after = model.step_scores(embedded, lengths)
    torch.testing.assert_close(after[:, :3], before[:, :3], rtol=0, atol=0)
    assert (after[:, 3:] != before[:, 3:]).any()


def test_bidirectional_states_look_ahead() -> None:
    """So the test above would notice if a model that is not causal passed for one."""
    model = model_of("gru-last-1-bidirectional")
    embedded, lengths = embedded_of(model, records())
    before = model._states(embedded, lengths)  # type: ignore[operator]
    embedded[EVENTS][4, 6] += 5
    after = model._states(embedded, lengths)  # type: ignore[operator]
    assert (after[4, 1:4, HIDDEN:] != before[4, 1:4, HIDDEN:]).any()
    assert (after[4, 1:4, :HIDDEN] == before[4, 1:4, :HIDDEN]).all()


@pytest.mark.parametrize("name", [name for name in MODELS if name not in CAUSAL])
def test_scores_at_every_step_are_refused_with_the_reason(name: str) -> None:
    model = model_of(name)
    with pytest.raises(UserError, match="backwards from its end" if "retain" in name else "bidirectional"):
        model.step_scores(*embedded_of(model, records()))


@every_model
def test_integrated_gradients_are_complete(name: str) -> None:
    model, sequences = model_of(name, scale=0.5), records()
    batch = sequences.batch(np.arange(len(sequences)))
    found = attribute(model, batch, tolerance=1e-4)
    total = torch.zeros(len(batch), dtype=torch.float64)
    for stream, width in ((EVENTS, batch.n_steps), (STATIC, 1)):
        bags = batch.streams[stream]
        ends = torch.cat([bags.offsets[1:], torch.tensor([len(bags.ids)])])
        bag = torch.repeat_interleave(torch.arange(len(bags.offsets)), ends - bags.offsets)
        total.index_add_(0, bag // width, found.streams[stream].double())
    # The largest of some states bends sharply where another takes over, and quadrature feels it.
    tolerance = 1e-2 if "max" in name else 1e-4
    assert ((total - (found.score - found.baseline_score)).abs() <= tolerance).all()
    assert (found.score - found.baseline_score).abs().max() > 0.1  # a hundred tolerances at least


@pytest.mark.parametrize("layers", [1, 2])
def test_retain_is_read_off_its_attention(layers: int) -> None:
    """Its effects times the embeddings, and the bias, are the logit exactly, which is what RETAIN is for."""
    model = model_of(f"retain-{layers}")
    assert isinstance(model, Retain)
    embedded, lengths = embedded_of(model, records())
    alpha = model.attention_weights(embedded, lengths)[EVENTS]
    true = torch.arange(alpha.shape[1]) < lengths[:, None]
    assert (alpha[~true] == 0).all()
    torch.testing.assert_close(alpha.sum(1), (lengths > 0).double())
    effects = model.effects(embedded, lengths)
    parts = [(effects[name].squeeze(-1) * embedded[name]).flatten(1).sum(1) for name in (EVENTS, STATIC)]
    torch.testing.assert_close(sum(parts) + model.head.bias, model.score(embedded, lengths), rtol=0, atol=1e-12)


def test_members_differ_and_learn_as_they_would_alone() -> None:
    """A member's gradient is that of its own loss, whatever the others are."""
    sequences = records()
    batch = sequences.batch(np.arange(len(sequences)))
    arguments = model_arguments("gru", vocabulary_size=SIZE, hidden=HIDDEN, members=2)
    model = ARCHITECTURES["gru"](**arguments)
    first, second = model.members
    assert all(not torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    model.train()
    first(batch).sum().backward()
    assert all(parameter.grad is not None for parameter in first.parameters())
    assert all(parameter.grad is None for parameter in second.parameters())
    torch.testing.assert_close(model(batch), torch.stack([first(batch), second(batch)]).mean(0))


@pytest.mark.parametrize("name", ["gru-last-1", "retain-1", "gru-mean-1-members"])
def test_embeddings_are_linear_in_the_weights_and_dropped_in_training_alone(name: str) -> None:
    architecture, options = MODELS[name]
    arguments = model_arguments(architecture, vocabulary_size=SIZE, hidden=HIDDEN, input_dropout=0.5, **options)
    model, sequences = ARCHITECTURES[architecture](**arguments), records()
    batch = sequences.batch(np.arange(len(sequences)))
    doubled = {stream: 2 * bags.weights for stream, bags in batch.streams.items()}
    model.eval()
    for stream, tensor in model.embed(batch).items():
        torch.testing.assert_close(model.embed(batch, doubled)[stream], 2 * tensor)
    with torch.no_grad():
        for member in model.members:
            for table in member.tables.values():
                table.fill_(1)  # an embedding is now its bag's weight
    whole = model.embed(batch)[EVENTS][..., 0]
    model.train()
    torch.manual_seed(0)
    drawn = torch.stack([model.embed(batch)[EVENTS][..., 0] for _ in range(2000)])
    assert set(drawn.flatten().tolist()) <= {0.0, 2.0, 4.0, 6.0}  # whole values, each twice its weight
    torch.testing.assert_close(drawn.mean(0), whole, rtol=0, atol=0.25)


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("grru", {}, "did you mean 'gru'"),
        ("gru", {"pooling": "additive"}, "has no pooling 'additive': choose last, mean, max"),
        ("gru_attention", {"pooling": "mean"}, "choose additive, dot"),
        ("retain", {"pooling": "mean"}, "leave out --pooling"),
        ("retain", {"bidirectional": True}, "leave out --bidirectional"),
        ("gru", {"layers": 0}, "at least 1"),
        ("gru", {"members": 0}, "1 member"),
        ("gru", {"dropout": 1.0}, "from 0 to below 1"),
    ],
)
def test_options_that_an_architecture_lacks_are_refused(name: str, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        model_arguments(name, vocabulary_size=SIZE, hidden=HIDDEN, **options)
