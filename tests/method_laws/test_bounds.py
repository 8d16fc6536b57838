"""Records of no step, one and 50,000; batches of nobody; weights that are no numbers: every method says what it does."""

from __future__ import annotations

import resource
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from method_laws.test_laws import OWN_MODELS, SIZE, cohort, everything, model_of, population, sample
from quick_methods import explained
from whenwhy.attribution import BASELINES, attribute, fit_method, question, registered_methods
from whenwhy.errors import UserError
from whenwhy.events.sequence_batch import EVENTS, STATIC, SequenceBatch, Sequences
from whenwhy.models.bag_classifier import BagClassifier
from whenwhy.models.recurrent import RecurrentClassifier
from whenwhy.schema import SEQUENCES

pytestmark = pytest.mark.usefixtures("one_thread")

METHODS = registered_methods()

#: Methods that are told of the empty record alone.
WITHOUT_A_BASELINE = {
    "contextual_decomposition", "layerwise_relevance", "relevance_dropout", "retain_contributions",
}  # fmt: skip


def record(steps: int, static: list[int], subject: int = 1, seed: int = 0) -> dict[str, Any]:
    """A record of one value a step."""
    ids = np.random.default_rng(seed).integers(1, SIZE, size=steps).tolist()
    return {
        "subject_id": subject, "prediction_time": 0, "label": "true", "split": "train", "strata": [],
        "step_minutes": list(range(steps, 0, -1)), "event_step": list(range(steps)), "event_id": ids,
        "event_value": [None] * steps, "static_id": static, "static_value": [None] * len(static),
    }  # fmt: skip


def batch_of(*records: dict[str, Any]) -> SequenceBatch:
    return everything(Sequences(pa.Table.from_pylist(list(records), schema=SEQUENCES)))


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("method", METHODS)
def test_a_batch_of_nobody_has_no_attributions(method: str, baseline: str) -> None:
    nobody = cohort(1).batch(np.array([], dtype=np.int64))
    for model in (model_of(1), RecurrentClassifier(SIZE, 4, bidirectional=True).eval()):
        found = explained(model, nobody, sample(), method=method, baseline=baseline, population=population()) \
            if not (method in WITHOUT_A_BASELINE and baseline != "empty") else attribute(model, nobody, method=method)  # fmt: skip
        assert [len(part) for part in found.streams.values()] == [0, 0]
        for told in (found.score, found.baseline_score, found.n_evaluations, found.residual):
            assert told.shape == (0,)
        assert found.probabilities.shape == (0, 2)
    with pytest.raises(UserError, match="did you mean 'empty'"):
        attribute(model_of(1), nobody, baseline="empt")
    with pytest.raises(UserError, match="did you mean 'logit'"):
        attribute(model_of(1), nobody, target="logits")


@pytest.mark.parametrize("baseline", ["empty", "rates"])
@pytest.mark.parametrize("method", METHODS)
def test_records_without_steps_are_explained_by_their_static_values(method: str, baseline: str) -> None:
    """A batch of padding alone."""
    if method in WITHOUT_A_BASELINE and baseline != "empty":
        return
    batch, model = batch_of(record(0, [3, 4]), record(0, [], 2), record(0, [5], 3)), model_of(2, method=method)
    found = explained(model, batch, sample(), method=method, baseline=baseline, population=population())
    assert (batch.lengths == 0).all()
    assert found.streams[EVENTS].shape == (0,)
    assert found.streams[STATIC].shape == (3,)
    assert found.streams[STATIC].isfinite().all()
    assert bool(found.residual.isfinite().all()) == METHODS[method].sums_to_score
    for part in found.absent.values():
        assert part.isfinite().all()
    if found.absent:
        assert (found.absent[EVENTS] == 0).all()
    holds = method in ("prefix_integrated_gradients", "temporal_integrated_gradients")
    assert bool((found.streams[STATIC] == 0).all()) == holds
    if "completeness" in METHODS[method].laws:
        assert float(found.residual.abs().max()) < 1e-4


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=4, deadline=None)
@given(lengths=st.lists(st.integers(0, 2), min_size=1, max_size=4), seed=st.integers(0, 1000))
def test_the_shortest_records_are_explained_in_any_company(method: str, lengths: list[int], seed: int) -> None:
    records = [record(steps, [3] * (at % 2), at + 1, seed + at) for at, steps in enumerate(lengths)]
    model, batch = model_of(3, 1.0, method), batch_of(*records)
    found = explained(model, batch, sample(), method=method, population=population())
    assert len(found.streams[EVENTS]) == sum(lengths)
    assert all(part.isfinite().all() for part in found.streams.values())
    first = explained(model, batch_of(records[0]), sample(), method=method, population=population())
    own = found.streams[EVENTS][: lengths[0]]
    torch.testing.assert_close(first.streams[EVENTS], own, rtol=1e-5, atol=1e-6)
    assert float(found.score[0] - first.score[0]) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("where", ["head.weight", "tables.events", "cell.weight_hh_l0"])
@pytest.mark.parametrize("method", METHODS)
def test_weights_that_are_no_numbers_are_named(method: str, where: str) -> None:
    model = model_of(9, method=method)
    fitted = None
    if METHODS[method].fit is not None:
        fitted = fit_method(model, [sample()], method=method, options={"epochs": 0, "gap_epochs": 0})
    with torch.no_grad():
        next(weights for name, weights in model.named_parameters() if name.endswith(where)).fill_(float("nan"))
    with pytest.raises(UserError, match=r"The model's score is not finite \(NaN or infinite\): check its weights"):
        attribute(model, everything(cohort(9)), method=method, population=population(), fitted=fitted)
    if METHODS[method].fit is not None:
        with pytest.raises(UserError, match="not finite"):
            fit_method(model, [sample()], method=method)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_modes_weights_and_gradients_are_left_as_they_were(method: str, training: bool) -> None:
    """Of every part by itself; whether gradients are asked for outside makes no difference."""
    model = OWN_MODELS.get(method, RecurrentClassifier)(SIZE, 5, dropout=0.0).double()
    model.train(training)
    next(part for part in model.modules() if isinstance(part, torch.nn.GRU)).train(not training)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes, asked = [part.training for part in model.modules()], [p.requires_grad for p in model.parameters()]
    batch = everything(cohort(1, patients=4))
    found = explained(model, batch, sample(), method=method, population=population())
    with torch.no_grad():
        again = explained(model, batch, sample(), method=method, population=population())
    assert [part.training for part in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == asked
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    assert not any(part.requires_grad for part in found.streams.values())
    torch.testing.assert_close(again.streams, found.streams)


LONG = 50_000

#: What keeps a method's time and memory at what the record itself takes.
AFFORDABLE: dict[str, dict[str, Any]] = {
    "augmented_occlusion": {}, "contextual_decomposition": {"unit": "feature_value"}, "extremal_mask": {"epochs": 1},
    "kernel_shap": {"samples": 4}, "occlusion": {"unit": "feature_value"}, "relevance_dropout": {"runs": 2},
    "shapley": {"samples": 4, "players": "features"}, "smooth_grad": {"samples": 2}, "timing": {"samples": 2},
    "expected_gradients": {"samples": 2}, "amortised_mask": {},
}  # fmt: skip

#: Methods whose work grows with the square of the steps as they are asked by default.
REFUSED = {
    "augmented_occlusion": "set more to the baseline's at a time",
    "contextual_decomposition": "unit=feature_value",
    "occlusion": "set more to the baseline's at a time",
    "shapley": "take fewer samples",
    "temporal_occlusion": "set more to the baseline's at a time",
}


def tiny(method: str = "") -> BagClassifier:
    torch.manual_seed(1)
    return OWN_MODELS.get(method, RecurrentClassifier)(SIZE, 2).eval()


def refused(method: str, steps: int) -> None:
    with pytest.raises(UserError, match=REFUSED[method]) as told:
        attribute(tiny(), batch_of(record(steps, [3])), method=method, population=population())
    assert f"A record of {steps:,} steps would be read" in str(told.value)
    assert "prepare with --max-steps" in str(told.value)


@pytest.mark.parametrize("method", REFUSED)
def test_what_would_take_too_long_is_refused(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(question, "MOST_STEPS", 400)
    refused(method, 40)
    short = attribute(tiny(), batch_of(record(2, [3])), method=method, population=population())
    assert short.streams[EVENTS].isfinite().all()


@pytest.mark.full
@pytest.mark.parametrize("method", REFUSED)
def test_what_would_take_hours_is_refused(method: str) -> None:
    refused(method, LONG)


def long_record(method: str) -> None:
    """A record of 50,000 steps is explained, in memory of a few hundred numbers a step."""
    model, batch = tiny(method), batch_of(record(LONG, [3]))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    fitted = None
    if METHODS[method].fit is not None:
        fitted = fit_method(model, [sample()], method=method, options={"epochs": 1, "hidden": 4, "gap_epochs": 0})
    options = AFFORDABLE.get(method, {})
    found = attribute(
        model, batch, method=method, population=population(), tolerance=10.0, options=options, fitted=fitted
    )
    assert found.streams[EVENTS].shape == (LONG,)
    assert found.streams[EVENTS].isfinite().all()
    assert (found.streams[EVENTS] != 0).any()
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 3e9


@pytest.mark.full
@pytest.mark.parametrize("method", [name for name in METHODS if AFFORDABLE.get(name) or name not in REFUSED])
def test_a_record_of_50_000_steps_by_every_method(method: str) -> None:
    long_record(method)
