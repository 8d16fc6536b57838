"""The benchmarks run, at their small size, and say every figure: not whether it is fast."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).parent / "benchmarks" / "run.py"
KEYS = {
    "attribution": {
        "gradient_share_of_torch", "bag_values_per_second", "prefixes_speedup", "shapley_vs_timeshap",
        "amortised_speedup",
    },
    "engine": {
        "end_to_end_share_gradient", "end_to_end_share_ig", "two_worker_speedup", "resume_seconds_1000_shards",
        "driver_memory_growth",
    },
    "store": {
        "aggregate_vs_duckdb", "aggregate_vs_dask_dataframe", "peak_memory_gib", "query_ms_cells", "query_ms_cohort",
        "ranking_ms_cohort", "patient_ms", "interval_coverage",
    },
    "ingest": {"prepare_vs_duckdb", "reader_vs_gru", "memory_growth", "synthetic_events_per_second"},
}  # fmt: skip

#: Figures that may have either sign.
SIGNED = {"attribution": {"amortised_auprc_gap"}, "engine": {"plan_error"}}

#: Figures that are None where Captum is not installed.
MAY_BE_NONE = {"attribution": {"ig_vs_captum_equal_nodes", "ig_vs_captum_equal_residual", "memory_vs_captum"}}


@pytest.mark.full
@pytest.mark.parametrize("name", KEYS)
def test_a_small_benchmark_says_every_figure(name: str) -> None:
    told = subprocess.run([sys.executable, str(RUN), name, "--small"], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr[-2000:]
    figures = json.loads(told.stdout.splitlines()[-1])
    assert KEYS[name] <= set(figures)
    assert all(figures[key] is not None and figures[key] > 0 for key in KEYS[name])
    assert all(figures[key] is not None for key in SIGNED.get(name, set()))
    assert MAY_BE_NONE.get(name, set()) <= set(figures)
