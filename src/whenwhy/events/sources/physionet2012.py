"""The PhysioNet/CinC Challenge 2012 (the first 48 hours of ICU stays) as MEDS, with the label "died in hospital".

Silva et al., Comput Cardiol 2012;39:245; Goldberger et al., Circulation 2000;101:e215. Read from the challenge's
own text files, one a stay, or from one table of all stays. Times count from the admission to the ICU; the
calendar dates are not published, so every admission is set to 2000-01-01.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import meds
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from whenwhy.errors import UserError
from whenwhy.events.sources.meds_writer import Code, MedsWriter, fifths, meds_rows
from whenwhy.events.sources.physionet2012_files import read_stays
from whenwhy.events.sources.registry import source

ADMISSION = datetime(2000, 1, 1)
PREDICTION_HOURS = 48
STAYS_PER_FILE = 500
LABELS = "in_hospital_death"
ICU_ADMISSION = "ICU_ADMISSION"
GENDERS = {0: "GENDER//F", 1: "GENDER//M"}
ICU_TYPES = {number: f"ICUTYPE//{number}" for number in (1, 2, 3, 4)}
UNITS = {1: "coronary care unit", 2: "cardiac surgery recovery unit", 3: "medical ICU", 4: "surgical ICU"}

#: -1 stands for "not recorded" in these, and is a value in others.
MISSING_AS_MINUS_ONE = ("Gender", "Height", "Weight")
MISSING = -1

#: The events that are not in the challenge's lines.
ADDED = (meds.birth_code, ICU_ADMISSION)

VITALS, GASES, CHEMISTRY = ("VITAL_SIGNS",), ("BLOOD_GAS",), ("CHEMISTRY",)
HAEMATOLOGY, LIVER, HEART = ("HAEMATOLOGY",), ("LIVER",), ("HEART",)

CODES = {
    meds.birth_code: Code("birth: the admission less the age in whole years"),
    ICU_ADMISSION: Code("admission to the intensive care unit"),
    "GENDER//F": Code("female", None, ("DEMOGRAPHICS",)),
    "GENDER//M": Code("male", None, ("DEMOGRAPHICS",)),
    **{f"ICUTYPE//{number}": Code(unit, None, ("ICU_TYPE",)) for number, unit in UNITS.items()},
    "Height": Code("height at admission", "cm", ("BODY",)),
    "Weight": Code("body weight, at admission and later", "kg", ("BODY",)),
    "HR": Code("heart rate", "/min", VITALS),
    "RespRate": Code("respiration rate", "/min", VITALS),
    "Temp": Code("temperature", "°C", VITALS),
    "SysABP": Code("systolic arterial blood pressure, invasive", "mmHg", (*VITALS, "BLOOD_PRESSURE")),
    "DiasABP": Code("diastolic arterial blood pressure, invasive", "mmHg", (*VITALS, "BLOOD_PRESSURE")),
    "MAP": Code("mean arterial blood pressure, invasive", "mmHg", (*VITALS, "BLOOD_PRESSURE")),
    "NISysABP": Code("systolic arterial blood pressure, non-invasive", "mmHg", (*VITALS, "BLOOD_PRESSURE")),
    "NIDiasABP": Code("diastolic arterial blood pressure, non-invasive", "mmHg", (*VITALS, "BLOOD_PRESSURE")),
    "NIMAP": Code("mean arterial blood pressure, non-invasive", "mmHg", (*VITALS, "BLOOD_PRESSURE")),
    "Urine": Code("urine output", "mL", ("KIDNEY",)),
    "GCS": Code("Glasgow Coma Score (3 to 15)", None, ("NEUROLOGY",)),
    "MechVent": Code("mechanical ventilation", None, ("RESPIRATION_SUPPORT",)),
    "FiO2": Code("fraction of inspired oxygen (0 to 1)", None, ("RESPIRATION_SUPPORT",)),
    "pH": Code("arterial pH", None, GASES),
    "PaCO2": Code("partial pressure of arterial carbon dioxide", "mmHg", GASES),
    "PaO2": Code("partial pressure of arterial oxygen", "mmHg", GASES),
    "SaO2": Code("oxygen saturation of haemoglobin", "%", GASES),
    "Lactate": Code("lactate", "mmol/L", GASES),
    "HCO3": Code("serum bicarbonate", "mmol/L", CHEMISTRY),
    "Na": Code("serum sodium", "mmol/L", CHEMISTRY),
    "K": Code("serum potassium", "mmol/L", CHEMISTRY),
    "Mg": Code("serum magnesium", "mmol/L", CHEMISTRY),
    "Glucose": Code("serum glucose", "mg/dL", CHEMISTRY),
    "Cholesterol": Code("cholesterol", "mg/dL", CHEMISTRY),
    "BUN": Code("blood urea nitrogen", "mg/dL", (*CHEMISTRY, "KIDNEY")),
    "Creatinine": Code("serum creatinine", "mg/dL", (*CHEMISTRY, "KIDNEY")),
    "Albumin": Code("albumin", "g/dL", (*CHEMISTRY, *LIVER)),
    "ALP": Code("alkaline phosphatase", "IU/L", LIVER),
    "ALT": Code("alanine transaminase", "IU/L", LIVER),
    "AST": Code("aspartate transaminase", "IU/L", LIVER),
    "Bilirubin": Code("bilirubin", "mg/dL", LIVER),
    "HCT": Code("haematocrit", "%", HAEMATOLOGY),
    "Platelets": Code("platelets", "10^3/uL", HAEMATOLOGY),
    "WBC": Code("white blood cell count", "10^3/uL", HAEMATOLOGY),
    "TroponinI": Code("troponin-I", "ug/L", HEART),
    "TroponinT": Code("troponin-T", "ug/L", HEART),
}

#: The challenge's 41 parameters.
PARAMETERS = {"Age", "Gender", "ICUType"} | {code for code in CODES if "//" not in code and code not in ADDED}


@source(
    "physionet2012", "PhysioNet 2012: ICU stays of 48 hours (4,000 a set), death in hospital (text files, or a table)"
)
def physionet2012(writer: MedsWriter, inputs: tuple[Path, ...]) -> None:
    """Writes the stays and labels/in_hospital_death, 48 hours after admission.

    A stay is a subject. Height, the weight at admission, gender and kind of unit are undated; where they are
    missing (-1) there is no event. Outliers are kept as they are. A stay without an outcome has no label.

    Args:
        inputs: folders, .zip or .tar.gz archives; see `physionet2012_files`.
    """
    stays, outcomes = read_stays(inputs)
    unknown = sorted(set(pc.unique(stays["parameter"]).to_pylist()) - PARAMETERS)
    if unknown:
        stay = stays.filter(pc.equal(stays["parameter"], unknown[0]))["record_id"][0]
        raise UserError(f"The stay {stay} has the parameter '{unknown[0]}', which the challenge has not: leave it out.")
    record = pc.unique(stays["record_id"]).to_numpy()
    admission = np.datetime64(ADMISSION, "us")
    writer.describe(
        "PhysioNet/CinC Challenge 2012",
        "1.0.0",
        "ODC-By 1.0; cite Silva et al., Comput Cardiol 2012;39:245 and Goldberger et al., Circulation 2000;101:e215",
    )
    writer.codes(CODES)
    writer.splits([(record, fifths(len(record), seed=2012))])
    labelled = np.array([number for number in record.tolist() if number in outcomes], dtype=np.int64)
    if len(labelled):
        when = np.full(len(labelled), admission + np.timedelta64(PREDICTION_HOURS, "h"))
        died = np.array([outcomes[number] for number in labelled.tolist()], dtype=bool)
        writer.labels(LABELS, labelled, when, died)
    writer.progress.expect(-(-len(record) // STAYS_PER_FILE))
    bounds = np.searchsorted(stays["record_id"].to_numpy(), [*record[::STAYS_PER_FILE], record[-1] + 1])
    for number, (begin, end) in enumerate(pairwise(bounds)):
        writer.events(f"{number:04d}", pa.concat_tables(_events(stays.slice(begin, end - begin), admission)))
    if len(labelled) < len(record):
        writer.say(
            f"{len(record) - len(labelled):,} of {len(record):,} stays have no outcome, so no label (Outcomes-a.txt has those of set a)."
        )


def _events(stays: pa.Table, admission: np.datetime64) -> Iterator[pa.Table]:
    """MEDS rows of some stays, of columns record_id, minute, parameter, value."""
    subject = stays["record_id"].to_numpy().astype(np.int64)
    minute = stays["minute"].to_numpy()
    parameter = stays["parameter"].to_numpy().astype(str)
    value = stays["value"].to_numpy().astype(np.float32)
    time = admission + minute.astype("timedelta64[m]").astype("timedelta64[us]")

    everyone = np.unique(subject)
    yield meds_rows(everyone, np.full(len(everyone), admission), ICU_ADMISSION)
    missing = np.isin(parameter, MISSING_AS_MINUS_ONE) & (value == MISSING)
    at_admission = np.zeros(len(subject), dtype=bool)
    for name in ("Age", "Gender", "ICUType", "Height", "Weight"):
        rows = np.flatnonzero((parameter == name) & (minute == 0))
        # The descriptor is the first of a stay; a weight charted in the same minute stays an event.
        rows = rows[np.unique(subject[rows], return_index=True)[1]]
        at_admission[rows] = True
        rows = rows[~missing[rows]]
        if name == "Age":
            born = [ADMISSION.replace(year=ADMISSION.year - int(age)) for age in value[rows]]
            yield meds_rows(subject[rows], np.array(born, dtype="datetime64[us]"), meds.birth_code)
        elif name == "Gender":
            yield meds_rows(subject[rows], None, _named(name, value[rows], GENDERS))
        elif name == "ICUType":
            yield meds_rows(subject[rows], None, _named(name, value[rows], ICU_TYPES))
        else:
            yield meds_rows(subject[rows], None, name, value[rows])
    dated = ~at_admission & ~missing
    yield meds_rows(subject[dated], time[dated], parameter[dated], value[dated])


def _named(parameter: str, value: np.ndarray, codes: dict[int, str]) -> np.ndarray:
    for number in np.unique(value).tolist():
        if number not in codes:
            raise UserError(f"A stay has {parameter} = {number:g}: the challenge has {', '.join(map(str, codes))}.")
    return np.array([codes[int(number)] for number in value], dtype=str)
