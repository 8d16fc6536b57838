"""Attention and RETAIN's own contributions: equal to their replicas, offered as what they are, refused elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from replicas.recurrent import recurrent_attention, recurrent_states, retain_attention, retain_contributions
from test_models import MODELS, SIZE, model_of, multi_hot, records
from whenwhy.attribution import attribute, registered_methods
from whenwhy.errors import UserError
from whenwhy.events.sequence_batch import EVENTS, STATIC, Sequences
from whenwhy.models.recurrent import GRUClassifier
from whenwhy.schema import SEQUENCES

ATTENTIVE = [name for name in MODELS if name.startswith(("gru_attention", "retain"))]
RETAINS = [name for name in MODELS if name.startswith("retain")]
MEMBERS = 3


def parameters_of(model: torch.nn.Module, name: str) -> list[dict[str, np.ndarray]]:
    """Those of each member, by their names in the member."""
    everything = {key: tensor.numpy() for key, tensor in model.state_dict().items()}
    if "members" not in MODELS[name][1]:
        return [everything]
    prefixes = [f"member.{member}." for member in range(MEMBERS)]
    return [{key.removeprefix(p): of for key, of in everything.items() if key.startswith(p)} for p in prefixes]


@pytest.mark.parametrize("name", ATTENTIVE)
def test_attention_is_that_of_the_replica(name: str) -> None:
    model, sequences, options = model_of(name), records(), MODELS[name][1]
    batch = sequences.batch(np.arange(len(sequences)))
    found = attribute(model, batch, method="attention")
    compared = 0
    for row, record in enumerate(sequences.table.to_pylist()):
        events, static = multi_hot(record)
        weights = []
        for p in parameters_of(model, name):
            if name in RETAINS:
                weights.append([0.0, *retain_attention(p, events, options["layers"])[0]])
                continue
            states, last = recurrent_states(p, events, static, "gru", options["layers"], options["bidirectional"])
            weights.append(recurrent_attention(p, states, last, options["pooling"]))
        start, *steps = np.mean(weights, axis=0)
        assert start + sum(steps) == pytest.approx(float(len(steps) > 0 or name not in RETAINS))
        own = found.streams[EVENTS][batch.streams[EVENTS].bag // batch.n_steps == row].numpy()
        np.testing.assert_allclose(own, np.array(steps)[np.array(record["event_step"], int)], atol=1e-12)
        fixed = found.streams[STATIC][batch.streams[STATIC].bag == row].numpy()
        np.testing.assert_allclose(fixed, start, atol=1e-12)
        compared += len(own)
    assert compared == len(found.streams[EVENTS])
    assert found.streams[EVENTS].std() > 0.01


@pytest.mark.parametrize("name", RETAINS)
def test_retain_s_contributions_are_those_of_the_replica(name: str) -> None:
    model, sequences, options = model_of(name), records(), MODELS[name][1]
    batch = sequences.batch(np.arange(len(sequences)))
    found = attribute(model, batch, method="retain_contributions")
    assert float(found.residual.abs().max()) < 1e-6
    assert float((found.score - found.baseline_score).abs().max()) > 0.1
    bags = batch.streams[EVENTS]
    dense = torch.zeros(len(batch), batch.n_steps, SIZE, dtype=torch.float64)
    dense.index_put_(
        (bags.bag // batch.n_steps, bags.bag % batch.n_steps, bags.ids.long()), found.streams[EVENTS].double(), True
    )
    for row, record in enumerate(sequences.table.to_pylist()):
        events, _ = multi_hot(record)
        told = [retain_contributions(p, events, options["layers"]) for p in parameters_of(model, name)]
        np.testing.assert_allclose(dense[row, : len(events)].numpy(), np.mean(told, axis=0), atol=1e-6)


def test_retain_s_contributions_differ_from_what_removal_and_gradients_tell() -> None:
    """What a value does to attention is in no number of RETAIN's own."""
    model, sequences = model_of("retain-1"), records()
    batch = sequences.batch(np.arange(len(sequences)))
    own, others = (
        attribute(model, batch, method=method).streams[EVENTS] for method in ("retain_contributions", "occlusion")
    )
    assert float((own - others).abs().max()) > 0.05


def test_retain_tells_of_any_linear_target() -> None:
    model, sequences = model_of("retain-1"), records()
    batch = sequences.batch(np.arange(len(sequences)))
    logit, other, against = (
        attribute(model, batch, method="retain_contributions", target=target).streams[EVENTS]
        for target in ("logit", "logit:false", "log_odds:false:true")
    )
    torch.testing.assert_close(other, -logit)
    torch.testing.assert_close(against, -logit)


def test_attention_is_labelled_as_no_contribution() -> None:
    methods = registered_methods()
    assert methods["attention"].measures == "attention"
    assert "not a contribution" in methods["attention"].describes
    assert not methods["attention"].sums_to_score
    assert methods["retain_contributions"].sums_to_score


@pytest.mark.parametrize(
    ("name", "asked", "sentence"),
    [
        ("gru-last-1", {"method": "attention"}, "The model has no attention that whenwhy knows"),
        ("gru-mean-1-members", {"method": "attention"}, "The model has no attention"),
        ("gru-last-1", {"method": "retain_contributions"}, "no contributions of its own"),
        ("gru_attention-dot-1", {"method": "retain_contributions"}, "no contributions of its own"),
        ("gru-mean-1-members", {"method": "retain_contributions"}, "no contributions of its own"),
        ("retain-1", {"method": "retain_contributions", "target": "probability"}, "not to 'probability'"),
        ("gru_attention-dot-1", {"method": "attention", "target": "unit:0"}, "not of 'unit:0'"),
        ("gru_attention-dot-1", {"method": "attention", "target": "logit@0"}, "not of 'logit@0'"),
    ],
)
def test_what_a_model_does_not_have_is_refused(name: str, asked: dict[str, Any], sentence: str) -> None:
    sequences = records()
    with pytest.raises(UserError, match=sentence):
        attribute(model_of(name), sequences.batch(np.arange(len(sequences))), **asked)


def test_a_stranger_s_network_has_neither() -> None:
    class Network:
        vocabulary_size = SIZE

        def __init__(self) -> None:
            self.own = GRUClassifier(SIZE, hidden=3).eval()
            self.embed, self.score = self.own.embed, self.own.score

    row = {
        "subject_id": 1, "prediction_time": 0, "label": "true", "split": "train", "strata": [], "step_minutes": [1],
        "event_step": [0], "event_id": [3], "event_value": [None], "static_id": [], "static_value": [],
    }  # fmt: skip
    batch = Sequences(pa.Table.from_pylist([row], schema=SEQUENCES)).batch(np.array([0]))
    for method, sentence in (("attention", "no attention"), ("retain_contributions", "no contributions of its own")):
        with pytest.raises(UserError, match=sentence):
            attribute(Network(), batch, method=method)  # type: ignore[arg-type]
