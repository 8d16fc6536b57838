"""Student's t in SQL, which DuckDB does not bring, and Hall's correction: bounds for intervals, tails for tests."""

from __future__ import annotations

from typing import Final

import duckdb

#: No interval where fewer patients than this, in effect, stand behind a mean.
FEWEST_EFFECTIVE_PATIENTS: Final = 30

#: erfc(x) = y exp(-x^2 + polynomial(y)), y = 1 / (1 + x / 2): Numerical Recipes, 6.2; relative error below 1.2e-7.
_ERFC: Final = (
    -1.26551223, 1.00002368, 0.37409196, 0.09678418, -0.18628806, 0.27886807, -1.13520398, 1.48851587, -0.82215223,
    0.17087277,
)  # fmt: skip


def define_distributions(db: duckdb.DuckDBPyConnection) -> None:
    """The scalar macros student_t_975(degrees) and student_t_tail(t, degrees) are there.

    The first is Cornish and Fisher's expansion, within 1e-6 from 29 degrees on and within 5e-4 from 5 on. The second,
    the probability of more than t, is Hill's (Communications of the ACM 13, 1970, algorithm 395), within a relative
    1e-6 from 29 degrees on and within 1e-3 from 5 on, for t up to 12; farther out it tells how small.

    Example:
        >>> with duckdb.connect() as db:
        ...     define_distributions(db)
        ...     [(t, tail)] = db.sql("select student_t_975(40), student_t_tail(student_t_975(40), 40)").fetchall()
        >>> round(t, 4), round(tail, 6)
        (2.0211, 0.025)
    """
    db.execute(f"create macro student_t_975(degrees) as ({_quantile(1.959963984540054)})")
    # A lambda names what is used several times: a macro's argument is written out at each of its places.
    polynomial = repr(_ERFC[-1])
    for coefficient in _ERFC[-2::-1]:
        polynomial = f"({coefficient!r} + y * {polynomial})"
    db.execute(
        f"""create macro normal_tail(z) as (list_transform([z / sqrt(2)], lambda x:
            list_transform([1 / (1 + abs(x) / 2)], lambda y:
                abs((x < 0)::integer - y * exp({polynomial} - x * x) / 2))[1])[1])"""
    )
    db.execute(
        """create macro student_t_tail(t, degrees) as (list_transform(
            [{a: degrees - 0.5, t: t, w: (degrees - 0.5) * ln(1 + t * t / degrees)}], lambda v:
                normal_tail(sign(v.t) * sqrt(v.w) * (((((-0.4 * v.w - 3.3) * v.w - 24) * v.w - 85.5)
                    / (0.8 * v.w * v.w + 100 + 48 * v.a * v.a) + v.w + 3) / (48 * v.a * v.a) + 1)))[1])"""
    )
    # Hall's transformation (Annals of Statistics 20, 1992) and its inverse, by sum(u^3) / sum(u^2)^1.5: of what is left of
    # patients' sums. Few patients hardly tell a skewness, so a bound is the farther one, with the correction or without.
    db.execute(
        """create macro without_skewness(quantile, skewness) as (case when abs(skewness) < 1e-6 then quantile
            else 3 / skewness * (cbrt(1 + skewness * (quantile - skewness / 6)) - 1) end)"""
    )
    db.execute(
        """create macro with_skewness(t, skewness) as (
            t + skewness * t * t / 3 + skewness * skewness * t * t * t / 27 + skewness / 6)"""
    )
    db.execute(
        """create macro lower_bound(mean, error, quantile, skewness) as (
            mean - error * greatest(quantile, without_skewness(quantile, skewness)))"""
    )
    db.execute(
        """create macro upper_bound(mean, error, quantile, skewness) as (
            mean - error * least(-quantile, without_skewness(-quantile, skewness)))"""
    )


def _quantile(z: float) -> str:
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return " + ".join(f"{term!r} / pow(degrees, {power})" for power, term in enumerate(terms))
