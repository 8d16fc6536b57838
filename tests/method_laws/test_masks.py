"""Masks equal their slow replica, find what is needed, and the network that predicts them approaches their optimum."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from method_laws.test_laws import LinearModel, cohort, everything, model_of, population
from replicas.extremal_mask import amortised_masks, bag_masks, dense_masks
from whenwhy.attribution import Fitted, attribute, fit_method
from whenwhy.attribution.attribute import question_of
from whenwhy.attribution.dense import DenseQuestion, Explainer
from whenwhy.attribution.masks import MaskGame
from whenwhy.attribution.methods.extremal_mask import extremal_mask
from whenwhy.attribution.perturbation_networks import PerturbationNetworks
from whenwhy.attribution.question import Question
from whenwhy.errors import UserError
from whenwhy.events.sequence_batch import EVENTS, STATIC
from whenwhy.models.recurrent import GRUClassifier


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Many small steps are slower by several threads than by one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def networks_of(question: Question) -> dict[str, torch.Tensor]:
    """The first weights of the network of a question's only record."""
    networks = PerturbationNetworks(question)
    return {name: (weight if weight.shape[0] == 2 else weight[0]).clone() for name, weight in networks.weights.items()}


@pytest.mark.parametrize("mode", ["preservation", "deletion"])
def test_extremal_mask_equals_its_replica(mode: str) -> None:
    """Of every record of a batch together, records without steps or static values among them."""
    sequences, model = cohort(3, patients=6, longest=5), model_of(3, scale=2.0)
    options = {"mode": mode, "epochs": 25, "l1": 0.7, "l2": 0.3, "learning_rate": 0.05}
    batch = everything(sequences)
    found = attribute(model, batch, method="extremal_mask", options=options)
    parameters = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    flat = {EVENTS: np.zeros(len(sequences.event_id)), STATIC: np.zeros(len(sequences.static_id))}
    for name in flat:
        flat[name][batch.streams[name].at] = found.streams[name]
    assert found.streams[EVENTS].min() == 0  # a mask met an end
    for row, record in enumerate(sequences.table.to_pylist()):
        networks = networks_of(question_of(model, sequences.batch(np.array([row]))))
        of_events, of_static, objective = bag_masks(
            parameters,
            list(zip(record["event_step"], record["event_id"], strict=True)),
            record["static_id"],
            len(record["step_minutes"]),
            networks,
            deletion=mode == "deletion",
            epochs=25,
            l1=0.7,
            l2=0.3,
            rate=0.05,
        )
        events = flat[EVENTS][sequences.event_offsets[row] : sequences.event_offsets[row + 1]]
        static = flat[STATIC][sequences.static_offsets[row] : sequences.static_offsets[row + 1]]
        np.testing.assert_allclose(events, of_events, atol=1e-6)
        np.testing.assert_allclose(static, of_static, atol=1e-6)
        assert abs(float(found.notes["objective"][row]) - objective) < 1e-6


class TwoOutputs(torch.nn.Module):
    """Outputs [patient, time, class] of a recurrent layer and some products."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = torch.nn.GRU(3, 5, batch_first=True)
        self.head = torch.nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = 3 * self.head(self.cell(x)[0])
        return outputs


def two_outputs() -> tuple[TwoOutputs, torch.Tensor]:
    torch.manual_seed(4)
    return TwoOutputs().double().eval(), torch.randn(3, 6, 3, dtype=torch.float64)


@pytest.mark.parametrize("mode", ["preservation", "deletion"])
def test_the_dense_form_equals_its_replica(mode: str) -> None:
    forward, inputs = two_outputs()
    begin = 0.3 * inputs[:1].flip(1)
    options = {"mode": mode, "epochs": 25, "l1": 0.05, "l2": 5.0, "learning_rate": 0.05}
    found = Explainer(forward, "extremal_mask", options=options).attribute(inputs, begin)
    for row in range(3):
        networks = networks_of(DenseQuestion(forward, inputs[row : row + 1]))
        expected = dense_masks(
            forward, inputs[row], begin[0], networks, deletion=mode == "deletion", epochs=25, l1=0.05, l2=5.0, rate=0.05
        )
        torch.testing.assert_close(found[row], expected, rtol=0, atol=1e-6)
    assert found.max() == 1  # a mask met its upper end


@pytest.mark.parametrize("mode", ["preservation", "deletion"])
@pytest.mark.parametrize("method", ["extremal_mask", "amortised_mask"])
def test_what_the_outputs_need_is_found_in_both_modes(method: str, mode: str) -> None:
    """Two cells of twelve carry the output; the deletion game does not take all that there is."""
    torch.manual_seed(1)
    inputs = 1 + torch.rand(96, 4, 3, dtype=torch.float64)

    def forward(x: torch.Tensor) -> torch.Tensor:
        return 3 * x[:, 1, 2] + 2 * x[:, 3, 0]

    options = {"mode": mode}
    if method == "extremal_mask":
        found = Explainer(forward, method, options=options | {"epochs": 250, "l2": 20.0}).attribute(inputs[:8])
    else:
        fast = {"epochs": 300, "learning_rate": 0.02, "gap_epochs": 0, "l2": 20.0}
        fitted = Explainer(forward, method, options=options | fast).fit([inputs[32:64], inputs[64:]])
        found = fitted.attribute(inputs[:8])
    needed = torch.zeros(4, 3, dtype=torch.bool)
    needed[1, 2] = needed[3, 0] = True
    assert found[:, needed].min() > max(0.5, float(found[:, ~needed].max()))
    assert found[:, ~needed].mean() < 0.05


def test_alone_equals_batched_after_many_steps() -> None:
    """The networks of a batch do not mix: a shared one would let each record's neighbours into its mask."""
    sequences, model = cohort(6, patients=4, longest=5), model_of(6, scale=1.0)
    options = {"epochs": 150}
    batch = everything(sequences)
    together = attribute(model, batch, method="extremal_mask", options=options)
    for row in (2, 3):
        alone = attribute(model, sequences.batch(np.array([row])), method="extremal_mask", options=options)
        mine = np.flatnonzero((batch.streams[EVENTS].at >= sequences.event_offsets[row])
                              & (batch.streams[EVENTS].at < sequences.event_offsets[row + 1]))  # fmt: skip
        assert len(mine)
        torch.testing.assert_close(alone.streams[EVENTS], together.streams[EVENTS][mine], rtol=0, atol=1e-5)


def test_more_steps_and_a_perturbation_lower_the_objective() -> None:
    batch, model = everything(cohort(5)), model_of(5, scale=2.0)

    def objective(**options: float) -> float:
        return float(attribute(model, batch, method="extremal_mask", options=options).notes["objective"].mean())

    long, short, without = objective(epochs=80), objective(epochs=20), objective(epochs=80, perturb=False)
    assert long < short
    assert long < without + 1e-3


def test_without_a_perturbation_what_is_left_out_becomes_the_baseline() -> None:
    """Of a linear model with effects e the objective is (sum (1 - m) e)^2 + mean m: checked at the mask that is told."""
    batch, model = everything(cohort(8)), LinearModel(8)
    found = attribute(
        model,  # type: ignore[arg-type]
        batch,
        method="extremal_mask",
        options={"perturb": False, "epochs": 40},
    )
    question = question_of(model, batch)  # type: ignore[arg-type]
    lost = torch.zeros(len(batch), dtype=torch.float64)
    total, count = torch.zeros_like(lost), torch.zeros_like(lost)
    for name in (EVENTS, STATIC):
        patient, mask = question.values[name].patient, found.streams[name]
        lost.index_add_(0, patient, (1 - mask) * model.effect[name][batch.streams[name].ids.long(), 0])
        total.index_add_(0, patient, mask)
        count.index_add_(0, patient, torch.ones_like(mask))
    expected = lost**2 + total / count.clamp(min=1)
    torch.testing.assert_close(found.notes["objective"], expected, rtol=1e-5, atol=1e-5)


def test_cross_entropy_wants_the_predicted_class() -> None:
    batch, model = everything(cohort(2)), model_of(2)
    question = question_of(model, batch)
    game = MaskGame(question, loss="cross_entropy", l1=0.0, l2=0.0)
    nothing = {name: torch.zeros_like(tensor) for name, tensor in question.embedded.items()}
    with torch.no_grad():
        told = game.objective(game.masks(1.0), nothing)
    torch.testing.assert_close(told, -torch.nn.functional.logsigmoid(question.score.abs()))
    forward, inputs = two_outputs()
    game = MaskGame(DenseQuestion(forward, inputs), loss="cross_entropy", l1=0.0, l2=0.0)
    with torch.no_grad():
        told = game.objective(game.masks(1.0), {name: 0 * t for name, t in game.question.embedded.items()})
    expected = -forward(inputs).log_softmax(2).amax(2).mean(1).detach()
    torch.testing.assert_close(told, expected)


@pytest.fixture(scope="module")
def fitted() -> Fitted:
    torch.set_num_threads(1)
    sample = [everything(cohort(seed, patients=24)) for seed in range(20, 24)]
    return fit_method(
        model_of(9, scale=1.0),
        sample,
        method="amortised_mask",
        options={"epochs": 80, "hidden": 8, "learning_rate": 0.01, "gap_epochs": 120},
    )


@pytest.mark.parametrize("learned", [True, False])
def test_amortised_masks_equal_their_replica(fitted: Fitted, learned: bool) -> None:
    """Learned ones lie at their ends for the most part, first ones between."""
    sequences, model = cohort(3, patients=6, longest=5), model_of(9, scale=1.0)
    if not learned:
        untold = {"epochs": 0, "hidden": 8, "gap_epochs": 0}
        fitted = fit_method(model, [everything(cohort(20, patients=24))], method="amortised_mask", options=untold)
    parameters = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    for row, record in enumerate(sequences.table.to_pylist()):
        found = attribute(model, sequences.batch(np.array([row])), method="amortised_mask", fitted=fitted)
        events, static = amortised_masks(
            dict(fitted.tensors),
            parameters,
            list(zip(record["event_step"], record["event_id"], strict=True)),
            record["static_id"],
            len(record["step_minutes"]),
        )
        torch.testing.assert_close(found.streams[EVENTS], events, rtol=0, atol=1e-6)
        torch.testing.assert_close(found.streams[STATIC], static, rtol=0, atol=1e-6)


def test_masks_come_alone_too(fitted: Fitted) -> None:
    """Without what they are worth, which takes a pass through the model."""
    model, batch = model_of(9, scale=1.0), everything(cohort(3, patients=6, longest=5))
    asked = {"method": "amortised_mask", "fitted": fitted}
    whole = attribute(model, batch, **asked)
    alone = attribute(model, batch, **asked, options={"objective": False})
    assert "objective" in whole.notes
    assert not alone.notes
    torch.testing.assert_close(alone.streams, whole.streams, rtol=0, atol=0)


def test_the_fit_says_how_far_it_is_from_the_optimum_and_refinement_comes_nearer(fitted: Fitted) -> None:
    summary, model = fitted.summary, model_of(9, scale=1.0)
    assert (summary["n_records"], summary["n_compared"], summary["held_out"]) == (72, 24, 1)
    batch = everything(cohort(23, patients=24))  # the one that was held out
    notes = {
        refine: attribute(model, batch, method="amortised_mask", options={"refine": refine}, fitted=fitted).notes
        for refine in (0, 60)
    }
    optimum = attribute(model, batch, method="extremal_mask", options={"epochs": 120}).notes["objective"]
    gap = notes[0]["objective"] - optimum
    assert abs(float(gap.mean()) - summary["gap"]) < 1e-6
    assert abs(summary["objective"] - summary["optimum"] - summary["gap"]) < 1e-9
    assert summary["gap"] > 0
    assert float(notes[60]["objective"].mean()) < summary["objective"] - summary["gap"] / 4
    untrained = fit_method(
        model, [batch, batch], method="amortised_mask", options={"epochs": 0, "hidden": 8, "gap_epochs": 0}
    )
    first = attribute(model, batch, method="amortised_mask", fitted=untrained).notes["objective"].mean()
    assert summary["objective"] < 0.8 * float(first)


def test_a_fit_is_the_same_again_and_leaves_the_random_state_alone(fitted: Fitted) -> None:
    before = torch.get_rng_state()
    sample, options = [everything(cohort(20))], {"epochs": 2, "gap_epochs": 0}
    one, two = (fit_method(model_of(9), sample, method="amortised_mask", options=options) for _ in range(2))
    assert all((one.tensors[name] == two.tensors[name]).all() for name in one.tensors)
    torch.manual_seed(0)
    model_of(9)
    assert before is not None
    state = torch.get_rng_state()
    fit_method(model_of(9), sample, method="amortised_mask", options={"epochs": 0, "gap_epochs": 0})
    torch.manual_seed(9)
    model_of(9)
    assert (torch.get_rng_state() == state).all()


def test_what_is_absent_has_a_mask_where_the_baseline_records_it() -> None:
    batch, model = everything(cohort(4)), model_of(4, scale=2.0)
    found = attribute(
        model, batch, method="extremal_mask", baseline="rates", population=population(), options={"epochs": 60}
    )
    assert found.absent[EVENTS].shape == (len(batch), batch.n_steps)
    assert found.absent[EVENTS].unique().numel() > 2


class Visits(GRUClassifier):
    not_dense = "empty visits are padding"


def test_what_cannot_be_masked_is_refused_with_the_reason(fitted: Fitted) -> None:
    batch, model = everything(cohort(0)), model_of(0)
    with pytest.raises(UserError, match="empty visits are padding"):
        attribute(Visits(30, hidden=4).eval(), batch, method="extremal_mask")
    with pytest.raises(UserError, match=r"no mode 'deleting'.*did you mean 'deletion'"):
        attribute(model, batch, method="extremal_mask", options={"mode": "deleting"})
    with pytest.raises(UserError, match="no loss 'squares'"):
        attribute(model, batch, method="extremal_mask", options={"loss": "squares"})
    with pytest.raises(UserError, match="'amortised_mask' is fitted to a model before"):
        attribute(model, batch, method="amortised_mask")
    with pytest.raises(UserError, match="'extremal_mask' needs no fitting"):
        fit_method(model, [batch], method="extremal_mask")
    with pytest.raises(UserError, match="there is none"):
        fit_method(model, [], method="amortised_mask")
    with pytest.raises(UserError, match="fitted to another model"):
        attribute(GRUClassifier(30, hidden=5).eval(), batch, method="amortised_mask", fitted=fitted)

    class Flat(LinearModel):
        def score(self, embedded: dict[str, torch.Tensor], lengths: torch.Tensor) -> torch.Tensor:
            return embedded[EVENTS].sum((1, 2)).detach()

    with pytest.raises(UserError, match="no gradient"):
        attribute(Flat(0), batch, method="extremal_mask")  # type: ignore[arg-type]


def test_extremal_mask_of_a_question_is_a_plain_call() -> None:
    forward, inputs = two_outputs()
    found = extremal_mask(DenseQuestion(forward, inputs), epochs=3)
    assert found.n_evaluations.tolist() == [4, 4, 4]
