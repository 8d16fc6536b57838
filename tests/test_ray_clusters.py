"""A run that joins a cluster of `ray start`: what it needs, and what the cluster's Prometheus page says of it."""

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
import torch

from conftest import SmallRun
from whenwhy.shards import StageDirectory


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int, dict[str, str]]]:
    """A cluster of one machine as `ray start` makes it: its address, its metrics' port, and its token's environment."""
    port, metrics, folder = free_port(), free_port(), tmp_path_factory.mktemp("cluster")
    there = os.environ | {
        "HOME": str(folder), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_metrics_report_interval_ms": "1000", "RAY_TMPDIR": f"/tmp/ray-{port}",
    }  # fmt: skip
    there.pop("RAY_ADDRESS", None)
    head = subprocess.Popen(
        [
            sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--node-ip-address=127.0.0.1",
            f"--port={port}", f"--metrics-export-port={metrics}", "--num-cpus=2", f"--dashboard-port={free_port()}",
            "--object-store-memory=100000000", "--disable-usage-stats",
        ],
        env=there, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        for _ in range(600):
            with socket.socket() as there_yet:
                if there_yet.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"127.0.0.1:{port}", metrics, there
    finally:
        head.terminate()
        head.wait(60)
        shutil.rmtree(there["RAY_TMPDIR"], ignore_errors=True)


def attribute(run: SmallRun, out: Path, address: str, there: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """The command, in the folder of the small cohort, with relative paths; the cluster was started in another."""
    home = run.sequences.parent
    return subprocess.run(
        [
            sys.executable, "-m", "whenwhy", "attribute", run.sequences.name, "--model", run.model.name,
            "--out", os.path.relpath(out, home), "--ray-address", address, "--workers", "2",
        ],
        capture_output=True, text=True, env=there, cwd=home, check=False, timeout=300,
    )  # fmt: skip


def test_prometheus_is_told_of_shards_and_work(
    small_run: SmallRun, tmp_path: Path, cluster: tuple[str, int, dict[str, str]]
) -> None:
    address, metrics, there = cluster
    told = attribute(small_run, tmp_path / "attr", address, there)
    assert told.returncode == 0, told.stderr
    made = StageDirectory.open(tmp_path / "attr")
    assert made.content_sha256() == StageDirectory.open(small_run.attributions).content_sha256()
    n_rows = sum(made.entry(name).summary["n_rows"] for name in made.shards)
    found: dict[str, float] = {}
    for _ in range(60):
        with urllib.request.urlopen(f"http://127.0.0.1:{metrics}/metrics", timeout=30) as page:
            lines = re.findall(r"^ray_(whenwhy_\w+)\{(.*)\} (\S+)$", page.read().decode(), re.MULTILINE)
        found = {name: float(value) for name, tags, value in lines if 'stage="attribute"' in tags}
        if found.get("whenwhy_amount_total") == n_rows and {"whenwhy_shards_left", "whenwhy_gpu_bytes"} <= found.keys():
            break
        time.sleep(1)
    assert found["whenwhy_shards_total"] == len(made.shards)
    assert found["whenwhy_amount_total"] == n_rows
    assert found["whenwhy_shards_left"] == 0
    assert (found["whenwhy_gpu_bytes"] > 0) == torch.cuda.is_available()


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"RAY_AUTH_TOKEN": None}, "RAY_AUTH_TOKEN"),
        ({"RAY_AUTH_TOKEN": "0" * 64}, "RAY_AUTH_TOKEN"),
        ({"RAY_AUTH_MODE": "disabled"}, "without a token who reaches Ray can run code"),
    ],
    ids=["no token", "another token", "no authentication"],
)
def test_a_cluster_is_joined_with_its_token_alone(
    small_run: SmallRun,
    tmp_path: Path,
    cluster: tuple[str, int, dict[str, str]],
    changed: dict[str, str | None],
    says: str,
) -> None:
    address, _, there = cluster
    other = {name: value for name, value in (there | changed).items() if value is not None} | {"HOME": str(tmp_path)}
    told = attribute(small_run, tmp_path / "attr", address, other)
    assert told.returncode == 2, told.stderr
    assert says in told.stderr.splitlines()[-1]
    assert "Traceback" not in told.stderr


def test_an_address_where_nobody_answers_is_named(small_run: SmallRun, tmp_path: Path) -> None:
    there = dict(os.environ) | {"HOME": str(tmp_path)}
    told = attribute(small_run, tmp_path / "attr", f"127.0.0.1:{free_port()}", there)
    assert told.returncode == 2
    assert told.stderr.startswith("Nobody answers at 127.0.0.1:")
    assert told.stderr.count("\n") == 1


def test_a_ray_that_was_imported_first_is_one_sentence(small_run: SmallRun, tmp_path: Path) -> None:
    program = "import sys, ray; sys.argv[0] = 'whenwhy'; from whenwhy.cli import main; main()"
    there = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    asked = ["attribute", str(small_run.sequences), "--model", str(small_run.model), "--out", str(tmp_path / "attr")]
    told = subprocess.run(
        [sys.executable, "-c", program, *asked], capture_output=True, text=True, env=there, check=False, timeout=120
    )
    assert told.returncode == 2, told.stderr
    assert told.stderr.splitlines()[-1].startswith("Ray was imported before whenwhy could tell it to ask for a token:")


#: Joins a cluster, joins it again, and then another.
TWICE = """
import sys
from whenwhy.engine import Workers
from whenwhy.engine.ray_pool import connect
from whenwhy.errors import UserError

for address in (sys.argv[1], sys.argv[1], None, "auto"):
    connect(Workers(ray_address=address))
try:
    connect(Workers(ray_address="127.0.0.1:1"))
except UserError as error:
    print(error)
"""


def test_a_process_is_at_one_cluster(cluster: tuple[str, int, dict[str, str]]) -> None:
    address, _, there = cluster
    told = subprocess.run(
        [sys.executable, "-c", TWICE, address], capture_output=True, text=True, env=there, check=False, timeout=120
    )
    assert told.returncode == 0, told.stderr
    assert re.match(r"This process is at Ray \S+ already, and cannot join 127.0.0.1:1 too:", told.stdout)
