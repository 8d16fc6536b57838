"""Directories of stages in a bucket, on a real S3 server: published once, verified, and the same bytes as on a disk."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pytest

from conftest import INLINE, Command, SmallRun, one_sentence
from whenwhy.attribution.attribute_shards import AttributeSettings, attribute_shards
from whenwhy.engine import Workers
from whenwhy.errors import UserError
from whenwhy.events.sequences import PrepareSettings, prepare
from whenwhy.locations import location, publish_once
from whenwhy.models.training import TrainSettings, train
from whenwhy.shards import StageDirectory
from whenwhy.statistics import aggregate_cells

BUCKET = "s3://whenwhy-test"


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An empty bucket of moto's server, which answers as S3 does, If-None-Match included."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = {
        "AWS_ACCESS_KEY_ID": "name", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
    }  # fmt: skip
    import ray

    ray.shutdown()  # workers have the environment that Ray started in
    with pytest.MonkeyPatch.context() as patch:
        for name, value in told.items():
            patch.setenv(name, value)
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        log = (tmp_path_factory.mktemp("s3") / "log").open("w")
        with log, subprocess.Popen(command, stdout=log, stderr=log) as server:
            try:
                for _ in range(600):
                    with socket.socket() as there:
                        if there.connect_ex(("127.0.0.1", port)) == 0:
                            break
                    time.sleep(0.1)
                location(BUCKET).fs.mkdir("whenwhy-test")
                yield BUCKET
            finally:
                server.kill()
                ray.shutdown()


@pytest.fixture(scope="module")
def in_bucket(bucket: str, small_run: SmallRun) -> str:
    """The small cohort prepared and learned from, in the bucket."""
    settings = PrepareSettings("the outcome", strata=("age_band", "sex"), bins=4, shard_size=128)
    prepare(small_run.meds, small_run.labels, location(f"{bucket}/seq"), settings, INLINE)
    train(location(f"{bucket}/seq"), location(f"{bucket}/model"), TrainSettings(hidden=8, epochs=2), INLINE)
    return bucket


@pytest.mark.parametrize("workers", [INLINE, Workers(count=2)], ids=["inline", "ray"])
def test_every_stage_makes_the_bytes_that_it_makes_on_a_disk(
    in_bucket: str, small_run: SmallRun, tmp_path: Path, workers: Workers
) -> None:
    out = location(f"{in_bucket}/attr-{workers.inline}")
    made = attribute_shards(
        location(f"{in_bucket}/seq"), location(f"{in_bucket}/model"), out, AttributeSettings(), workers
    )
    for stage, on_disk in (
        (StageDirectory.open(location(f"{in_bucket}/seq"), "prepare"), small_run.sequences),
        (StageDirectory.open(location(f"{in_bucket}/model"), "train"), small_run.model),
        (made, small_run.attributions),
    ):
        expected = StageDirectory.open(on_disk)
        assert stage.run_id == expected.run_id
        assert stage.content_sha256() == expected.content_sha256()
    assert json.loads((out / "run.json").read_bytes())["calls"][0]["ended"] == "finished"
    cells = aggregate_cells([out], tmp_path / "store", time_bin_hours=24)
    assert cells.content_sha256() == aggregate_cells([small_run.attributions], tmp_path / "other", time_bin_hours=24).content_sha256()  # fmt: skip


def test_the_commands_take_urls(in_bucket: str, small_run: SmallRun, whenwhy: Command, tmp_path: Path) -> None:
    seq, model, attr = (f"{in_bucket}/{name}" for name in ("seq", "model", "by-command"))
    status, printed, said = whenwhy("attribute", seq, "--model", model, "--out", attr, "--inline", "--part", "1/2")
    assert status == 0, said
    shards = StageDirectory.open(small_run.attributions).shards
    assert f"{len(shards) // 2} of {len(shards)} shards are left to other parts" in printed
    before = {name: (location(attr) / "entries" / name).read_bytes() for name in entries_of(attr)}
    status, printed, said = whenwhy("attribute", seq, "--model", model, "--out", attr, "--inline")
    assert status == 0, said
    assert {name: (location(attr) / "entries" / name).read_bytes() for name in before} == before
    made = StageDirectory.open(location(attr))
    assert made.content_sha256() == StageDirectory.open(small_run.attributions).content_sha256()
    status, printed, _ = whenwhy("info", attr)
    assert status == 0
    assert f"content: sha256 {made.content_sha256()}" in printed
    status, _, said = whenwhy("aggregate", attr, "--out", tmp_path / "store", "--time-bin-hours", "24")
    assert status == 0, said


def entries_of(attr: str) -> list[str]:
    return [path.name for path in (location(attr) / "entries").iterdir()]


def test_of_many_writers_one_publishes(bucket: str) -> None:
    where, won = f"{bucket}/race/entry.json", []

    def write(number: int) -> None:
        if publish_once(location(where), str(number).encode()):
            won.append(number)

    writers = [threading.Thread(target=write, args=(number,)) for number in range(16)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(won) == 1
    assert location(where).read_bytes() == str(won[0]).encode()


def test_a_late_duplicate_does_not_win(bucket: str) -> None:
    stage = StageDirectory.create(
        location(f"{bucket}/late"), stage="example", settings={}, inputs={}, shards=["a"], code_version="0"
    )
    assert stage.publish("a", {"numbers": pa.table({"n": [1]})})
    assert not stage.publish("a", {"numbers": pa.table({"n": [2]})})
    assert stage.read("a", "numbers").to_pylist() == [{"n": 1}]


def test_several_drivers_add_a_generation_once(bucket: str, tmp_path: Path) -> None:
    for at in (location(f"{bucket}/generations"), tmp_path / "generations"):
        ask = partial(
            StageDirectory.create, at, stage="example", settings={}, inputs={}, shards=["a"], code_version="0"
        )
        first, second = ask(), ask()
        inputs = {"meds": {"path": "/here", "sha256": "1"}}
        first.extended(1, inputs, ["b"])
        first.extended(2, inputs, ["c"])
        second.extended(1, inputs | {"meds": {"path": "/there", "sha256": "1"}}, ["b"])
        assert ask().shards == ["a", "b", "c"]
        with pytest.raises(UserError, match="was given other entries as generation 2 meanwhile"):
            second.extended(2, inputs, ["d"])
        assert ask().shards == ["a", "b", "c"]


def test_two_drivers_publish_each_shard_once(in_bucket: str, small_run: SmallRun) -> None:
    attr = f"{in_bucket}/two-drivers"
    command = [
        sys.executable, "-m", "whenwhy", "attribute", f"{in_bucket}/seq", "--model", f"{in_bucket}/model",
        "--out", attr, "--inline",
    ]  # fmt: skip
    drivers = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for driver in drivers:
        assert driver.wait() == 0, driver.stderr and driver.stderr.read()
    expected = StageDirectory.open(small_run.attributions)
    assert StageDirectory.open(location(attr)).content_sha256() == expected.content_sha256()


def test_other_settings_do_not_mix(in_bucket: str, whenwhy: Command) -> None:
    seq, model, attr = (f"{in_bucket}/{name}" for name in ("seq", "model", "mixed"))
    assert whenwhy("attribute", seq, "--model", model, "--out", attr, "--inline", "--method", "saliency")[0] == 0
    said = one_sentence(whenwhy("attribute", seq, "--model", model, "--out", attr, "--inline"))
    assert "already holds another run" in said
    (location(f"{in_bucket}/strange") / "notes.txt").write_bytes(b"mine")
    said = one_sentence(whenwhy("attribute", seq, "--model", model, "--out", f"{in_bucket}/strange", "--inline"))
    assert "is not empty and is no whenwhy directory" in said


def test_damage_in_a_bucket_is_named(bucket: str) -> None:
    stage = StageDirectory.create(
        location(f"{bucket}/damaged"), stage="example", settings={}, inputs={}, shards=["a", "b"], code_version="0"
    )
    for name in "ab":
        stage.publish(name, {"numbers": pa.table({"n": [ord(name)]})})
    data = stage.path / "data" / stage.entry("a").files["numbers"]["file"]
    whole = data.read_bytes()
    data.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match=f"{data.name} is damaged"):
        stage.read("a", "numbers")
    (stage.path / "entries" / "b.json").write_bytes(b"{")
    with pytest.raises(UserError, match=r"b.json is damaged"):
        stage.entry("b")


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("s3://there-is-none/attr", "s3://there-is-none/attr"),
        ("nowhere://bucket/attr", "places of the kind 'nowhere' cannot be used here"),
    ],
)
def test_a_bucket_that_is_none_is_named(
    bucket: str, small_run: SmallRun, whenwhy: Command, where: str, says: str
) -> None:
    said = one_sentence(
        whenwhy("attribute", small_run.sequences, "--model", small_run.model, "--out", where, "--inline")
    )
    assert says in said


def test_a_server_that_is_not_there_is_named(
    in_bucket: str, whenwhy: Command, small_run: SmallRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # how often botocore asks, and waits between, is its own matter
    command = [
        sys.executable, "-m", "whenwhy", "attribute", str(small_run.sequences), "--model", str(small_run.model),
        "--out", f"{in_bucket}/unreached", "--inline",
    ]  # fmt: skip
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    assert told.returncode == 2
    assert told.stderr.count("\n") == 1
    assert "cannot be reached" in told.stderr


def test_a_store_does_not_go_into_a_bucket(in_bucket: str, small_run: SmallRun) -> None:
    with pytest.raises(UserError, match="A store must lie in a directory"):
        aggregate_cells([small_run.attributions], location(f"{in_bucket}/store"))


@pytest.mark.parametrize(
    "command",
    [
        ("aggregate", "ATTR", "--out", "s3://bucket/store"),
        ("predict", "SEQ", "--model", "MODEL", "--out", "s3://bucket/predictions.parquet"),
        ("prepare", "s3://bucket/meds", "--labels", "s3://bucket/labels", "--out", "SEQ"),
        ("info", "s3:///seq"),
        ("info", "s3://"),
    ],
    ids=" ".join,
)
def test_what_must_be_a_directory_or_names_no_bucket_is_refused(
    small_run: SmallRun, whenwhy: Command, command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    of = {"ATTR": small_run.attributions, "SEQ": small_run.sequences, "MODEL": small_run.model}
    said = one_sentence(whenwhy(*(of.get(word, word) for word in command)))
    assert "must lie in a directory" in said or "names no bucket" in said
    assert not list(tmp_path.iterdir())


class Proxy(BaseHTTPRequestHandler):
    """Hands on what it is asked and what is answered, but for what the environment says it leaves out."""

    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        host = os.environ["WHENWHY_TEST_S3"].removeprefix("http://")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        left_out = os.environ["WHENWHY_TEST_LEAVES_OUT"]
        kept = {name: value for name, value in self.headers.items() if name.lower() != left_out}
        there = http.client.HTTPConnection(host)
        there.request(self.command, self.path, body, kept)
        answer = there.getresponse()
        content = (
            re.sub(rb"<Condition>.*?</Condition>", b"", answer.read()) if left_out == "condition" else answer.read()
        )
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = answer  # noqa: N815 -- the names that the library calls

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def proxy(bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], dict[str, str]]]:
    """The environment of a command that reaches the bucket by way of a proxy that leaves something out."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("WHENWHY_TEST_S3", os.environ["AWS_ENDPOINT_URL"])

    def leaving_out(what: str) -> dict[str, str]:
        monkeypatch.setenv("WHENWHY_TEST_LEAVES_OUT", what)
        return os.environ | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}"}

    yield leaving_out
    server.shutdown()


def test_a_store_that_overwrites_is_refused_whenever_it_is_asked(
    in_bucket: str, small_run: SmallRun, proxy: Callable[[str], dict[str, str]]
) -> None:
    """Older object stores know no condition of a write."""
    command = [
        sys.executable, "-m", "whenwhy", "attribute", str(small_run.sequences), "--model", str(small_run.model),
        "--out", f"{in_bucket}/overwritten", "--inline",
    ]  # fmt: skip
    for _ in range(2):
        told = subprocess.run(command, capture_output=True, text=True, check=False, env=proxy("if-none-match"))
        assert told.returncode == 2, told.stderr
        assert "this object store overwrites what is there" in told.stderr


def test_a_store_that_refuses_without_saying_why_is_understood(
    in_bucket: str, small_run: SmallRun, proxy: Callable[[str], dict[str, str]]
) -> None:
    """Some answer 412 and do not name the condition that did not hold."""
    command = [
        sys.executable, "-m", "whenwhy", "attribute", f"{in_bucket}/seq", "--model", f"{in_bucket}/model",
        "--out", f"{in_bucket}/unnamed", "--inline",
    ]  # fmt: skip
    for _ in range(2):
        told = subprocess.run(command, capture_output=True, text=True, check=False, env=proxy("condition"))
        assert told.returncode == 0, told.stderr
    made = StageDirectory.open(location(f"{in_bucket}/unnamed"))
    assert made.content_sha256() == StageDirectory.open(small_run.attributions).content_sha256()


def test_copies_on_this_machine_go_and_those_of_killed_processes_are_swept(in_bucket: str, tmp_path: Path) -> None:
    program = """
import os, signal, sys
from whenwhy.locations import location
from whenwhy.shards import StageDirectory
stage = StageDirectory.open(location(sys.argv[1]))
path = stage.file(stage.shards[0], "sequences")
assert path.stat().st_size and path.parent.parent.stat().st_mode & 0o077 == 0
if sys.argv[2] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
"""
    there = {name: told for name, told in os.environ.items() if name != "WHENWHY_COPIES"} | {"TMPDIR": str(tmp_path)}
    for end, left in (("killed", 1), ("ended", 0)):
        command = [sys.executable, "-c", program, f"{in_bucket}/seq", end]
        subprocess.run(command, env=there, check=end == "ended")
        assert len(list(tmp_path.glob("whenwhy-*/copies-*"))) == left
