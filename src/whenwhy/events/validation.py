"""A MEDS data set flows in; what is wrong with it, a line each, flows out: `whenwhy validate`."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pyarrow as pa

from whenwhy.engine import Workers, kept_pool
from whenwhy.events.cohort import cohort_of
from whenwhy.events.meds_dataset import open_meds
from whenwhy.events.scanned import scanned


def validation_lines(path: Path, workers: Workers | None = None) -> tuple[bool, list[str]]:
    """Whether `prepare` takes the data set as it is, and what was found, a line a file and kind.

    Rows are read by the types that they have, so wrong types are told first, and alone.

    Raises:
        UserError: it is no MEDS data set, or cannot be mended.

    Example: `validation_lines(Path("demo/meds"))[0]`
    """
    dataset = open_meds(path)
    findings = list(dataset.findings)
    rows: int | None = None
    if not any(finding.refused for finding in findings):
        nobody = pa.table(
            {
                "subject_id": pa.array([-(2**63)], pa.int64()),
                "prediction_time": pa.array([0], pa.timestamp("us")),
                "label": pa.array([""]),
            }
        )
        splits = pa.table({"subject_id": nobody["subject_id"], "split": [""]})
        with (
            tempfile.TemporaryDirectory(prefix="whenwhy-") as folder,
            kept_pool(workers or Workers(inline=True)) as pool,
        ):
            found = scanned(dataset, cohort_of(nobody, splits, 1), Path(folder), pool)
        findings, rows = found.findings, found.rows
    lines = [
        f"{finding}"
        + (f" (--repair: {finding.repair})" if finding.repair else "")
        + ("" if finding.refused else " (work goes on)")
        for finding in findings
    ]
    sound = not any(finding.refused for finding in findings)
    counted = "" if rows is None else f", {rows:,} rows in {len(dataset.files):,} files"
    lines.append(f"{path} {'is sound' if sound else 'needs --repair or a mended data set'}{counted}.")
    return sound, lines
