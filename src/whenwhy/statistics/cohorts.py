"""Predictions flow in; what their rows need to find their cells flows out: patient, cohort, margins, risk, time.

A *cohort* is all predictions of one target, split, class and strata: they count for the same *margins* (a class or
all, a stratum or all). A patient all of whose predictions are of one cohort is counted once for the cohort, and the
cohort's cells count for its margins; a *mixed* patient is counted for each margin by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from whenwhy.schema import EXPOSURE_SUMS
from whenwhy.statistics.time_axis import AFTER_ANCHOR, BEFORE_PREDICTION, SINCE, TimeAxis

ALL = "all"

#: Strata that follow from a prediction itself.
PREDICTED, CORRECT = "predicted", "correct"

TABLES = ("predictions", "cohorts", "cohort_margins", "margins", "mixed_patients")


def list_of(files: Sequence[Path]) -> str:
    """A SQL list of file names."""
    return "[" + ", ".join("'" + str(file).replace("'", "''") + "'" for file in files) + "]"


def origin_of(axis: TimeAxis) -> str:
    """The column of `predictions` with the minutes, before the prediction, at which an axis is 0."""
    return "origin_" + "".join(f"{letter:x}" for letter in axis.name.encode())


def position(minutes: str, axis: TimeAxis) -> str:
    """The SQL of where, on an axis, something lies that was so many minutes before the prediction."""
    return minutes if axis.name == BEFORE_PREDICTION else f"({origin_of(axis)} - {minutes})"


def define_cohorts(
    db: duckdb.DuckDBPyConnection,
    predictions: Sequence[Path],
    rows: Sequence[Path],
    axes: Sequence[TimeAxis],
    codes: pa.Table,
    subjects: pa.Array | None = None,
) -> None:
    """The tables `TABLES`, and `at_risk`, of the predictions in these files.

    - predictions: prediction_id, patient, cohort, mixed, an origin for each axis but the first, and in the order of
      the axes `risk`: of a patient with several predictions how many are at risk, for each bin and at last for all time
    - cohorts: cohort, target, split, class, strata
    - margins: margin, target, split, class, stratum; cohort_margins: cohort, margin
    - mixed_patients: patient, margin, risk
    - at_risk: axis, margin, time_bin (null: all time), n_predictions, n_patients, s_NN

    Args:
        rows: attribution shards, in which the first records of codes are found.
        codes: feature_value_id, code: of the axes that begin at a code.
        subjects: only these patients; None: all.
    """
    db.register("axis_codes", codes)
    only = ""
    if subjects is not None:
        db.register("only_subjects", pa.table({"subject_id": subjects}))
        only = "where subject_id in (select subject_id from only_subjects)"
    origins = []
    for at, axis in enumerate(axes):
        if axis.name == AFTER_ANCHOR:
            origins.append(f", anchor_minutes as {origin_of(axis)}")
        elif axis.name.startswith(SINCE):
            code = axis.name.removeprefix(SINCE)
            db.execute(
                f"""create temp table first_{at} as select prediction_id, max(minutes) as minutes
                from read_parquet({list_of(rows)}) where feature_value_id in (
                    select feature_value_id from axis_codes where code = ?) group by 1""",
                [code],
            )
            origins.append(
                f", (select f.minutes from first_{at} f where f.prediction_id = g.prediction_id) as {origin_of(axis)}"
            )
    db.execute(
        f"""create temp table given as
        select prediction_id, subject_id, target, split, label as class, history_minutes,
            ['{ALL}'] || list_transform(map_entries(strata), lambda e: e.key || '=' || e.value)
            || case when predicted <> '' then ['{PREDICTED}=' || predicted] else [] end
            || case when predicted <> '' and not list_contains(map_keys(strata), '{CORRECT}')
                then ['{CORRECT}=' || case when predicted = label then 'yes' else 'no' end] else [] end as strata
            {"".join(origins)}
        from read_parquet({list_of(predictions)}) g {only}"""
    )
    db.execute(
        """create temp table cohorts as
        select (row_number() over (order by target, split, class, strata) - 1)::integer as cohort, *
        from (select distinct target, split, class, strata from given)"""
    )
    spans = "".join(
        f""", case when {_known(axis)} then {axis.bin_of(_first_position(axis))} end as first_{at},
        case when {_known(axis)} then {axis.bin_of(_last_position(axis))} end as last_{at},
        {"true" if at == 0 else f"{origin_of(axis)} is not null"} as known_{at}"""
        for at, axis in enumerate(axes)
    )
    db.execute(
        f"""create temp table spanned as
        select g.* exclude (target, split, class, strata, subject_id), c.cohort,
            (dense_rank() over (order by subject_id) - 1)::integer as patient,
            count(*) over (partition by subject_id) as n_of_patient,
            min(c.cohort) over (partition by subject_id) <> max(c.cohort) over (partition by subject_id) as mixed {spans}
        from given g join cohorts c using (target, split, class, strata)"""
    )
    db.execute(
        f"""create temp table margins as
        select (row_number() over (order by target, split, class, stratum) - 1)::integer as margin, * from (
            select distinct target, split, unnest([class, '{ALL}']) as class, stratum
            from (select target, split, class, unnest(strata) as stratum from cohorts))"""
    )
    db.execute(
        f"""create temp table cohort_margins as
        select distinct c.cohort, m.margin
        from (select cohort, target, split, unnest([class, '{ALL}']) as class, strata from cohorts) c
        join margins m on m.target = c.target and m.split = c.split and m.class = c.class
            and list_contains(c.strata, m.stratum)"""
    )
    risk = "[" + ", ".join(_counts(at, axis) for at, axis in enumerate(axes)) + "]"
    db.execute(
        f"""create temp table several as
        select patient, any_value(cohort) as cohort, {risk} as risk from spanned
        where n_of_patient > 1 and not mixed group by patient"""
    )
    db.execute(
        f"""create temp table mixed_patients as
        select patient, margin, {risk} as risk from spanned join cohort_margins using (cohort)
        where mixed group by patient, margin"""
    )
    kept = "".join(f", {origin_of(axis)}" for axis in axes[1:])
    db.execute(
        f"""create temp table predictions as
        select s.prediction_id, s.patient, s.cohort, s.mixed{kept}, v.risk
        from spanned s left join several v on v.patient = s.patient order by prediction_id"""
    )
    _define_at_risk(db, axes)


def _known(axis: TimeAxis) -> str:
    """Whether a prediction's record lies anywhere on an axis."""
    known = "" if axis.name == BEFORE_PREDICTION else f" and {origin_of(axis)} is not null"
    return f"history_minutes is not null{known}"


def _first_position(axis: TimeAxis) -> str:
    return "0" if axis.name == BEFORE_PREDICTION else position("history_minutes", axis)


def _last_position(axis: TimeAxis) -> str:
    return "history_minutes" if axis.name == BEFORE_PREDICTION else origin_of(axis)


def _counts(at: int, axis: TimeAxis) -> str:
    """How many of a group's predictions are at risk in each bin of an axis, and at last in all time: a list."""
    bins = f"range({axis.first_bin}, {axis.last_bin + 1})"
    spans = f"list(struct_pack(low := first_{at}, high := last_{at})) filter (where first_{at} is not null)"
    return (
        f"(list_transform({bins}, lambda b: len(list_filter(coalesce({spans}, []), lambda s: s.low <= b and b <= s.high)))"
        f" || [count(*) filter (where known_{at})])::integer[]"
    )


def _define_at_risk(db: duckdb.DuckDBPyConnection, axes: Sequence[TimeAxis]) -> None:
    """Table at_risk, from those with one prediction by cohort, from those with several one by one."""
    parts = []
    for at, axis in enumerate(axes):
        bins = f"unnest(list_concat(range({axis.first_bin}, {axis.last_bin + 1}), [null]))::smallint as time_bin"
        alone = f"""select cohort, unnest(case when known_{at} then list_concat(range(first_{at}, last_{at} + 1), [null]) else [] end)::smallint
            as time_bin, n from (select cohort, first_{at}, last_{at}, known_{at}, count(*) as n from spanned
            where n_of_patient = 1 group by all)"""
        parts += [
            f"select '{at}' as axis, margin, time_bin, n, n as patients, n as squares from ({alone}) join cohort_margins using (cohort)",
            f"""select '{at}', margin, time_bin, n, 1, n * n from (
                select cohort, {bins}, unnest(risk[{at + 1}])::bigint as n from several) join cohort_margins using (cohort)
                where n > 0""",
            f"""select '{at}', margin, time_bin, n, 1, n * n from (
                select margin, {bins}, unnest(risk[{at + 1}])::bigint as n from mixed_patients) where n > 0""",
        ]
    db.execute(
        f"""create temp table at_risk as
        select axis::integer as axis, margin, time_bin, sum(n)::bigint as n_predictions,
            sum(patients)::bigint as n_patients, sum(squares)::bigint as "s_NN"
        from ({" union all ".join(parts)}) group by all"""
    )


def exposure_sums(db: duckdb.DuckDBPyConnection, axes: Sequence[TimeAxis]) -> pa.Table:
    """`schema.EXPOSURE_SUMS` from at_risk, nothing told of absence: who was under observation in each bin."""
    names = pa.table({"axis": range(len(axes)), "time_axis": [axis.name for axis in axes]})
    db.register("axis_names", names)
    table = db.sql(
        """select target, split, class, stratum, n.time_axis, time_bin, n_predictions, n_patients, "s_NN",
        from at_risk join margins using (margin) join axis_names n on n.axis = at_risk.axis
        order by target, split, class, stratum, n.axis, time_bin nulls last"""
    ).to_arrow_table()
    for name in EXPOSURE_SUMS.names[len(table.column_names) :]:
        table = table.append_column(name, pa.nulls(table.num_rows, EXPOSURE_SUMS.field(name).type))
    return table.cast(EXPOSURE_SUMS)


def write_cohorts(db: duckdb.DuckDBPyConnection, folder: Path) -> None:
    """The tables, one file each, for tasks to read."""
    for name in TABLES:
        table = db.sql(f"select * from {name}").to_arrow_table()
        pq.write_table(table, folder / f"{name}.parquet", row_group_size=1 << 16)


def read_cohorts(db: duckdb.DuckDBPyConnection, folder: Path) -> None:
    """The tables as `write_cohorts` wrote them."""
    for name in TABLES:
        db.execute(f"create temp view {name} as select * from read_parquet({list_of([folder / f'{name}.parquet'])})")
