"""Occlusion, temporal and augmented occlusion equal dense records with the value taken out or replaced."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from foreign_models import stranger
from method_laws.removed import SIZE, Case, cohort, dense_record, everything, model_of, population
from replicas.removal import dense_augmented_occlusion, dense_occlusion, players_of
from whenwhy.attribution import attribute, target_named
from whenwhy.attribution import players as players_module
from whenwhy.attribution.baselines import given_baseline
from whenwhy.attribution.players import UNITS, Players, scores_without
from whenwhy.attribution.question import Question
from whenwhy.errors import UserError
from whenwhy.events.sequence_batch import EVENTS, STATIC, Sequences
from whenwhy.models.ensemble import Ensemble
from whenwhy.models.foreign.adapter import adapted
from whenwhy.models.recurrent import RecurrentClassifier
from whenwhy.models.retain import Retain

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("baseline", ["empty", "rates"])
@pytest.mark.parametrize(
    ("method", "options", "kind"),
    [
        ("occlusion", {"unit": "cell"}, "cells"),
        ("occlusion", {"unit": "feature_value"}, "features"),
        ("occlusion", {"unit": "step"}, "events"),
        ("temporal_occlusion", {}, "events"),
    ],
)
def test_occlusion_equals_its_replica(method: str, options: dict[str, Any], kind: str, baseline: str) -> None:
    for row in range(6):
        case = Case(row, row, baseline)
        players = players_of(case.record, case.baseline, kind)
        wanted = dense_occlusion(case.score, case.record, case.baseline, list(players.values()))
        told = case.by_player(kind, case.attributed(method, **options))
        assert set(told) == set(players)
        for player, lost in zip(players, wanted, strict=True):
            assert told[player] == pytest.approx(lost, abs=1e-6)


def test_a_value_that_a_step_holds_twice_is_taken_out_once() -> None:
    row = {
        "subject_id": 1, "prediction_time": 0, "label": "true", "split": "train", "strata": [],
        "step_minutes": [2, 1], "event_step": [0, 0, 0, 1], "event_id": [3, 3, 9, 3],
        "event_value": [None] * 4, "static_id": [], "static_value": [],
    }  # fmt: skip
    case = Case(1, 1)
    batch = Sequences(case.sequences.table.slice(0, 0).from_pylist([row], schema=case.sequences.table.schema))
    found = attribute(case.model, batch.batch(np.array([0])), method="occlusion")
    once = dense_record(row)
    once[EVENTS][0, 3] = 1
    lost = case.score(dense_record(row)) - case.score(once)
    assert found.streams[EVENTS][:2].tolist() == pytest.approx([lost, lost], abs=1e-9)


def test_a_codes_values_go_together() -> None:
    """Value 3 and 10 are of one code here, and 4 of another."""
    case = Case(3, 3)
    code = population().code
    found = case.attributed("occlusion", unit="code")
    for name, ids in ((EVENTS, case.row["event_id"]), (STATIC, case.row["static_id"])):
        for value, share in zip(ids, found.streams[name].tolist(), strict=True):
            same = [v for v in ids if v == value or (code[v] >= 0 and code[v] == code[value])]
            without = {stream: tensor.clone() for stream, tensor in case.record.items()}
            without[name][..., same] = 0
            assert share == pytest.approx((case.score(case.record) - case.score(without)) / len(same), abs=1e-6)
    with pytest.raises(UserError, match="give a population"):
        attribute(case.model, case.batch, method="occlusion", options={"unit": "code"})
    with pytest.raises(UserError, match="did you mean 'code'"):
        attribute(case.model, case.batch, method="occlusion", options={"unit": "codes"})


def restarting_models() -> dict[str, torch.nn.Module]:
    torch.manual_seed(1)
    made = {
        "gru": RecurrentClassifier(SIZE, 6),
        "lstm": RecurrentClassifier(SIZE, 6, cell="lstm", layers=2, pooling="mean"),
        "max": RecurrentClassifier(SIZE, 6, pooling="max"),
        "additive": RecurrentClassifier(SIZE, 6, layers=2, pooling="additive"),
        "dot": RecurrentClassifier(SIZE, 6, pooling="dot"),
        "ensemble": Ensemble(lambda: RecurrentClassifier(SIZE, 6, cell="lstm"), 2),
    }
    return {name: model.double().eval() for name, model in made.items()}


@pytest.mark.parametrize(
    ("model", "target"),
    [(model, "logit") for model in restarting_models()]
    + [("lstm", "probability"), ("additive", "logit@-2"), ("ensemble", "unit:3")],
)
def test_a_restart_changes_nothing(model: str, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rows at a time, so that there are many places to restart from; all units, static ones among them."""
    monkeypatch.setattr(players_module, "STEPS_AT_ONCE", 40)
    network, batch = restarting_models()[model], everything(cohort(6, patients=7))
    given = given_baseline("rates", network, batch, population(), 0)  # type: ignore[arg-type]
    question = Question(network, batch, given, target_named(target), 1e-4, 0, population=population())  # type: ignore[arg-type]
    assert question.restarts
    for unit in UNITS:
        players = Players(question, unit)
        restarted, plain = scores_without(players), scores_without(players, restart=False)
        torch.testing.assert_close(restarted, plain, rtol=1e-10, atol=1e-12)
        assert (plain - question.score[players.patient]).abs().max() > 1e-3


def test_a_restart_saves_half_of_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cell steps are counted: of T steps, each is read by the occluded records of the steps up to it alone."""
    sequences = cohort(3, patients=30, longest=40)
    length = 30
    long = sequences.batch(np.flatnonzero(sequences.n_steps >= length))
    batch = replace(long, lengths=long.lengths.clamp(max=length))
    monkeypatch.setattr(players_module, "STEPS_AT_ONCE", 2 * long.n_steps)
    network = restarting_models()["gru"]
    cells = 0

    def count(module: torch.nn.Module, given: tuple[Any, ...], told: Any) -> None:
        nonlocal cells
        cells += given[0].shape[0] * given[0].shape[1]

    network.cell.register_forward_hook(count)  # type: ignore[operator, union-attr]
    used = {}
    for restart in (True, False):
        cells = 0
        found = attribute(network, batch, method="temporal_occlusion", options={"restart": restart})  # type: ignore[arg-type]
        used[restart] = cells
        assert found.streams[EVENTS].abs().max() > 0
    assert 0.4 < used[True] / used[False] < 0.65


def test_models_that_cannot_restart_are_read_from_the_start() -> None:
    torch.manual_seed(2)
    batch = everything(cohort(2))
    networks = (
        Retain(SIZE, 6),
        RecurrentClassifier(SIZE, 6, bidirectional=True),
        Ensemble(lambda: Retain(SIZE, 6), 2),
    )
    for network in (network.double().eval() for network in networks):
        assert not network.restarts
        one = attribute(network, batch, method="temporal_occlusion").streams[EVENTS]
        two = attribute(network, batch, method="occlusion", options={"unit": "step"}).streams[EVENTS]
        torch.testing.assert_close(one, two)
        assert one.abs().max() > 0


def test_augmented_occlusion_equals_its_replica() -> None:
    """One training record, so that every draw is that one; the last steps meet."""
    for row in range(6):
        case = Case(row, row, longest=5)
        other = cohort(98)
        longest = int(np.argmax(other.n_steps))
        of = replace(population(), references=other.batch(np.array([longest])))
        found = attribute(case.model, case.batch, method="augmented_occlusion", population=of, options={"samples": 2})
        theirs = dense_record(other.table.to_pylist()[longest])
        steps = len(case.row["step_minutes"])
        aligned = {EVENTS: theirs[EVENTS][len(theirs[EVENTS]) - steps :], STATIC: theirs[STATIC]}
        codes = of.code.tolist()
        wanted = dense_augmented_occlusion(case.score, case.record, aligned, codes)
        number = {name: [codes[v] if codes[v] >= 0 else SIZE + v for v in case.row[f"{name}_id"]] for name in ("event", "static")}  # fmt: skip
        for name, places in (
            (EVENTS, list(zip(case.row["event_step"], number["event"], strict=True))),
            (STATIC, [(0, code) for code in number["static"]]),
        ):
            for place, share in zip(places, found.streams[name].tolist(), strict=True):
                assert share == pytest.approx(wanted[(name, *place)] / places.count(place), abs=1e-6)
        for spread in found.spread.values():
            assert (spread.abs() < 1e-6).all()


def test_augmented_occlusion_is_the_mean_over_records_drawn() -> None:
    case = Case(4, 4, longest=6)
    other, samples = cohort(98), 32

    def told(rows: list[int]) -> Any:
        of = replace(population(), references=other.batch(np.array(rows)))
        return attribute(
            case.model, case.batch, method="augmented_occlusion", population=of, options={"samples": samples}
        )

    one, two, both = (told(rows) for rows in ([3], [7], [3, 7]))
    x, y, mixed = (torch.cat([found.streams[EVENTS], found.streams[STATIC]]) for found in (one, two, both))
    moved = (x - y).abs() > 1e-6
    share = ((mixed - y) / (x - y))[moved]  # of the draws, the same for all of a record's values
    assert moved.sum() > 1
    assert float(share.max() - share.min()) < 1e-4
    drawn = float(share[0]) * samples
    assert abs(drawn - round(drawn)) < 1e-3
    assert samples / 4 < drawn < samples * 3 / 4
    spread = torch.cat([both.spread[EVENTS], both.spread[STATIC]])
    wanted = (x - y).abs() * (share[0] * (1 - share[0]) / (samples - 1)).sqrt()
    torch.testing.assert_close(spread, wanted, rtol=1e-3, atol=1e-6)


def test_augmented_occlusion_needs_records_to_draw_from() -> None:
    case = Case(1, 1)
    with pytest.raises(UserError, match="give a population with references"):
        attribute(case.model, case.batch, method="augmented_occlusion")
    with pytest.raises(UserError, match="samples=1 is too few"):
        case.attributed("augmented_occlusion", samples=1)


def test_memory_does_not_grow_with_the_players(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many players, so many padded steps are scored together."""
    largest = 0
    plain = Question.score_of

    def watched(self: Question, embedded: Any, rows: torch.Tensor | None = None) -> torch.Tensor:
        nonlocal largest
        if rows is not None:
            largest = max(largest, embedded[EVENTS].shape[0] * embedded[EVENTS].shape[1])
        return plain(self, embedded, rows)

    monkeypatch.setattr(Question, "score_of", watched)
    monkeypatch.setattr(players_module, "STEPS_AT_ONCE", 100)
    batch, model = everything(cohort(5, patients=20)), model_of(5)
    for method, options in (
        ("occlusion", {}), ("temporal_occlusion", {"restart": False}), ("augmented_occlusion", {}),
        ("shapley", {"samples": 16, "pruning": 0.1}), ("kernel_shap", {"samples": 64, "pruning": 0.1}),
    ):  # fmt: skip
        largest = 0
        attribute(model, batch, method=method, population=population(), options=options)
        assert 0 < largest <= 100


@pytest.mark.parametrize("network", [stranger.LinearGRU, stranger.EmbeddingMean])
def test_networks_that_were_trained_elsewhere(network: Any) -> None:
    """Where the values of a step are averaged, their number is the record's, also without one of them."""
    torch.manual_seed(3)
    row = {
        "subject_id": 1, "prediction_time": 0, "label": "true", "split": "train", "strata": [],
        "step_minutes": [3, 2, 1], "event_step": [0, 0, 1, 2, 2, 2], "event_id": [3, 4, 9, 3, 12, 5],
        "event_value": [None] * 6, "static_id": [], "static_value": [],
    }  # fmt: skip
    sequences = Sequences(cohort(1).table.slice(0, 0).from_pylist([row], schema=cohort(1).table.schema))
    model, _ = adapted(network(SIZE - 1), SIZE - 1, sequences)
    batch = sequences.batch(np.array([0]))
    found = attribute(model, batch, method="occlusion")
    weights = {name: bags.weights for name, bags in batch.streams.items()}
    for value, lost in enumerate(found.streams[EVENTS].tolist()):
        without = weights | {EVENTS: weights[EVENTS].clone()}
        without[EVENTS][value] = 0
        with torch.no_grad():
            score = model.score(model.embed(batch, without), batch.lengths)
        assert lost == pytest.approx(float(found.score - score), abs=1e-5)
        assert abs(lost) > 1e-5
    for method in ("shapley", "kernel_shap"):
        for players in ("cells", "features", "events"):
            complete = attribute(model, batch, method=method, options={"players": players})
            assert float(complete.residual.abs()) < 1e-5
    if network is stranger.EmbeddingMean:
        with pytest.raises(UserError, match="averages the values of a step"):
            attribute(model, batch, method="augmented_occlusion", population=population())
