"""A stage's directory: entries published once, verified before use, never mixed with another run's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whenwhy.errors import UserError
from whenwhy.manifests import canonical
from whenwhy.shards import StageDirectory, run_id_of


def directory(path: Path, **asked: object) -> StageDirectory:
    given = {"stage": "example", "settings": {"bins": 10}, "inputs": {}, "shards": ["a", "b"], "code_version": "0.1"}
    return StageDirectory.create(path, **(given | asked))  # type: ignore[arg-type]


def test_resuming_finds_what_is_finished(tmp_path: Path) -> None:
    stage = directory(tmp_path / "out")
    assert stage.publish("a", {"t": pa.table({"n": [1]})}, {"n_rows": 1})
    again = directory(tmp_path / "out")
    assert again.missing() == ["b"]
    assert again.entry("a").summary == {"n_rows": 1}
    with pytest.raises(UserError, match="1 of 2 entries are missing"):
        again.require_complete()


def test_late_duplicate_never_wins(tmp_path: Path) -> None:
    stage = directory(tmp_path / "out")
    assert stage.publish("a", {"t": pa.table({"n": [1]})})
    assert not stage.publish("a", {"t": pa.table({"n": [2]})})
    assert stage.read("a", "t")["n"].to_pylist() == [1]


def test_two_processes_publish_each_entry_once(tmp_path: Path) -> None:
    directory(tmp_path / "out", shards=[str(i) for i in range(40)])
    program = (
        "import sys, pyarrow as pa; from pathlib import Path; from whenwhy.shards import StageDirectory\n"
        "stage = StageDirectory.open(Path(sys.argv[1]))\n"
        "print(sum(stage.publish(name, {'t': pa.table({'who': [sys.argv[2]]})}) for name in stage.shards))"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "out"), who], stdout=subprocess.PIPE, text=True)
        for who in ("first", "second")
    ]
    won = [int(process.communicate()[0]) for process in running]
    assert sum(won) == 40
    stage = StageDirectory.open(tmp_path / "out").require_complete()
    assert [stage.read(name, "t")["who"].to_pylist()[0] for name in stage.shards].count("first") == won[0]


def test_other_settings_never_mix_in(tmp_path: Path) -> None:
    directory(tmp_path / "out")
    with pytest.raises(UserError, match="bins = 10, not 5"):
        directory(tmp_path / "out", settings={"bins": 5})
    with pytest.raises(UserError, match=r"code version 0\.1, not 0\.2"):
        directory(tmp_path / "out", code_version="0.2")


def test_foreign_directories_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="not empty"):
        directory(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["thesis.txt"]
    with pytest.raises(UserError, match="is a file"):
        directory(tmp_path / "thesis.txt")
    with pytest.raises(UserError, match=r"there is no .*manifest\.json"):
        StageDirectory.open(tmp_path)


@pytest.mark.parametrize("position", [0, 0.5, 0.99])
def test_a_flipped_bit_is_found_before_use(tmp_path: Path, position: float) -> None:
    stage = directory(tmp_path / "out")
    stage.publish("a", {"t": pa.table({"n": list(range(1000))})})
    [file] = (tmp_path / "out" / "data").iterdir()
    content = bytearray(file.read_bytes())
    content[int(len(content) * position)] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        StageDirectory.open(tmp_path / "out").read("a", "t")


def test_a_truncated_or_lost_file_is_found(tmp_path: Path) -> None:
    stage = directory(tmp_path / "out")
    stage.publish("a", {"t": pa.table({"n": [1]})})
    [file] = (tmp_path / "out" / "data").iterdir()
    os.truncate(file, 10)
    with pytest.raises(UserError, match="damaged"):
        stage.read("a", "t")
    file.unlink()
    with pytest.raises(UserError, match="missing"):
        stage.read("a", "t")


def test_data_without_a_manifest_is_not_finished(tmp_path: Path) -> None:
    """What a kill between data and manifest leaves behind."""
    stage = directory(tmp_path / "out")
    stage.publish("a", {"t": pa.table({"n": [1]})})
    (tmp_path / "out" / "entries" / "a.json").unlink()
    (tmp_path / "out" / "data" / ".tmp-left").write_bytes(b"half")
    assert directory(tmp_path / "out").missing() == ["a", "b"]


def test_the_content_hash_does_not_know_paths(tmp_path: Path) -> None:
    contents = []
    for name in ("here", "there"):
        stage = directory(tmp_path / name, inputs={"meds": {"path": str(tmp_path / name), "sha256": "x"}})
        for entry in ("b", "a") if name == "here" else ("a", "b"):
            stage.publish(entry, {"t": pa.table({"n": [entry]})})
        contents.append((stage.run_id, stage.content_sha256()))
    assert contents[0] == contents[1]


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=4))
def test_the_run_id_depends_on_everything_asked(asked: dict) -> None:
    same = run_id_of("s", dict(reversed(asked.items())), {}, "1")
    assert run_id_of("s", asked, {}, "1") == same
    assert run_id_of("s", asked | {"another": 1.5}, {}, "1") != same
    assert canonical(asked) == canonical(dict(reversed(asked.items())))
