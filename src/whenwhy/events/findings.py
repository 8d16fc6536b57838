"""What is wrong with a MEDS data set, per file and with counts, and whether `--repair` mends it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from whenwhy.errors import UserError

#: What may be wrong with rows, and what is done about it. Work goes on in spite of the last four.
INCOMPLETE = "rows without subject_id or code"
OUT_OF_ORDER = "rows out of time order within their subject"
SCATTERED = "subjects whose rows are not together"
IN_SEVERAL_FILES = "subjects that are in another file too"
REPEATED = "rows that repeat another's subject, time, code and number"
UNDESCRIBED = "rows with codes that codes.parquet does not describe"
NOT_FINITE = "numbers that are NaN or infinite, read as no number"
RINGS = "parents of codes that lie below these same codes, or are the codes themselves, left out"

#: MEDS 0.4 forbids these: prepare refuses them unless it may repair.
REFUSED = (INCOMPLETE, OUT_OF_ORDER, SCATTERED, IN_SEVERAL_FILES)

#: What a repair does, by finding. The others cannot be mended from the data alone.
REPAIRS = {
    INCOMPLETE: "left out",
    OUT_OF_ORDER: "sorted",
    SCATTERED: "brought together",
    IN_SEVERAL_FILES: "brought together",
    REPEATED: "left out",
}

#: A sentence names no more findings than this.
MOST_IN_A_SENTENCE = 4


@dataclass(frozen=True, order=True)
class Finding:
    """Something wrong with one file: so many of `what`. `repair` says what mends it; None: nothing does."""

    file: str
    what: str
    count: int | None = None
    repair: str | None = None
    refused: bool = False

    def __str__(self) -> str:
        return f"{self.file}: {self.what if self.count is None else f'{self.count:,} {self.what}'}"


def found(file: str, what: str, count: int) -> Finding:
    """The finding of a known kind.

    Example:
        >>> str(found("data/0.parquet", REPEATED, 1200))
        "data/0.parquet: 1,200 rows that repeat another's subject, time, code and number"
    """
    return Finding(file, what, count, REPAIRS.get(what), what in REFUSED)


def require_sound(findings: Iterable[Finding], path: object, whole: bool = True) -> None:
    """Raises `UserError` if a finding is refused: one sentence that names the first ones and what to do.

    Args:
        whole: `path` is a whole data set, of which `whenwhy validate` lists everything.
    """
    refused = [finding for finding in findings if finding.refused]
    if not refused:
        return
    more = f"; and {len(refused) - MOST_IN_A_SENTENCE:,} more" if len(refused) > MOST_IN_A_SENTENCE else ""
    named = "; ".join(str(finding) for finding in refused[:MOST_IN_A_SENTENCE])
    if any(finding.repair is None for finding in refused):
        what_to_do = "convert it to MEDS 0.4 again"
    else:
        what_to_do = "mend it, or add --repair to work on a mended copy"
    listed = f" (`whenwhy validate {path}` lists everything)" if whole else ""
    raise UserError(f"{path} is not as MEDS 0.4 asks ({named}{more}): {what_to_do}{listed}.")


def as_rows(findings: Sequence[Finding]) -> list[dict[str, object]]:
    """The findings as plain rows, for a report.

    Example:
        >>> as_rows([found("data/0.parquet", REPEATED, 3)])[0]["count"]
        3
    """
    return [
        {"file": f.file, "what": f.what, "count": f.count, "repair": f.repair, "refused": f.refused} for f in findings
    ]
