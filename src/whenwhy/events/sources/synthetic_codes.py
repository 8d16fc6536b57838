"""The codes of made-up patients: laboratory values with units, and diagnoses and drugs as frequent as Zipf has it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import meds
import numpy as np

from whenwhy.events.sources.meds_writer import Code

LACTATE, CREATININE, SODIUM, PRESSURE = "LAB//LACTATE", "LAB//CREATININE", "LAB//SODIUM", "VITAL//SYSTOLIC_PRESSURE"
HEART_FAILURE, KIDNEY_DISEASE = "DX//HEART_FAILURE", "DX//CHRONIC_KIDNEY_DISEASE"
FUROSEMIDE, NSAID, ANTICOAGULANT = "RX//FUROSEMIDE", "RX//NSAID", "RX//ANTICOAGULANT"
PALLIATIVE_CARE, CARDIAC_ARREST = "NOTE//PALLIATIVE_CARE", "DX//CARDIAC_ARREST"
SITES = 5


class Numeric(NamedTuple):
    """A code with numbers: `middle` is changed by patient, year and measurement, each normal with its deviation.

    On a logarithmic scale (`log`) the deviations are factors' logarithms. `decimals` are as a laboratory prints them.
    """

    code: str
    description: str
    unit: str
    parent: str
    share: float
    middle: float
    between: float
    yearly: float
    within: float
    log: bool
    decimals: int


NUMERIC = (
    Numeric(LACTATE, "lactate", "mmol/L", "BLOOD_GAS", 9, 1.5, 0.3, 0.02, 0.4, True, 1),
    Numeric(CREATININE, "creatinine", "mg/dL", "KIDNEY_LABS", 9, 1.0, 0.4, 0.03, 0.15, True, 2),
    Numeric(SODIUM, "sodium", "mmol/L", "ELECTROLYTES", 9, 138, 2.5, 0.1, 3.0, False, 0),
    Numeric(PRESSURE, "systolic blood pressure", "mmHg", "VITAL_SIGNS", 12, 126, 13, 0.8, 15, False, 0),
    Numeric("VITAL//HEART_RATE", "heart rate", "/min", "VITAL_SIGNS", 12, 80, 9, 0.2, 11, False, 0),
    Numeric("VITAL//TEMPERATURE", "temperature", "°C", "VITAL_SIGNS", 8, 36.8, 0.2, 0, 0.5, False, 1),
    Numeric("VITAL//RESPIRATION_RATE", "respiration rate", "/min", "VITAL_SIGNS", 6, 17, 2, 0, 3, False, 0),
    Numeric("VITAL//WEIGHT", "body weight", "kg", "VITAL_SIGNS", 4, 78, 15, 0.5, 0.8, False, 1),
    Numeric("LAB//POTASSIUM", "potassium", "mmol/L", "ELECTROLYTES", 8, 4.1, 0.25, 0, 0.35, False, 1),
    Numeric("LAB//CHLORIDE", "chloride", "mmol/L", "ELECTROLYTES", 5, 103, 2.5, 0, 3, False, 0),
    Numeric("LAB//BICARBONATE", "bicarbonate", "mmol/L", "BLOOD_GAS", 5, 25, 2, 0, 2.5, False, 0),
    Numeric("LAB//UREA_NITROGEN", "blood urea nitrogen", "mg/dL", "KIDNEY_LABS", 6, 17, 0.35, 0.03, 0.2, True, 0),
    Numeric("LAB//GLUCOSE", "glucose", "mg/dL", "METABOLIC_LABS", 8, 110, 0.2, 0.01, 0.2, True, 0),
    Numeric("LAB//HAEMOGLOBIN_A1C", "haemoglobin A1c", "%", "METABOLIC_LABS", 2, 6.0, 0.15, 0.01, 0.05, True, 1),
    Numeric("LAB//HAEMOGLOBIN", "haemoglobin", "g/dL", "BLOOD_COUNT", 8, 12.8, 1.5, 0.1, 0.7, False, 1),
    Numeric("LAB//PLATELETS", "platelets", "10^3/uL", "BLOOD_COUNT", 6, 230, 0.25, 0.01, 0.15, True, 0),
    Numeric("LAB//WHITE_CELLS", "white blood cells", "10^3/uL", "BLOOD_COUNT", 6, 7.8, 0.25, 0, 0.3, True, 1),
    Numeric("LAB//CRP", "C-reactive protein", "mg/L", "INFLAMMATION", 4, 6, 0.7, 0.02, 0.9, True, 1),
    Numeric("LAB//ALBUMIN", "albumin", "g/dL", "LIVER_LABS", 4, 3.9, 0.4, 0.02, 0.25, False, 1),
    Numeric("LAB//BILIRUBIN", "bilirubin", "mg/dL", "LIVER_LABS", 4, 0.7, 0.4, 0.01, 0.3, True, 1),
    Numeric("LAB//ALT", "alanine transaminase", "U/L", "LIVER_LABS", 4, 24, 0.4, 0.01, 0.35, True, 0),
    Numeric("LAB//AST", "aspartate transaminase", "U/L", "LIVER_LABS", 4, 26, 0.35, 0.01, 0.35, True, 0),
    Numeric("LAB//CHOLESTEROL", "total cholesterol", "mg/dL", "METABOLIC_LABS", 2, 185, 30, 1, 15, False, 0),
    Numeric("LAB//TROPONIN_T", "troponin T", "ng/mL", "HEART_LABS", 2, 0.02, 0.6, 0.02, 0.9, True, 3),
    Numeric("LAB//NT_PROBNP", "NT-proBNP", "pg/mL", "HEART_LABS", 2, 250, 1.0, 0.05, 0.5, True, 0),
    Numeric("LAB//INR", "international normalised ratio", "", "COAGULATION", 4, 1.1, 0.15, 0, 0.15, True, 1),
)

#: The most frequent diagnoses and drugs have names; all others have numbers.
DIAGNOSES = ("DX//HYPERTENSION", "DX//TYPE_2_DIABETES", HEART_FAILURE, KIDNEY_DISEASE, "DX//COPD", "DX//DEPRESSION")
DRUGS = ("RX//PARACETAMOL", "RX//STATIN", NSAID, ANTICOAGULANT, "RX//BETA_BLOCKER", "RX//METFORMIN", FUROSEMIDE)
GROUPS = 20  # of diagnoses, and of drugs

#: Shares of numbers, diagnoses and drugs among the events.
SHARES = (0.5, 0.3, 0.2)


@dataclass(frozen=True)
class Vocabulary:
    """The codes of a data set with `ordinary` diagnoses and drugs, three of five of them diagnoses.

    Attributes (cached):
        names: every code by its number: the numeric ones first, then diagnoses, drugs and the special ones.
    """

    ordinary: int

    @cached_property
    def diagnoses(self) -> list[str]:
        return _zipf_names("DX", DIAGNOSES, self.ordinary * 3 // 5)

    @cached_property
    def drugs(self) -> list[str]:
        return _zipf_names("RX", DRUGS, self.ordinary - self.ordinary * 3 // 5)

    @cached_property
    def special(self) -> list[str]:
        demographics = [meds.birth_code, "SEX//F", "SEX//M", *(f"SITE//{site}" for site in range(1, SITES + 1))]
        return [*demographics, PALLIATIVE_CARE, CARDIAC_ARREST, meds.death_code]

    @cached_property
    def names(self) -> list[str]:
        return [*(code.code for code in NUMERIC), *self.diagnoses, *self.drugs, *self.special]

    @cached_property
    def number(self) -> dict[str, int]:
        return {name: number for number, name in enumerate(self.names)}

    @cached_property
    def any_code(self) -> np.ndarray:
        """A table of equally likely entries [2^20]: drawing one draws a code by its share."""
        shares = np.array([code.share for code in NUMERIC])
        share = np.concatenate([SHARES[0] * shares / shares.sum(), self._zipf(SHARES[1], SHARES[2])])
        return _table(share, first=0)

    @cached_property
    def personal_code(self) -> np.ndarray:
        """The same for diagnoses and drugs alone."""
        return _table(self._zipf(0.6, 0.4), first=len(NUMERIC))

    def _zipf(self, diagnoses: float, drugs: float) -> np.ndarray:
        shares = []
        for count, total in ((len(self.diagnoses), diagnoses), (len(self.drugs), drugs)):
            share = 1 / np.arange(2, count + 2)
            shares.append(total * share / share.sum())
        return np.concatenate(shares)

    def described(self) -> dict[str, Code]:
        """Every code with its description, unit and parents, as codes.parquet has it."""
        codes = {code.code: Code(code.description, code.unit or None, (code.parent,)) for code in NUMERIC}
        for kind, names, word in (("DX", self.diagnoses, "diagnosis"), ("RX", self.drugs, "drug")):
            for rank, name in enumerate(names):
                said = name.removeprefix(f"{kind}//").replace("_", " ").lower()
                group = f"{kind}_GROUP//{rank % GROUPS + 1:02d}"
                codes[name] = Code(f"made-up {word} {said}" if said.isdecimal() else said, None, (group, kind))
        codes[meds.birth_code] = Code("birth")
        codes |= {"SEX//F": Code("female", None, ("SEX",)), "SEX//M": Code("male", None, ("SEX",))}
        codes |= {f"SITE//{site}": Code(f"hospital {site}", None, ("SITE",)) for site in range(1, SITES + 1)}
        codes[PALLIATIVE_CARE] = Code("palliative care note: written because the outcome is foreseen")
        codes[CARDIAC_ARREST] = Code("cardiac arrest, after the prediction")
        codes[meds.death_code] = Code("death")
        return codes


def _zipf_names(kind: str, named: tuple[str, ...], count: int) -> list[str]:
    return [*named, *(f"{kind}//{number:05d}" for number in range(len(named) + 1, count + 1))][:count]


def _table(share: np.ndarray, first: int) -> np.ndarray:
    size = 1 << 20
    edges = np.rint(np.cumsum(share) / share.sum() * size).astype(np.int64)
    return np.repeat(np.arange(first, first + len(share), dtype=np.int16), np.diff(edges, prepend=0))
