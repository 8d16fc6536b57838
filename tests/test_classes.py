"""Several classes, from labels to the store: what each stage says of them, and that planted causes are found."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import meds
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from meds_evaluation.schema import PredictionSchema
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, brier_score_loss, log_loss, roc_auc_score
from typer.testing import CliRunner

from cohort import CAUSES, write_cohort_of_three
from conftest import INLINE, Command, SmallRun, one_sentence
from whenwhy.cli import app
from whenwhy.errors import UserError
from whenwhy.events.meds_dataset import read_labels
from whenwhy.events.sequence_batch import Sequences
from whenwhy.events.sequences import TABLE, VOCABULARY, PrepareSettings, labels_sha256, prepare
from whenwhy.models.architectures import ARCHITECTURES, model_arguments
from whenwhy.models.checkpoint import DESCRIPTION, SHIPPED, WEIGHTS, load_model
from whenwhy.models.fitting import loss_of, weighing
from whenwhy.models.folds import class_index, classes_in
from whenwhy.models.logistic_regression import PENALTIES, inputs_of
from whenwhy.models.measurements import measured, measured_sentence
from whenwhy.models.predictions import predict, scored_shards
from whenwhy.models.quality import calibration, calibration_of_classes, discrimination
from whenwhy.models.recurrent import RecurrentClassifier
from whenwhy.models.sequence_model import TWO_CLASSES, classes_of
from whenwhy.models.training import TrainSettings, load_sequences, train
from whenwhy.schema import HELD_OUT, TRAIN, TUNING
from whenwhy.server.answers import Answers
from whenwhy.server.choices import choices_of
from whenwhy.shards import StageDirectory
from whenwhy.store import open_store

THREE = ("dead", "home", "nursing")
LEARN = (
    "--hidden",
    "8",
    "--dropout",
    "0",
    "--epochs",
    "6",
    "--learning-rate",
    "0.03",
    "--averaging",
    "0.9",
    "--batch",
    "64",
)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with MEDS data of three outcomes, their sequences, and a model that learned them, by the commands."""
    folder = tmp_path_factory.mktemp("three")
    write_cohort_of_three(folder / "meds", patients=900, seed=3)
    for command in (
        ("prepare", folder / "meds", "--labels", folder / "meds/labels/outcome", "--out", folder / "seq", "--inline"),
        ("train", folder / "seq", "--out", folder / "model", *LEARN, "--inline"),
    ):
        told = CliRunner().invoke(app, list(map(str, command)))
        assert told.exit_code == 0, told.output
    assert "a class beside all others, mean of the classes" in told.output
    return folder


@pytest.fixture(scope="module")
def sequences(three: Path) -> Sequences:
    return load_sequences(StageDirectory.open(three / "seq"))


# Labels


def labels_of(folder: Path, **columns: pa.Array) -> Path:
    n = len(next(iter(columns.values())))
    times = pa.array([0] * n, pa.timestamp("us"))
    (folder / "labels").mkdir(exist_ok=True)
    table = pa.table({"subject_id": np.arange(n), "prediction_time": times, **columns})
    pq.write_table(table, folder / "labels" / "0.parquet")
    return folder / "labels"


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"categorical_value": pa.array(["b", "a", "c"])}, ["b", "a", "c"]),
        ({"categorical_value": pa.array(["b", "a", "b"]).dictionary_encode()}, ["b", "a", "b"]),
        ({"integer_value": pa.array([10, -1, 9])}, ["10", "-1", "9"]),
        ({"boolean_value": pa.array([True, False, True])}, ["true", "false", "true"]),
        # MEDS has a column a type of outcome, and a file may have all of them.
        (
            {
                "boolean_value": pa.nulls(3, pa.bool_()),
                "integer_value": pa.nulls(3, pa.int64()),
                "float_value": pa.array([0.5, 1.5, 2.5], pa.float32()),
                "categorical_value": pa.array(["x", "y", "x"]),
            },
            ["x", "y", "x"],
        ),
        (
            {"boolean_value": pa.array([True, False, True]), "integer_value": pa.array([1, 2, 3])},
            ["true", "false", "true"],
        ),
    ],
)
def test_labels_are_names_of_classes(tmp_path: Path, columns: dict[str, pa.Array], expected: list[str]) -> None:
    table = read_labels(labels_of(tmp_path, **columns))
    assert table.column_names == ["subject_id", "prediction_time", "label"]
    assert table["label"].cast(pa.string()).to_pylist() == expected


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"float_value": pa.array([0.5, 1.0], pa.float32())}, r"continuous or survival outcome is not supported yet"),
        ({"other": pa.array([1, 2])}, r"no column of an outcome: MEDS 0\.4 asks for one of boolean_value"),
        (
            {"categorical_value": pa.array(["a", "all"])},
            "has a class named 'all': a class needs a name other than 'all'",
        ),
        ({"categorical_value": pa.array(["a", "b:c"])}, "has a class named 'b:c'"),
        ({"categorical_value": pa.array(["a", " "])}, "has a class named ' '"),
        ({"categorical_value": pa.array(["a", None])}, "1 rows without categorical_value: remove them"),
        ({"categorical_value": pa.array(["a", "a"])}, r"one class only \(all a\)"),
        ({"integer_value": pa.array(range(101))}, "101 different labels in integer_value, more than 100 classes"),
    ],
)
def test_labels_that_name_no_classes_are_refused(tmp_path: Path, columns: dict[str, pa.Array], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        read_labels(labels_of(tmp_path, **columns))


def test_the_hash_of_labels_tells_classes_and_their_names_apart() -> None:
    def sha(*label: str) -> str:
        n = len(label)
        times = pa.array([0] * n, pa.timestamp("us"))
        return labels_sha256(pa.table({"subject_id": np.arange(n), "prediction_time": times, "label": list(label)}))

    assert len({sha("a", "b", "c"), sha("a", "c", "b"), sha("a", "b", "d"), sha("true", "false", "true")}) == 4
    assert sha("a", "b", "a") != sha("true", "false", "true") != sha("b", "a", "b")


def test_classes_stand_in_one_order() -> None:
    assert classes_in(np.array(["true", "false", "true"])) == TWO_CLASSES
    assert classes_in(np.array(["10", "9", "-3", "9"])) == ("-3", "9", "10")
    assert classes_in(np.array(["10", "9", "x"])) == ("10", "9", "x")


# Models


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("members", [1, 2])
def test_every_architecture_has_a_logit_a_class(name: str, members: int, sequences: Sequences) -> None:
    torch.manual_seed(0)
    size = int(sequences.event_id.max()) + 100
    arguments = model_arguments(name, vocabulary_size=size, hidden=4, members=members, classes=THREE)
    model = ARCHITECTURES[name](**arguments).double().eval()
    batch = sequences.batch(np.arange(20))
    embedded = model.embed(batch)
    logits = model.logits(embedded, batch.lengths)
    assert classes_of(model) == THREE
    assert logits.shape == (20, 3)
    if members > 1:
        width = len(model.members)
        of_first = {n: t.chunk(width, dim=-1)[0] for n, t in embedded.items()}
        of_second = {n: t.chunk(width, dim=-1)[1] for n, t in embedded.items()}
        first, second = (m.logits(e, batch.lengths) for m, e in zip(model.members, (of_first, of_second), strict=True))
        torch.testing.assert_close(logits, (first + second) / 2)
    with pytest.raises(UserError, match=r"a logit a class .dead, home, nursing., not one"):
        model.score(embedded, batch.lengths)
    if model.not_causal is None:
        steps = model.step_logits(embedded, batch.lengths)
        for row in range(20):
            for step in range(int(batch.lengths[row])):
                cut = model.logits({n: t[row : row + 1] for n, t in embedded.items()}, torch.tensor([step + 1]))
                torch.testing.assert_close(steps[row, step], cut[0])
        own = model.own_step_logits(embedded, embedded["events"])  # type: ignore[operator]
        true = torch.arange(batch.n_steps) < batch.lengths.unsqueeze(1)
        torch.testing.assert_close(own[true], steps[true])


def test_descriptions_name_classes_only_where_they_are_not_yes_and_no(small_run: SmallRun, three: Path) -> None:
    """A description without classes, such as those that were written before there were any, is of yes and no."""
    described = [
        json.loads(StageDirectory.open(path).file(SHIPPED, DESCRIPTION).read_bytes())
        for path in (small_run.model, three / "model")
    ]
    assert "classes" not in json.dumps(described[0])
    assert classes_of(load_model(StageDirectory.open(small_run.model))) == TWO_CLASSES
    assert described[1]["arguments"]["classes"] == list(THREE)
    assert classes_of(load_model(StageDirectory.open(three / "model"))) == THREE


# The loss


@pytest.mark.parametrize("class_weights", ["none", "balanced"])
@pytest.mark.parametrize("every_step", [False, True])
def test_the_loss_of_three_classes_is_that_by_hand(sequences: Sequences, class_weights: str, every_step: bool) -> None:
    """-w_y log of softmax(z + log w) at y; of every step its mean over the true steps, of no step that of the record."""
    rows = np.concatenate([np.flatnonzero(sequences.n_steps == 0)[:2], np.flatnonzero(sequences.n_steps > 0)[:12]])
    torch.manual_seed(1)
    model = RecurrentClassifier(100, hidden=4, dropout=0.0, classes=THREE).double().eval()
    with torch.no_grad():
        model.head.weight.mul_(5)
    label = class_index(sequences.column("label")[rows], THREE)
    weights = weighing(class_weights, label, 3)
    found = loss_of(model, sequences.batch(rows), torch.from_numpy(label), weights, every_step)
    counts = np.bincount(label, minlength=3)
    assert (counts > 0).all()
    w = len(label) / (3 * counts) if class_weights == "balanced" else np.ones(3)
    expected = []
    for at, row in enumerate(rows):
        batch = sequences.batch(np.array([row]))
        steps = int(batch.lengths[0])
        embedded = model.embed(batch)
        cuts = range(1, steps + 1) if every_step and steps else [steps]
        losses = []
        for cut in cuts:
            z = model.logits(embedded, torch.tensor([cut]))[0].detach().numpy()
            shifted = w * np.exp(z)
            losses.append(-w[label[at]] * np.log(shifted[label[at]] / shifted.sum()))
        expected.append(np.mean(losses))
    assert found.item() == pytest.approx(np.mean(expected), rel=1e-6)


def test_balanced_classes_keep_the_true_prior(sequences: Sequences) -> None:
    """At the least weighted loss of a model that knows nothing but a bias, probabilities are the classes' shares."""
    label = torch.tensor([0] * 10 + [1] * 60 + [2] * 30)
    model = RecurrentClassifier(100, hidden=2, dropout=0.0, classes=THREE)
    with torch.no_grad():
        model.head.weight.zero_()
    weights = weighing("balanced", label.numpy(), 3)
    assert [weight * n for weight, n in zip(weights, (10, 60, 30), strict=True)] == pytest.approx([100 / 3] * 3)
    optimizer = torch.optim.LBFGS([model.head.bias], max_iter=200, tolerance_grad=1e-9)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_of(model, sequences.batch(np.arange(100)), label, weights, every_step=False)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert model.head.bias.softmax(0).tolist() == pytest.approx([0.1, 0.6, 0.3], abs=1e-4)


# Two classes of other names


def test_two_classes_of_other_names_train_to_the_same_weights(small_run: SmallRun, tmp_path: Path) -> None:
    table = pq.read_table(small_run.labels)
    named = pc.if_else(table["boolean_value"], "dead", "alive")
    (tmp_path / "labels").mkdir()
    labels = table.drop_columns(["boolean_value"]).append_column("categorical_value", named)
    pq.write_table(labels, tmp_path / "labels" / "0.parquet")
    settings = PrepareSettings("the outcome", strata=("age_band", "sex"), bins=4, shard_size=128)
    prepare(small_run.meds, tmp_path / "labels", tmp_path / "seq", settings, INLINE)
    stage = train(tmp_path / "seq", tmp_path / "model", TrainSettings(hidden=8, epochs=2), INLINE)
    same = StageDirectory.open(small_run.model)
    weights, expected = (load_file(found.file(SHIPPED, WEIGHTS)) for found in (stage, same))
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert classes_of(load_model(stage)) == ("alive", "dead")
    assert measured(stage) == measured(same)
    for name, path in (("named", tmp_path), ("plain", small_run.sequences.parent)):
        model = tmp_path / "model" if name == "named" else small_run.model
        predict(path / ("seq" if name == "named" else "sequences"), model, tmp_path / f"{name}.parquet")
    table, plain = pq.read_table(tmp_path / "named.parquet"), pq.read_table(tmp_path / "plain.parquet")
    assert table.select(plain.column_names).equals(plain)
    PredictionSchema.validate(table)
    assert table["categorical_value"].to_pylist() == [
        "dead" if v else "alive" for v in plain["boolean_value"].to_pylist()
    ]


# What is measured


def test_figures_are_means_over_classes_beside_all_others() -> None:
    random = np.random.default_rng(0)
    label = random.integers(0, 3, 300)
    drawn = random.normal(size=(300, 3)) + 1.5 * np.eye(3)[label]
    probability = np.exp(drawn) / np.exp(drawn).sum(1, keepdims=True)
    positive = label[:, None] == np.arange(3)
    told = discrimination(np.arange(300), positive, {"": probability, "other_": probability}, 0, THREE)
    assert told["auroc"] == pytest.approx(roc_auc_score(label, probability, multi_class="ovr", average="macro"))
    for at, name in enumerate(THREE):
        own = told["by_class"][name]
        alone = discrimination(np.arange(300), positive[:, at], {"": probability[:, at]}, 0)
        assert own == alone
        assert own["auprc"] == average_precision_score(positive[:, at], probability[:, at])
    assert told["auprc"] == pytest.approx(np.mean([own["auprc"] for own in told["by_class"].values()]))
    assert told["auroc_low"] < told["auroc"] < told["auroc_high"]
    assert max(own["auroc_high"] - own["auroc_low"] for own in told["by_class"].values()) > (
        told["auroc_high"] - told["auroc_low"]
    )
    assert (told["auroc_difference_low"], told["auroc_difference"], told["auroc_difference_high"]) == (0, 0, 0)
    found = calibration_of_classes(label, probability, THREE)
    assert found["log_loss"] == pytest.approx(log_loss(label, probability))
    assert found["brier"] == pytest.approx(brier_score_loss(label, probability, labels=[0, 1, 2], scale_by_half=False))
    assert found["brier"] == pytest.approx(sum(own["brier"] for own in found["by_class"].values()))
    for at, name in enumerate(THREE):
        alone = calibration(positive[:, at], probability[:, at])
        assert alone.pop("calibration_curve") == found["calibration_curve"][name]
        assert alone == found["by_class"][name]


def test_training_measures_every_class_beside_a_multinomial_regression(three: Path, sequences: Sequences) -> None:
    stage = StageDirectory.open(three / "model")
    table, told = stage.read(SHIPPED, "predictions"), stage.entry(SHIPPED).summary
    label = class_index(np.asarray(table["label"].to_pylist()), THREE)
    rows = sequences.column("split") == HELD_OUT
    assert table["label"].to_pylist() == sequences.column("label")[rows].tolist()
    size = StageDirectory.open(three / "seq").read(VOCABULARY, VOCABULARY).num_rows
    inputs, truth = inputs_of(sequences, size), class_index(sequences.column("label"), THREE)
    of, fits = sequences.column("split"), {}
    for penalty in PENALTIES:
        fitted = LogisticRegression(C=penalty, max_iter=500).fit(inputs[of == TRAIN], truth[of == TRAIN])
        fits[log_loss(truth[of == TUNING], fitted.predict_proba(inputs[of == TUNING]))] = fitted
    regression = fits[min(fits)].predict_proba(inputs[rows])
    for prefix in ("", "logistic_regression_"):
        probability = np.stack([table[f"{prefix}probability:{name}"].to_numpy() for name in THREE], axis=1)
        np.testing.assert_allclose(probability.sum(1), 1, atol=1e-6)
        assert told[f"{prefix}auroc"] == pytest.approx(
            np.mean([roc_auc_score(label == at, probability[:, at]) for at in range(3)])
        )
        assert told[f"{prefix}log_loss"] == pytest.approx(log_loss(label, probability), rel=1e-6)
        assert told[f"{prefix}auroc_low"] < told[f"{prefix}auroc"] < told[f"{prefix}auroc_high"]
        if prefix:
            np.testing.assert_allclose(probability, regression, atol=2e-3)
    assert told["auroc"] > 0.8  # it has learned something
    assert told["auroc_difference"] == pytest.approx(told["auroc"] - told["logistic_regression_auroc"])
    assert told["n_by_class"] == {name: int((label == at).sum()) for at, name in enumerate(THREE)}
    assert sum(part["n"] for part in told["calibration_curve"]["dead"]) == told["n_held_out"]
    measurement = measured(stage)
    assert measurement["auroc"] == told["auroc"]
    assert "calibration_curve" not in json.dumps(measurement)
    sentence = measured_sentence(measurement)
    assert f"a class beside all others, mean of the classes {told['auroc']:.3f}" in sentence
    assert f"nursing {told['by_class']['nursing']['auroc']:.3f}" in sentence


def test_the_tuning_loss_is_that_of_all_classes(three: Path) -> None:
    stage, source = StageDirectory.open(three / "model"), StageDirectory.open(three / "seq")
    shards = list(scored_shards(load_model(stage), source, lambda s: np.flatnonzero(s.column("split") == TUNING)))
    label, found = (np.concatenate([getattr(s, what) for s in shards]) for what in ("label", "probabilities"))
    assert stage.entry(SHIPPED).summary["tuning_loss"] == pytest.approx(log_loss(label, found), abs=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        {"supervise": "every", "class_weights": "balanced", "pooling": "mean", "members": 2},
        {"architecture": "retain", "folds": 2},
        {"architecture": "lstm", "layers": 2, "bidirectional": True, "pooling": "max"},
        {"architecture": "gru_attention", "class_weights": "balanced"},
    ],
)
def test_every_way_to_train_ships_what_it_measured(three: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    stage = train(three / "seq", tmp_path / "model", TrainSettings(hidden=4, epochs=1, **settings), INLINE)
    source = StageDirectory.open(three / "seq")
    shards = scored_shards(load_model(stage), source, lambda s: np.flatnonzero(s.column("split") == HELD_OUT))
    found = np.concatenate([shard.probabilities for shard in shards])
    table = stage.read(SHIPPED, "predictions")
    np.testing.assert_allclose(found, np.stack([table[f"probability:{name}"] for name in THREE], axis=1), atol=1e-6)
    told = measured(stage)
    if len(told["folds"]) == 2:
        difference = [fold["auroc"] - fold["logistic_regression_auroc"] for fold in told["folds"]]
        assert told["difference"] == pytest.approx(np.mean(difference))
        assert "mean of 2 folds" in measured_sentence(told)


def test_a_class_that_a_split_lacks_is_named(three: Path, tmp_path: Path, whenwhy: Command) -> None:
    table = pq.read_table(three / "meds/labels/outcome/0.parquet")
    splits = pq.read_table(three / "meds/metadata/subject_splits.parquet")
    tuning = set(splits.filter(pc.equal(splits["split"], "tuning"))["subject_id"].to_pylist())
    lacks = [
        s not in tuning or v != "nursing"
        for s, v in zip(*(table[c].to_pylist() for c in ("subject_id", "categorical_value")), strict=True)
    ]
    pq.write_table(table.filter(pa.array(lacks)), tmp_path / "labels.parquet")
    asked = ("prepare", three / "meds", "--labels", tmp_path / "labels.parquet", "--out", tmp_path / "seq", "--inline")
    assert whenwhy(*asked)[0] == 0
    said = one_sentence(whenwhy("train", tmp_path / "seq", "--out", tmp_path / "model", "--inline"))
    assert "split 'tuning' has the label 'nursing'" in said
    assert "every class in every split" in said


# Predictions


def test_predictions_have_a_probability_a_class(three: Path, tmp_path: Path) -> None:
    written = predict(three / "seq", three / "model", tmp_path / "predictions.parquet")
    table = pq.read_table(tmp_path / "predictions.parquet")
    told = StageDirectory.open(three / "model").read(SHIPPED, "predictions")
    assert written == table.num_rows == told.num_rows
    assert table.column_names == [
        "subject_id", "prediction_time", "categorical_value", "predicted_categorical_value",
        *(f"predicted_categorical_probability:{name}" for name in THREE),
    ]  # fmt: skip
    meds.LabelSchema.validate(
        table.select(
            meds.LabelSchema.align(table.select(["subject_id", "prediction_time", "categorical_value"])).column_names
        )
    )
    assert table["categorical_value"].to_pylist() == told["label"].to_pylist()
    found = np.stack([table[f"predicted_categorical_probability:{name}"].to_numpy() for name in THREE], axis=1)
    expected = np.stack([told[f"probability:{name}"].to_numpy() for name in THREE], axis=1)
    np.testing.assert_array_equal(found, expected.astype(np.float32))
    assert table["predicted_categorical_value"].to_pylist() == [THREE[at] for at in expected.argmax(1)]


# The whole way


def test_planted_causes_come_out_on_top_for_the_class_they_cause(three: Path, tmp_path: Path, whenwhy: Command) -> None:
    seq, model = three / "seq", three / "model"
    refused = one_sentence(whenwhy("attribute", seq, "--model", model, "--out", tmp_path / "x", "--inline"))
    assert "has the classes dead, home, nursing: name one, as in logit:dead" in refused
    runs = {}
    for first, second in (("dead", "home"), ("nursing", "home")):
        out, target = tmp_path / f"{first}-{second}", f"log_odds:{first}:{second}"
        status, printed, said = whenwhy(
            "attribute", seq, "--model", model, "--target", target, "--out", out, "--inline"
        )
        assert status == 0, said
        assert "0 over it" in printed
        runs[first, second] = StageDirectory.open(out).run_id
    store = tmp_path / "store"
    assert whenwhy("aggregate", *(tmp_path / f"{a}-{b}" for a, b in runs), "--out", store)[0] == 0
    for (first, second), run in runs.items():
        status, printed, said = whenwhy(
            "query", store, "class_comparison", f"class_a={first}", f"class_b={second}", f"run={run}", "top=2",
            "--format", "json",
        )  # fmt: skip
        assert status == 0, said
        rows = {row["code"]: row for row in map(json.loads, printed.splitlines())}
        assert set(rows) == {CAUSES[first], CAUSES[second]}
        # More of the one cause in those who had the one outcome, less of the other: both raise the log-odds.
        assert all(row["difference_low"] > 0 for row in rows.values())
        for asked, expected in (("class=all", {CAUSES[first], CAUSES[second]}), (f"class={first}", {CAUSES[first]})):
            top = f"top={len(expected)}"
            printed = whenwhy("query", store, "top_features", f"run={run}", asked, top, "--format", "json")[1]
            assert {json.loads(line)["code"] for line in printed.splitlines()} == expected
    status, printed, _ = whenwhy("info", store)
    assert status == 0
    assert all(run in printed for run in runs.values())
    opened = open_store(store)
    with ThreadPoolExecutor(1) as pool:
        offered = choices_of(Answers(opened, pool), "analyst").offered[runs["dead", "home"]]
    assert offered.classes == ("all", *THREE)
    about = {row["run_id"]: row for row in opened.ask("runs").to_pylist()}
    told = StageDirectory.open(model).entry(SHIPPED).summary
    assert about[runs["dead", "home"]]["auroc"] == pytest.approx(told["auroc"])
    opened.close()
    shared = open_store(store, "viewer")
    assert "n_by_class" in told
    for quality in shared.sql("select quality from runs").column(0).to_pylist():
        (fold,) = json.loads(quality)["folds"]
        assert set(fold["by_class"]) == set(THREE)
        assert not [key for key in fold if key.startswith("n_")]
    assert set(shared.sql("select distinct class from cells").column(0).to_pylist()) == {"all", *THREE}
    shared.close()


def test_whole_numbers_are_classes_in_their_order(tmp_path: Path) -> None:
    write_cohort_of_three(tmp_path / "meds", patients=120, seed=4, column="integer_value")
    labels = tmp_path / "meds/labels/outcome"
    stage = prepare(tmp_path / "meds", labels, tmp_path / "seq", PrepareSettings("outcome"), INLINE)
    assert all("n_train_positive" not in row for row in stage.entry("report").summary["undated"])
    assert set(stage.read(stage.shards[0], TABLE)["label"].to_pylist()) == {"2", "9", "10"}
    trained = train(tmp_path / "seq", tmp_path / "model", TrainSettings(hidden=4, epochs=1), INLINE)
    assert classes_of(load_model(trained)) == ("2", "9", "10")
