"""What a cluster's Prometheus page says of a run that joined the cluster."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import SmallRun
from whenwhy.shards import StageDirectory


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[str, int, dict[str, str]]]:
    """A cluster of one machine as `ray start` makes it: its address, its metrics' port, and its token's environment."""
    port, metrics = free_port(), free_port()
    there = os.environ | {
        "HOME": str(tmp_path), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_metrics_report_interval_ms": "1000", "RAY_TMPDIR": f"/tmp/ray-{port}",
    }  # fmt: skip
    there.pop("RAY_ADDRESS", None)
    head = subprocess.Popen(
        [
            sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--node-ip-address=127.0.0.1",
            f"--port={port}", f"--metrics-export-port={metrics}", "--num-cpus=2", f"--dashboard-port={free_port()}",
            "--object-store-memory=100000000", "--disable-usage-stats",
        ],
        env=there, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield f"127.0.0.1:{port}", metrics, there
    finally:
        head.terminate()
        head.wait(60)
        shutil.rmtree(there["RAY_TMPDIR"], ignore_errors=True)


def test_prometheus_is_told_of_shards_and_work(
    small_run: SmallRun, tmp_path: Path, cluster: tuple[str, int, dict[str, str]]
) -> None:
    address, metrics, there = cluster
    command = [
        sys.executable, "-m", "whenwhy", "attribute", str(small_run.sequences), "--model", str(small_run.model),
        "--out", str(tmp_path / "attr"), "--ray-address", address, "--workers", "2",
    ]  # fmt: skip
    for _ in range(60):
        with socket.socket() as there_yet:
            if there_yet.connect_ex(("127.0.0.1", int(address.rpartition(":")[2]))) == 0:
                break
        time.sleep(0.5)
    told = subprocess.run(command, capture_output=True, text=True, env=there, check=False, timeout=300)
    assert told.returncode == 0, told.stderr
    made = StageDirectory.open(tmp_path / "attr")
    assert made.content_sha256() == StageDirectory.open(small_run.attributions).content_sha256()
    n_rows = sum(made.entry(name).summary["n_rows"] for name in made.shards)
    found: dict[str, float] = {}
    for _ in range(60):
        with urllib.request.urlopen(f"http://127.0.0.1:{metrics}/metrics", timeout=30) as page:
            lines = re.findall(r"^ray_(whenwhy_\w+)\{(.*)\} (\S+)$", page.read().decode(), re.MULTILINE)
        found = {name: float(value) for name, tags, value in lines if 'stage="attribute"' in tags}
        if found.get("whenwhy_amount_total") == n_rows:
            break
        time.sleep(1)
    assert found["whenwhy_shards_total"] == len(made.shards)
    assert found["whenwhy_amount_total"] == n_rows
