"""A stranger's network is explained as it is: proven equal behind bags, complete, and its weights never run code."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import save_file
from sklearn.metrics import roc_auc_score
from torch import nn
from typer.testing import CliRunner

from conftest import INLINE, SmallRun
from foreign_models import stranger
from quick_methods import OF_ANY_MODEL, explained
from whenwhy.attribution import attribute, population_of
from whenwhy.attribution.attribute_shards import AttributeSettings, attribute_shards
from whenwhy.attribution.attribution_directory import ABOUT, PREDICTION_ROWS, ROWS
from whenwhy.attribution.methods.integrated_gradients import LADDER
from whenwhy.attribution.paths import gauss_legendre
from whenwhy.attribution.run_summary import residual_summary
from whenwhy.cli import app
from whenwhy.engine import Workers
from whenwhy.errors import UserError
from whenwhy.events.feature_values import FOREIGN_OFFSET
from whenwhy.events.sequence_batch import EVENTS, STATIC, SequenceBatch, Sequences
from whenwhy.events.sequences import TABLE, VOCABULARY
from whenwhy.models.foreign.adapter import ForeignModel, adapted, original_input, told_apart
from whenwhy.models.foreign.named import ForeignSource
from whenwhy.models.foreign.weights import put_weights, read_weights
from whenwhy.schema import SEQUENCES
from whenwhy.shards import StageDirectory
from whenwhy.statistics import aggregate_cells
from whenwhy.store import open_store, publish_store

SIZE = 30


def cohort(seed: int, patients: int = 24, longest: int = 9, most: int = 3) -> Sequences:
    """Records of 0 to `longest` steps of 1 to `most` distinct values, index 0 never recorded."""
    random = np.random.default_rng(seed)
    rows = []
    for subject in range(patients):
        steps = 0 if subject == 0 else int(random.integers(1, longest + 1))
        ids = [
            np.sort(random.choice(np.arange(2, SIZE + 1), int(random.integers(1, most + 1)), False))
            for _ in range(steps)
        ]
        # Undated values are other ones, so that a step is 0 and 1 with them too.
        at = np.repeat(np.arange(steps), [len(i) for i in ids]) if steps else np.zeros(0, int)
        flat = np.concatenate(ids) if steps else np.zeros(0, int)
        static = random.choice(np.setdiff1d(np.arange(2, SIZE + 1), flat), int(random.integers(0, 3)), False)
        if most == 1:
            static = static[:0]
        rows.append(
            {
                "subject_id": subject, "prediction_time": 0, "label": "true", "split": "train", "strata": [],
                "step_minutes": list(range(steps, 0, -1)), "event_step": at.tolist(), "event_id": flat.tolist(),
                "event_value": [None] * len(at), "static_id": static.tolist(), "static_value": [None] * len(static),
            }
        )  # fmt: skip
    return Sequences(pa.Table.from_pylist(rows, schema=SEQUENCES))


def bent(network: nn.Module, seed: int, scale: float = 0.6) -> nn.Module:
    """The network with weights under which its score is far from linear."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "norm" not in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
        for layer in network.modules():
            if isinstance(layer, nn.Embedding) and layer.padding_idx is not None:
                layer.weight[layer.padding_idx] = 0.0  # as torch makes it, and keeps it in training
    return network.double().eval()


#: Network -> (readers, the static values' place)
WELCOME: dict[str, tuple[list[str], str]] = {
    "LinearGRU": (["embed"], "first"),
    "DenseGRU": (["rnn"], "first"),
    "BiLSTM": (["lstm"], "every"),
    "ElmanEveryStep": (["rnn"], "none"),
    "EmbeddingSum": (["emb"], "first"),
    "EmbeddingMean": (["bag"], "first"),
    "Tokens": (["emb"], "first"),
    "MaskedTransformer": (["proj"], "first"),
    "OddMask": (["proj"], "every"),
    "Convolution": (["conv"], "first"),
    "TwoReaders": (["key", "value"], "first"),
    "WithTimes": (["e"], "first"),
}


def of(name: str, seed: int = 1) -> tuple[nn.Module, ForeignModel, Sequences]:
    """A stranger's network, adapted, and the sequences that it was proven on."""
    network = bent(getattr(stranger, name)(SIZE), seed)
    sequences = cohort(seed, most=1 if name == "Tokens" else 3)
    model, proof = adapted(network, SIZE, sequences, WELCOME[name][1])
    assert proof.sequences == len(sequences)
    assert proof.shortest == 0
    assert proof.largest_difference < 1e-9  # float64
    return network, model, sequences


def own_score(network: nn.Module, x: torch.Tensor, name: str) -> torch.Tensor:
    """The stranger's own score of a dense record [1, step, value], called as its author would."""
    n_steps, everything = torch.tensor([x.shape[1]]), torch.ones(1, x.shape[1], dtype=torch.bool)
    if name in ("DenseGRU", "WithTimes"):
        told: Any = network(x, n_steps)
        return (told[0] if isinstance(told, tuple) else told).reshape(())
    if name == "BiLSTM":
        logits = network(x.transpose(0, 1))[0]
        return logits[1] - logits[0]
    if name == "ElmanEveryStep":
        return network(x)["logits"][0, -1, 0]
    if name in ("MaskedTransformer", "OddMask"):
        return network(x, everything if name == "MaskedTransformer" else ~everything).reshape(())
    return network(x).reshape(())


@pytest.mark.parametrize("name", WELCOME)
def test_behind_bags_every_score_is_the_strangers_own(name: str) -> None:
    network, model, _ = of(name)
    assert model.readers == WELCOME[name][0]
    fresh = cohort(77, patients=40, longest=12, most=1 if name == "Tokens" else 3)  # not those of the proof
    with torch.no_grad():
        together = model(fresh.batch(np.arange(len(fresh))))
        for row in range(len(fresh)):
            x = original_input(fresh.batch(np.array([row])), model.call, SIZE, model.static_in)
            if model.call.ids:
                told = model.call.outputs(network, x, torch.tensor([x.shape[1]]))[0, 0]
            else:
                told = own_score(network, x, name)
            torch.testing.assert_close(together[row], told, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", [n for n in WELCOME if not n.startswith(("Embedding", "Tokens"))])
def test_integrated_gradients_are_the_dense_ones(name: str) -> None:
    """Autograd with respect to the dense multi-hot record itself, at the same nodes."""
    network, model, sequences = of(name)
    batch = sequences.batch(np.arange(len(sequences)))
    found = attribute(model, batch, tolerance=1e3)  # the first rung of the ladder is enough for everybody
    nodes = int(found.n_evaluations[0])
    assert (found.n_evaluations == nodes).all()
    at_event = at_static = 0
    for row in range(len(sequences)):
        single = sequences.batch(np.array([row]))
        x = original_input(single, model.call, SIZE, model.static_in)
        mean = torch.zeros_like(x)
        for place, share in zip(*gauss_legendre(nodes), strict=True):
            at = (float(place) * x).requires_grad_()
            mean += float(share) * torch.autograd.grad(own_score(network, at, name), at)[0]
        dense = (x * mean)[0]  # [step, value]
        n_events, n_static = len(single.streams[EVENTS].ids), len(single.streams[STATIC].ids)
        step = sequences.event_step[single.streams[EVENTS].at]
        events = dense[step, single.streams[EVENTS].ids.long() - FOREIGN_OFFSET]
        torch.testing.assert_close(
            found.streams[EVENTS][at_event : at_event + n_events].double(), events, rtol=1e-6, atol=1e-6
        )
        steps = {"first": slice(0, 1), "every": slice(None), "none": slice(0, 0)}[model.static_in]
        static = dense[steps, single.streams[STATIC].ids.long() - FOREIGN_OFFSET].sum(0)
        torch.testing.assert_close(
            found.streams[STATIC][at_static : at_static + n_static].double(), static, rtol=1e-6, atol=1e-6
        )
        at_event, at_static = at_event + n_events, at_static + n_static


@pytest.mark.parametrize("name", WELCOME)
def test_contributions_are_complete_and_alone_equals_batched(name: str) -> None:
    _, model, sequences = of(name)
    batch = sequences.batch(np.random.default_rng(0).permutation(len(sequences)))
    found = attribute(model, batch, tolerance=1e-4)
    assert set(found.streams) == {EVENTS, STATIC}
    total = per_patient(batch, found.streams)
    kinks = name in ("ElmanEveryStep", "Convolution", "MaskedTransformer")  # where quadrature has to give in
    residual = (total - (found.score - found.baseline_score)).abs()
    assert float(residual.max()) < (0.05 if kinks else 1e-4)
    assert (found.n_evaluations[residual > 1e-4] == LADDER[-1]).all()
    assert float((found.score - found.baseline_score).abs().max()) > 0.1
    for place, row in enumerate(batch.rows[:6]):
        alone = attribute(model, sequences.batch(np.array([row])), tolerance=1e-4)
        torch.testing.assert_close(alone.score[0], found.score[place], rtol=1e-6, atol=1e-6)
        mine = per_patient(sequences.batch(np.array([row])), alone.streams)[0]
        torch.testing.assert_close(mine, total[place], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", WELCOME)
def test_rules_reach_every_gate_of_a_strangers_network_or_say_that_they_do_not(name: str) -> None:
    _, model, sequences = of(name)
    batch = sequences.batch(np.arange(len(sequences)))
    missing = {"ElmanEveryStep": "rnn_relu", "MaskedTransformer": "multi_head_attention_forward"}.get(name)
    if missing:
        for method in ("deep_lift", "layerwise_relevance"):
            with pytest.raises(UserError, match=f"no rule for '{missing}'"):
                attribute(model, batch, method=method)
        return
    found = attribute(model, batch, method="deep_lift")
    assert float(found.residual.abs().max()) < 1e-6
    relevance = attribute(model, batch, method="layerwise_relevance")
    torch.testing.assert_close(
        relevance.residual + relevance.score.double() - relevance.baseline_score.double(),
        (1 - relevance.notes["bias_share"]) * relevance.score.double(),
    )


def per_patient(batch: SequenceBatch, streams: dict[str, torch.Tensor]) -> torch.Tensor:
    """The sum of each patient's contributions [patient]."""
    total = torch.zeros(len(batch), dtype=torch.float64)
    for name, per in ((EVENTS, batch.n_steps), (STATIC, 1)):
        bags = batch.streams[name]
        sizes = torch.diff(torch.cat([bags.offsets, torch.tensor([len(bags.ids)], dtype=torch.int32)]))
        bag = torch.repeat_interleave(torch.arange(len(sizes)), sizes.long())
        total.index_add_(0, bag // per, streams[name].double())
    return total


@pytest.mark.parametrize("method", OF_ANY_MODEL)
def test_every_method_explains_a_strangers_network(method: str) -> None:
    _, model, sequences = of("LinearGRU")
    batch = sequences.batch(np.arange(len(sequences)))
    own = population_of([batch], model.vocabulary_size, np.arange(model.vocabulary_size), batch)
    found = explained(model, batch, batch, method=method, population=own)
    assert torch.isfinite(found.streams[EVENTS]).all()


@pytest.mark.parametrize("unit", ["value", "step"])
def test_parts_of_a_network_that_packs_are_each_record_s_own(unit: str) -> None:
    """Packing puts records of unlike lengths into another order, once for all groups that are decomposed together."""
    _, model, sequences = of("DenseGRU")
    rows = np.argsort(sequences.n_steps, kind="stable")
    batch = sequences.batch(rows)
    found = attribute(model, batch, method="contextual_decomposition", options={"unit": unit})
    bags = batch.streams[EVENTS]
    whose = rows[(bags.bag // batch.n_steps).numpy()]
    for row in range(len(sequences)):
        single = sequences.batch(np.array([row]))
        alone = attribute(model, single, method="contextual_decomposition", options={"unit": unit})
        np.testing.assert_allclose(
            alone.streams[EVENTS].numpy(), found.streams[EVENTS].numpy()[whose == row], rtol=1e-5, atol=1e-6
        )


def test_units_of_records_of_unlike_lengths_are_their_own() -> None:
    """The network takes like lengths only, so a batch is several calls, each with states of its own."""
    _, model, sequences = of("LinearGRU")
    assert not model.padded
    batch = sequences.batch(np.arange(len(sequences)))
    assert len(torch.unique(batch.lengths)) > 3
    found = attribute(model, batch, target="unit:3")
    for row in range(len(sequences)):
        alone = attribute(model, sequences.batch(np.array([row])), target="unit:3")
        assert abs(float(alone.score[0] - found.score[row])) < 1e-6
    assert len(torch.unique(found.score)) > 5


def test_a_network_that_was_asked_keeps_nothing_of_it() -> None:
    """So it can be copied, and the graph of its last batch is gone."""
    _, model, sequences = of("DenseGRU")
    attribute(model, sequences.batch(np.arange(4)))
    assert all(not model.network.get_submodule(reader).value.numel() for reader in model.readers)  # type: ignore[operator]


def test_nothing_of_the_vocabularys_width_is_built() -> None:
    """The recurrent layer that read multi-hot vectors is fed at its gates, and called with one number a step."""
    _, model, _ = of("DenseGRU")
    assert model.placeholder.numel() == 1
    assert all(SIZE not in parameter.shape for parameter in model.network.parameters())


@pytest.mark.parametrize(
    ("network", "sentence"),
    [
        (stranger.Leaky(SIZE), "not the same behind bags: a sequence of .* steps scores .*reads its input elsewhere"),
        (stranger.Gated(SIZE), "not the same behind bags"),
        (stranger.Neighbours(SIZE), "depends on the other patients of the batch"),
        (stranger.Needs(SIZE), "needs 'ages', which is not known"),
        (stranger.LinearGRU(SIZE + 1), r"no first layer over the 30 values .*its layers read 31, 16"),
        (stranger.NoPatients(SIZE), "answers 3 patients of 5 steps with the shape"),
        (stranger.Probabilities(SIZE), "say --output probability"),
    ],
)
def test_what_cannot_be_explained_is_refused_with_the_reason(network: nn.Module, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        adapted(bent(network, 3), SIZE, cohort(3))


def test_one_index_a_step_and_steps_of_several_values_is_refused() -> None:
    with pytest.raises(UserError, match="one index a step"):
        adapted(bent(stranger.Tokens(SIZE), 3), SIZE, cohort(3))


def test_a_padding_row_that_counts_is_refused() -> None:
    network = bent(stranger.Tokens(SIZE), 3)
    with torch.no_grad():
        network.emb.weight[0] = 1.0
    with pytest.raises(UserError, match=r"a sequence of 0 steps scores .*padding index 0 is not zero"):
        adapted(network, SIZE, cohort(3, most=1))


def test_probabilities_are_explained_as_log_odds() -> None:
    network, sequences = bent(stranger.Probabilities(SIZE), 3, 0.3), cohort(3)
    model, proof = adapted(network, SIZE, sequences, output="probability")
    same, _ = adapted(bent(stranger.LinearGRU(SIZE), 3, 0.3), SIZE, sequences)
    batch = sequences.batch(np.arange(len(sequences)))
    torch.testing.assert_close(model(batch), same(batch))
    assert proof.largest_difference < 1e-9
    with pytest.raises(UserError, match="no log-odds"):
        adapted(bent(stranger.LinearGRU(SIZE), 3), SIZE, sequences, output="probability")
    with pytest.raises(UserError, match="no log-odds"):
        told_apart(torch.tensor([[1.0]]), "probability")
    both = torch.tensor([[0.2, 0.8]])
    torch.testing.assert_close(told_apart(both, "probability")[:, 0], torch.logit(both[:, 1]))


@pytest.mark.parametrize(
    ("name", "classes"),
    [("ThreeClasses", 3), ("ThreeClasses", 5), ("ThreeClasses", 10), ("ThreeEveryStep", 3), ("ThreeEveryStep", 5)],
)
def test_every_class_of_a_network_is_the_strangers_own(name: str, classes: int) -> None:
    """Five classes look like five steps of one logit, ten like five of two, and are told apart all the same."""
    network, sequences = bent(getattr(stranger, name)(SIZE, classes=classes), 3), cohort(3)
    model, proof = adapted(network, SIZE, sequences)
    assert (model.call.logits, model.call.every_step) == (classes, name == "ThreeEveryStep")
    assert model.classes == tuple(map(str, range(classes)))
    assert proof.largest_difference < 1e-9
    fresh = cohort(77, patients=30, longest=12)
    with torch.no_grad():
        batch = fresh.batch(np.arange(len(fresh)))
        together = model.logits(model.embed(batch), model.seen(batch).lengths)
        for row in range(len(fresh)):
            x = original_input(fresh.batch(np.array([row])), model.call, SIZE)
            told = network(x)[-1] if name == "ThreeEveryStep" else network(x)
            torch.testing.assert_close(together[row], told.reshape(classes), rtol=1e-9, atol=1e-9)


def test_a_class_that_differs_behind_bags_is_refused() -> None:
    """One class alone looks past the first layer."""

    class LeakyClass(stranger.ThreeClasses):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            told = super().forward(x)
            return torch.cat([told[:, :2], told[:, 2:] + x.sum((1, 2)).unsqueeze(1)], dim=1)

    with pytest.raises(UserError, match="not the same behind bags"):
        adapted(bent(LeakyClass(SIZE), 3), SIZE, cohort(3))


@pytest.mark.parametrize("target", ["logit:b", "probability:c", "log_odds:a:c"])
def test_the_gradients_of_a_class_are_the_dense_ones(target: str) -> None:
    network, sequences = bent(stranger.ThreeClasses(SIZE), 5), cohort(5)
    model, _ = adapted(network, SIZE, sequences, classes=["a", "b", "c"])
    batch = sequences.batch(np.arange(len(sequences)))
    found = attribute(model, batch, method="gradient_times_input", target=target)
    complete = attribute(model, batch, target=target)
    assert float(complete.residual.abs().max()) < 1e-4
    at = 0
    for row in range(len(sequences)):
        x = original_input(sequences.batch(np.array([row])), model.call, SIZE).requires_grad_()
        logits = network(x)[0]
        score = {"logit:b": logits[1], "probability:c": logits.softmax(0)[2], "log_odds:a:c": logits[0] - logits[2]}
        (gradient,) = torch.autograd.grad(score[target], x)
        first, last = sequences.event_offsets[row : row + 2]
        mine = np.flatnonzero((batch.streams[EVENTS].at >= first) & (batch.streams[EVENTS].at < last))
        for place in mine:
            of = int(batch.streams[EVENTS].at[place])
            dense = gradient[0, int(sequences.event_step[of]), int(sequences.event_id[of]) - FOREIGN_OFFSET]
            assert float(found.streams[EVENTS][place]) == pytest.approx(float(dense), rel=1e-5, abs=1e-6)
            at += 1
        assert abs(float(found.score[row] - score[target].detach())) < 1e-9
    assert at == len(sequences.event_id) > 50


def test_probabilities_of_classes_are_explained_as_their_logits() -> None:
    network, sequences = bent(stranger.ThreeProbabilities(SIZE), 3, 0.3), cohort(3)
    model, _ = adapted(network, SIZE, sequences, output="probability")
    same, _ = adapted(bent(stranger.ThreeClasses(SIZE), 3, 0.3), SIZE, sequences)
    batch = sequences.batch(np.arange(len(sequences)))
    for target in ("log_odds:0:2", "probability:1"):
        found, expected = (attribute(of, batch, target=target) for of in (model, same))
        torch.testing.assert_close(found.streams, expected.streams)
    with pytest.raises(UserError, match="say --output probability"):
        adapted(network, SIZE, sequences)
    with pytest.raises(UserError, match="do not sum to 1, so the classes do not exclude each other"):
        adapted(bent(stranger.ManyLabels(SIZE), 3, 0.3), SIZE, sequences, output="probability")


@pytest.mark.parametrize(
    ("name", "classes", "sentence"),
    [
        ("ThreeClasses", ["a", "b"], "names a, b, and the model has 3 classes"),
        ("ThreeClasses", ["a", "b", "a"], "names a, b, a, and the model has 3 classes: name each once"),
        ("LinearGRU", ["a", "b", "c"], "the model has 2 classes: .*the class of the logit last"),
    ],
)
def test_names_that_do_not_fit_the_classes_are_refused(name: str, classes: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        adapted(bent(getattr(stranger, name)(SIZE), 3), SIZE, cohort(3), classes=classes)


@pytest.mark.parametrize("name", ["LinearGRU", "BiLSTM"])
def test_two_classes_may_have_names(name: str) -> None:
    network, sequences = bent(getattr(stranger, name)(SIZE), 3), cohort(3)
    model, _ = adapted(network, SIZE, sequences, classes=["alive", "dead"])
    same, _ = adapted(network, SIZE, sequences)
    batch = sequences.batch(np.arange(len(sequences)))
    assert same.classes == ("false", "true")
    for target, of in (
        ("logit", "logit"),
        ("log_odds:dead:alive", "log_odds:true:false"),
        ("logit:alive", "logit:false"),
    ):
        found, expected = attribute(model, batch, target=target), attribute(same, batch, target=of)
        torch.testing.assert_close(found.streams, expected.streams, rtol=0, atol=0)
        assert found.classes == ("alive", "dead")


def test_a_value_twice_in_a_step_is_counted_and_told() -> None:
    row = {
        "subject_id": 1, "prediction_time": 0, "label": "true", "split": "train", "strata": [], "step_minutes": [1],
        "event_step": [0, 0], "event_id": [5, 5], "event_value": [None] * 2, "static_id": [], "static_value": [],
    }  # fmt: skip
    sequences = Sequences(pa.Table.from_pylist([row], schema=SEQUENCES))
    assert adapted(bent(stranger.LinearGRU(SIZE), 3), SIZE, sequences, output="logit")[1].repeated == 1
    assert adapted(bent(stranger.LinearGRU(SIZE), 3), SIZE, cohort(3))[1].repeated == 0


# -- weights -----------------------------------------------------------------------------------------


class Malicious:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def test_a_malicious_file_is_refused_and_not_run(tmp_path: Path) -> None:
    marker, state = tmp_path / "marker", {"a": torch.zeros(1)}
    torch.save(state | {"x": Malicious(marker)}, tmp_path / "zip.pt")
    torch.save(state | {"x": Malicious(marker)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "plain.bin").write_bytes(pickle.dumps({"x": Malicious(marker)}))
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "script.pt"))
    (tmp_path / "program.pt2").write_bytes(b"PK")
    wanted = {
        "zip.pt": "posix.system", "old.pth": "posix.system", "plain.bin": "a pickle of more", "module.pt": "Linear",
        "script.pt": "TorchScript", "program.pt2": "an exported program",
    }  # fmt: skip
    for name, reason in wanted.items():
        with pytest.raises(UserError, match=f"{name} would run code .*{reason}.*--trust"):
            read_weights(tmp_path / name)
    assert not marker.exists()
    assert set(read_weights(tmp_path / "module.pt", trust=True)) == {"weight", "bias"}
    assert set(read_weights(tmp_path / "script.pt", trust=True)) == {"weight", "bias"}
    read_weights(tmp_path / "zip.pt", trust=True)
    assert marker.exists()  # the marker would have told


def test_weights_are_found_where_training_libraries_put_them(tmp_path: Path) -> None:
    network = bent(stranger.LinearGRU(SIZE), 5).float()
    state = network.state_dict()
    prefixed = {f"model.net.{name}": tensor for name, tensor in state.items()}
    torch.save(state, tmp_path / "plain.pt")
    save_file(state, tmp_path / "plain.safetensors")
    torch.save(
        {
            "state_dict": prefixed | {"loss_fn.pos_weight": torch.ones(1)},
            "epoch": 3,
            "hyper_parameters": {"hidden": 16},
        },
        tmp_path / "lightning.ckpt",
    )
    torch.save({"model_state_dict": {f"module.{n}": t for n, t in state.items()}}, tmp_path / "parallel.pth")
    for name in ("plain.pt", "plain.safetensors", "lightning.ckpt", "parallel.pth"):
        other = stranger.LinearGRU(SIZE)
        put_weights(other, read_weights(tmp_path / name), name)
        assert all(torch.equal(tensor, state[key]) for key, tensor in other.state_dict().items()), name
    torch.save({"state_dict": prefixed, "hyper_parameters": Namespace(hidden=16)}, tmp_path / "unsafe.ckpt")
    with pytest.raises(UserError, match=r"import argparse.Namespace; a Lightning checkpoint's hyper_parameters"):
        read_weights(tmp_path / "unsafe.ckpt")


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    state = stranger.LinearGRU(SIZE).state_dict()
    renamed = {name.replace("embed.", "embedding."): tensor for name, tensor in state.items()}
    with pytest.raises(UserError, match=r"no weights 'embed.weight' \(the nearest that it has is 'embedding.weight'\)"):
        put_weights(stranger.LinearGRU(SIZE), renamed, "x")
    with pytest.raises(UserError, match=r"no place for: 'second.weight'"):
        put_weights(stranger.LinearGRU(SIZE), state | {"second.weight": torch.zeros(1)}, "x")
    with pytest.raises(UserError, match=r"'embed.weight' has the shape \[16, 30\], the model's has \[8, 30\]"):
        put_weights(stranger.LinearGRU(SIZE, hidden=8), state, "x")
    torch.save(state | {"out.bias": torch.tensor([torch.nan])}, tmp_path / "nan.pt")
    with pytest.raises(UserError, match=r"not finite \('out.bias'\)"):
        read_weights(tmp_path / "nan.pt")
    (tmp_path / "garbage.pt").write_bytes(b"garbage garbage")
    (tmp_path / "garbage.safetensors").write_bytes(b"garbage garbage")
    torch.save({"epoch": 3}, tmp_path / "nothing.pt")
    for name, sentence in {
        "garbage.pt": "damaged", "garbage.safetensors": "damaged", "nothing.pt": "holds no state_dict",
        "absent.pt": "no file of weights",
    }.items():  # fmt: skip
        with pytest.raises(UserError, match=sentence):
            read_weights(tmp_path / name)


# -- the command -------------------------------------------------------------------------------------


@pytest.fixture
def trained(small_run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Weights of a stranger's network over the small cohort's feature values."""
    monkeypatch.chdir(Path(__file__).parent)
    size = StageDirectory.open(small_run.sequences).read(VOCABULARY, VOCABULARY).num_rows - FOREIGN_OFFSET
    network = bent(stranger.make(size, hidden=6), 9, 0.4).float()
    torch.save({"state_dict": {f"model.{n}": t for n, t in network.state_dict().items()}}, tmp_path / "best.ckpt")
    return tmp_path / "best.ckpt"


def arguments_of(run: SmallRun, hidden: int = 6) -> str:
    size = StageDirectory.open(run.sequences).read(VOCABULARY, VOCABULARY).num_rows - FOREIGN_OFFSET
    return f'{{"n_codes": {size}, "hidden": {hidden}}}'


def command(run: SmallRun, weights: Path, out: Path, *others: str) -> tuple[int, str]:
    told = CliRunner().invoke(
        app,
        [
            "attribute", str(run.sequences), "--model", "foreign_models.stranger:make", "--weights", str(weights),
            "--arguments", arguments_of(run), "--out", str(out), "--inline", *others,
        ],
    )  # fmt: skip
    return told.exit_code, told.output + (str(told.exception) if told.exception else "")


def test_a_network_without_gradients_is_told_which_methods_need_none(small_run: SmallRun, tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights = tmp_path / "cut.pt"
    torch.save(stranger.CutOff(**json.loads(arguments_of(small_run))).state_dict(), weights)
    named = ("--model", "foreign_models.stranger:CutOff", "--output", "logit")
    code, told = command(small_run, weights, tmp_path / "needing", *named)
    assert code != 0
    assert "no gradient: use a method that needs none, such as occlusion" in told
    code, told = command(small_run, weights, tmp_path / "without", *named, "--method", "temporal_occlusion")
    assert code == 0, told


def test_from_the_command_line_to_the_store(small_run: SmallRun, trained: Path, tmp_path: Path) -> None:
    code, told = command(small_run, trained, tmp_path / "attr")
    assert code == 0, told
    assert "foreign_models.stranger:make takes multi-hot [patient, step, value] -> one logit" in told
    assert "behind bags its scores differ by at most" in told
    stage, sequences = StageDirectory.open(tmp_path / "attr"), StageDirectory.open(small_run.sequences)
    assert residual_summary(stage)["n_over_tolerance"] == 0
    network = stranger.make(**eval(arguments_of(small_run)))
    put_weights(network, read_weights(trained), "x")
    network.eval()
    scored = 0
    for shard in stage.shards[:1]:
        table, predictions = sequences.read(shard, TABLE), stage.read(shard, PREDICTION_ROWS)
        for row in range(0, table.num_rows, 7):
            record = table.slice(row, 1).to_pylist()[0]
            x = torch.zeros(1, max(1, len(record["step_minutes"])), network.embed.in_features)
            for step, value in zip(record["event_step"], record["event_id"], strict=True):
                x[0, step, value - 1] += 1
            for value in record["static_id"]:
                x[0, 0, value - 1] += 1
            with torch.no_grad():
                assert abs(float(network(x)) - predictions["score"][row].as_py()) < 1e-4
            scored += 1
    assert scored > 10
    about = stage.entry(ABOUT).summary
    assert about["foreign"]["proof"]["largest_difference"] < 1e-4
    assert about["foreign"]["proof"]["sequences"] == 64
    assert 0 < about["quality"]["folds"][0]["auroc"] < 1
    cells = aggregate_cells([stage.path], tmp_path / "store", time_bin_hours=24)
    publish_store(tmp_path / "store", cells, [stage.path])
    run = open_store(tmp_path / "store").ask("runs").to_pylist()[0]
    assert run["auroc"] == pytest.approx(about["quality"]["folds"][0]["auroc"])
    assert run["reference_auroc"] is None


def test_classes_from_the_command_line(small_run: SmallRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parent)
    size = StageDirectory.open(small_run.sequences).read(VOCABULARY, VOCABULARY).num_rows - FOREIGN_OFFSET
    network = bent(stranger.ThreeClasses(size), 9, 0.4).float()
    torch.save(network.state_dict(), tmp_path / "best.pt")

    def asked(out: str, *others: str) -> tuple[int, str]:
        told = CliRunner().invoke(
            app,
            [
                "attribute", str(small_run.sequences), "--model", "foreign_models.stranger:ThreeClasses", "--weights",
                str(tmp_path / "best.pt"), "--arguments", f'{{"n_codes": {size}}}', "--out", str(tmp_path / out),
                "--inline", *others,
            ],
        )  # fmt: skip
        return told.exit_code, told.output + str(told.exception or "")

    code, told = asked("attr", "--classes", "home, nursing, dead", "--target", "log_odds:dead:home")
    assert code == 0, told
    assert "-> 3 logits; behind bags its scores differ" in told
    stage = StageDirectory.open(tmp_path / "attr")
    assert residual_summary(stage)["n_over_tolerance"] == 0
    predicted = pa.concat_tables([stage.read(name, PREDICTION_ROWS) for name in stage.shards])["predicted"].to_pylist()
    assert set(predicted) <= {"home", "nursing", "dead"}
    about = stage.entry(ABOUT).summary
    assert about["foreign"]["classes"] == ["home", "nursing", "dead"]
    assert about["quality"] == {"folds": []}  # of one class's score nothing is known of all
    code, told = asked("other", "--target", "log_odds:2:0")  # by the names that classes have by default
    assert code == 0, told
    for name in stage.shards:
        rows, same = stage.read(name, ROWS), StageDirectory.open(tmp_path / "other").read(name, ROWS)
        assert rows.equals(same)
    code, told = asked("x", "--classes", "home,nursing")
    assert code != 0
    assert "the model has 3 classes" in told


@pytest.mark.parametrize(("target", "of"), [("logit", "true"), ("logit:false", "false"), ("probability:true", "true")])
def test_what_is_measured_is_of_the_class_that_is_explained(
    small_run: SmallRun, trained: Path, tmp_path: Path, target: str, of: str
) -> None:
    code, told = command(small_run, trained, tmp_path / "attr", "--target", target)
    assert code == 0, told
    stage = StageDirectory.open(tmp_path / "attr")
    table = pa.concat_tables([stage.read(name, PREDICTION_ROWS) for name in stage.shards]).to_pandas()
    table = table[table.split == "held_out"]
    expected = roc_auc_score(table.label == of, table.score)
    assert stage.entry(ABOUT).summary["quality"]["auroc"] == pytest.approx(expected)


def test_workers_write_the_same_bytes(
    small_run: SmallRun, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The module lies in the current folder alone, which the worker process is told."""
    shutil.copy(stranger.__file__, tmp_path / "their_network.py")
    monkeypatch.chdir(tmp_path)
    source = ForeignSource("their_network:make", trained, arguments_of(small_run))
    inline = attribute_shards(small_run.sequences, source, tmp_path / "inline", AttributeSettings(), INLINE)
    by_ray = attribute_shards(small_run.sequences, source, tmp_path / "ray", AttributeSettings(), Workers(count=1))
    assert by_ray.run_id == inline.run_id
    assert by_ray.content_sha256() == inline.content_sha256()
    for shard in inline.shards:
        assert inline.entry(shard).files[ROWS]["sha256"] == by_ray.entry(shard).files[ROWS]["sha256"]


def test_other_weights_or_settings_are_another_run(small_run: SmallRun, trained: Path, tmp_path: Path) -> None:
    source = ForeignSource("foreign_models.stranger:make", trained, arguments_of(small_run))
    first = source.as_input()
    torch.save(torch.load(trained, weights_only=True) | {"epoch": 1}, tmp_path / "other.ckpt")
    others = [
        ForeignSource("foreign_models.stranger:make", tmp_path / "other.ckpt", arguments_of(small_run)),
        ForeignSource("foreign_models.stranger:make", trained, arguments_of(small_run, hidden=7)),
        ForeignSource("foreign_models.stranger:make", trained, arguments_of(small_run), static_in="none"),
        ForeignSource("foreign_models.stranger:LinearGRU", trained, arguments_of(small_run)),
    ]
    for other in others:
        recorded = other.as_input()
        assert {k: v for k, v in recorded.items() if k != "path"} != {k: v for k, v in first.items() if k != "path"}
    assert ForeignSource("foreign_models.stranger:make", trained, arguments_of(small_run)).as_input() == first


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--arguments", '{"n_codes": 7, "hidden": 6}'], "give the --arguments that the weights were trained with"),
        (["--arguments", "{hidden: 6}"], "is not JSON"),
        (["--arguments", '{"wide": 6}'], "could not be called"),
        (["--model", "foreign_models.stranger:mak"], "did you mean 'make'"),
        (["--model", "foreign_models.strangers:make"], "no module 'foreign_models.strangers'"),
        (["--static-in", "last"], "no place for static values 'last'"),
        (["--output", "odds"], "no kind of output 'odds'"),
        (["--model", "pyhealth:rnn"], "needs --weights and --vocabulary"),
    ],
)
def test_bad_names_are_answered_in_one_sentence(
    small_run: SmallRun, trained: Path, tmp_path: Path, options: list[str], sentence: str
) -> None:
    code, told = command(small_run, trained, tmp_path / "attr", *options)
    assert code != 0
    assert sentence in told
    assert not (tmp_path / "attr").exists()


def test_a_callable_without_weights_must_bring_its_own(small_run: SmallRun, trained: Path) -> None:
    with pytest.raises(UserError, match="gives other weights every time"):
        ForeignSource("foreign_models.stranger:make", None, arguments_of(small_run)).as_input()


def test_options_of_a_network_do_not_go_with_a_directory(small_run: SmallRun, trained: Path, tmp_path: Path) -> None:
    code, told = command(small_run, trained, tmp_path / "attr", "--model", str(small_run.model))
    assert code != 0
    assert "are for module:callable" in told
