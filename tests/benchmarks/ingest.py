"""How fast a cohort is prepared beside a bare DuckDB, in how much memory, and how well reading keeps a model busy."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import reader, synthetic

#: A whole `whenwhy prepare`, Ray's workers included; its peak is that of the largest process.
PREPARE = """
import json, sys, threading, time
from pathlib import Path
import psutil
from whenwhy.engine import Workers
from whenwhy.events.sequences import PrepareSettings, prepare

meds, out, workers = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
peak, stop, largest = [0], threading.Event(), [0]

def watch():
    me = psutil.Process()
    while not stop.wait(0.05):
        sizes = [0]
        for process in [me, *me.children(recursive=True)]:
            try:
                # Files that are mapped into memory are the system's cache, which it gives up when asked.
                told = process.memory_info()
                sizes.append(told.rss - told.shared)
            except psutil.Error:
                pass
        peak[0], largest[0] = max(peak[0], sum(sizes)), max(largest[0], max(sizes))

threading.Thread(target=watch, daemon=True).start()
begin = time.monotonic()
who = Workers(count=workers) if workers else Workers(inline=True)
prepare(meds, next((meds / "labels").iterdir()), out, PrepareSettings("x"), who, memory_limit="500MB")
seconds = time.monotonic() - begin
stop.set()
print(json.dumps({"seconds": seconds, "peak": peak[0], "largest": largest[0]}))
"""

#: The same columns of the same files, scanned and sorted as a patient's record is, and no more.
DUCKDB = """
import json, sys, time
import duckdb

begin = time.monotonic()
db = duckdb.connect(config={"threads": 2, "memory_limit": "2GB", "temp_directory": sys.argv[2]})
db.execute(f"create table sorted as select subject_id, time, code, numeric_value "
           f"from read_parquet('{sys.argv[1]}/data/*.parquet') order by subject_id, time")
[(rows,)] = db.execute("select count(*) from sorted").fetchall()
print(json.dumps({"seconds": time.monotonic() - begin, "rows": rows}))
"""

FEW, MANY = 100_000, 1_000_000


def ran(program: str, *arguments: object) -> dict[str, float]:
    """What a program prints as its last line, run in a process of its own."""
    told = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    if told.returncode:
        raise RuntimeError(told.stderr[-2000:])
    return dict(json.loads(told.stdout.splitlines()[-1]))


def made(folder: Path, patients: int) -> Path:
    """A made-up data set of so many patients, kept for the next call."""
    path = folder / f"meds-{patients}"
    if not path.exists():
        arguments = [sys.executable, "-m", "whenwhy", "import", "synthetic", str(path), "--patients", str(patients)]
        subprocess.run(arguments, check=True, capture_output=True)
    return path


def measure(small: bool, folder: Path | None = None) -> dict[str, float | None]:
    """The keys of `ingest`, side by side in one run.

    prepare_vs_duckdb is at a million patients (at the small size: of the few there are), where starting Ray's
    workers, some ten seconds, no longer counts; prepare_vs_duckdb_fewer is at a hundred thousand.
    """
    with tempfile.TemporaryDirectory() as temporary:
        where = folder or Path(temporary)
        patients = 20_000 if small else FEW
        meds = made(where, patients)
        pairs = []
        for turn in range(1 if small else 3):
            duckdb = ran(DUCKDB, meds, Path(temporary) / "spill")
            ours = ran(PREPARE, meds, Path(temporary) / f"out-{turn}", 0 if small else 2)
            pairs.append((duckdb["seconds"] / ours["seconds"], duckdb, ours))
            print(
                f"{patients:,} patients, {duckdb['rows']:,} rows: DuckDB scan and sort {duckdb['seconds']:.1f} s, "
                f"prepare {ours['seconds']:.1f} s",
                flush=True,
            )
        told: dict[str, float | None] = {"prepare_vs_duckdb": statistics.median(ratio for ratio, *_ in pairs)}
        told["prepare_peak_bytes"] = statistics.median(ours["peak"] for *_, ours in pairs)
        told["memory_growth"] = None
        if not small:
            meds = made(where, MANY)
            pairs = []
            for turn in range(3):
                duckdb = ran(DUCKDB, meds, Path(temporary) / "spill")
                many = ran(PREPARE, meds, Path(temporary) / f"many-{turn}", 2)
                pairs.append((duckdb["seconds"] / many["seconds"], duckdb, many))
                print(
                    f"{MANY:,} patients, {duckdb['rows']:,} rows: DuckDB {duckdb['seconds']:.1f} s, prepare "
                    f"{many['seconds']:.1f} s",
                    flush=True,
                )
            told["prepare_vs_duckdb_fewer"] = told["prepare_vs_duckdb"]
            told["prepare_vs_duckdb"] = statistics.median(ratio for ratio, *_ in pairs)
            told["prepare_peak_bytes_many"] = statistics.median(many["peak"] for *_, many in pairs)
            told["memory_growth"] = told["prepare_peak_bytes_many"] / told["prepare_peak_bytes"]
        else:
            fewer = ran(PREPARE, made(where, patients // 10), Path(temporary) / "fewer", 0)
            told["memory_growth"] = told["prepare_peak_bytes"] / fewer["peak"]
    return told | reader.measure(small) | synthetic.measure(small)
