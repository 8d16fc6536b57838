"""Codes and descriptions flow in, the names that people read flow out; what was done to patients is marked."""

from __future__ import annotations

import re
from typing import Final

#: Stands before what was done to patients, which is where a contribution is most easily taken for an effect.
TREATMENT: Final = "℞"
TREATMENT_WORDS: Final = (
    f"{TREATMENT} a treatment or procedure: who gets it was ill in ways that the model sees through it"
)

#: Vocabularies of treatments and procedures, and the names that MEDS data sets give their tables of them.
_TREATMENT: Final = re.compile(
    r"(medications?|meds?|drugs?|drug_exposure|prescriptions?|rx|rxnorm( extension)?|atc|ndc|cvx|procedures?|procedure_occurrence|"
    r"cpt4?|hcpcs|icd-?(9|10)-?(pcs|proc|procedure)|infusions?(_start|_end)?|treatments?|therap(y|ies)|surger(y|ies)|"
    r"vaccin(e|es|ation|ations)|immunizations?)($|[/:|])",
    re.IGNORECASE,
)


def is_treatment(code: str) -> bool:
    """Whether a code is of something that was done: by the vocabulary or the table that it begins with.

    Example:
        >>> is_treatment("MEDICATION//aspirin"), is_treatment("RxNorm/1191"), is_treatment("drugged"), is_treatment("LAB//51")
        (True, True, False, False)
    """
    return _TREATMENT.match(code) is not None


def feature_name(code: str, description: str | None) -> str:
    """A feature's description, or its code where it has none; a treatment is marked.

    Example:
        >>> feature_name("hdl", "HDL cholesterol"), feature_name("ATC/B01AC06", "aspirin")
        ('HDL cholesterol', '℞ aspirin')
    """
    return _marked(code, description or code)


def feature_words(code: str, description: str | None) -> str:
    """A feature's description with its code, where they differ; a treatment is marked.

    Example:
        >>> feature_words("hdl", "HDL cholesterol"), feature_words("stroke", "stroke")
        ('HDL cholesterol (hdl)', 'stroke')
    """
    return _marked(code, f"{description} ({code})" if description and description != code else code)


def _marked(code: str, name: str) -> str:
    return f"{TREATMENT} {name}" if is_treatment(code) else name
