"""Methods on models of several classes: log-odds of two of them are the one logit of a model of these two."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch

from method_laws.test_gradient_methods import bent
from method_laws.test_laws import SIZE, cohort, everything, population, sample, totals
from quick_methods import QUICK, explained
from whenwhy.attribution import attribute, own_steps, registered_methods
from whenwhy.attribution.attribute import question_of
from whenwhy.attribution.masks import MODES, MaskGame
from whenwhy.attribution.perturbation_networks import PerturbationNetworks
from whenwhy.attribution.targets import has_own_step_scores, target_named
from whenwhy.errors import UserError
from whenwhy.events.sequence_batch import EVENTS, STATIC
from whenwhy.models.bag_classifier import Classifier
from whenwhy.models.ensemble import Ensemble
from whenwhy.models.recurrent import RecurrentClassifier
from whenwhy.models.retain import Retain
from whenwhy.models.sequence_model import TWO_CLASSES, classes_of

pytestmark = pytest.mark.usefixtures("one_thread")

ABC = ("a", "b", "c")
MAKE: dict[str, Callable[[], Classifier]] = {
    "gru": partial(RecurrentClassifier, SIZE, hidden=5, classes=ABC),
    "lstm-2": partial(RecurrentClassifier, SIZE, hidden=4, cell="lstm", layers=2, pooling="mean", classes=ABC),
    "bidirectional": partial(RecurrentClassifier, SIZE, hidden=4, bidirectional=True, classes=ABC),
    "attention": partial(RecurrentClassifier, SIZE, hidden=5, pooling="additive", classes=ABC),
    "retain": partial(Retain, SIZE, hidden=5, classes=ABC),
    "ensemble": lambda: Ensemble(partial(RecurrentClassifier, SIZE, hidden=4, classes=ABC), 2),
}


def made_for(method: str, name: str = "gru") -> Callable[[], Classifier]:
    """A model of this name, or one that the method explains where it explains no other."""
    return MAKE[{"attention": "attention", "retain_contributions": "retain"}.get(method, name)]


def with_head(model: Classifier, of_head: torch.Tensor) -> Classifier:
    """The same model with other outputs: a row of `of_head` each, as a sum of its outputs [output, class]."""
    other = copy.deepcopy(model)
    for member in other.members:
        weight, bias = of_head @ member.head.weight, of_head @ member.head.bias
        member.head = torch.nn.Linear(weight.shape[1], len(weight)).to(weight)
        member.head.weight, member.head.bias = torch.nn.Parameter(weight), torch.nn.Parameter(bias)
        member.classes = TWO_CLASSES
    other.classes = TWO_CLASSES
    return other.eval()


def difference(plus: int, minus: int | None = None) -> torch.Tensor:
    row = torch.zeros(1, 3, dtype=torch.float64)
    row[0, plus] = 1
    if minus is not None:
        row[0, minus] = -1
    return row


@pytest.fixture(autouse=True)
def _hardly_anything_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is dropped is drawn for every weight, so models with other outputs would have other draws."""
    monkeypatch.setitem(QUICK, "relevance_dropout", {"runs": 2, "dropout": 1e-9})


@pytest.mark.parametrize("method", sorted(registered_methods()))
@pytest.mark.parametrize("name", ["gru", "lstm-2"])
def test_log_odds_of_two_of_three_are_the_logit_of_a_model_of_the_two(method: str, name: str) -> None:
    model, batch = bent(made_for(method, name)), everything(cohort(3, patients=6, longest=6))
    twin = with_head(model, difference(2, 0))
    ask = partial(explained, batch=batch, sample=sample(), method=method, population=population())
    found, expected = ask(model, target="log_odds:c:a"), ask(twin)
    torch.testing.assert_close(found.score, expected.score, rtol=0, atol=1e-9)
    torch.testing.assert_close(found.baseline_score, expected.baseline_score, rtol=0, atol=1e-9)
    torch.testing.assert_close(found.streams, expected.streams, rtol=1e-6, atol=1e-7)
    assert max(float(found.streams[n].abs().max()) for n in (EVENTS, STATIC)) > 0.01
    assert found.classes == ABC
    assert found.probabilities.shape == (len(batch), 3)


@pytest.mark.parametrize("method", sorted(registered_methods()))
def test_two_outputs_and_a_softmax_are_one_logit(method: str) -> None:
    """A model of two classes with a logit each, as strangers have them."""
    model, batch = bent(made_for(method)), everything(cohort(4, patients=6, longest=6))
    two, one = with_head(model, torch.cat([difference(1), difference(2)])), with_head(model, difference(2, 1))
    ask = partial(explained, batch=batch, sample=sample(), method=method, population=population())
    for target in ("log_odds:true:false", "logit"):
        found, expected = ask(two, target=target), ask(one, target=target)
        torch.testing.assert_close(found.streams, expected.streams, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(found.probabilities, expected.probabilities)


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("target", ["logit:b", "probability:b", "log_odds:a:c"])
def test_every_target_of_every_model_is_complete(name: str, target: str) -> None:
    """Beside the score itself, from the model's own outputs by numpy."""
    model, sequences = bent(MAKE[name]), cohort(7, patients=8, longest=6)
    batch = everything(sequences)
    for step in ("", "@-1", "@1"):
        if step and model.not_causal is not None:
            with pytest.raises(UserError, match="only if it reads forwards"):
                attribute(model, batch, target=target + step)
            continue
        found = attribute(model, batch, target=target + step, baseline="rates", population=population())
        lengths = batch.lengths.clamp(max=2) if step == "@1" else batch.lengths
        with torch.no_grad():
            logits = model.logits(model.embed(batch), lengths).numpy()
            whole = model.logits(model.embed(batch), batch.lengths).numpy()
        shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        expected = {"logit:b": logits[:, 1], "probability:b": shares[:, 1], "log_odds:a:c": logits[:, 0] - logits[:, 2]}
        np.testing.assert_allclose(found.score.numpy(), expected[target], rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(
            found.probabilities.numpy(), np.exp(whole) / np.exp(whole).sum(1, keepdims=True), atol=1e-9
        )
        missed = (totals(batch, found) - (found.score - found.baseline_score)).abs()
        assert float(missed.max()) < 1e-4
        assert float((found.score - found.baseline_score).abs().max()) > 0.05


@pytest.mark.parametrize("method", sorted(registered_methods()))
def test_every_method_explains_a_logit_of_several(method: str) -> None:
    """The logit of one class alone is that of a model that has no other output."""
    model, batch = bent(made_for(method)), everything(cohort(9, patients=5, longest=5))
    ask = partial(explained, batch=batch, sample=sample(), method=method, population=population())
    found, expected = ask(model, target="logit:b"), ask(with_head(model, difference(1)))
    torch.testing.assert_close(found.streams, expected.streams, rtol=1e-6, atol=1e-7)
    with pytest.raises(UserError, match="has the classes a, b, c: name one, as in logit:a"):
        ask(model)


@pytest.mark.parametrize("name", ["gru", "attention", "ensemble"])
@pytest.mark.parametrize("target", ["logit:b", "probability:c", "log_odds:a:b"])
def test_every_steps_own_prediction_comes_in_one_pass(name: str, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = bent(MAKE[name]), everything(cohort(5, patients=6, longest=5))
    ask = partial(attribute, model, batch, method="temporal_integrated_gradients", target=target, tolerance=100.0)
    assert has_own_step_scores(model, target_named(target))
    at_once = ask()
    monkeypatch.setattr(own_steps, "has_own_step_scores", lambda *_: False)
    one_by_one = ask()
    torch.testing.assert_close(at_once.streams, one_by_one.streams, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(at_once.notes, one_by_one.notes, rtol=1e-6, atol=1e-8, equal_nan=True)
    assert float(at_once.streams[EVENTS].abs().max()) > 0.001


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("target", ["logit:b", "probability:c", "logit:a@0", "log_odds:a:c"])
def test_masks_compare_with_the_class_that_is_predicted(mode: str, target: str) -> None:
    """Cross-entropy by hand: minus the logarithm of what the mixed record gives the wanted record's likeliest class."""
    model, batch = bent(MAKE["gru"]), everything(cohort(2, patients=7, longest=5))
    question = question_of(model, batch, target=target, baseline="rates", population=population())
    game = MaskGame(question, mode, "cross_entropy", l1=0.0, l2=0.0)
    masks, made = game.masks(0.4), PerturbationNetworks(question)()
    mixed = game.mixed(masks, made)
    lengths = batch.lengths.clamp(max=1) if "@0" in target else batch.lengths
    wanted = question.embedded if mode == "preservation" else question.baseline
    with torch.no_grad():
        found = game.objective(masks, made).numpy()
        told, expected = (model.logits(of, lengths).numpy() for of in (mixed, wanted))
    chosen = [0, 2] if target == "log_odds:a:c" else [0, 1, 2]
    told, expected = told[:, chosen], expected[:, chosen]
    share = np.exp(told) / np.exp(told).sum(1, keepdims=True)
    by_hand = -np.log(share[np.arange(len(share)), expected.argmax(1)])
    np.testing.assert_allclose(found, by_hand, rtol=1e-9)
    assert len(set(expected.argmax(1))) > 1 or mode == "deletion"


def test_a_mask_of_a_unit_has_no_class_to_compare_with() -> None:
    model, batch = bent(MAKE["gru"]), everything(cohort(2, patients=3, longest=3))
    options = QUICK["extremal_mask"] | {"loss": "cross_entropy"}
    with pytest.raises(UserError, match="A unit predicts no class"):
        attribute(model, batch, method="extremal_mask", target="unit:1", options=options)


def test_a_class_that_the_model_lacks_is_refused() -> None:
    model, batch = bent(MAKE["gru"]), everything(cohort(2, patients=3, longest=3))
    assert classes_of(model) == ABC
    with pytest.raises(UserError, match="There is no class 'd'"):
        attribute(model, batch, target="probability:d")


@pytest.mark.parametrize("method", ["layerwise_relevance", "relevance_dropout", "contextual_decomposition"])
def test_what_no_rule_hands_back_is_refused(method: str) -> None:
    model, batch = bent(MAKE["gru"]), everything(cohort(2, patients=3, longest=3))
    with pytest.raises(UserError, match=r"A probability is not .*: use the target logit or log_odds"):
        attribute(model, batch, method=method, target="probability:b")
