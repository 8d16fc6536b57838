"""Flipped bits, files cut short and files gone: noticed by a sentence that names the file, before anything is used."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from runs import arguments, besides_progress, completes, prepared, undisturbed, undisturbed_run

from conftest import Command
from whenwhy.errors import UserError
from whenwhy.shards import StageDirectory

SEED = 20_262

#: What was read of a directory, by its name.
Read = dict[str, object]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A finished directory of attributions, to be damaged."""
    return Path(shutil.copytree(undisturbed_run().path, tmp_path / "attr"))


def everything(out: Path, tables: Sequence[str]) -> Read:
    """What a reader may use of a finished directory: the manifests of all entries, the tables of some."""
    stage = StageDirectory.open(out, "attribute").require_complete()
    told: Read = {"manifest": stage.manifest, "content": stage.content_sha256()}
    for name in stage.needs:
        entry = stage.entry(name)
        read = {file: stage.read(name, file) for file in entry.files} if name in tables else None
        told[name] = (dict(entry.files), entry.summary, read)
    return told


def read_or_refused(out: Path, tables: Sequence[str]) -> Read | str:
    """The same, or the sentence with which a reader refuses."""
    try:
        return everything(out, tables)
    except UserError as error:
        return str(error)


def names(told: Read | str, file: Path) -> bool:
    """Whether a reader refused, by one sentence that names a file."""
    return isinstance(told, str) and str(file) in told and "\n" not in told


def places(file: Path, number: int) -> list[tuple[int, int]]:
    """Places of bits in a file: seeded ones, and those of the first and the last byte."""
    size = file.stat().st_size
    some = random.Random(f"{SEED} {file.name}")
    chosen = [(some.randrange(size), some.randrange(8)) for _ in range(number)]
    return [(0, 0), (0, 7), (size - 1, 0), (size - 1, 7), *chosen]


def flipped(file: Path, number: int) -> Iterator[str]:
    """A bit of a file flipped, one after another, each put right again; says which."""
    content = file.read_bytes()
    for place, bit in places(file, number):
        changed = bytearray(content)
        changed[place] ^= 1 << bit
        file.write_bytes(changed)
        yield f"seed {SEED}: bit {bit} of byte {place} ({content[max(0, place - 16) : place + 16]!r})"
    file.write_bytes(content)


def json_of(out: Path, name: str) -> Path:
    """The manifest of the directory, or of an entry."""
    return out / "manifest.json" if name == "manifest" else out / "entries" / f"{name}.json"


def resumed(whenwhy: Command, out: Path) -> str:
    """What the command said that was to go on in a directory, if it refused; else nothing."""
    status, printed, said = whenwhy(*arguments(out))
    if status == 0:
        return ""
    assert status == 2, said
    assert printed == ""
    assert "Traceback" not in said
    assert besides_progress(said).count("\n") == 1, said
    return besides_progress(said)


@pytest.mark.parametrize("entry", ["about", "g0-00003", "g0-00006"])
def test_a_flipped_bit_in_data_is_noticed(out: Path, entry: str) -> None:
    """In any byte of any file: no bit of data is harmless."""
    for told in StageDirectory.open(out).entry(entry).files.values():
        file = out / "data" / str(told["file"])
        for place in flipped(file, 40):
            assert names(read_or_refused(out, [entry]), file), place
    everything(out, [entry])


@pytest.mark.parametrize("name", ["manifest", "about", "g0-00003"])
def test_a_flipped_bit_in_json_is_noticed_or_changes_nothing(out: Path, name: str) -> None:
    expected, file = everything(out, [name]), json_of(out, name)
    wrong = []
    for place in flipped(file, 100):
        try:
            told = read_or_refused(out, [name])
        except Exception as error:
            told = f"{type(error).__name__}: {error}"
        if not names(told, file) and told != expected:
            wrong.append(f"{place}: {told if isinstance(told, str) else 'not noticed'}"[:300])
    assert not wrong, f"{len(wrong)} of 104:\n" + "\n".join(wrong[:10])


@pytest.mark.parametrize("name", ["manifest", "about", "g0-00003"])
def test_a_run_does_not_go_on_upon_flipped_json(whenwhy: Command, out: Path, name: str) -> None:
    """It refuses by a sentence with the file's name, or it did not need the file, and who reads it is told."""
    expected, file = everything(out, [name]), json_of(out, name)
    for place in flipped(file, 6):
        told = resumed(whenwhy, out)
        if told:
            assert file.name in told, place
        else:
            read = read_or_refused(out, [name])
            assert names(read, file) or read == expected, place


@pytest.mark.parametrize("left", [0, 1, 0.5, -1])
@pytest.mark.parametrize("name", ["manifest", "about", "g0-00003", "attributions", "predictions"])
def test_a_file_cut_short_is_noticed_by_readers_and_runs(whenwhy: Command, out: Path, name: str, left: float) -> None:
    """Empty, one byte, half, or all but one byte."""
    files = StageDirectory.open(out).entry("g0-00003").files
    file = out / "data" / str(files[name]["file"]) if name in files else json_of(out, name)
    size = file.stat().st_size
    os.truncate(file, {0: 0, 1: 1, 0.5: size // 2, -1: size - 1}[left])
    told = resumed(whenwhy, out)
    assert not told or file.name in told
    assert names(read_or_refused(out, ["g0-00003"]), file)


@pytest.mark.parametrize("name", ["attributions", "predictions"])
def test_what_a_sentence_says_to_do_mends_the_damage(whenwhy: Command, out: Path, name: str) -> None:
    """The file and its entry are removed, and the same command makes them again."""
    stage = StageDirectory.open(out)
    file = out / "data" / str(stage.entry("g0-00003").files[name]["file"])
    file.write_bytes(bytes(file.stat().st_size))
    with pytest.raises(UserError, match=r"remove it and .*entries/g0-00003\.json, and run the command again"):
        stage.read("g0-00003", name)
    file.unlink()
    (out / "entries" / "g0-00003.json").unlink()
    completes(whenwhy, out)


def test_damaged_input_stops_the_run_by_its_name(whenwhy: Command, tmp_path: Path) -> None:
    """One bit of a shard's sequences: what else is published is right, and mended input is gone on with."""
    sequences, out = tmp_path / "sequences", tmp_path / "attr"
    shutil.copytree(prepared().sequences, sequences)
    [told] = StageDirectory.open(sequences).entry("g0-00005").files.values()
    file = sequences / "data" / str(told["file"])
    for place in flipped(file, 3):
        status, printed, said = whenwhy(*arguments(out, sequences=sequences))
        assert status == 2, place
        assert printed == ""
        assert file.name in besides_progress(said)
        assert "g0-00005" in StageDirectory.open(out).missing()
    assert whenwhy(*arguments(out, sequences=sequences))[0] == 0
    assert StageDirectory.open(out).content_sha256() == undisturbed()
    assert json.loads((out / "run.json").read_text())["calls"][-1]["ended"] == "finished"
