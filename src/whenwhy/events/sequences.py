"""MEDS events flow in, sequences flow out: `whenwhy prepare`.

One row a prediction: the steps (distinct times) of the patient's record up to the prediction time, and the
feature values recorded at each. Nothing after the prediction time is ever read into a row.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import duckdb
import meds
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from whenwhy import __version__
from whenwhy.engine import Workers, run
from whenwhy.errors import UserError, unknown_name
from whenwhy.events.feature_values import AGE, NO_FEATURES, Vocabulary, fitted_feature_values
from whenwhy.events.meds_dataset import MedsDataset, open_meds, read_labels, split_patients
from whenwhy.schema import FEATURE_VALUES, SEQUENCES
from whenwhy.shards import StageDirectory

VOCABULARY = "feature_values"  # the entry, and the table in it
TABLE = "sequences"
AGE_BAND = "age_band"


@dataclass(frozen=True)
class PrepareSettings:
    """What `prepare` may be asked.

    Attributes:
        outcome: the outcome's name for people.
        strata: cohorts to be: "age_band", or the first part of a static code ("sex" for SEX//F and SEX//M).
        without: codes that are left out, e.g. because they give the outcome away.
        bins: quantile bins of a numeric code.
        max_steps: the most recent steps that are kept; what is left out is counted.
        shard_size: predictions a shard, about.
    """

    outcome: str
    strata: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    bins: int = 10
    max_steps: int = 1000
    shard_size: int = 1024


def shard_of(subject_id: int, shards: int) -> int:
    """The number of the shard that holds a patient: the md5 of the id, so it never moves.

    Example:
        >>> shard_of(1, 8), shard_of(2, 8)
        (4, 4)
    """
    return int.from_bytes(hashlib.md5(str(subject_id).encode()).digest()[8:], "little") % shards


def prepare(
    meds_path: Path, labels_path: Path, out: Path, settings: PrepareSettings, workers: Workers | None = None
) -> StageDirectory:
    """The directory of sequences: entry `feature_values` and one entry a shard.

    Raises:
        UserError: bad input, found before anything is written.

    Example: `prepare(Path("meds"), Path("meds/labels/x"), Path("seq"), PrepareSettings("x"))`
    """
    if settings.bins < 2 or settings.max_steps < 1 or settings.shard_size < 1:
        raise UserError("prepare needs at least 2 bins, 1 step and 1 prediction a shard: give larger numbers.")
    dataset, labels = open_meds(meds_path), read_labels(labels_path)
    splits = split_patients(dataset, labels["subject_id"].to_numpy())
    shards = max(1, -(-labels.num_rows // settings.shard_size))
    keys = [f"g0-{number:05d}" for number in range(shards)]
    scratch = out / "scratch"
    with _connect() as db:
        _define_events(db, dataset, labels, splits, settings.without)
        _define_strata(db, dataset, settings.strata)
        stage = StageDirectory.create(
            out,
            stage="prepare",
            settings=asdict(settings) | {"strata": list(settings.strata), "without": list(settings.without)},
            inputs={"meds": dataset.as_input(), "labels": {"sha256": _table_sha256(labels)}},
            shards=keys,
            besides=[VOCABULARY],
            code_version=__version__,
        )
        if not stage.missing():
            return stage
        if not stage.has(VOCABULARY):
            table = fitted_feature_values(_counted(db), dataset.codes, settings.bins)
            stage.publish(VOCABULARY, {VOCABULARY: _with_training_counts(db, table)})
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        _partition(db, scratch, shards)
    missing = stage.missing()
    task = PrepareShard(str(out), str(scratch))
    run(task, missing, stage="prepare", unit="events", workers=workers, finished=len(stage.needs) - len(missing))
    shutil.rmtree(scratch)
    return stage


@dataclass(frozen=True)
class PrepareShard:
    """The engine's task: one shard's events, put in order, become its sequences."""

    out: str
    scratch: str

    def start(self) -> Callable[[str], int]:
        stage = StageDirectory.open(Path(self.out), "prepare")
        vocabulary = Vocabulary(stage.read(VOCABULARY, VOCABULARY))
        max_steps = int(stage.settings["max_steps"])

        def one_shard(key: str) -> int:
            number = int(key.rpartition("-")[2])
            predictions, events = _read_partition(Path(self.scratch), number)
            table, summary = sequences_of(predictions, events, vocabulary, max_steps)
            stage.publish(key, {TABLE: table}, summary)
            return summary["n_events"]

        return one_shard


def sequences_of(
    predictions: pa.Table, events: pa.Table, vocabulary: Vocabulary, max_steps: int
) -> tuple[pa.Table, dict[str, int]]:
    """One shard's table (`schema.SEQUENCES`) and what was counted on the way.

    Args:
        predictions: one row a prediction, in order.
        events: columns row (of its prediction), time (null: static), code, numeric_value.
    """
    count = predictions.num_rows
    row = events["row"].to_numpy()
    value = events["numeric_value"].cast(pa.float32()).to_numpy(zero_copy_only=False).astype(np.float32)
    ids = vocabulary.ids(events["code"].combine_chunks(), value)
    static = np.asarray(events["time"].is_null())
    time = pc.fill_null(events["time"].cast(pa.int64()), 0).to_numpy()  # microseconds
    known = ids >= 0

    at = np.flatnonzero(known & ~static)
    # Canonical order within a step, so that the order of rows in the files does not matter.
    at = at[np.lexsort((value[at], ids[at], time[at], row[at]))]
    new_row = np.diff(row[at], prepend=-1) != 0
    new_step = new_row | (np.diff(time[at], prepend=0) != 0)
    step = np.cumsum(new_step) - 1  # of all steps in the shard
    n_steps = np.bincount(row[at][new_step], minlength=count)
    first_step = np.concatenate([[0], np.cumsum(n_steps)])[:-1]  # [prediction]
    step_in_row = step - first_step[row[at]]
    kept = step_in_row >= (n_steps - max_steps)[row[at]]
    n_truncated = int((~kept).sum())
    at, new_step = at[kept], new_step[kept]
    step_in_row = step_in_row[kept] - np.maximum(n_steps - max_steps, 0)[row[at]]
    n_steps = np.minimum(n_steps, max_steps)

    prediction_time = predictions["prediction_time"].cast(pa.int64()).to_numpy()
    ahead = prediction_time[row[at]] - time[at]
    assert (ahead >= 0).all(), "an event after its prediction time was read"
    minutes = (ahead // 60_000_000).astype(np.int32)

    still = np.flatnonzero(known & static)
    still = still[np.lexsort((value[still], ids[still], row[still]))]
    events_in_row = np.bincount(row[at], minlength=count)
    static_in_row = np.bincount(row[still], minlength=count)
    table = pa.table(
        {
            **{name: predictions[name] for name in ("subject_id", "prediction_time", "label", "split", "strata")},
            "step_minutes": _lists(n_steps, minutes[new_step]),
            "event_step": _lists(events_in_row, step_in_row.astype(np.int32)),
            "event_id": _lists(events_in_row, ids[at]),
            "event_value": _lists(events_in_row, pa.array(value[at], from_pandas=True)),
            "static_id": _lists(static_in_row, ids[still]),
            "static_value": _lists(static_in_row, pa.array(value[still], from_pandas=True)),
        }
    ).cast(SEQUENCES)
    summary = {
        "n_predictions": count,
        "n_events": len(at),
        "n_static": len(still),
        "n_steps": int(n_steps.sum()),
        "n_unknown": int((~known).sum()),
        "n_truncated": n_truncated,
    }
    return table, summary


def _lists(lengths: np.ndarray, values: np.ndarray | pa.Array) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, pa.array(values))


def prepared_sentence(stage: StageDirectory) -> str:
    """What a complete directory of sequences holds, and what was left out, in one sentence for people."""
    told = dict.fromkeys(("n_predictions", "n_events", "n_static", "n_steps", "n_unknown", "n_truncated"), 0)
    for shard in stage.shards:
        for key, value in stage.entry(shard).summary.items():
            told[key] += value
    features = stage.entry(VOCABULARY).files[VOCABULARY]["rows"] - 1
    return (
        f"{told['n_predictions']:,} predictions, {told['n_events']:,} events in {told['n_steps']:,} steps, "
        f"{told['n_static']:,} static values, {features:,} feature values; left out {told['n_unknown']:,} values that "
        f"training patients never have and {told['n_truncated']:,} beyond the most recent steps"
    )


# -- DuckDB reads the events -----------------------------------------------------------------------------


def _connect() -> duckdb.DuckDBPyConnection:
    # No extension is ever fetched: nothing leaves the machine.
    return duckdb.connect(config={"autoinstall_known_extensions": "false"})


def _define_events(
    db: duckdb.DuckDBPyConnection, dataset: MedsDataset, labels: pa.Table, splits: pa.Table, without: tuple[str, ...]
) -> None:
    """Tables predictions (subject_id, prediction_time, label, split) and events (of predicted patients)."""
    db.register("labels", labels)
    db.register("splits", splits)
    db.execute("create table predictions as select * from labels join splits using (subject_id)")
    # A file without any number may leave numeric_value out.
    db.register("no_numbers", pa.table({"numeric_value": pa.array([], pa.float32())}))
    files = "[" + ", ".join("'" + str(file).replace("'", "''") + "'" for file in dataset.files) + "]"
    db.execute(
        f"""create view events as
        select subject_id, time, code, numeric_value::float as numeric_value from (
            select * from read_parquet({files}, union_by_name = true, hive_partitioning = false)
            union all by name select * from no_numbers
        ) where subject_id in (select subject_id from predictions)"""
    )
    db.execute(
        f"create view births as select subject_id, min(time) as birth from events "
        f"where code = '{meds.birth_code}' and time is not null group by 1"
    )
    if without:
        codes = [AGE, *(code for (code,) in db.execute("select distinct code from events").fetchall())]
        for code in without:
            if code not in codes:
                raise unknown_name("code", code, codes, str(dataset.path))
    # What a prediction may know: dated up to its time, undated, and the age that follows from the birth.
    left_out = ", ".join("'" + code.replace("'", "''") + "'" for code in (*NO_FEATURES, *without))
    db.execute(
        f"""create view known as
        select p.subject_id, p.prediction_time, e.time, e.code, e.numeric_value
        from predictions p join events e using (subject_id)
        where (e.time is null or e.time <= p.prediction_time) and e.code not in ({left_out})
        union all
        select p.subject_id, p.prediction_time, null, '{AGE}', datesub('year', birth, prediction_time)::float
        from predictions p join births using (subject_id)
        where birth <= prediction_time and '{AGE}' not in ({left_out})"""
    )
    # A training patient's events count once, however many predictions the patient has.
    db.execute(
        """create view training as
        with latest as (
            select subject_id, max(prediction_time) as prediction_time from predictions
            where split = 'train' group by 1
        )
        select k.code, k.numeric_value, k.subject_id from known k join latest using (subject_id, prediction_time)"""
    )
    if not db.execute("select count(*) from (select 1 from known limit 1)").fetchone()[0]:  # type: ignore[index]
        raise UserError(
            f"{dataset.path} has no event of any labelled patient up to the prediction time: "
            "the cohort is empty; check that labels and data belong together."
        )
    if not db.execute("select count(*) from (select 1 from training limit 1)").fetchone()[0]:  # type: ignore[index]
        raise UserError(f"{dataset.path} has no event of a training patient: give the 'train' split some patients.")


def _define_strata(db: duckdb.DuckDBPyConnection, dataset: MedsDataset, strata: tuple[str, ...]) -> None:
    """Table strata (subject_id, prediction_time, strata map)."""
    known = {
        name: None
        for (name,) in db.execute(
            "select distinct lower(split_part(code, '//', 1)) from events where time is null and code is not null order by 1"
        ).fetchall()
    }
    pairs = []
    for name in strata:
        if name == AGE_BAND:
            pairs.append(
                f"""select subject_id, prediction_time, '{AGE_BAND}' as name, case
                    when age is null then 'unknown' when age >= 90 then '90+'
                    else (age // 10 * 10)::varchar || '-' || (age // 10 * 10 + 9)::varchar end as value
                from (select p.*, datesub('year', birth, prediction_time) as age
                      from predictions p left join births using (subject_id))"""
            )
        elif name.lower() in known:
            literal = name.lower().replace("'", "''")
            pairs.append(
                f"""select p.subject_id, p.prediction_time, '{literal}' as name, coalesce(min(
                    case when contains(code, '//') then substr(code, strpos(code, '//') + 2)
                    else coalesce(numeric_value::varchar, 'recorded') end), 'unknown') as value
                from predictions p left join events e on e.subject_id = p.subject_id and e.time is null
                    and lower(split_part(e.code, '//', 1)) = '{literal}'
                group by all"""
            )
        else:
            raise unknown_name("stratum", name, [AGE_BAND, *known], str(dataset.path))
    union = " union all ".join(pairs) or "select *, null as name, null as value from predictions where false"
    db.execute(
        f"""create table strata as
        select p.subject_id, p.prediction_time,
            coalesce(map_from_entries(list((name, value) order by name) filter (name is not null)), map {{}}) as strata
        from predictions p left join ({union}) s using (subject_id, prediction_time) group by all"""
    )


def _counted(db: duckdb.DuckDBPyConnection) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Per code, ascending: code, its distinct numbers in training (NaN last), events with each."""
    table = db.sql(
        """select code, numeric_value, count(*) as events from training
        group by all order by code, numeric_value nulls last"""
    ).to_arrow_table()
    codes = table["code"].combine_chunks()
    value = table["numeric_value"].to_numpy(zero_copy_only=False).astype(np.float32)
    events = table["events"].to_numpy()
    runs = pc.run_end_encode(codes)
    assert len(runs.values) == len(pc.unique(codes)), "the codes did not come in order"
    begin = 0
    for code, end in zip(runs.values.to_pylist(), runs.run_ends.to_pylist(), strict=True):
        yield code, value[begin:end], events[begin:end]
        begin = end


def _with_training_counts(db: duckdb.DuckDBPyConnection, table: pa.Table) -> pa.Table:
    """The feature values with n_train and n_train_patients counted."""
    db.register("fitted", table)
    counts = db.sql(
        """select f.feature_value_id, count(t.code) as n_train, count(distinct t.subject_id) as n_train_patients
        from fitted f left join training t on t.code = f.code
            and (f.bin is null and t.numeric_value is null or t.numeric_value >= f.low and t.numeric_value < f.high)
        group by 1 order by 1"""
    ).to_arrow_table()
    for name in ("n_train", "n_train_patients"):
        table = table.set_column(table.column_names.index(name), name, counts[name].cast(pa.int64()))
    return table.cast(FEATURE_VALUES)


def _partition(db: duckdb.DuckDBPyConnection, scratch: Path, shards: int) -> None:
    """Each shard's predictions and events in a folder of its own."""
    number = f"(md5_number_lower(subject_id::varchar) % {shards})::integer as shard"
    for name, query in (
        ("predictions", "select * from predictions join strata using (subject_id, prediction_time)"),
        ("events", "select * from known"),
    ):
        db.execute(
            f"copy (select *, {number} from ({query})) to '{str(scratch / name).replace(chr(39), chr(39) * 2)}' "
            "(format parquet, partition_by (shard))"
        )


def _read_partition(scratch: Path, number: int) -> tuple[pa.Table, pa.Table]:
    def files(name: str) -> str:
        folder = scratch / name / f"shard={number}"
        return f"read_parquet('{str(folder).replace(chr(39), chr(39) * 2)}/*.parquet', hive_partitioning = false)"

    with _connect() as db:
        if not (scratch / "predictions" / f"shard={number}").exists():
            empty = SEQUENCES.empty_table().select(["subject_id", "prediction_time", "label", "split", "strata"])
            return empty, _no_events()
        predictions = db.sql(
            f"select * from {files('predictions')} order by subject_id, prediction_time"
        ).to_arrow_table()
        if not (scratch / "events" / f"shard={number}").exists():
            return predictions, _no_events()
        db.register(
            "ordered",
            predictions.select(["subject_id", "prediction_time"]).append_column(
                "row", pa.array(np.arange(predictions.num_rows))
            ),
        )
        events = db.sql(
            f"""select row, time, code, numeric_value from {files("events")}
            join ordered using (subject_id, prediction_time)"""
        ).to_arrow_table()
    return predictions, events


def _no_events() -> pa.Table:
    return pa.table(
        {
            "row": pa.array([], pa.int64()),
            "time": pa.array([], pa.timestamp("us")),
            "code": pa.array([], pa.string()),
            "numeric_value": pa.array([], pa.float32()),
        }
    )


def _table_sha256(table: pa.Table) -> str:
    digest = hashlib.sha256()
    for row in zip(*(table[name].to_pylist() for name in table.column_names), strict=True):
        digest.update(repr(row).encode())
    return digest.hexdigest()
