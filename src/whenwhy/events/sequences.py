"""MEDS events flow in, sequences flow out: `whenwhy prepare`.

One row a prediction: the steps of the patient's record up to the prediction time, and the feature values
of each. New patients make a further generation of shards, and touch no old one.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from whenwhy import __version__
from whenwhy.engine import Workers, reported
from whenwhy.errors import UserError
from whenwhy.events.cohort import Cohort, cohort_of
from whenwhy.events.meds_dataset import MedsDataset, open_meds, read_labels, sound_types, split_patients
from whenwhy.events.preparation import Preparation
from whenwhy.events.prepare_settings import PrepareSettings
from whenwhy.events.sequence_directory import LAYOUT, NOTES_FILE, REPORT, TABLE, VOCABULARY, shard_names
from whenwhy.locations import is_remote, workplace
from whenwhy.shards import Json, StageDirectory, content_sha256
from whenwhy.working_folder import alone, remove_scratch, remove_temporaries

__all__ = ["TABLE", "VOCABULARY", "PrepareSettings", "add_generation", "prepare"]


def prepare(
    meds_path: Path,
    labels_path: Path,
    out: Path,
    settings: PrepareSettings,
    workers: Workers | None = None,
    *,
    vocabulary: Path | None = None,
    repair: bool = False,
    memory_limit: str = "1GB",
) -> StageDirectory:
    """The directory of sequences: entries `feature_values`, `layout` and `report`, and one entry a shard.

    Args:
        vocabulary: a file with the feature values that a model was trained on; None: they are fitted.
        repair: work on a mended copy where the data set breaks the rules of MEDS.
        memory_limit: of DuckDB, which merges counts and mends copies.

    Raises:
        UserError: bad input, found before anything is written.

    Example: `prepare(Path("meds"), Path("meds/labels/x"), Path("seq"), PrepareSettings("x"))`
    """
    settings.check()
    apart(out, meds_path, labels_path)
    dataset, cohort = opened(meds_path, labels_path, settings.shard_size, repair)
    inputs = inputs_of(dataset, cohort)
    if vocabulary is not None:
        inputs["vocabulary"] = {"path": str(vocabulary.resolve()), "sha256": _sha256_of(vocabulary)}

    def create() -> StageDirectory:
        return StageDirectory.create(
            out,
            stage="prepare",
            settings=settings.as_json() | ({"repair": True} if repair else {}),
            inputs=inputs,
            shards=shard_names(0, cohort.shards),
            besides=[LAYOUT, VOCABULARY, REPORT],
            code_version=__version__,
        )

    if StageDirectory.started(out) and not create().missing():
        _tidy(out)
        return create()
    with (
        reported(out),
        Preparation(dataset, cohort, settings, out, workers or Workers(), memory_limit, repair) as preparation,
    ):
        preparation.scan()
        layout = preparation.layout(vocabulary)
        stage = create()
        preparation.write(stage, layout, generation=0)
    return stage


def add_generation(
    meds_path: Path,
    labels_path: Path,
    out: Path,
    workers: Workers | None = None,
    *,
    repair: bool = False,
    memory_limit: str = "1GB",
) -> StageDirectory:
    """The directory `out` with the patients of another data set as a further generation of shards.

    Settings and feature values stay those of the first; no shard that is there is read again, but for the
    ids of its patients. Generations are told apart by their inputs, so the same call continues.

    Raises:
        UserError: a patient is in `out` already, or bad input.

    Example: `add_generation(Path("meds-2027"), Path("meds-2027/labels/x"), Path("seq"))`
    """
    stage = StageDirectory.open(out, "prepare")
    settings = PrepareSettings.of(stage.settings)
    dataset, cohort = opened(meds_path, labels_path, settings.shard_size, repair)
    inputs = inputs_of(dataset, cohort)
    hashes = {name: told["sha256"] for name, told in inputs.items()}
    known = [{name: told["sha256"] for name, told in g["inputs"].items()} for g in stage.generations]
    number = known.index(hashes) + 1 if hashes in known else len(known) + 1
    if number <= len(known) and not stage.missing():
        _tidy(out)
        return stage
    if number > len(known):
        stage.require_complete()
        names = [name for told in (stage.manifest, *stage.generations) for name in told["shards"]]
        both = [
            shared
            for name in names
            for shared in np.intersect1d(
                stage.read(name, TABLE, ["subject_id"])["subject_id"].to_numpy(), cohort.subject_id
            )
        ]
        if both:
            raise UserError(
                f"{out} has {len(both):,} of these patients already (subject {both[0]}): a patient lives in one place; "
                "remove them by `whenwhy forget` first, or leave them out of the labels."
            )
    with (
        reported(out),
        Preparation(dataset, cohort, settings, out, workers or Workers(), memory_limit, repair) as preparation,
    ):
        notes = json.loads(stage.read_bytes(LAYOUT, NOTES_FILE))
        preparation.scan(notes["anchor"])
        preparation.given_layout(stage, number)
        if number > len(known):
            stage = stage.extended(number, inputs, shard_names(number, cohort.shards), [f"{REPORT}-g{number}"])
        preparation.write(stage, None, generation=number)
    return stage


def opened(meds_path: Path, labels_path: Path, shard_size: int, repair: bool) -> tuple[MedsDataset, Cohort]:
    """The checked data set and its cohort.

    Raises:
        UserError: bad input.
    """
    dataset = open_meds(meds_path)
    labels = read_labels(labels_path, repair)
    if not repair:
        dataset = sound_types(dataset)
    return dataset, cohort_of(labels, split_patients(dataset, labels["subject_id"].to_numpy()), shard_size)


def _tidy(out: Path) -> None:
    """Removes what a call left that was killed at its very end."""
    here = workplace(out)
    with suppress(UserError), alone(here):  # another call may be at work
        remove_scratch(here)
        remove_temporaries(here)


def apart(out: Path, *inputs: Path) -> None:
    """Raises `UserError` if the output lies in an input, where it would be read, or holds one."""
    if is_remote(out):
        return
    here = out.resolve()
    for path in inputs:
        there = path.resolve()
        if here.is_relative_to(there) or there.is_relative_to(here):
            raise UserError(f"--out {out} and the input {path} lie one in the other: give --out a directory apart.")


def inputs_of(dataset: MedsDataset, cohort: Cohort) -> dict[str, Json]:
    """What a manifest records of the data set and its labels."""
    return {"meds": dataset.as_input(), "labels": {"sha256": labels_sha256(cohort.predictions)}}


def labels_sha256(predictions: pa.Table) -> str:
    """The hash of who is predicted when, and with which label."""
    digest = hashlib.sha256()
    classes = sorted(pc.unique(predictions["label"]).to_pylist())
    place = pc.index_in(predictions["label"].cast(pa.string()), pa.array(classes)).cast(pa.uint8())
    for column in (
        predictions["subject_id"].to_numpy(),
        predictions["prediction_time"].cast(pa.int64()).to_numpy(),
        place.to_numpy(),
    ):
        digest.update(column.tobytes())
    if classes != ["false", "true"]:
        digest.update("\0".join(classes).encode())
    return digest.hexdigest()


def _sha256_of(file: Path) -> str:
    if not file.is_file():
        raise UserError(f"{file} does not exist: name the vocabulary that the model was trained with.")
    return content_sha256(file)
