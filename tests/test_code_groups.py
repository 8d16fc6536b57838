"""Groups of codes hold all that lies below them: from the parents that a data set tells to cells that may be shown."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import INLINE, SmallRun
from replicas.cells import Axis, RunReplica, remade
from whenwhy.events.code_groups import without_cycles
from whenwhy.events.sequence_directory import CODE_GROUPS, VOCABULARY
from whenwhy.events.sequences import PrepareSettings, prepare
from whenwhy.events.validation import validation_lines
from whenwhy.schema import CELLS, EXPOSURE, MIN_PATIENTS
from whenwhy.shards import StageDirectory
from whenwhy.statistics import aggregate_cells
from whenwhy.store import open_store, publish_store
from whenwhy.store.group_lines import group_lines
from whenwhy.store.suppression import shown_cells

#: Three levels; two ways from lab to ALL, and from count; a ring; a code that is its own parent; lab is recorded, and a group.
PARENTS = {
    "mixed": ["lab"],
    "lab": ["BLOOD", "MEASURED", "BLOOD", None],
    "count": ["MEASURED", "ALL"],
    "tied": ["RING"],
    "drug": ["drug"],
    "BLOOD": ["ALL"],
    "MEASURED": ["ALL"],
    "RING": ["OTHER RING", "ALL"],
    "OTHER RING": ["RING"],
    "UNUSED": ["ALL"],
}
GROUPS = {
    "mixed": ["lab", "BLOOD", "MEASURED", "ALL"],
    "lab": ["lab", "BLOOD", "MEASURED", "ALL"],
    "count": ["MEASURED", "ALL"],
    "tied": ["RING", "ALL"],
}
IN_NO_GROUP = ("AGE", "SEX//F", "SEX//M", "drug", "size")
EDGES = {
    ("mixed", "lab"), ("lab", "BLOOD"), ("lab", "MEASURED"), ("count", "MEASURED"), ("count", "ALL"), ("tied", "RING"), ("BLOOD", "ALL"),
    ("MEASURED", "ALL"), ("RING", "ALL"), ("ALL", None),
}  # fmt: skip


@dataclass(frozen=True)
class Nested:
    """The small cohort with a deep hierarchy of codes."""

    meds: Path
    sequences: StageDirectory
    attributions: Path
    store: Path


@pytest.fixture(scope="module")
def nested(small_run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Nested:
    folder = tmp_path_factory.mktemp("nested")
    meds = folder / "meds"
    shutil.copytree(small_run.meds, meds)
    codes = {"code": list(PARENTS), "description": [f"about {code}" for code in PARENTS]}
    told = pa.table(codes | {"parent_codes": pa.array(PARENTS.values(), pa.list_(pa.string()))})
    pq.write_table(told, meds / "metadata" / "codes.parquet")
    asked = PrepareSettings("the outcome", strata=("age_band", "sex"), bins=4, shard_size=128)
    sequences = prepare(meds, meds / "labels" / "outcome", folder / "sequences", asked, INLINE)
    words = sequences.read(VOCABULARY, VOCABULARY)
    before = StageDirectory.open(small_run.sequences).read(VOCABULARY, VOCABULARY)
    untold = ["description", "unit", "parents", "groups"]
    assert words.drop_columns(untold) == before.drop_columns(untold), "the same ids"
    attributions = remade(
        small_run.attributions, folder / "attributions", vocabulary=lambda _: words,
        hierarchy=lambda _: sequences.read(VOCABULARY, CODE_GROUPS),
    )  # fmt: skip
    store = folder / "store"
    publish_store(store, aggregate_cells([attributions], store, time_bin_hours=48), [attributions])
    return Nested(meds, sequences, attributions, store)


def test_a_feature_value_has_every_group_above_it_once(nested: Nested) -> None:
    words = nested.sequences.read(VOCABULARY, VOCABULARY).to_pylist()
    assert {word["code"] for word in words} >= set(GROUPS)
    for word in words:
        assert sorted(word["groups"]) == sorted(GROUPS.get(word["code"], [])), word["code"]
    assert next(word["groups"] for word in words if word["code"] == "mixed") == GROUPS["mixed"], "nearest first"
    assert next(word["parents"] for word in words if word["code"] == "lab") == ["BLOOD", "MEASURED"]


def test_the_hierarchy_is_read_from_both_files(nested: Nested) -> None:
    """Direct edges with descriptions, of what is recorded and what lies above it; nothing else."""
    for role in ("analyst", "viewer"):
        opened = open_store(nested.store, role)
        edges = opened.sql("select code, parent, description from code_groups").to_pylist()
        assert {(edge["code"], edge["parent"]) for edge in edges} == EDGES
        assert len(edges) == len(EDGES)
        assert all(edge["description"] == (f"about {edge['code']}" if edge["parent"] else None) for edge in edges)
        described = opened.sql("select distinct description from estimates where level = 'group' and code = 'BLOOD'")
        assert described.column(0).to_pylist() == ["about BLOOD"]
        opened.close()


def test_rings_are_told_and_left_out(nested: Nested) -> None:
    sound, lines = validation_lines(nested.meds)
    assert sound
    assert any("codes.parquet: 3 parents of codes that lie below these same codes" in line for line in lines)
    [found] = [f for f in nested.sequences.entry("report").summary["findings"] if "codes.parquet" in f["file"]]
    assert found["count"] == 3


@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=16))
def test_what_is_left_out_are_the_edges_of_rings(edges: list[tuple[int, int]]) -> None:
    """An edge stays if its parent has no way back to its code: found by walking."""
    parents = {f"c{at}": [f"c{up}" for code, up in edges if code == at] for at in range(8)}

    def above(code: str) -> set[str]:
        found: set[str] = set()
        ahead = {code}
        while ahead:
            ahead = {up for name in ahead for up in parents[name]} - found
            found |= ahead
        return found

    table = pa.table({"code": list(parents), "parents": pa.array(parents.values(), pa.list_(pa.string()))})
    kept, left_out = without_cycles(table)
    expected = {(code, up) for code, of in parents.items() for up in of if code in above(up) | {up}}
    assert set(left_out) == expected
    assert {(row["code"], up) for row in kept.to_pylist() for up in row["parents"]} == {
        (code, up) for code, of in parents.items() for up in of
    } - expected


def test_the_cells_of_groups_equal_the_replica(nested: Nested) -> None:
    """A patient's events count once in ALL, though two ways lead there; lab the group is more than lab the code."""
    opened = open_store(nested.store)
    keys = "target, split, class, stratum, level, feature_value_id, code, time_axis, time_bin"
    sums = ["n_events", "n_patients", "sum", "sum_abs", "sum_sq", "s_ss", "s_sn", "s_nn", "s_s_N", "s_nnn"]
    rows = opened.sql(f"select {keys}, {', '.join(sums)} from cells").to_pylist()
    [(bins,)] = [tuple(row.values()) for row in opened.sql("select n_bins from axes").to_pylist()]
    opened.close()
    replica = RunReplica(nested.attributions, Axis("before_prediction", 48, bins))
    assert {code: sorted(replica.groups_of(code)) for code in GROUPS} == {c: sorted(of) for c, of in GROUPS.items()}
    expected = replica.cells()
    found = {tuple(row[name] for name in keys.split(", ")): row for row in rows}
    assert found.keys() == expected.keys()
    assert {key[6] for key in found if key[4] == "group"} == {"lab", "BLOOD", "MEASURED", "RING", "ALL"}
    for key, row in found.items():
        assert {name: row[name] for name in sums} == {name: expected[key][name] for name in sums}, key
    everything = ("logit", "train", "all", "all")
    code, group = (found[*everything, level, None, "lab", "before_prediction", None] for level in ("code", "group"))
    assert group["n_events"] > code["n_events"]


@pytest.mark.parametrize(("feature", "codes"), [("ALL", ("mixed", "lab", "count", "tied")), ("lab", ("mixed", "lab"))])
def test_a_cohort_of_ones_own_has_the_same_groups(nested: Nested, feature: str, codes: tuple[str, ...]) -> None:
    opened = open_store(nested.store)
    for dated in (False, True):
        found = opened.sql(
            f"""select sum(n_events)::bigint as n, max(n_patients) as patients from estimates_for(null, 'group', '{feature}',
            'before_prediction', {dated}, 'train', 'all', 'all', 'sex = ''F''')"""
        ).to_pylist()[0]
        true = opened.sql(
            f"""select count(*) as n, count(distinct subject_id) as patients from attributions join predictions
            using (run_id, subject_id, prediction_time, target) join feature_values using (run_id, feature_value_id)
            where split = 'train' and sex = 'F' and code in {codes}
            and ({not dated} or hours_before is not null)"""
        ).to_pylist()[0]
        assert found["n"] == true["n"] > 0
        assert dated or found["patients"] == true["patients"]
    opened.close()


@pytest.mark.parametrize(
    ("asked", "parts"),
    [
        ({}, {("group", "ALL"): ("mixed", "lab", "count", "tied")} | {("code", code): (code,) for code in IN_NO_GROUP}),
        (
            {"within": "ALL", "split": "train"},
            {
                ("group", "BLOOD"): ("mixed", "lab"),
                ("group", "MEASURED"): ("mixed", "lab", "count"),
                ("group", "RING"): ("tied",),
                ("code", "count"): ("count",),
            },
        ),
        ({"within": "BLOOD", "class": "true", "top": 1}, {("group", "lab"): ("mixed", "lab")}),
        (
            {"within": "lab", "split": "train", "cohort": "sex = 'F'", "min_patients": 2},
            {("code", "mixed"): ("mixed",), ("code", "lab"): ("lab",)},
        ),
        ({"within": "lab", "stratum": "sex=M", "min_patients": 1000}, {}),
    ],
)
def test_the_parts_of_a_group(nested: Nested, asked: dict[str, Any], parts: dict[tuple[str, str], tuple[str]]) -> None:
    """Each with the sums of all the codes that lie in it, by brute force over rows."""
    opened = open_store(nested.store)
    rows = opened.sql(
        f"""select code, subject_id, attribution::double as a from attributions join feature_values using (run_id, feature_value_id)
        join predictions using (run_id, subject_id, prediction_time, target)
        where split = '{asked.get("split", "held_out")}' and {asked.get("cohort", "true")}
        and ('{asked.get("class", "all")}' in ('all', label)) and ('{asked.get("stratum", "all")}' in ('all', 'sex=' || sex))"""
    ).to_pandas()
    [at_risk] = opened.sql(
        f"""select count(*) as n from predictions where split = '{asked.get("split", "held_out")}'
        and {asked.get("cohort", "true")} and ('{asked.get("class", "all")}' in ('all', label))
        and ('{asked.get("stratum", "all")}' in ('all', 'sex=' || sex))"""
    )["n"].to_pylist()
    found = {(row["level"], row["code"]): row for row in opened.ask("group_rollup", **asked).to_pylist()}
    described = {code: f"about {code}" for code in PARENTS} | {"AGE": "age at the prediction"}
    opened.close()
    assert found.keys() == parts.keys()
    assert [row["rank"] for row in found.values()] == list(range(1, len(found) + 1))
    inside = {code for code, of in GROUPS.items() if asked.get("within") in of}
    whole = rows[rows["code"].isin(inside)] if "within" in asked else rows
    for key, codes in parts.items():
        own, row = rows[rows["code"].isin(codes)], found[key]
        sizes = own["a"].abs().groupby(own["code"]).sum()
        assert (row["n_codes"], row["n_events"], row["n_patients"]) == (
            len(codes),
            len(own),
            own["subject_id"].nunique(),
        )
        assert row["description"] == described.get(key[1])
        assert row["mean_per_prediction"] == pytest.approx(own["a"].sum() / at_risk, rel=1e-9)
        assert row["mean_abs_per_prediction"] == pytest.approx(own["a"].abs().sum() / at_risk, rel=1e-9)
        assert row["share"] == pytest.approx(own["a"].abs().sum() / whole["a"].abs().sum(), rel=1e-9)
        assert row["leading_code"] == sizes.idxmax()
    sizes = [row["mean_abs_per_prediction"] for row in found.values()]
    assert sizes == sorted(sizes, reverse=True)


# -- what may be shown -----------------------------------------------------------------------------


def test_a_group_less_a_group_inside_it_is_not_told() -> None:
    """c3 is hidden beside c1 and c2, and would follow from A less B."""
    groups = {"c1": ["B", "A"], "c2": ["B", "A"], "c3": ["A"], "c4": ["A"]}
    assert not told_of_few(groups, {"c1": 5, "c2": 8, "c3": 3, "c4": 40})


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_no_small_cell_of_a_tree_follows_from_the_others(data: st.DataObject) -> None:
    """By linear algebra over all that is shown."""
    above = {at: data.draw(st.integers(0, at - 1)) if at else None for at in range(data.draw(st.integers(1, 6)))}
    groups, patients = {}, {}
    for code in range(data.draw(st.integers(1, 9))):
        of: list[str] = []
        at: int | None = data.draw(st.sampled_from(sorted(above)))
        while at is not None:
            of.append(f"group{at}")
            at = above[at]
        groups[f"code{code}"] = of
        patients[f"code{code}"] = data.draw(st.sampled_from([0, 1, 2, 5, 9, 10, 11, 12, 30, 200]))
    assert not told_of_few(groups, patients)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.sets(st.sampled_from("abcdef"), min_size=1), min_size=1, max_size=4), st.data())
def test_lines_of_groups_add_up_and_leave_no_group_inside_out(sets: list[set[str]], data: st.DataObject) -> None:
    """Of any groups, nested or overlapping."""
    groups = {code: [f"g{at}" for at, of in enumerate(sets) if code in of] for code in "abcdef"}
    codes = {f"g{at}": of for at, of in enumerate(sets)}
    lines = list(group_lines(groups))
    assert {line.group for line in lines} == set(codes)
    for line in lines:
        members = [code for group in line.subgroups for code in codes[group]] + list(line.codes)
        assert sorted(members) == sorted(codes[line.group]), "each code once"
        assert line.group not in line.subgroups
    for outer, inner in ((one, other) for one in codes for other in codes if codes[other] < codes[one]):
        chosen = [group for line in lines if line.group == outer for group in line.subgroups]
        assert any(codes[inner] <= codes[group] for group in chosen), (outer, inner)


def told_of_few(groups: dict[str, list[str]], patients: dict[str, int]) -> list[str]:
    """The cells of few patients that what is shown determines; nobody has two codes, so that counts add up."""
    codes = [code for code, n in patients.items() if n]
    if not codes:
        return []
    sums = {("code", code): [code] for code in codes}
    for code in codes:
        for group in groups[code]:
            sums.setdefault(("group", group), []).append(code)
    key = {"run_id": "r", "target": "logit", "split": "train", "class": "all", "stratum": "all"}
    key |= {"time_axis": "before_prediction", "time_bin": None}
    rows = []
    for (level, code), of in sums.items():
        n = sum(patients[one] for one in of)
        rows.append(
            key | {"level": level, "code": code, "feature_value_id": None, "n_patients": n, "n_events": n, "s_nn": n}
        )
    cells = pa.Table.from_pylist(rows, schema=CELLS)
    exposure = pa.Table.from_pylist([key | {"n_patients": 10**6, "n_predictions": 10**6}], schema=EXPOSURE)
    parents = pa.table({"code": list(groups), "parents": pa.array(groups.values(), pa.list_(pa.string()))})
    shown = shown_cells(cells, exposure, np.ones(1, dtype=bool), parents)
    system = np.array([[code in of for code in codes] for of in sums.values()], dtype=float)
    known = system[shown]
    rank = np.linalg.matrix_rank(known) if len(known) else 0
    return [
        row["code"]
        for row, equation, is_shown in zip(rows, system, shown, strict=True)
        if row["n_patients"] < MIN_PATIENTS
        and (is_shown or (len(known) and np.linalg.matrix_rank(np.vstack([known, equation])) == rank))
    ]
