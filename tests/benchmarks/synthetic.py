"""How fast made-up patients are written, and in how much memory: `measure(small)` really imports them."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

PROGRAM = """
import json, resource, sys, time
from pathlib import Path
import pyarrow.parquet as pq
from whenwhy.events.sources import import_source, registered_sources
registered_sources()
out, patients = Path(sys.argv[1]), int(sys.argv[2])
begin = time.monotonic()
import_source("synthetic", out, patients=patients)
seconds = time.monotonic() - begin
events = sum(pq.read_metadata(file).num_rows for file in (out / "data").glob("*.parquet"))
used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
peak = max(process.ru_maxrss for process in used) * (1 if sys.platform == "darwin" else 1024)
cpu = sum(process.ru_utime + process.ru_stime for process in used)
print(json.dumps({"events": events, "seconds": seconds, "cpu_seconds": cpu, "peak": peak}))
"""


def imported(patients: int) -> dict[str, float]:
    """One import in a process of its own: events, seconds, and the peak bytes of its largest process."""
    with tempfile.TemporaryDirectory() as folder:
        told = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(Path(folder) / "meds"), str(patients)],
            capture_output=True,
            text=True,
            check=True,
        )
    return json.loads(told.stdout)


def measure(small: bool) -> dict[str, float]:
    """Events a second (median of three imports, worker processes and files included), and how memory grows.

    Per core and second: of processor time, start-up included, so that other work on the machine matters less. The
    growth is the peak bytes of the largest process with ten times as many patients over those with as many.

    Example: `measure(small=True)["synthetic_events_per_second"]`
    """
    patients = 20_000 if small else 200_000
    runs = [imported(patients) for _ in range(3)]
    fewer = imported(patients // 10)
    peak = statistics.median(run["peak"] for run in runs)
    return {
        "synthetic_patients": patients,
        "synthetic_events": runs[0]["events"],
        "synthetic_events_per_second": statistics.median(run["events"] / run["seconds"] for run in runs),
        "synthetic_events_per_core_second": statistics.median(run["events"] / run["cpu_seconds"] for run in runs),
        "synthetic_peak_bytes": peak,
        "synthetic_memory_growth": peak / fewer["peak"],
    }


if __name__ == "__main__":
    print(json.dumps(measure("--small" in sys.argv)))
