"""Sampled Shapley values are near exact ones within their standard errors, and exact where all orders are walked."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch

from method_laws.removed import Case, cohort, everything, model_of, population
from method_laws.test_laws import SIZE, LinearModel
from replicas.removal import dense_pruned_past, exact_shapley, players_of
from whenwhy.attribution import attribute
from whenwhy.attribution.baselines import given_baseline
from whenwhy.attribution.methods.kernel_shap import _coalitions
from whenwhy.attribution.methods.shapley import marginals
from whenwhy.attribution.players import Players
from whenwhy.attribution.pruning import PLAYERS, players_named, pruned_past
from whenwhy.attribution.question import Question
from whenwhy.attribution.targets import Target
from whenwhy.errors import UserError
from whenwhy.events.sequence_batch import EVENTS, STATIC
from whenwhy.models.ensemble import Ensemble
from whenwhy.models.recurrent import RecurrentClassifier

pytestmark = pytest.mark.usefixtures("one_thread")


def games(baseline: str, kind: str, most: int = 8) -> list[Case]:
    """Records with 2 to `most` players."""
    found = []
    for seed in range(12):
        for row in range(6):
            case = Case(seed, row, baseline)
            if 2 <= len(players_of(case.record, case.baseline, kind)) <= most:
                found.append(case)
    return found


@pytest.mark.parametrize("baseline", ["empty", "rates"])
@pytest.mark.parametrize("kind", PLAYERS)
def test_all_orders_together_are_exact(kind: str, baseline: str) -> None:
    cases = games(baseline, kind, most=5)[:4]
    assert cases
    for case in cases:
        given = given_baseline(baseline, case.model, case.batch, population(), 0)
        question = Question(case.model, case.batch, given, Target(), 1e-4, 0)
        game = players_named(question, kind, None)
        dense = players_of(case.record, case.baseline, kind)
        assert len(game) == len(dense)
        orders = torch.tensor(list(permutations(range(len(game)))))
        added = marginals(question, game, torch.zeros(len(orders), dtype=torch.long), orders)
        mean = torch.zeros_like(added).scatter_(1, orders, added).mean(0)
        wanted = exact_shapley(case.score, case.record, case.baseline, list(dense.values()))
        assert sorted(mean.tolist()) == pytest.approx(sorted(wanted), abs=1e-6)


@pytest.mark.parametrize("baseline", ["empty", "rates"])
@pytest.mark.parametrize("kind", PLAYERS)
@pytest.mark.parametrize("method", ["shapley", "kernel_shap"])
def test_samples_are_near_the_exact_values(method: str, kind: str, baseline: str) -> None:
    cases = games(baseline, kind)[::3][:4]
    assert len(cases) == 4
    for case in cases:
        players = players_of(case.record, case.baseline, kind)
        wanted = dict(
            zip(
                players,
                exact_shapley(case.score, case.record, case.baseline, list(players.values())),
                strict=True,
            )
        )
        found = case.attributed(method, players=kind, samples=1500)
        told = case.by_player(kind, found)
        assert set(told) == set(wanted)
        error = case.by_player(kind, found, spread=True) if method == "shapley" else {}
        for player, value in wanted.items():
            assert abs(told[player] - value) <= 5 * error.get(player, 0.02) + 1e-6
        assert float(found.residual.abs()) < 1e-9


def test_the_spread_is_the_standard_error() -> None:
    """Over many seeds, estimates differ from each other by as much as each says of itself."""
    batch, model = everything(cohort(4, patients=3, longest=4)), model_of(4, scale=2.0)
    runs = [attribute(model, batch, method="shapley", seed=seed, options={"samples": 16}) for seed in range(150)]
    estimates = torch.stack([found.streams[EVENTS] for found in runs])
    told = torch.stack([found.spread[EVENTS] for found in runs]).square().mean(0).sqrt()
    assert (told > 0.001).any()
    large = told > 0.001
    ratio = (estimates.std(0) / told)[large]
    assert float(ratio.min()) > 0.8
    assert float(ratio.max()) < 1.2


@pytest.mark.parametrize("method", ["shapley", "kernel_shap"])
def test_a_linear_score_is_told_exactly_by_few_samples(method: str) -> None:
    """Every order and every coalition says the same of an additive score."""
    batch, model = everything(cohort(2)), LinearModel(2)
    found = attribute(model, batch, method=method, options={"samples": 64, "players": "features"})  # type: ignore[arg-type]
    for name in (EVENTS, STATIC):
        expected = model.effect[name][batch.streams[name].ids, 0]
        torch.testing.assert_close(found.streams[name].double(), expected, rtol=1e-6, atol=1e-7)
    if method == "shapley":
        assert all((spread.abs() < 1e-6).all() for spread in found.spread.values())


@pytest.mark.parametrize("baseline", ["empty", "rates"])
def test_the_pruned_past_is_that_of_dense_records(baseline: str) -> None:
    pruned = 0
    for seed in range(4):
        for row in range(1, 6):
            case = Case(seed, row, baseline, longest=6)
            given = given_baseline(baseline, case.model, case.batch, population(), 0)
            question = Question(case.model, case.batch, given, Target(), 1e-4, 0)
            past, evaluations = pruned_past(question, 0.25)
            assert past is not None
            wanted = dense_pruned_past(case.score, case.record, case.baseline, 0.25)
            assert int(past[0]) == wanted
            tried = max(0, int(case.batch.lengths[0]) - max(1, wanted))
            assert int(evaluations[0]) == 2 * tried
            pruned += wanted > 0
    assert 3 < pruned < 20


@pytest.mark.parametrize("kind", PLAYERS)
@pytest.mark.parametrize("method", ["shapley", "kernel_shap"])
def test_a_pruned_past_is_one_player(method: str, kind: str) -> None:
    batch, model = everything(cohort(7)), model_of(7)
    question = Question(model, batch, given_baseline("rates", model, batch, population(), 0), Target(), 1e-4, 0)
    past, searched = pruned_past(question, 0.5)
    assert past is not None
    assert (past > 1).sum() > 1
    found, whole = (
        attribute(
            model, batch, method=method, baseline="rates", population=population(),
            options={"players": kind, "pruning": pruning, "samples": 32},
        )
        for pruning in (0.5, 0.0)
    )  # fmt: skip
    values = question.values[EVENTS]
    for patient in torch.nonzero(past).squeeze(1).tolist():
        in_past = (values.patient == patient) & (values.step < past[patient])
        shares = torch.cat([found.streams[EVENTS][in_past], found.absent[EVENTS][patient, : past[patient]]])
        torch.testing.assert_close(shares, shares[:1].expand_as(shares))
        if past[patient] > 1 and method == "shapley":
            assert found.n_evaluations[patient] - searched[patient] < whole.n_evaluations[patient]
    assert float(found.residual.abs().max()) < 1e-9
    with pytest.raises(UserError, match="under 0"):
        attribute(model, batch, method=method, options={"pruning": -1.0})


@pytest.mark.parametrize(
    ("method", "samples", "sentence"),
    [("shapley", 2, "samples=2 is not 4"), ("shapley", 7, "samples=7 is not"), ("kernel_shap", 3, "samples=3 is not")],
)
def test_samples_come_in_pairs(method: str, samples: int, sentence: str) -> None:
    case = Case(1, 1)
    with pytest.raises(UserError, match=sentence):
        case.attributed(method, samples=samples)
    with pytest.raises(UserError, match="did you mean 'cells'"):
        case.attributed(method, players="cell")


def test_two_players_are_exact_in_every_pair() -> None:
    """An order and its reverse are all orders there are."""
    case = games("empty", "cells", most=2)[0]
    found = case.attributed("shapley", samples=4)
    players = players_of(case.record, case.baseline, "cells")
    wanted = exact_shapley(case.score, case.record, case.baseline, list(players.values()))
    assert sorted(case.by_player("cells", found).values()) == pytest.approx(sorted(wanted), abs=1e-9)
    assert max(case.by_player("cells", found, spread=True).values()) < 1e-7


def test_all_coalitions_of_few_players_are_exact() -> None:
    for kind in PLAYERS:
        for case in games("empty", kind, most=6)[:4]:
            players = players_of(case.record, case.baseline, kind)
            found = case.attributed("kernel_shap", players=kind, samples=64)
            wanted = exact_shapley(case.score, case.record, case.baseline, list(players.values()))
            assert sorted(case.by_player(kind, found).values()) == pytest.approx(sorted(wanted), abs=1e-9)
            assert int(found.n_evaluations[0]) == 2 ** len(players) - 2 + 2


def test_coalitions_are_drawn_by_the_kernel_in_pairs() -> None:
    """Of ten players, a size is drawn in proportion to 1 / (size (10 - size)), and every player as often."""
    batch, model = everything(cohort(1)), model_of(1)
    question = Question(model, batch, given_baseline("empty", model, batch), Target(), 1e-4, 0)
    members, times = _coalitions(question, torch.tensor(3), 10, 1000)
    assert times.sum() == 1000
    assert torch.equal(torch.unique(members, dim=0), torch.unique(~members, dim=0))
    size = torch.arange(1, 10).double()
    wanted = 1 / (size * (10 - size))
    drawn = torch.bincount(members.sum(1), times, minlength=10)[1:]
    assert (drawn / 1000 - wanted / wanted.sum()).abs().max() < 0.05
    assert drawn[0] == drawn[-1]
    assert ((members.double() * times.unsqueeze(1)).sum(0) == 500).all()


@pytest.mark.parametrize("method", ["shapley", "kernel_shap"])
@pytest.mark.parametrize("baseline", ["empty", "rates"])
@pytest.mark.parametrize("at_once", [2000, 1 << 15])
def test_a_pruned_past_is_read_once(method: str, baseline: str, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that restarts behind it says the same, and reads fewer steps where few patients share a batch."""
    batch, model = everything(cohort(7, patients=20, longest=20)), model_of(7)
    cells = 0

    def count(module: torch.nn.Module, given: tuple[torch.Tensor, ...], told: object) -> None:
        nonlocal cells
        cells += given[0].shape[0] * given[0].shape[1]

    model.cell.register_forward_hook(count)
    monkeypatch.setattr("whenwhy.attribution.players.STEPS_AT_ONCE", at_once)
    told, used = {}, {}
    for restarts in (True, False):
        monkeypatch.setattr(Question, "restarts", property(lambda self, restarts=restarts: restarts))
        cells = 0
        found = attribute(
            model, batch, method=method, baseline=baseline, population=population(),
            options={"players": "cells", "pruning": 0.5, "samples": 64},
        )  # fmt: skip
        told[restarts], used[restarts] = found.streams, cells
    for name, values in told[True].items():
        torch.testing.assert_close(values, told[False][name], rtol=1e-8, atol=1e-10)
    if at_once == 2000:
        assert used[True] < 0.8 * used[False]


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("players", ["events", "features", "cells"])
def test_coalitions_that_share_their_reading_have_the_same_values(
    members: int, players: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One record at a time, with stops before its fourth and its seventh player, or read whole each time."""
    torch.manual_seed(3)
    model = Ensemble(lambda: RecurrentClassifier(SIZE, 8), members).double().eval()
    batch = everything(cohort(5, patients=3, longest=40))
    asked = {"method": "kernel_shap", "options": {"players": players, "samples": 512}, "precision": "float64"}
    seen: list[int] = []
    stops = Players.stops

    def counted(game: Players, rows: torch.Tensor) -> list[int]:
        found = stops(game, rows)
        seen.append(len(found))
        return found

    monkeypatch.setattr(Players, "stops", counted)
    found = attribute(model, batch, **asked)
    assert max(seen) >= 2
    monkeypatch.setattr(Players, "stops", lambda game, rows: [])
    torch.testing.assert_close(found.streams, attribute(model, batch, **asked).streams, rtol=1e-9, atol=1e-10)
