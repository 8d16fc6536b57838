"""What splits a cohort: the age at the prediction, and static codes such as SEX//F."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import pyarrow as pa

from whenwhy.errors import UserError, unknown_name
from whenwhy.schema import PREDICTIONS

AGE_BAND = "age_band"

#: A stratum is a cohort to look at, not a measurement: more values than this are refused.
MOST_STRATUM_VALUES = 100

#: The time of a birth that is not recorded.
NO_BIRTH = np.iinfo(np.int64).max


def years_at(birth: np.ndarray, time: np.ndarray) -> np.ndarray:
    """Completed years of age [prediction] float32; NaN where the birth is unknown or still ahead.

    Args:
        birth, time: [prediction] microseconds.

    Example:
        >>> day = np.array(["1980-05-02", "2020-05-01"], dtype="datetime64[us]").astype(int)
        >>> years_at(day[:1], day[1:])
        array([39.], dtype=float32)
    """
    known = (birth != NO_BIRTH) & (birth <= time)
    born, at = (np.where(known, t, 0).astype("datetime64[us]") for t in (birth, time))
    years = at.astype("datetime64[Y]").astype(int) - born.astype("datetime64[Y]").astype(int)

    def within(of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        month = of.astype("datetime64[M]")
        return month.astype(int) % 12, of - month.astype("datetime64[us]")

    (month, rest), (born_month, born_rest) = within(at), within(born)
    early = (month < born_month) | ((month == born_month) & (rest < born_rest))
    return np.where(known, years - early, np.nan).astype(np.float32)


def age_bands(years: np.ndarray) -> list[str]:
    """Ten years of age each, "90+" beyond.

    Example:
        >>> age_bands(np.float32([39, 97, np.nan]))
        ['30-39', '90+', 'unknown']
    """
    return [
        "unknown" if np.isnan(y) else "90+" if y >= 90 else f"{int(y) // 10 * 10}-{int(y) // 10 * 10 + 9}"
        for y in years
    ]


def strata_column(names: Sequence[str], values: Sequence[Sequence[str]], count: int) -> pa.Array:
    """A map from each name to its value, a row a prediction.

    Args:
        values: [name][prediction].

    Example:
        >>> strata_column(["sex", "site"], [["F", "M"], ["A", "A"]], 2).to_pylist()
        [[('sex', 'F'), ('site', 'A')], [('sex', 'M'), ('site', 'A')]]
    """
    offsets = pa.array(np.arange(count + 1, dtype=np.int32) * len(names))
    flat = [value for row in zip(*values, strict=True) for value in row]
    return pa.MapArray.from_arrays(offsets, pa.array(list(names) * count, pa.string()), pa.array(flat, pa.string()))


#: Names of cohorts that a store makes by itself.
RESERVED = ("class", "correct", "stratum")


def require_strata(
    asked: Sequence[str], static_codes: Collection[str], values: Collection[tuple[str, str]], where: object
) -> None:
    """Raises `UserError` for a stratum that the data does not have, or that has too many values.

    Args:
        static_codes: the undated codes of the cohort.
        values: (name, value) of the strata asked for.
    """
    names = sorted({code.split("//")[0].lower() for code in static_codes})
    for name in asked:
        if name == AGE_BAND:
            continue
        if name.lower() in (*PREDICTIONS.names, *RESERVED) or "=" in name:
            raise UserError(f"A stratum cannot be called '{name}': a store has that name for something else.")
        if name.lower() not in names:
            raise unknown_name("stratum", name, [AGE_BAND, *names], str(where))
        count = sum(of == name.lower() for of, _ in values)
        if count > MOST_STRATUM_VALUES:
            raise UserError(
                f"The stratum '{name}' has {count:,} values in {where}, too many to compare: "
                f"give one with at most {MOST_STRATUM_VALUES}."
            )
