"""The passes of `whenwhy prepare`: scan, gather, write. Each is a loop of the engine over names.

Scan checks every row of every file and keeps what predictions may know, sorted by shard. Gather puts a
shard's events in one order and counts who has what. Write makes records of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from whenwhy.engine import Workers, kept_pool, run
from whenwhy.errors import UserError
from whenwhy.events.code_groups import with_groups
from whenwhy.events.cohort import Cohort
from whenwhy.events.derived_features import with_derived
from whenwhy.events.feature_values import AGE, ANY_NUMBER, FittingNotes, Row, Vocabulary, as_table, folded
from whenwhy.events.findings import as_rows, require_sound
from whenwhy.events.fitting import fitted, foreign_rows, require_codes
from whenwhy.events.foreign_vocabulary import foreign_vocabulary
from whenwhy.events.gathered_events import CODES, PROVISIONAL, GatherShard, read_gathered
from whenwhy.events.meds_dataset import MedsDataset
from whenwhy.events.out_of_core import connect
from whenwhy.events.prepare_settings import ADMISSION, PREDICTION, PrepareSettings
from whenwhy.events.records import PatientEvents, records_of
from whenwhy.events.repair import repaired
from whenwhy.events.scanned import scanned
from whenwhy.events.sequence_directory import (
    CODE_GROUPS,
    LAYOUT,
    LAYOUT_FILE,
    NOTES_FILE,
    PLACE_FILE,
    PROVISIONAL_FILE,
    REPORT,
    TABLE,
    VOCABULARY,
    read_layout,
    shard_names,
    shard_place,
)
from whenwhy.events.sorted_numbers import distinct, rows_with
from whenwhy.events.strata import AGE_BAND, age_bands, require_strata, strata_column, years_at
from whenwhy.locations import is_remote, location, named, workplace
from whenwhy.schema import FEATURE_VALUES, TRAIN
from whenwhy.shards import Json, StageDirectory
from whenwhy.working_folder import SCRATCH, alone, new_scratch, remove_scratch, remove_temporaries

BIRTHS = "births.npy"  # in scratch: the time of each patient's birth

#: Below this, workers would take longer to start than the work takes, unless they are asked for.
MOST_ROWS_INLINE = 20_000_000

#: What MEDS data sets call an admission, the first that a data set has.
ADMISSIONS = ("HOSPITAL_ADMISSION", "ADMISSION", "INPATIENT_ADMISSION", "ICU_ADMISSION", "VISIT", "ENCOUNTER")


@dataclass(frozen=True)
class PrepareShard:
    """The engine's task: one shard's events, gathered before, become its sequences."""

    out: str

    def start(self) -> Callable[[str], int]:
        stage = StageDirectory.open(location(self.out), "prepare")
        scratch = workplace(stage.path) / SCRATCH
        settings = PrepareSettings.of(stage.settings)
        rules = settings.rules
        cohort = Cohort.load(scratch)
        births = np.load(scratch / BIRTHS)
        layout, place, table = read_layout(stage)
        ages_of = Vocabulary(table) if AGE in set(table["code"].to_pylist()) else None
        names = sorted({name.lower() for name in settings.strata})

        def one_shard(key: str) -> int:
            _, number = shard_place(key)
            events, sources, strata = read_gathered(scratch / f"{key}.arrow")
            predictions, patients = cohort.predictions_of(number), cohort.patients_of(number)
            patient = np.searchsorted(cohort.subject_id[patients], predictions["subject_id"].to_numpy())
            time = predictions["prediction_time"].cast(pa.int64()).to_numpy()
            years = years_at(births[patients[patient]], time)
            none = np.full(len(years), -1, dtype=np.int32)
            age_id = none if ages_of is None else ages_of.ids(pa.array([AGE] * len(years), pa.string()), years)
            age_id = np.where(np.isnan(years), none, age_id)
            told = [[strata[p].get(name, "unknown") for p in patient] for name in names]
            if AGE_BAND in names:
                told[names.index(AGE_BAND)] = age_bands(years)
            plain = predictions.append_column("source", pa.array([sources[p] or None for p in patient], pa.string()))
            plain = plain.append_column("strata", strata_column(names, told, len(patient)))
            ids = np.where(events["id"] >= 0, place[events["id"]], -1).astype(np.int32)
            of_patients = PatientEvents(
                events["patient"], events["time"], ids, events["value"], events["anchor"], (age_id, years)
            )
            records = records_of(plain, patient, of_patients, rules, layout)
            np.save(scratch / f"{key}-counts.npy", training_counts(records.table, len(table)))
            with np.load(scratch / f"{key}.npz") as gathered:
                unknown = int(gathered["unknown"].sum())
            stage.publish(key, {TABLE: records.table}, records.counts | {"n_unknown": unknown})
            return records.counts["n_events"]

        return one_shard


#: The rows of `training_counts`.
COUNTED = ("n_train", "n_train_patients", "n_undated", "n_undated_positive")


def training_counts(table: pa.Table, size: int) -> np.ndarray:
    """What training patients have of each feature value [4, feature value]: rows by COUNTED.

    A patient counts once, by the record of the last prediction: values, patients, and patients with it
    undated, of whom so many are positive. All of a patient's predictions are in one table, in order.
    """
    subject = table["subject_id"].to_numpy()
    last = np.append(subject[1:] != subject[:-1], True) if len(subject) else np.array([], dtype=bool)
    of = np.flatnonzero(last & np.asarray(table["split"].to_numpy(zero_copy_only=False) == TRAIN))
    chosen = table.select(["label", "event_id", "static_id"]).take(pa.array(of)).combine_chunks()
    positive = np.asarray(chosen["label"].to_numpy(zero_copy_only=False) == "true")

    def values(name: str) -> tuple[np.ndarray, np.ndarray]:
        column = chosen[name].combine_chunks()
        row = pc.list_parent_indices(column).to_numpy().astype(np.int64)
        return row, pc.list_flatten(column).to_numpy().astype(np.int64)

    (row, ids), (static_row, static_id) = values("event_id"), values("static_id")
    undated = distinct(static_row * size + static_id)
    every = np.concatenate([ids, static_id])
    counts = [
        np.bincount(every, minlength=size),
        rows_with(np.concatenate([row, static_row]), every, len(of), size),
        np.bincount(undated % size, minlength=size),
        np.bincount(undated % size, positive[undated // size], minlength=size),
    ]
    return np.stack(counts).astype(np.int64)


class Preparation:
    """One run of the passes, with its scratch folder, which goes when the run ends.

    Used as a context: scan, then layout (or given_layout), then write.
    """

    def __init__(
        self,
        dataset: MedsDataset,
        cohort: Cohort,
        settings: PrepareSettings,
        out: Path,
        workers: Workers,
        memory_limit: str,
        repair: bool,
    ) -> None:
        self.dataset, self.cohort, self.settings = dataset, cohort, settings
        self.workers = workers if workers != Workers() or _rows_of(dataset) > MOST_ROWS_INLINE else Workers(inline=True)
        self.memory_limit, self.repair = memory_limit, repair
        self.out, self.here = out, workplace(out).resolve()
        self.scratch = self.here / SCRATCH
        self.report: Json = {}
        self.notes = FittingNotes()
        self.open = ExitStack()

    def __enter__(self) -> Preparation:
        connect(self.memory_limit, self.here).close()  # a limit that is none is said before any work
        if is_remote(self.out) and self.workers.ray_address:
            raise UserError(
                f"--out {self.out} is in an object store, and then this machine keeps what all workers share: leave out "
                "--ray-address."
            )
        self.made = [folder for folder in (self.here, *self.here.parents) if not folder.exists()]
        with ExitStack() as opening:
            opening.enter_context(alone(self.here))
            remove_temporaries(self.here)
            opening.callback(remove_scratch, self.here)
            self.cohort.save(new_scratch(self.here))
            self.pool = opening.enter_context(kept_pool(self.workers))
            self.open = opening.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.open.close()
        if (error is not None or is_remote(self.out)) and not any(self.here.iterdir()):
            for folder in self.made:  # nothing was begun
                folder.rmdir()

    # -- scan ----------------------------------------------------------------------------------------

    def scan(self, anchor: str | None = None) -> None:
        """Every row checked; what predictions may know is in scratch, sorted by shard.

        Args:
            anchor: what anchors the first generation's records; given, this is a further generation, whose
                data may lack what the settings name.

        Raises:
            UserError: the data set breaks the rules of MEDS and may not be repaired, or the cohort is empty.
        """
        self._scan_files(self.dataset)
        original = self.scanned.findings
        refused = [finding for finding in original if finding.refused]
        mendable = [finding for finding in original if finding.repair]
        if not self.repair:
            require_sound(original, self.dataset.path)
        elif mendable:
            mended = repaired(self.dataset, self.scratch, self.memory_limit)
            self._scan_files(mended)
            require_sound(self.scanned.findings, self.dataset.path)
        self.report["findings"] = as_rows(original)
        self.report["repaired"] = bool(self.repair and (mendable or refused))
        where = self.dataset.path
        if not self.scanned.kept and not self._ages().size:
            raise UserError(
                f"{where} has no event of any labelled patient up to the prediction time: "
                "the cohort is empty; check that labels and data belong together."
            )
        self.codes = self.scanned.codes
        if AGE in self.codes and self._ages().size:
            raise UserError(
                f"{where} has the code '{AGE}', which is the name of the age at the prediction: give the code another "
                f"name, or leave both out by --without {AGE}."
            )
        if anchor is None:
            require_strata(self.settings.strata, self.scanned.static_codes, self.scanned.strata_values, where)
            require_codes([*self.settings.without, *self.settings.cut_offs], [AGE, *self.codes], where)
        self.anchor = self._anchor() if anchor is None else anchor
        self.anchors = tuple(
            code for code in self.codes if self.anchor and (code == self.anchor or code.startswith(f"{self.anchor}//"))
        )

    def _scan_files(self, dataset: MedsDataset) -> None:
        self.scanned = scanned(
            dataset, self.cohort, self.scratch, self.pool, self.settings.without, self.settings.strata
        )
        np.save(self.scratch / BIRTHS, self.scanned.births)

    def _ages(self) -> np.ndarray:
        """[training patient] age at the last prediction; empty where it is left out or never known."""
        if AGE in self.settings.without:
            return np.array([], np.float32)
        years = years_at(self.scanned.births, self.cohort.latest)[self.cohort.training]
        return years if not np.isnan(years).all() else np.array([], np.float32)

    def _anchor(self) -> str:
        """The code, or the first part of codes, that anchors a record; "" for the prediction itself.

        Only what predictions may know decides which admissions a data set has.
        """
        asked = self.settings.anchor
        if asked == PREDICTION:
            return ""
        known = {name for code in self.scanned.known_codes for name in (code, code.split("//")[0])}
        if asked == ADMISSION:
            for name in ADMISSIONS:
                if name in known:
                    return name
            raise UserError(
                f"{self.dataset.path} has no code that admits a patient ({', '.join(ADMISSIONS)}): "
                "give --anchor the code that anchors a record."
            )
        names = {name for code in self.codes for name in (code, code.split("//")[0])}
        require_codes([asked], sorted({PREDICTION, ADMISSION, *names}), self.dataset.path)
        return asked

    # -- layout --------------------------------------------------------------------------------------

    def layout(self, vocabulary: Path | None) -> dict[str, pa.Table | bytes]:
        """The files of the entry LAYOUT: how events become feature values, fitted or given. Events are gathered."""
        where = self.dataset.path
        codes = self.dataset.described()
        if vocabulary is not None:
            rows = foreign_rows(foreign_vocabulary(vocabulary), codes)
            self._gather(rows, 0)
            kept, place = rows, np.arange(len(rows), dtype=np.int32)
        else:
            if not self.scanned.count_files and not self._ages().size:
                raise UserError(f"{where} has no event of a training patient: give the 'train' split some patients.")
            rows = fitted(
                self.scanned.count_files, self._ages(), codes, self.settings.bins, self.settings.cut_offs,
                self.scratch, self.memory_limit, self.notes,
            )  # fmt: skip
            if len(rows) == 1:
                raise UserError(f"{where} has no event of a training patient: give the 'train' split some patients.")
            patients, code_patients = self._gather(rows, 0)
            kept, place = folded(rows, patients, code_patients, self.settings.rare_below, self.notes)
        final, layout = with_derived(kept, self.settings.derived, str(where), self.notes.spread)
        final, hierarchy = with_groups(final, codes)
        for row in final:
            row["bin"] = None if row["bin"] == ANY_NUMBER else row["bin"]
        return {
            PROVISIONAL_FILE: as_table(rows),
            VOCABULARY: as_table(final),
            CODE_GROUPS: hierarchy,
            PLACE_FILE: _bytes_of(lambda file: np.save(file, place)),
            LAYOUT_FILE: _bytes_of(layout.save),
            NOTES_FILE: json.dumps(self.notes.__dict__ | {"anchor": self.anchor}, sort_keys=True).encode(),
        }

    def given_layout(self, stage: StageDirectory, generation: int) -> None:
        """Events of a further generation gathered by the layout of the first."""
        rows = stage.read(LAYOUT, PROVISIONAL_FILE).to_pylist()
        units = {row["code"]: row["unit"] for row in rows}
        for told in self.dataset.described().select(["code", "unit"]).to_pylist():
            before = units.get(told["code"])
            if before and told["unit"] and told["unit"] != before:
                raise UserError(
                    f"{self.dataset.path} tells '{told['code']}' in {told['unit']}, and {stage.path} in {before}: "
                    "convert the numbers, or prepare both together."
                )
        self._gather(rows, generation)

    def _gather(self, rows: Sequence[Row], generation: int) -> tuple[np.ndarray, dict[str, int]]:
        """Each shard's events in order; training patients by row and by code."""
        pq.write_table(as_table(rows), self.scratch / PROVISIONAL)
        (self.scratch / CODES).write_text(json.dumps(self.codes))
        task = GatherShard(
            str(self.scratch),
            self.scanned.parts,
            tuple(self.settings.without),
            self.anchors,
            tuple(name.lower() for name in self.settings.strata),
        )
        names = shard_names(generation, self.cohort.shards)
        run(task, names, stage="gather", unit="events", pool=self.pool)
        patients = np.zeros(len(rows), dtype=np.int64)
        by_code, unknown = (np.zeros(len(self.codes), dtype=np.int64) for _ in range(2))
        for name in names:
            with np.load(self.scratch / f"{name}.npz") as counted:
                patients += counted["patients"]
                by_code += counted["code_patients"]
                unknown += counted["unknown"]
        most = np.argsort(-unknown, kind="stable")
        self.report["unknown"] = {self.codes[at]: int(unknown[at]) for at in most if unknown[at]}
        code_patients = dict(zip(self.codes, by_code.tolist(), strict=True))
        ages = self._ages()
        code_patients[AGE] = int((~np.isnan(ages)).sum())
        if code_patients[AGE]:
            ids = Vocabulary(as_table(rows)).ids(pa.array([AGE] * len(ages), pa.string()), ages)
            patients += np.bincount(ids[ids >= 0], minlength=len(rows))
        return patients, code_patients

    # -- write ---------------------------------------------------------------------------------------

    def write(self, stage: StageDirectory, layout: dict[str, pa.Table | bytes] | None, generation: int) -> None:
        """Every missing shard written; then what follows from all of them: counts, and the report."""
        if layout is not None and not stage.has(LAYOUT):
            stage.publish(LAYOUT, layout)
        shards = shard_names(generation, self.cohort.shards)
        missing = [name for name in shards if not stage.has(name)]
        finished = len(shards) - len(missing)
        run(
            PrepareShard(named(self.out)),
            missing,
            stage="prepare",
            unit="events",
            pool=self.pool,
            finished=finished,
        )
        table = read_layout(stage)[2]
        totals = np.zeros((len(COUNTED), table.num_rows), dtype=np.int64)
        for name in shards:
            counted = self.scratch / f"{name}-counts.npy"
            # An earlier call may have written the shard.
            totals += np.load(counted) if counted.exists() else training_counts(stage.read(name, TABLE), table.num_rows)
        if not stage.has(VOCABULARY):
            for name, counts in zip(COUNTED[:2], totals, strict=False):
                table = table.set_column(table.column_names.index(name), name, pa.array(counts))
            hierarchy = stage.read(LAYOUT, CODE_GROUPS)
            stage.publish(VOCABULARY, {VOCABULARY: table.cast(FEATURE_VALUES), CODE_GROUPS: hierarchy})
        # Of other classes than yes and no, none is the positive one.
        yes_no = set(pc.unique(self.cohort.predictions["label"]).to_pylist()) <= {"true", "false"}
        self.report["undated"] = [
            {"code": code, "feature_value_id": at, "n_train": int(n)}
            | ({"n_train_positive": int(positive)} if yes_no else {})
            for at, (code, n, positive) in enumerate(zip(table["code"].to_pylist(), *totals[2:], strict=True))
            if n
        ]
        self.report["notes"] = self.notes.__dict__
        name = REPORT if generation == 0 else f"{REPORT}-g{generation}"
        if not stage.has(name):
            # Said of the data, not made from it: findings count rows that no prediction may know.
            stage.publish(name, {}, self.report)


def _rows_of(dataset: MedsDataset) -> int:
    return sum(pq.read_metadata(file).num_rows for file in dataset.files)


def _bytes_of(write: Callable[[BytesIO], object]) -> bytes:
    buffer = BytesIO()
    write(buffer)
    return buffer.getvalue()
