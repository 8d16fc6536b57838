"""Float64 equals a float64 replica, bfloat16 says how far it is from float32, and float32 is what it was."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from conftest import INLINE, Command, SmallRun, one_sentence
from method_laws.test_laws import SIZE, LinearModel, cohort, everything, model_of, population, sample
from quick_methods import OWN_MODEL, QUICK, explained
from replicas.integrated_gradients import dense_integrated_gradients, dense_score
from whenwhy.attribution import Attributions, attribute, registered_methods
from whenwhy.attribution.attribute_shards import AttributeSettings, attribute_shards
from whenwhy.attribution.attribution_directory import PREDICTION_ROWS, ROUNDING, ROWS
from whenwhy.attribution.precision import PRECISIONS, SAMPLE, Bfloat16, at_precision, first_records
from whenwhy.attribution.run_summary import residual_summary, rounding_sentence
from whenwhy.errors import UserError
from whenwhy.events.sequence_batch import EVENTS, STATIC, SequenceBatch, Sequences
from whenwhy.events.sequences import TABLE
from whenwhy.models.checkpoint import load_model
from whenwhy.models.ensemble import Ensemble
from whenwhy.models.foreign.adapter import adapted
from whenwhy.models.recurrent import RecurrentClassifier
from whenwhy.models.retain import Retain
from whenwhy.models.sequence_model import Embedded
from whenwhy.shards import StageDirectory

pytestmark = pytest.mark.usefixtures("one_thread")

MODELS: dict[str, Callable[[], nn.Module]] = {
    "gru": lambda: RecurrentClassifier(SIZE, 8),
    "lstm": lambda: RecurrentClassifier(SIZE, 8, cell="lstm", layers=2, pooling="mean"),
    "bidirectional": lambda: RecurrentClassifier(SIZE, 8, bidirectional=True, pooling="max"),
    "dot": lambda: RecurrentClassifier(SIZE, 8, pooling="dot"),
    "additive": lambda: RecurrentClassifier(SIZE, 8, cell="lstm", pooling="additive"),
    "retain": lambda: Retain(SIZE, 8),
    "ensemble": lambda: Ensemble(lambda: RecurrentClassifier(SIZE, 8), 2),
}


def single(name: str = "gru") -> Any:
    """A model in float32 that bends."""
    torch.manual_seed(5)
    model = MODELS[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.5)
    return model


def told_of(found: Attributions) -> np.ndarray:
    """All of a batch's contributions in one row, those of what is absent behind."""
    parts = [*(found.streams[name] for name in (EVENTS, STATIC)), *found.absent.values()]
    return np.concatenate([part.double().numpy().ravel() for part in parts])


def test_float64_equals_a_replica_in_float64() -> None:
    sequences, model = cohort(2, patients=5, longest=5), single()
    found = attribute(model, everything(sequences), tolerance=1e-12, precision="float64")
    batch = everything(sequences)
    parameters = {name: tensor.detach().double() for name, tensor in model.state_dict().items()}
    compared = 0
    for row, record in enumerate(sequences.table.to_pylist()):
        events = torch.zeros(len(record["step_minutes"]), SIZE, dtype=torch.float64)
        static = torch.zeros(SIZE, dtype=torch.float64)
        for step, value in zip(record["event_step"], record["event_id"], strict=True):
            events[step, value] += 1
        for value in record["static_id"]:
            static[value] += 1
        assert abs(float(dense_score(parameters, events, static) - found.score[row])) < 1e-12
        wanted, wanted_static = dense_integrated_gradients(parameters, events, static, nodes=200)
        at = np.flatnonzero(
            (batch.streams[EVENTS].at >= sequences.event_offsets[row])
            & (batch.streams[EVENTS].at < sequences.event_offsets[row + 1])
        )
        for place, step, value in zip(at, record["event_step"], record["event_id"], strict=True):
            # A value that a step holds twice has half of the cell each time.
            cell = float(wanted[step, value] / events[step, value])
            assert abs(float(found.streams[EVENTS][place]) - cell) < 1e-9
            compared += 1
        at = np.flatnonzero(
            (batch.streams[STATIC].at >= sequences.static_offsets[row])
            & (batch.streams[STATIC].at < sequences.static_offsets[row + 1])
        )
        for place, value in zip(at, record["static_id"], strict=True):
            assert abs(float(found.streams[STATIC][place]) - float(wanted_static[value] / static[value])) < 1e-9
    assert compared > 20
    assert found.streams[EVENTS].dtype == found.score.dtype == torch.float64
    assert next(model.parameters()).dtype == torch.float32
    assert not found.precision_error


@pytest.mark.parametrize("baseline", ["rates", "carried_forward", "reference"])
def test_float64_is_complete_to_its_own_rounding_against_every_baseline(baseline: str) -> None:
    of = population()
    for method in ("integrated_gradients", "deep_lift", "kernel_shap"):
        found = attribute(
            single(), everything(cohort(3)), method=method, baseline=baseline, population=of, tolerance=1e-12,
            precision="float64",
        )  # fmt: skip
        assert float(found.residual.abs().max()) < (1e-8 if method == "deep_lift" else 1e-11)


def test_float32_is_the_model_as_it_is() -> None:
    batch, model = everything(cohort(1)), single()
    assert at_precision(model, "float32", batch) is model
    one, two = attribute(model, batch), attribute(model, batch, precision="float32")
    assert all(torch.equal(one.streams[name], two.streams[name]) for name in one.streams)
    assert one.score.dtype == torch.float32
    assert attribute(model_of(1), batch, precision="float32").score.dtype == torch.float64


@pytest.mark.parametrize("method", registered_methods())
@pytest.mark.parametrize("precision", ["float64", "bfloat16"])
def test_every_method_works_in_every_precision(method: str, precision: str) -> None:
    """Near float32 by what the numbers of either have of bits, and added up in no fewer."""
    batch, model = everything(cohort(3)), single(OWN_MODEL.get(method, "gru"))
    ask = {"method": method, "population": population()}
    exact = explained(model, batch, sample(), **ask)
    found = explained(model, batch, sample(), precision=precision, **ask)  # type: ignore[arg-type]
    difference, scale = np.abs(told_of(found) - told_of(exact)), np.abs(told_of(exact)).max()
    spread = float(exact.score.std())
    assert scale > 0.1
    if precision == "float64":
        assert found.score.dtype == found.streams[EVENTS].dtype == torch.float64
        assert 0 < difference.max() < 1e-5
        return
    assert found.score.dtype == found.streams[EVENTS].dtype == torch.float32
    assert difference.max() < 0.1 * max(spread, scale)  # 8 bits are 0.4 %, of some operations one upon the other
    assert np.median(difference) < 0.01 * max(spread, scale)
    assert difference.max() > 1e-5
    assert 1e-4 < float((found.score - exact.score).abs().max()) < 0.05 * spread


@pytest.mark.parametrize("name", MODELS)
def test_every_architecture_works_in_bfloat16(name: str) -> None:
    batch, model = everything(cohort(4)), single(name)
    for method, target in (
        ("integrated_gradients", "logit"), ("prefix_integrated_gradients", "probability"),
        ("temporal_occlusion", "logit"), ("deep_lift", "logit"),
    ):  # fmt: skip
        exact = attribute(model, batch, method=method, target=target, tolerance=0.05)
        found = attribute(model, batch, method=method, target=target, tolerance=0.05, precision="bfloat16")
        error = found.precision_error
        assert 0 < error["maximum"] < 0.15 * max(float(exact.score.std()), np.abs(told_of(exact)).max())
        assert error["median"] < error["maximum"] / 2


@pytest.mark.parametrize("baseline", ["empty", "rates"])
def test_the_error_that_is_told_is_the_true_one(baseline: str) -> None:
    """Of the first 64 predictions and no others; of what is absent too."""
    batch, model, of = everything(cohort(6, patients=SAMPLE + 20)), single(), population()
    ask = {"baseline": baseline, "population": of, "tolerance": 0.01}
    error = attribute(model, batch, precision="bfloat16", **ask).precision_error  # type: ignore[arg-type]
    low, exact = (attribute(network, batch, **ask) for network in (Bfloat16(model), model))  # type: ignore[arg-type]
    differences = []
    for name, per_patient in ((EVENTS, batch.n_steps), (STATIC, 1)):
        own = batch.streams[name].bag.numpy() // per_patient < SAMPLE
        differences.append((low.streams[name] - exact.streams[name]).abs().numpy()[own])
        if baseline == "rates":
            differences.append((low.absent[name] - exact.absent[name]).abs()[:SAMPLE].numpy().ravel())
    difference = np.concatenate(differences)
    spread = float(exact.score[:SAMPLE].std())
    assert error["n_predictions"] == SAMPLE
    assert error["n_contributions"] == len(difference)
    assert error["maximum"] == pytest.approx(difference.max(), rel=0.02)
    assert error["median"] == pytest.approx(np.median(difference), rel=0.02)
    assert error["spread_of_scores"] == pytest.approx(spread, rel=1e-3)
    assert error["maximum_relative"] == pytest.approx(difference.max() / spread, rel=0.02)
    assert error["median_relative"] == pytest.approx(np.median(difference) / spread, rel=0.02)
    whole = (low.score - exact.score).abs()
    assert error["score_maximum"] == pytest.approx(float(whole[:SAMPLE].max()), rel=1e-3)


def test_the_residual_says_what_bfloat16_misses() -> None:
    batch, model = everything(cohort(7)), single()
    found = attribute(model, batch, precision="bfloat16", tolerance=1e-4)
    missed = found.residual.abs() > 1e-4
    assert missed.sum() > len(batch) / 2
    assert (found.n_evaluations[missed] == 128).all()
    total = np.zeros(len(batch))
    for name, per_patient in ((EVENTS, batch.n_steps), (STATIC, 1)):
        np.add.at(total, batch.streams[name].bag.numpy() // per_patient, found.streams[name].double().numpy())
    np.testing.assert_allclose(found.residual, total - (found.score - found.baseline_score).double().numpy(), atol=1e-9)


def test_many_nodes_add_up_in_float32() -> None:
    """Of a score that is linear behind the first layer every node has the same gradient; their sum has no more error."""

    class Linear(nn.Module):
        vocabulary_size = SIZE

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(1)
            self.inner, self.head = RecurrentClassifier(SIZE, 8), nn.Linear(8, 1, bias=False)
            self.head.weight.data.copy_(self.head.weight.bfloat16().float())  # nothing of the weights is lost

        def embed(self, batch: SequenceBatch, weights: Any = None) -> Embedded:
            return self.inner.embed(batch, weights)

        def score(self, embedded: Embedded, lengths: torch.Tensor) -> torch.Tensor:
            return self.head(embedded[EVENTS]).squeeze(2).sum(1) + 0 * embedded[STATIC].sum(1)

    model, batch = Linear().eval(), everything(cohort(8))
    low = attribute(model, batch, precision="bfloat16", tolerance=1e-9)
    exact = attribute(model, batch)
    assert (low.n_evaluations == 128).any()
    torch.testing.assert_close(low.streams, exact.streams, rtol=1e-5, atol=1e-7)


def test_the_model_is_left_as_it_was() -> None:
    batch, model = everything(cohort(1)), single()
    model.cell.train()  # one part of it alone
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    for precision in PRECISIONS:
        attribute(model, batch, precision=precision)
        assert [module.training for module in model.modules()] == modes
        assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())


def test_the_first_records_of_a_batch_are_records() -> None:
    sequences, model = cohort(9), single()
    batch = everything(sequences)
    for number in (0, 1, 5, len(batch), len(batch) + 3):
        some = first_records(batch, number)
        alone = sequences.batch(np.arange(min(number, len(batch))))
        assert len(some) == len(alone)
        with torch.no_grad():
            torch.testing.assert_close(model(some), model(alone))


class Stubborn(nn.Module):
    """A network whose first states are made in float32, come what may."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.cell, self.head = nn.Linear(SIZE - 1, 6), nn.GRU(6, 6, batch_first=True), nn.Linear(6, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        states, _ = self.cell(self.embed(x), torch.zeros(1, len(x), 6))
        found: torch.Tensor = self.head(states[:, -1])
        return found


@pytest.mark.parametrize("precision", ["float64", "bfloat16"])
def test_what_does_not_compute_in_a_precision_is_refused(precision: str) -> None:
    batch = everything(cohort(0))
    with pytest.raises(UserError, match=f"no torch module, so its numbers cannot be made {precision}: use float32"):
        attribute(LinearModel(0), batch, precision=precision)  # type: ignore[arg-type]
    torch.manual_seed(0)
    sequences = cohort(2, patients=4)
    stubborn, _ = adapted(Stubborn().eval(), SIZE - 1, sequences, output="logit")
    assert attribute(stubborn, everything(sequences)).score.isfinite().all()
    with pytest.raises(UserError, match=rf"does not compute in {precision} \(.*\): use the precision float32"):
        attribute(stubborn, everything(sequences), precision=precision)
    with pytest.raises(UserError, match=r"no precision 'bfloat'.*did you mean 'bfloat16'"):
        attribute(single(), batch, precision="bfloat")


@pytest.mark.parametrize("precision", ["float64", "bfloat16"])
def test_networks_that_were_trained_elsewhere(precision: str) -> None:
    from foreign_models import stranger

    sequences = cohort(2, patients=4)
    for network in (stranger.LinearGRU, stranger.DenseGRU, stranger.BiLSTM):
        torch.manual_seed(0)
        model, _ = adapted(network(SIZE - 1).eval(), SIZE - 1, sequences, output="logit")
        exact, found = (
            attribute(model, everything(sequences), tolerance=0.01, precision=of) for of in ("float32", precision)
        )
        np.testing.assert_allclose(told_of(found), told_of(exact), atol=1e-5 if precision == "float64" else 0.02)
        if network is stranger.LinearGRU:
            units = [attribute(model, everything(sequences), target="unit:2", precision=of).score for of in PRECISIONS]
            assert {of.dtype for of in units} == {torch.float32, torch.float64}
            torch.testing.assert_close(units[2], units[0], rtol=0, atol=0.02)


def test_a_run_states_its_error_and_float32_stays_as_it_was(
    small_run: SmallRun, tmp_path: Path, whenwhy: Command
) -> None:
    plain = StageDirectory.open(small_run.attributions)
    assert plain.settings["precision"] == "float32"
    assert ROUNDING not in plain.needs
    assert rounding_sentence(plain) == ""
    out, ask = tmp_path / "low", ("attribute", small_run.sequences, "--model", small_run.model, "--inline")
    status, said, _ = whenwhy(*ask, "--precision", "bfloat16", "--tolerance", 0.01, "--out", out)
    assert status == 0
    low = StageDirectory.open(out).require_complete()
    assert low.settings["precision"] == "bfloat16"
    assert low.run_id != plain.run_id
    error = low.entry(ROUNDING).summary
    assert f"In bfloat16 contributions differ from those in float32 by {error['maximum']:.1e} at most" in said
    assert f"{error['maximum_relative']:.2%} and {error['median_relative']:.2%} of the spread of scores" in said
    assert residual_summary(low)["maximum"] > 1e-4
    # The same, from the first predictions of the first shard, by Python.
    of = Sequences(StageDirectory.open(small_run.sequences).read(low.shards[0], TABLE).slice(0, SAMPLE))
    model = load_model(StageDirectory.open(small_run.model, "train"))
    differences, scores = [], []
    for rows in of.buckets(np.arange(len(of)), patients=256, steps=4096):
        here = of.batch(rows)
        exact, found = (attribute(network, here, tolerance=0.01) for network in (model, Bfloat16(model)))
        differences.append(np.abs(told_of(found) - told_of(exact)))
        scores.append(exact.score.double().numpy())
    difference, spread = np.concatenate(differences), np.concatenate(scores).std(ddof=1)
    assert error["n_predictions"] == len(of) == SAMPLE
    assert error["maximum"] == pytest.approx(difference.max(), rel=1e-6)
    assert error["median"] == pytest.approx(np.median(difference), rel=0.02)
    assert error["maximum_relative"] == pytest.approx(difference.max() / spread, rel=1e-6)
    # The rows of the run are as near to those of the run in float32.
    for shard in low.shards[:1]:
        rows, others = (stage.read(shard, ROWS)["attribution"].to_numpy() for stage in (low, plain))
        assert 0 < np.abs(rows - others).max() < 4 * error["maximum"] + 1e-3
        assert np.abs(rows).max() > 20 * np.abs(rows - others).max() / 4
    # Made again, it is the same to the byte.
    settings = AttributeSettings(tolerance=0.01, precision="bfloat16")
    again = attribute_shards(small_run.sequences, small_run.model, tmp_path / "again", settings, INLINE)
    assert again.run_id == low.run_id
    assert again.content_sha256() == low.content_sha256()
    assert again.entry(ROUNDING).summary == error


def test_a_run_in_float64(small_run: SmallRun, tmp_path: Path) -> None:
    plain = StageDirectory.open(small_run.attributions)
    settings = AttributeSettings(precision="float64", baseline="reference", method="gradient_times_input")
    exact = attribute_shards(small_run.sequences, small_run.model, tmp_path / "exact", settings, INLINE)
    single = replace(settings, precision="float32")
    others = attribute_shards(small_run.sequences, small_run.model, tmp_path / "single", single, INLINE)
    assert len({exact.run_id, others.run_id, plain.run_id}) == 3
    for shard in exact.shards:
        mine, theirs = (stage.read(shard, PREDICTION_ROWS)["score"].to_numpy() for stage in (exact, others))
        np.testing.assert_allclose(mine, theirs, atol=1e-5)
        assert (mine != theirs).any()
        assert (mine != mine.astype(np.float32)).any()
        mine, theirs = (stage.read(shard, ROWS)["attribution"].to_numpy() for stage in (exact, others))
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


def test_a_fitted_method_runs_in_bfloat16(small_run: SmallRun, tmp_path: Path) -> None:
    options = QUICK["amortised_mask"] | {"refine": 3}
    settings = AttributeSettings("amortised_mask", options=options, precision="bfloat16")
    stage = attribute_shards(small_run.sequences, small_run.model, tmp_path / "attr", settings, INLINE)
    assert stage.entry(ROUNDING).summary["maximum"] > 0


def test_precisions_asked_in_vain(small_run: SmallRun, tmp_path: Path, whenwhy: Command) -> None:
    out = tmp_path / "attr"
    ask = ("attribute", small_run.sequences, "--model", small_run.model, "--inline", "--out", out)
    assert "did you mean 'float64'" in one_sentence(whenwhy(*ask, "--precision", "float6"))
    assert not out.exists()
