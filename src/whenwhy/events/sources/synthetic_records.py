"""A seed flows in, the records of some thousand made-up patients flow out: one file of a synthetic data set.

Everything is an array over events: codes are small integers until the end, and one sort on a packed key
(patient, minute, code) brings the file into MEDS order.
"""

from __future__ import annotations

from dataclasses import dataclass

import meds
import numpy as np
import pyarrow as pa

from whenwhy.events.sources import synthetic_outcome as outcome
from whenwhy.events.sources.meds_writer import EVENTS
from whenwhy.events.sources.synthetic_codes import NUMERIC, SITES, Vocabulary

DAY = 1440  # minutes
YEAR = 365.25 * DAY
#: Times are whole minutes from here, so that they are positive and short; 0 is undated.
START = np.datetime64("1900-01-01", "m")
FIRST_PREDICTION, LAST_PREDICTION = (int((np.datetime64(d, "m") - START).astype(int)) for d in ("2015", "2025"))

MINUTE_BITS, CODE_BITS = 27, 13
EVENTS_A_VISIT = 10
#: Of a patient's events, so many belong to the admission on whose second day the prediction is made, and to later ones.
AT_INDEX, LATER = 0.25, 0.08
LATER_DAYS = 60
SPREAD = 1.0  # of the logarithm of record lengths: the longest of a million patients is a hundred times the median
CHRONIC = 4  # diagnoses and drugs that come back in a patient's record
SHORTEST = 5


Extra = tuple[np.ndarray, np.ndarray | int, np.ndarray | int]  # more events: patient, minute, code


@dataclass(frozen=True)
class Records:
    """Some patients' events, sorted, and predictions.

    Attributes:
        key: patient, minute and code packed, [event].
        value: the number; NaN: none, [event].
        prediction: minutes from START, [patient].
        contributions: [patient, effect].
    """

    key: np.ndarray
    value: np.ndarray
    prediction: np.ndarray
    contributions: np.ndarray
    logit: np.ndarray
    label: np.ndarray

    def table(self, vocabulary: Vocabulary, first_subject: int) -> pa.Table:
        """MEDS rows in MEDS order; the patients have successive ids."""
        minute = (self.key >> CODE_BITS) & ((1 << MINUTE_BITS) - 1)
        time = times(minute).astype("datetime64[us]")
        code = (self.key & ((1 << CODE_BITS) - 1)).astype(np.int16)
        columns = {
            "subject_id": pa.array((self.key >> (MINUTE_BITS + CODE_BITS)) + first_subject),
            "time": pa.array(time, mask=minute == 0),
            "code": pa.DictionaryArray.from_arrays(code, pa.array(vocabulary.names)),
            "numeric_value": pa.array(self.value, mask=np.isnan(self.value)),
        }
        return pa.table(columns).select(EVENTS.names)


def times(minute: np.ndarray) -> np.ndarray:
    """Minutes from START as times."""
    return START + minute.astype("timedelta64[m]")


def made_up(
    random: np.random.Generator,
    vocabulary: Vocabulary,
    patients: int,
    mean_length: float,
    intercept: float = 0.0,
    longest: int | None = None,
) -> Records:
    """The records of `patients`; the first has `longest` events, if that is given."""
    number = vocabulary.number
    length = np.exp(random.normal(np.log(mean_length) - SPREAD**2 / 2, SPREAD, patients))
    length = np.maximum(np.rint(length), SHORTEST).astype(np.int64)
    if longest is not None:
        length[0] = longest
    prediction = random.integers(FIRST_PREDICTION, LAST_PREDICTION, patients)
    birth, age = _births(random, prediction)

    patient = np.repeat(np.arange(patients, dtype=np.int32), length)
    minute = _minutes(random, length, patient, prediction, age)
    code = vocabulary.any_code[random.integers(0, len(vocabulary.any_code), len(patient), dtype=np.int32)]
    own = vocabulary.personal_code[
        random.integers(0, len(vocabulary.personal_code), (patients, CHRONIC), dtype=np.int32)
    ]
    again = np.flatnonzero((code >= len(NUMERIC)) & (random.random(len(code), dtype=np.float32) < 0.5))
    code[again] = own[patient[again], random.integers(0, CHRONIC, len(again), dtype=np.int8)]
    value = _values(random, patients, patient, code, (minute - prediction[patient]) / YEAR)

    # The distractor: given with its diagnosis, within the hour, without an effect of its own.
    failing = np.flatnonzero((code == number[outcome.DISTRACTOR.follows]) & (minute < prediction[patient] - 60))
    failing = failing[random.random(len(failing)) < outcome.DISTRACTOR.probability]
    given = minute[failing] + random.integers(0, 61, len(failing))
    extra: list[Extra] = [(patient[failing], given, number[outcome.DISTRACTOR.code])]

    ago = prediction[patient] - minute
    before = np.flatnonzero(ago >= 0)
    found = outcome.contributions(number, patient[before], ago[before], code[before], value[before], age)
    logit = intercept + found.sum(axis=1)
    label = random.random(patients) < 1 / (1 + np.exp(-logit))
    extra += _consequences(random, vocabulary, prediction, label)
    extra += _demographics(random, vocabulary, birth)

    more = np.concatenate([np.asarray(who, dtype=np.int32) for who, _, _ in extra])
    patient = np.concatenate([patient, more])
    minute = np.concatenate([minute, *(np.broadcast_to(when, len(who)) for who, when, _ in extra)])
    code = np.concatenate([code, *(np.broadcast_to(what, len(who)).astype(np.int16) for who, _, what in extra)])
    value = np.concatenate([value, np.full(len(more), np.nan, dtype=np.float32)])
    key = (((patient.astype(np.int64) << MINUTE_BITS) + minute) << CODE_BITS) + code
    if longest is not None:
        kept = _without_surplus(vocabulary, patient, code, longest)
        key, value = key[kept], value[kept]
    # Stable, so that equal keys come in one order whatever the machine's sorting instructions.
    order = np.argsort(key, kind="stable")
    return Records(key[order], value[order], prediction, found, logit, label)


def _births(random: np.random.Generator, prediction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Minutes of birth and ages in whole years, [patient]."""
    count = len(prediction)
    years = np.clip(random.normal(62, 17, count), 18, 95)
    month = (times(prediction - (years * YEAR).astype(np.int64))).astype("datetime64[M]")
    born = month.astype("datetime64[D]") + random.integers(0, 28, count).astype("timedelta64[D]")
    day = times(prediction).astype("datetime64[D]")
    months = (day.astype("datetime64[M]") - month).astype(np.int64)
    months -= (day - day.astype("datetime64[M]")) < (born - month.astype("datetime64[D]"))  # not yet completed
    return (born.astype("datetime64[m]") - START).astype(np.int64), months // 12


def _minutes(
    random: np.random.Generator, length: np.ndarray, patient: np.ndarray, prediction: np.ndarray, age: np.ndarray
) -> np.ndarray:
    """When each event happens, [event]: at visits, which come closer to each other towards the prediction."""
    visits = np.maximum(length // EVENTS_A_VISIT, 1)
    first = np.cumsum(visits) - visits
    of = np.repeat(np.arange(len(length)), visits)
    span = np.exp(random.normal(np.log(900 * DAY), 0.8, len(length)))
    span = np.minimum(np.maximum(span, 30 * DAY), 0.9 * age * YEAR)
    start = prediction[of] - DAY - 1 - (span[of] * random.random(len(of)) ** 2).astype(np.int64)
    at_index = prediction - DAY + random.integers(0, 30, len(length))

    where = random.random(len(patient), dtype=np.float32)
    share = np.clip((where - AT_INDEX) / (1 - AT_INDEX - LATER), 0, 0.999999)
    minute: np.ndarray = start[first[patient] + (share * visits[patient]).astype(np.int64)]
    here = np.flatnonzero(where < AT_INDEX)
    minute[here] = at_index[patient[here]]
    # Several things are recorded at once: times within a visit are half hours, most of them its first.
    minute += 30 * np.minimum(random.exponential(2, len(patient)).astype(np.int64), 47)
    later = np.flatnonzero(where > 1 - LATER)
    minute[later] = prediction[patient[later]] + random.integers(1, LATER_DAYS * DAY + 1, len(later))
    return minute


def _values(
    random: np.random.Generator, patients: int, patient: np.ndarray, code: np.ndarray, years: np.ndarray
) -> np.ndarray:
    """The number of each event, NaN where its code has none, [event]: the patient's own level, drift and noise."""
    middle, between, yearly, within, decimals = (
        np.array([getattr(kind, name) for kind in NUMERIC], dtype=np.float32)
        for name in ("middle", "between", "yearly", "within", "decimals")
    )
    log = np.array([kind.log for kind in NUMERIC])
    middle = np.where(log, np.log(middle), middle).astype(np.float32)
    level = middle + between * random.standard_normal((patients, len(NUMERIC)), dtype=np.float32)
    drift = yearly * random.standard_normal((patients, len(NUMERIC)), dtype=np.float32)
    rows = np.flatnonzero(code < len(NUMERIC))
    kind, who = code[rows], patient[rows]
    place = who.astype(np.int64) * len(NUMERIC) + kind
    number = level.ravel()[place] + drift.ravel()[place] * years[rows].astype(np.float32)
    number += within[kind] * random.standard_normal(len(rows), dtype=np.float32)
    logarithmic = log[kind]
    number[logarithmic] = np.exp(number[logarithmic])
    scale = (10 ** decimals.astype(np.float64))[kind]
    value = np.full(len(code), np.nan, dtype=np.float32)
    # Rounded as laboratories print it, in double precision, so that 3.0 is 3.0.
    value[rows] = np.maximum(np.rint(number * scale), 0) / scale
    return value


def _consequences(
    random: np.random.Generator, vocabulary: Vocabulary, prediction: np.ndarray, label: np.ndarray
) -> list[Extra]:
    """What the outcome causes to be recorded: a leak just before the prediction, and what comes after it."""
    extra: list[Extra] = []
    for told in (outcome.LEAK, *outcome.AFTER):
        share = np.where(label, told.share_of_positive, told.share_of_negative)
        rows = np.flatnonzero(random.random(len(label)) < share)
        later = random.integers(told.from_days * DAY + 1, told.to_days * DAY + 1, len(rows))
        extra.append((rows, prediction[rows] + later, vocabulary.number[told.code]))
    return extra


def _demographics(random: np.random.Generator, vocabulary: Vocabulary, birth: np.ndarray) -> list[Extra]:
    everyone = np.arange(len(birth))
    sex = vocabulary.number["SEX//F"] + (random.random(len(birth)) < 0.48)
    site = vocabulary.number["SITE//1"] + random.integers(0, SITES, len(birth))
    return [(everyone, birth, vocabulary.number[meds.birth_code]), (everyone, 0, sex), (everyone, 0, site)]


def _without_surplus(vocabulary: Vocabulary, patient: np.ndarray, code: np.ndarray, longest: int) -> np.ndarray:
    """All rows but as many of the first patient's as are over `longest`, none of them of a code with an effect."""
    mattering = [vocabulary.number[name] for name in outcome.mattering() | set(vocabulary.special)]
    own = np.flatnonzero(patient == 0)
    spare = own[~np.isin(code[own], mattering)]
    kept = np.ones(len(patient), dtype=bool)
    kept[spare[: len(own) - longest]] = False
    return kept
