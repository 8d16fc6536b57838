"""What a stranger's model counts, read from the files that people have, and refused in one sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from whenwhy.errors import UserError
from whenwhy.events.fitting import read_cut_offs
from whenwhy.events.foreign_vocabulary import FOREIGN_VOCABULARY, foreign_vocabulary, stream_sizes

INFINITE = float("inf")


def written(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_every_form_gives_the_same_table(tmp_path: Path) -> None:
    csv = written(tmp_path, "v.csv", "index,code\n2,401.9\n0,<pad>\n1,0389\n")
    rows = [{"index": 1, "code": "0389"}, {"index": 2, "code": "401.9"}]  # padding may be left out
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "v.parquet")
    mapping = written(tmp_path, "m.json", '{"401.9": 2, "<pad>": 0, "0389": 1}')
    listing = written(tmp_path, "l.json", '["<pad>", "0389", "401.9"]')
    tables = [foreign_vocabulary(path) for path in (csv, tmp_path / "v.parquet", mapping, listing)]
    assert all(table.schema.equals(FOREIGN_VOCABULARY) for table in tables)
    assert all(table.equals(tables[0]) for table in tables)
    assert tables[0]["code"].to_pylist() == ["<pad>", "0389", "401.9"]  # a code is text, zeros in front stay
    assert tables[0]["index"].to_pylist() == [0, 1, 2]


def test_ranges_of_numbers(tmp_path: Path) -> None:
    path = written(tmp_path, "v.csv", "index,code,low,high\n0,hdl,,40\n1,hdl,40,60\n2,hdl,60,\n3,drug,,\n4,hdl,,\n")
    rows = foreign_vocabulary(path).to_pylist()
    assert [(r["low"], r["high"]) for r in rows] == [
        (-INFINITE, 40), (40, 60), (60, INFINITE), (None, None), (None, None),
    ]  # fmt: skip


def test_keys_follow_each_other(tmp_path: Path) -> None:
    path = written(
        tmp_path, "v.json", '{"drugs": {"<pad>": 0, "<unk>": 1, "C09": 2}, "conditions": {"<pad>": 0, "I10": 1}}'
    )
    table = foreign_vocabulary(path)
    assert table["code"].to_pylist() == ["drugs <pad>", "drugs <unk>", "C09", "conditions <pad>", "I10"]
    assert table["stream"].to_pylist() == ["drugs"] * 3 + ["conditions"] * 2
    assert stream_sizes(table) == {"drugs": 3, "conditions": 2}


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("v.csv", "index,code\n0,a\n0,b\n", "index 0 has two codes \\('a', 'b'\\)"),
        ("v.csv", "index,code\n0,a\n2,b\n", "index 1 is missing \\(the next is 2\\)"),
        ("v.csv", "index,code\n3,a\n", "index 0 is missing"),
        ("v.csv", "index,code\n-1,a\n", "the index -1: an index is a whole number from 0"),
        ("v.csv", "index,code\n0.5,a\n", "the index 0.5"),
        ("v.csv", "index,code\n0,a\n1,a\n", "'a' has the indexes 0 and 1"),
        ("v.csv", "index,code\n0,\n", "index 0 has no code"),
        ("v.csv", "number,code\n0,a\n", "no column 'index'"),
        ("v.csv", "index,code\n", "holds no code"),
        ("v.csv", "index,code,low,high\n0,a,1,3\n1,a,2,4\n", "ranges of 'a' at the indexes 0 and 1 overlap"),
        ("v.csv", "index,code,low,high\n0,a,3,3\n", "low 3.0 not below its high"),
        ("v.csv", "index,code,low,high\n0,a,x,3\n", "low = 'x': give a number"),
        ("v.json", '{"a": "b"}', "the index 'b'"),
        ("v.json", '{"a": true}', "the index True"),
        ("v.json", "7", "is no vocabulary: write"),
        ("v.json", "{", "is not JSON"),
        ("v.json", '{"x": {"a": 0}, "y": {"a": 0}}', "'a' is in 'x' and in 'y'"),
        ("v.json", '{"x": {"a": 0, "b": 2}}', "v.json, x: index 1 is missing"),
        ("v.json", '{"a": 0, "a": 1}', "v.json names 'a' more than once"),
        ("v.json", '{"x": {"a": 0}, "x": {"b": 0}}', "v.json names 'x' more than once"),
        ("v.json", '["\\ud800"]', r"v.json: '\\ud800' holds half a character"),
        ("v.json", '{"\\udfff": {"a": 0}}', r"v.json: '\\udfff' holds half a character"),
        ("v.json", "[" * 100_000 + "]" * 100_000, "v.json is nested too deep"),
        ("v.json", f'{{"a": {10**400}}}', "v.json: index 0 is missing"),
        ("v.json", '{"a": 1e999}', "the index inf"),
        ("v.csv", "index,code,code\n0,a,b\n", "has the column 'code' 2 times: keep one"),
        ("v.csv", "index,code,low,low\n0,a,1,2\n", "has the column 'low' 2 times: keep one"),
        ("v.csv", "index,code,low,high\n0,a,1,1.00000001\n", "low 1.0 not below its high 1.00000001 as float32"),
        ("v.csv", "index,code,low,high\n0,a,1e39,\n", "low inf not below its high inf"),
        ("v.parquet", "PAR1", "v.parquet cannot be read as a table"),
        ("v.txt", "a", "give a .csv, .json or .parquet file"),
    ],
)
def test_what_is_no_vocabulary_is_refused(tmp_path: Path, name: str, text: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        foreign_vocabulary(written(tmp_path, name, text))


def test_a_bound_beyond_float32_is_none(tmp_path: Path) -> None:
    path = written(tmp_path, "V.CSV", "index,code,low,high,note,note\n0,a,-1e300,1,x,y\n1,a,1,1e39,x,y\n")
    assert [(r["low"], r["high"]) for r in foreign_vocabulary(path).to_pylist()] == [(-INFINITE, 1), (1, INFINITE)]


def test_no_vocabulary_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path / "none.csv", tmp_path):
        with pytest.raises(UserError, match=f"{path} is no file"):
            foreign_vocabulary(path)


def test_cut_offs_of_codes_as_they_are_written(tmp_path: Path) -> None:
    path = written(tmp_path, "c.yaml", "0371: [1, 2.5]\non: 3\n'a b': [-1.0e+30]\n250.00: [7]\n")
    assert read_cut_offs(path) == {
        "0371": [1, 2.5], "on": [3], "a b": [float(np.float32(-1e30))], "250.00": [7],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (f"a: [{10**399}]", "cut-offs of 'a' are .*: give ascending numbers"),
        (f"a: [{'1' * 5000}]", "is no YAML"),
        ("a: [1.0e+39]", "cut-offs of 'a' are .*finite as float32"),
        ("a: [.nan]", "cut-offs of 'a' are"),
        ("a: [true]", "cut-offs of 'a' are"),
        ("a: [2, 1]", r"cut-offs of 'a' are \[2, 1\]"),
        ("a: [1, 1.00000001]", "cut-offs of 'a' are .*differ"),
        ("a: {b: 1}", "cut-offs of 'a' are"),
        ("a: 2001-99-99", "is no YAML"),
        ("a: [1]\nb: [2]\na: [3]", "has cut-offs of 'a' more than once: keep one"),
        ("1: [1]\n'1': [3]", "has cut-offs of '1' more than once"),
        ("a: " + "[" * 1500, "is no YAML"),
        ("[a]: [1]", "is no YAML"),
        ("a: &a [*a]", "c.yaml"),
        ("7", "names no cut-offs"),
        ("", "names no cut-offs"),
        ("\x00", "is no YAML"),
    ],
)
def test_what_are_no_cut_offs_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as told:
        read_cut_offs(written(tmp_path, "c.yaml", text))
    assert str(tmp_path / "c.yaml") in str(told.value)
    assert len(str(told.value)) < 400
