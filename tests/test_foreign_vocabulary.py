"""What a stranger's model counts, read from the files that people have, and refused in one sentence."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from whenwhy.errors import UserError
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
        ("v.txt", "a", "give a .csv, .json or .parquet file"),
    ],
)
def test_what_is_no_vocabulary_is_refused(tmp_path: Path, name: str, text: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        foreign_vocabulary(written(tmp_path, name, text))
