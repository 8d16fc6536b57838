"""Contextual decomposition equals a replica that carries both parts, and keeps its laws at both ends."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from method_laws.test_laws import cohort, everything, population
from method_laws.test_relevance import ARCHITECTURES, model_of
from replicas.contextual_decomposition import decomposed
from whenwhy.attribution import attribute
from whenwhy.attribution.baselines import given_baseline
from whenwhy.attribution.decomposition import decomposed_scores
from whenwhy.attribution.question import Question
from whenwhy.attribution.targets import Target, target_named
from whenwhy.errors import UserError
from whenwhy.events.sequence_batch import EVENTS, STATIC, SequenceBatch
from whenwhy.models.recurrent import RecurrentClassifier
from whenwhy.models.retain import Retain


def question_of(model: RecurrentClassifier, batch: SequenceBatch, target: str = "logit") -> Question:
    return Question(model, batch, given_baseline("empty", model, batch), target_named(target), 1e-4, 0)


def a_group(question: Question, seed: int, share: float) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(len(weights), generator=generator) < share for name, weights in question.weights.items()}


DECOMPOSED = [
    {}, {"cell": "lstm"}, {"layers": 2, "pooling": "mean"}, {"cell": "lstm", "layers": 2},
    {"bidirectional": True, "layers": 2, "pooling": "max"}, {"cell": "lstm", "bidirectional": True},
]  # fmt: skip


@pytest.mark.parametrize("arguments", DECOMPOSED)
def test_parts_equal_those_of_the_replica(arguments: dict[str, object]) -> None:
    batch, model = everything(cohort(2)), model_of(2, **arguments)
    question = question_of(model, batch)
    groups = [a_group(question, seed, share) for seed, share in ((0, 0.5), (1, 0.1), (2, 1.1), (3, -0.1))]
    found = decomposed_scores(question, groups)
    weights = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    whole = {name: tensor.numpy() for name, tensor in question.embedded.items()}
    told = 0
    for at, group in enumerate(groups):
        with torch.no_grad():
            inside = {
                name: tensor.numpy()
                for name, tensor in model.embed(batch, {n: question.weights[n] * group[n] for n in group}).items()
            }
        for row in range(len(batch)):
            steps = int(batch.lengths[row])
            own = question.values[EVENTS].patient == row
            shares = []
            mine = [group[name][question.values[name].patient == row] for name in group]
            for step in range(steps):
                members = group[EVENTS][own & (question.values[EVENTS].step == step)]
                shares.append(float(members.double().mean()) if len(members) else 0.0)
            if all(bool(members.all()) for members in mine):
                shares = [1.0] * steps
            xs = inside[EVENTS][row, :steps], (whole[EVENTS] - inside[EVENTS])[row, :steps]
            static = inside[STATIC][row], (whole[STATIC] - inside[STATIC])[row]
            beta, gamma = decomposed(
                weights, xs, static, shares, str(arguments.get("cell", "gru")), int(arguments.get("layers", 1)),  # type: ignore[call-overload]
                bool(arguments.get("bidirectional")), str(arguments.get("pooling", "last")),
            )  # fmt: skip
            # The replica's own check: nothing is lost on the way.
            assert beta + gamma == pytest.approx(float(question.score[row]) - float(model.head.bias), abs=1e-9)
            assert float(found[at, row]) == pytest.approx(beta, abs=1e-9)
            told += abs(beta) > 0.01 and abs(gamma) > 0.01
    assert told > 10


@pytest.mark.parametrize("arguments", [a for a in ARCHITECTURES if a.get("pooling") != "dot"])
@pytest.mark.parametrize("target", ["logit", "unit:1@-1", "log_odds:true:false"])
def test_everything_is_the_score_and_nothing_is_zero(arguments: dict[str, object], target: str) -> None:
    batch, model = everything(cohort(3)), model_of(3, **arguments)
    question = question_of(model, batch, target)
    everyone, nobody = (a_group(question, 0, share) for share in (1.1, -0.1))
    whole, nothing = decomposed_scores(question, [everyone, nobody])
    bias = 0.0 if target.startswith("unit") else float(model.head.bias)
    torch.testing.assert_close(whole, question.score - bias, rtol=0, atol=1e-12)
    assert float(nothing.abs().max()) < 1e-12
    assert float(question.score.abs().max()) > 0.1


def test_chunks_of_groups_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from whenwhy.attribution import decomposition

    batch, model = everything(cohort(4)), model_of(4)
    question = question_of(model, batch)
    groups = [a_group(question, seed, 0.3) for seed in range(5)]
    at_once = decomposed_scores(question, groups)
    monkeypatch.setattr(decomposition, "ROWS_TIMES_STEPS", 1)
    torch.testing.assert_close(decomposed_scores(question, groups), at_once, rtol=0, atol=1e-12)


@pytest.mark.parametrize("unit", ["value", "feature_value", "step"])
def test_contributions_are_the_parts_of_their_groups(unit: str) -> None:
    batch, model = everything(cohort(5)), model_of(5)
    found = attribute(model, batch, method="contextual_decomposition", options={"unit": unit})
    question = question_of(model, batch)
    streams = {name: question.values[name] for name in (EVENTS, STATIC)}
    for name, of in streams.items():
        for at in range(len(of.id)):
            same = {other: torch.zeros(len(o.id), dtype=torch.bool) for other, o in streams.items()}
            if unit == "value":
                same[name][at] = True
            else:
                key = of.id if unit == "feature_value" else of.step
                same[name] = (of.patient == of.patient[at]) & (key == key[at])
            part = decomposed_scores(question, [same])[0, of.patient[at]] / same[name].sum()
            assert float(found.streams[name][at]) == pytest.approx(float(part), abs=1e-7)


def test_what_is_not_decomposed_is_refused() -> None:
    batch = everything(cohort(1))
    with pytest.raises(UserError, match="no rule for a product of two signals"):
        attribute(Retain(30, hidden=4).eval(), batch, method="contextual_decomposition")
    with pytest.raises(UserError, match="not told against a baseline"):
        attribute(model_of(1), batch, method="contextual_decomposition", baseline="rates", population=population())
    with pytest.raises(UserError, match="A probability is not decomposed"):
        attribute(model_of(1), batch, method="contextual_decomposition", target="probability")
    with pytest.raises(UserError, match="did you mean 'step'"):
        attribute(model_of(1), batch, method="contextual_decomposition", options={"unit": "steps"})
    assert Target() == target_named("logit")
    assert np.isfinite(float(attribute(model_of(1), batch, method="contextual_decomposition").residual.abs().max()))
