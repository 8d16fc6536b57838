"""A MEDS data set that breaks the rules flows in, a mended copy flows out: sorted, each subject together, nothing twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from whenwhy.events.event_scan import ROWS_AT_ONCE, SOURCE
from whenwhy.events.meds_dataset import EVENT_COLUMNS, MedsDataset
from whenwhy.events.out_of_core import connect, literal, within
from whenwhy.events.parquet_files import converted, read_pieces


def repaired(dataset: MedsDataset, scratch: Path, memory_limit: str) -> MedsDataset:
    """The data set with its events in one mended copy below `scratch`; the original is not touched.

    Types are converted, rows without a subject or code and repeated rows left out, and the rest sorted by
    subject and time. Each row keeps the name of the shard it came from.

    Example: `repaired(open_meds(Path("meds")), Path("scratch"), "1GB").files`
    """
    files = [_converted_copy(dataset, number, scratch) for number in range(len(dataset.files))]
    mended = scratch / "mended.parquet"
    with within(memory_limit, scratch), connect(memory_limit, scratch) as db:
        listed = ", ".join(literal(str(file)) for file in files)
        db.execute(
            f"""copy (
                select subject_id, time, code, numeric_value, min({SOURCE}) as {SOURCE}
                from read_parquet([{listed}]) where subject_id is not null and code is not null
                group by subject_id, time, code, numeric_value
                order by subject_id, time nulls first, code, numeric_value
            ) to {literal(str(mended))} (format parquet, row_group_size 500000)"""
        )
    for file in files:
        file.unlink()
    return replace(dataset, files=(mended,), mended=True, findings=tuple(f for f in dataset.findings if not f.refused))


def _converted_copy(dataset: MedsDataset, number: int, scratch: Path) -> Path:
    """One file with the four columns in MEDS types, and its shard's name."""
    copy = scratch / f"converted-{number:05d}.parquet"
    schema = pa.schema([*EVENT_COLUMNS.items(), (SOURCE, pa.string())])
    file = dataset.files[number]
    with pq.ParquetWriter(copy, schema) as out:
        for table in read_pieces(file, list(EVENT_COLUMNS), ROWS_AT_ONCE):
            columns = [
                converted(table, name, kind, file) if name in table.column_names else pa.nulls(table.num_rows, kind)
                for name, kind in EVENT_COLUMNS.items()
            ]
            source = pa.array([dataset.names[number]] * table.num_rows, pa.string())
            out.write_table(pa.table([*columns, source], schema=schema))
    return copy
