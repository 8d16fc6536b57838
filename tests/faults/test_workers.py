"""However many work, and in whatever order shards are done, the bytes are the same."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from runs import complete, entries, prepared

from conftest import INLINE
from whenwhy.attribution.attribute_shards import AttributeSettings, attribute_shards, begun
from whenwhy.engine import Workers, run

ASKED = AttributeSettings("gradient_times_input")


@pytest.mark.parametrize("count", [1, 2, pytest.param(7, marks=pytest.mark.full)])
def test_any_number_of_workers_writes_the_same_bytes(tmp_path: Path, count: int) -> None:
    of = prepared()
    attribute_shards(of.sequences, of.model, tmp_path / "attr", ASKED, Workers(count=count))
    complete(tmp_path / "attr")


@pytest.mark.parametrize("seed", range(3))
def test_any_order_of_shards_writes_the_same_bytes(tmp_path: Path, seed: int) -> None:
    """All shuffled; a third of them by an earlier call."""
    of, out = prepared(), tmp_path / "attr"
    names = random.Random(seed).sample(of.shards, len(of.shards))
    assert names != of.shards
    first = begun(of.sequences, of.model, out, ASKED)
    run(first.task, names[:8], stage="attribute", unit="values", workers=INLINE)
    assert entries(out) == sorted(names[:8])
    run(first.task, names[8:], stage="attribute", unit="values", workers=INLINE)
    complete(out)
