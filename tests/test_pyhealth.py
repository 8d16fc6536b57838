"""PyHealth checkpoints are explained as PyHealth scores them; compared with PyHealth itself where it is installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from replicas.pyhealth import Visits, retain_logit, rnn_logit
from whenwhy.attribution.attribute import attribute
from whenwhy.attribution.attribution_directory import ABOUT, PREDICTION_ROWS
from whenwhy.attribution.run_summary import residual_summary
from whenwhy.cli import app
from whenwhy.errors import UserError
from whenwhy.events.feature_values import FOREIGN_OFFSET
from whenwhy.events.foreign_vocabulary import foreign_vocabulary, stream_sizes
from whenwhy.events.sequence_batch import EVENTS, STATIC, Sequences
from whenwhy.events.sequences import TABLE, VOCABULARY
from whenwhy.models.foreign.pyhealth import PyHealthModel
from whenwhy.schema import FEATURE_VALUES, SEQUENCES
from whenwhy.shards import StageDirectory

KEYS, CODES, WIDTH = ["conditions", "procedures", "drugs"], [9, 6, 7], 5


def vocabulary_of(folder: Path) -> Path:
    """The file in another order than the model's own, so that nothing rests on their being alike."""
    told = {
        key: {"<pad>": 0, "<unk>": 1} | {f"{key}-{i}": i for i in range(2, size)}
        for key, size in reversed(list(zip(KEYS, CODES, strict=True)))
    }
    (folder / "vocab.json").write_text(json.dumps(told))
    return folder / "vocab.json"


def cohort(seed: int, patients: int = 20, gaps: bool = True) -> list[Visits]:
    """Patients of 1 to 6 visits; with `gaps` some visits have no code of a key."""
    random = np.random.default_rng(seed)
    found: list[Visits] = []
    for _ in range(patients):
        n_visits = int(random.integers(1, 7))
        visits: Visits = {key: [] for key in KEYS}
        for visit in range(n_visits):
            for key, size in zip(KEYS, CODES, strict=True):
                least = 0 if gaps and key != KEYS[visit % 3] else 1
                count = int(random.integers(least, 4))
                visits[key].append(sorted(map(int, random.choice(np.arange(2, size), count, replace=False))))
        found.append(visits)
    return found


def sequences_of(patients: list[Visits], vocabulary: pa.Table) -> Sequences:
    """The patients as `prepare` would write them with that vocabulary."""
    offsets, at = {}, 0
    for key, size in stream_sizes(vocabulary).items():
        offsets[key], at = at + FOREIGN_OFFSET, at + size
    rows = []
    for subject, visits in enumerate(patients):
        n_visits = len(visits[KEYS[0]])
        steps: list[int] = []
        ids: list[int] = []
        for visit in range(n_visits):
            here = sorted(offsets[key] + index for key in KEYS for index in visits[key][visit])
            steps, ids = steps + [visit] * len(here), ids + here
        rows.append(
            {
                "subject_id": subject, "prediction_time": 0, "label": "true", "split": "train", "strata": [],
                "step_minutes": list(range(n_visits, 0, -1)), "event_step": steps, "event_id": ids,
                "event_minutes": [n_visits - step for step in steps], "event_value": [None] * len(ids),
                "static_id": [], "static_value": [],
            }
        )  # fmt: skip
    return Sequences(pa.Table.from_pylist(rows, schema=SEQUENCES))


def checkpoint(kind: str, both: bool = False) -> dict[str, torch.Tensor]:
    """Random tensors under the names and in the shapes of a PyHealth checkpoint."""
    torch.manual_seed(4)
    tree = nn.ModuleDict(
        {
            "embedding_model": nn.ModuleDict(
                {
                    "embedding_layers": nn.ModuleDict(
                        {k: nn.Embedding(n, WIDTH, padding_idx=0) for k, n in zip(KEYS, CODES, strict=True)}
                    )
                }
            ),
            kind: nn.ModuleDict(),
            "fc": nn.Linear(3 * (4 if kind == "rnn" else WIDTH), 1),
        }
    )
    for key in KEYS:
        part = nn.ModuleDict()
        if kind == "rnn":
            part["rnn"] = nn.GRU(WIDTH, 4, bidirectional=both)
            if both:
                part["down_projection"] = nn.Linear(8, 4)
        else:
            part.update({"alpha_gru": nn.GRU(WIDTH, WIDTH), "beta_gru": nn.GRU(WIDTH, WIDTH)})
            part.update({"alpha_li": nn.Linear(WIDTH, 1), "beta_li": nn.Linear(WIDTH, WIDTH)})
        tree[kind][key] = part
    return {"_dummy_param": torch.empty(0)} | {n: 2 * t.detach().double() for n, t in tree.state_dict().items()}


def model_of(kind: str, tmp_path: Path, both: bool = False) -> tuple[PyHealthModel, pa.Table, dict[str, torch.Tensor]]:
    vocabulary, state = foreign_vocabulary(vocabulary_of(tmp_path)), checkpoint(kind, both)
    return PyHealthModel(kind, state, stream_sizes(vocabulary)).double().eval(), vocabulary, state


@pytest.mark.parametrize(("kind", "both"), [("rnn", False), ("rnn", True), ("retain", False)])
@pytest.mark.parametrize("gaps", [False, True])
def test_scores_are_the_replicas(kind: str, both: bool, gaps: bool, tmp_path: Path) -> None:
    model, vocabulary, state = model_of(kind, tmp_path, both)
    # The model holds float32 weights' exact values, so the replica takes them in float32 too, then counts in double.
    exact = {name: tensor.float().double() for name, tensor in state.items()}
    patients = cohort(1, gaps=gaps)
    sequences = sequences_of(patients, vocabulary)
    replica = rnn_logit if kind == "rnn" else retain_logit
    wanted = torch.stack([replica(exact, KEYS, visits) for visits in patients])
    found = model(sequences.batch(np.arange(len(sequences))))
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
    assert wanted.std() > 0.05


@pytest.mark.parametrize("kind", ["rnn", "retain"])
def test_several_classes_have_a_logit_each(kind: str, tmp_path: Path) -> None:
    """Each is the logit of a checkpoint whose last layer has that class's row alone."""
    _, vocabulary, state = model_of(kind, tmp_path)
    rows = {name: torch.cat([state[name], 0.5 - state[name], 2 * state[name]]) for name in ("fc.weight", "fc.bias")}
    sizes = stream_sizes(vocabulary)
    model = PyHealthModel(kind, state | rows, sizes, classes=["a", "b", "c"]).double().eval()
    batch = sequences_of(cohort(1), vocabulary).batch(np.arange(20))
    seen = model.seen(batch)
    logits = model.logits(model.embed(seen), seen.lengths)
    for at in range(3):
        alone = state | {name: tensor[at : at + 1] for name, tensor in rows.items()}
        torch.testing.assert_close(logits[:, at], PyHealthModel(kind, alone, sizes).double().eval()(batch))
    found = attribute(model, batch, target="log_odds:c:b")
    assert float(found.residual.abs().max()) < 1e-4
    torch.testing.assert_close(found.score, logits[:, 2] - logits[:, 1])
    assert PyHealthModel(kind, state | rows, sizes).classes == ("0", "1", "2")


@pytest.mark.parametrize("kind", ["rnn", "retain"])
def test_contributions_are_complete_whatever_a_visit_lacks(kind: str, tmp_path: Path) -> None:
    model, vocabulary, _ = model_of(kind, tmp_path)
    sequences = sequences_of(cohort(2), vocabulary)
    batch = sequences.batch(np.random.default_rng(0).permutation(len(sequences)))
    found = attribute(model, batch)
    torch.testing.assert_close(found.score, model(batch))
    total = torch.zeros(len(batch), dtype=torch.float64)
    sizes = np.diff(sequences.event_offsets)[batch.rows]
    total.index_add_(
        0, torch.repeat_interleave(torch.arange(len(batch)), torch.tensor(sizes)), found.streams[EVENTS].double()
    )
    assert float((total - (found.score - found.baseline_score)).abs().max()) < 1e-4
    alone = attribute(model, sequences.batch(batch.rows[:1]))
    torch.testing.assert_close(alone.streams[EVENTS], found.streams[EVENTS][: sizes[0]], rtol=1e-5, atol=1e-6)
    assert not len(found.streams[STATIC])


def test_another_vocabulary_or_model_is_refused(tmp_path: Path) -> None:
    state = checkpoint("rnn")
    sizes = dict(zip(KEYS, CODES, strict=True))
    for kind, given, sentence in (
        ("rnn", sizes | {"drugs": 8}, "counts 7 codes of 'drugs', and the vocabulary has 8"),
        ("rnn", {"conditions": 9, "procedures": 6}, "lacks the feature key 'drugs'"),
        ("rnn", sizes | {"drug": 8}, "did you mean 'drugs'"),
        ("retain", sizes, "no PyHealth retain"),
        ("gru", sizes, "no PyHealth model 'gru'"),
    ):
        with pytest.raises(UserError, match=sentence):
            PyHealthModel(kind, state, given)


@pytest.mark.parametrize("kind", ["rnn", "retain"])
def test_from_the_command_line(kind: str, tmp_path: Path) -> None:
    vocabulary, patients = foreign_vocabulary(vocabulary_of(tmp_path)), cohort(5)
    stage = StageDirectory.create(
        tmp_path / "sequences", stage="prepare", settings={"outcome": "death"}, inputs={}, shards=["g0-00000"],
        besides=[VOCABULARY], code_version="test",
    )  # fmt: skip
    codes = ["(everything absent)", *vocabulary["code"].to_pylist()]
    rows = [dict.fromkeys(FEATURE_VALUES.names) | {"feature_value_id": i, "code": c} for i, c in enumerate(codes)]
    stage.publish(VOCABULARY, {VOCABULARY: pa.Table.from_pylist(rows, schema=FEATURE_VALUES)})
    stage.publish("g0-00000", {TABLE: sequences_of(patients, vocabulary).table})
    state = {name: tensor.float() for name, tensor in checkpoint(kind).items()}
    torch.save(state, tmp_path / "best.ckpt")
    arguments = [
        "attribute", str(stage.path), "--model", f"pyhealth:{kind}", "--weights", str(tmp_path / "best.ckpt"),
        "--out", str(tmp_path / "attr"), "--inline",
    ]  # fmt: skip
    told = CliRunner().invoke(app, [*arguments, "--vocabulary", str(tmp_path / "vocab.json")])
    assert told.exit_code == 0, told.output
    assert f"pyhealth:{kind}: whenwhy's own form of PyHealth's equations" in told.output
    attributions = StageDirectory.open(tmp_path / "attr")
    replica = rnn_logit if kind == "rnn" else retain_logit
    wanted = [float(replica(state, KEYS, visits)) for visits in patients]
    found = attributions.read("g0-00000", PREDICTION_ROWS)
    assert found["score"].to_pylist() == pytest.approx(wanted, abs=1e-5)
    assert residual_summary(attributions)["n_over_tolerance"] == 0
    assert attributions.entry(ABOUT).summary["quality"] == {"folds": []}  # nobody is held out

    masked = [*arguments, "--out", str(tmp_path / "masks"), "--method", "extremal_mask"]
    told = CliRunner().invoke(app, [*masked, "--vocabulary", str(tmp_path / "vocab.json")])
    assert told.exit_code != 0
    assert "this model takes no such input: PyHealth tells a visit without a code" in str(told.exception)

    own = json.loads((tmp_path / "vocab.json").read_text())
    own["drugs"]["drugs-2"], own["drugs"]["drugs-3"] = 3, 2
    (tmp_path / "other.json").write_text(json.dumps(own))
    told = CliRunner().invoke(app, [*arguments, "--vocabulary", str(tmp_path / "other.json")])
    assert "prepare the sequences with --vocabulary of that file" in str(told.exception)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("rnn", {"hidden_dim": 6}),
        ("rnn", {"hidden_dim": 6, "rnn_type": "LSTM", "bidirectional": True, "num_layers": 2}),
        ("rnn", {"hidden_dim": 6, "rnn_type": "RNN"}),
        ("retain", {}),
    ],
)
def test_scores_are_pyhealths_own(kind: str, arguments: dict[str, Any], tmp_path: Path) -> None:
    """Where PyHealth is installed: its own processors, model and checkpoint, a patient at a time."""
    pytest.importorskip("pyhealth")
    from pyhealth.datasets import create_sample_dataset
    from pyhealth.datasets.utils import collate_fn_dict_with_padding
    from pyhealth.models import RETAIN, RNN

    patients = cohort(3)
    samples = [
        {"patient_id": str(i), "visit_id": str(i), "label": i % 2}
        | {key: [[f"{key}-{index}" for index in visit] for visit in visits[key]] for key in KEYS}
        for i, visits in enumerate(patients)
    ]
    dataset = create_sample_dataset(
        samples=samples, input_schema=dict.fromkeys(KEYS, "nested_sequence"), output_schema={"label": "binary"},
        dataset_name="test",
    )  # fmt: skip
    torch.manual_seed(5)
    network = (RNN if kind == "rnn" else RETAIN)(dataset=dataset, embedding_dim=WIDTH, **arguments).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter *= 2
    vocabularies = {key: dataset.input_processors[key].code_vocab for key in KEYS}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabularies))
    torch.save(network.state_dict(), tmp_path / "best.ckpt")

    vocabulary = foreign_vocabulary(tmp_path / "vocab.json")
    state = torch.load(tmp_path / "best.ckpt", weights_only=True)
    model = PyHealthModel(kind, state, stream_sizes(vocabulary)).eval()
    indexes: list[Visits] = [
        {key: [[vocabularies[key][f"{key}-{i}"] for i in visit] for visit in visits[key]] for key in KEYS}
        for visits in patients
    ]
    sequences = sequences_of(indexes, vocabulary)
    with torch.no_grad():
        found = model(sequences.batch(np.arange(len(sequences))))
        own = {s["patient_id"]: network(**collate_fn_dict_with_padding([s]))["logit"][0, 0] for s in dataset}
    wanted = torch.stack([own[str(i)] for i in range(len(patients))])
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    if arguments in ({"hidden_dim": 6}, {}):
        replica = rnn_logit if kind == "rnn" else retain_logit
        again = torch.stack([replica(state, KEYS, visits) for visits in indexes]).detach()
        torch.testing.assert_close(again, wanted, rtol=1e-4, atol=1e-5)
