"""A MEDS data set and its labels flow in; what each prediction may know flows out, a folder a shard.

DuckDB reads the events: dated ones up to the prediction time, undated ones, and the age that follows from
the birth. Nothing later is ever read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import duckdb
import meds
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from whenwhy.errors import UserError, unknown_name
from whenwhy.events.feature_values import AGE, NO_FEATURES
from whenwhy.events.meds_dataset import MedsDataset
from whenwhy.schema import FEATURE_VALUES, SEQUENCES

AGE_BAND = "age_band"

#: A stratum is a cohort to look at, not a measurement: more values than this are refused.
MOST_STRATUM_VALUES = 100


class KnownEvents:
    """The events that predictions may know, in a DuckDB of its own.

    Tables and views: predictions (subject_id, prediction_time, label, split), events (of predicted
    patients), births, known (events of each prediction), training (of training patients, each once),
    strata (a map a prediction).

    Args:
        labels: subject_id, prediction_time, label.
        splits: subject_id, split.
        without: codes that are left out.
        strata: "age_band", or the first part of a static code.

    Raises:
        UserError: an empty cohort, or a code or stratum that does not exist.
    """

    def __init__(
        self,
        dataset: MedsDataset,
        labels: pa.Table,
        splits: pa.Table,
        without: tuple[str, ...] = (),
        strata: tuple[str, ...] = (),
    ) -> None:
        self.dataset = dataset
        self.db = connect()
        self.db.register("labels", labels)
        self.db.register("splits", splits)
        self.db.execute("create table predictions as select * from labels join splits using (subject_id)")
        self._define_events()
        self._define_known(without)
        self._define_strata(strata)

    def __enter__(self) -> KnownEvents:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.db.close()

    def _define_events(self) -> None:
        # A file without any number may leave numeric_value out. NaN and infinities are no numbers.
        self.db.register("no_numbers", pa.table({"numeric_value": pa.array([], pa.float32())}))
        files = ", ".join(literal(str(file)) for file in self.dataset.files)
        self.db.execute(
            f"""create view events as
            select subject_id, time, code,
                case when isfinite(numeric_value) then numeric_value::float end as numeric_value
            from (
                select * from read_parquet([{files}], union_by_name = true, hive_partitioning = false)
                union all by name select * from no_numbers
            ) where subject_id in (select subject_id from predictions)"""
        )
        self.db.execute(
            f"""create view births as select subject_id, min(time) as birth from events
            where code = {literal(meds.birth_code)} and time is not null group by 1"""
        )

    def _define_known(self, without: tuple[str, ...]) -> None:
        codes = [AGE, *self._column("select distinct code from events")] if without else []
        for code in without:
            if code not in codes:
                raise unknown_name("code", code, codes, str(self.dataset.path))
        left_out = ", ".join(literal(code) for code in (*NO_FEATURES, *without))
        self.db.execute(
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
        self.db.execute(
            """create view training as
            with latest as (
                select subject_id, max(prediction_time) as prediction_time from predictions
                where split = 'train' group by 1
            )
            select k.code, k.numeric_value, k.subject_id
            from known k join latest using (subject_id, prediction_time)"""
        )
        if not self._column("select 1 from known limit 1"):
            raise UserError(
                f"{self.dataset.path} has no event of any labelled patient up to the prediction time: "
                "the cohort is empty; check that labels and data belong together."
            )
        if not self._column("select 1 from training limit 1"):
            raise UserError(
                f"{self.dataset.path} has no event of a training patient: give the 'train' split some patients."
            )

    def _define_strata(self, strata: tuple[str, ...]) -> None:
        static = "lower(split_part(code, '//', 1))"
        known = self._column(f"select distinct {static} from events where time is null and code is not null order by 1")
        parts = ["select *, null::varchar as name, null::varchar as value from predictions where false"]
        for name in strata:
            told = literal(name.lower())
            if name == AGE_BAND:
                parts.append(
                    f"""select p.* exclude (age), {told}, case
                        when age is null then 'unknown' when age >= 90 then '90+'
                        else (age // 10 * 10)::varchar || '-' || (age // 10 * 10 + 9)::varchar end
                    from (select p.*, datesub('year', birth, prediction_time) as age
                          from predictions p left join births using (subject_id)) p"""
                )
            elif name.lower() in known:
                parts.append(
                    f"""select p.*, {told}, coalesce(min(
                        case when contains(code, '//') then substr(code, strpos(code, '//') + 2)
                        else coalesce(numeric_value::varchar, 'recorded') end), 'unknown')
                    from predictions p left join events e
                        on e.subject_id = p.subject_id and e.time is null and {static} = {told}
                    group by all"""
                )
            else:
                raise unknown_name("stratum", name, [AGE_BAND, *known], str(self.dataset.path))
        self.db.execute(
            f"""create table strata as
            select p.subject_id, p.prediction_time,
                coalesce(map_from_entries(list((name, value) order by name) filter (name is not null)), map {{}}) as strata
            from predictions p left join ({" union all ".join(parts)}) s using (subject_id, prediction_time) group by all"""
        )
        for name in strata:
            values = len(self._column(f"select distinct strata[{literal(name.lower())}] from strata"))
            if values > MOST_STRATUM_VALUES:
                raise UserError(
                    f"The stratum '{name}' has {values:,} values in {self.dataset.path}, too many to compare: "
                    f"give one with at most {MOST_STRATUM_VALUES}."
                )

    def _column(self, query: str) -> list[str]:
        return [value for (value,) in self.db.execute(query).fetchall()]

    def counted(self) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """Per code, ascending: code, its distinct numbers in training (NaN last), events with each."""
        table = self.db.sql(
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

    def with_training_counts(self, table: pa.Table) -> pa.Table:
        """The feature values with n_train and n_train_patients counted."""
        self.db.register("fitted", table)
        counts = self.db.sql(
            """select f.feature_value_id, count(t.code) as n_train, count(distinct t.subject_id) as n_train_patients
            from fitted f left join training t on t.code = f.code
                and (f.bin is null and t.numeric_value is null or t.numeric_value >= f.low and t.numeric_value < f.high)
            group by 1 order by 1"""
        ).to_arrow_table()
        for name in ("n_train", "n_train_patients"):
            table = table.set_column(table.column_names.index(name), name, counts[name].cast(pa.int64()))
        return table.cast(FEATURE_VALUES)

    def write_shards(self, folder: Path, shards: int) -> None:
        """Each shard's predictions and events in a folder of its own, for `read_shard`."""
        number = f"(md5_number_lower(subject_id::varchar) % {shards})::integer as shard"
        for name, query in (
            ("predictions", "select * from predictions join strata using (subject_id, prediction_time)"),
            ("events", "select * from known"),
        ):
            self.db.execute(
                f"copy (select *, {number} from ({query})) to {literal(str(folder / name))} "
                "(format parquet, partition_by (shard))"
            )


def shard_of(subject_id: int, shards: int) -> int:
    """The number of the shard that holds a patient: by the md5 of the id, so a patient never moves.

    Example:
        >>> shard_of(1, 8), shard_of(2, 8)
        (5, 7)
    """
    return int.from_bytes(hashlib.md5(str(subject_id).encode()).digest()[8:], "little") % shards


def read_shard(folder: Path, number: int) -> tuple[pa.Table, pa.Table]:
    """A shard's predictions, in order, and its events: row (of the prediction), time, code, numeric_value."""
    predictions_folder, events_folder = (folder / name / f"shard={number}" for name in ("predictions", "events"))
    no_events = pa.table(
        {
            "row": pa.array([], pa.int64()),
            "time": pa.array([], pa.timestamp("us")),
            "code": pa.array([], pa.string()),
            "numeric_value": pa.array([], pa.float32()),
        }
    )
    if not predictions_folder.exists():
        return SEQUENCES.empty_table().select(["subject_id", "prediction_time", "label", "split", "strata"]), no_events

    def files(of: Path) -> str:
        return f"read_parquet({literal(str(of / '*.parquet'))}, hive_partitioning = false)"

    with connect() as db:
        predictions = db.sql(f"select * from {files(predictions_folder)} order by subject_id, prediction_time")
        ordered = predictions.to_arrow_table()
        if not events_folder.exists():
            return ordered, no_events
        numbered = ordered.select(["subject_id", "prediction_time"])
        db.register("numbered", numbered.append_column("row", pa.array(np.arange(ordered.num_rows))))
        events = db.sql(
            f"""select row, time, code, numeric_value from {files(events_folder)}
            join numbered using (subject_id, prediction_time)"""
        )
        return ordered, events.to_arrow_table()


def connect() -> duckdb.DuckDBPyConnection:
    """A DuckDB that never fetches an extension: nothing leaves the machine."""
    return duckdb.connect(config={"autoinstall_known_extensions": "false"})


def literal(text: str) -> str:
    """A SQL string literal.

    Example:
        >>> literal("it's")
        "'it''s'"
    """
    return "'" + text.replace("'", "''") + "'"
