"""Cells and exposure flow in; which of them may be shown flows out.

A cell of 1 to 10 patients, or dominated by as few, is hidden, and so is one that all but 1 to 10 of the
patients at risk have. Because margins are shown, one hidden cell among its siblings would follow by
subtraction: so in every line (a margin and the cells that add up to it) either nothing is hidden, or at
least two cells that hold enough patients together; where that cannot be had, the margin is hidden too.
A margin that is hidden has a hidden cell in each of its lines, or it would follow by addition.
Patients recur from cell to cell, so how many different ones hidden cells hold is bounded from below: by the
largest cell, and by the margin less all that is shown.
"""

from __future__ import annotations

import duckdb
import numpy as np
import pyarrow as pa

from whenwhy.schema import MIN_PATIENTS

_SAME = "c.run_id = p.run_id and c.target = p.target and c.split = p.split"
_FEATURE = "c.level = p.level and c.code = p.code and c.feature_value_id is not distinct from p.feature_value_id"
_TIME = "c.time_axis = p.time_axis and c.time_bin is not distinct from p.time_bin"
_CLASS, _STRATUM = "c.class = p.class", "c.stratum = p.stratum"

#: Every kind of line: what says that cell c is one of those that add up to cell p.
CELL_LINES = {
    "time": f"{_SAME} and {_FEATURE} and c.time_axis = p.time_axis and {_CLASS} and {_STRATUM} "
    "and p.time_bin is null and c.time_bin is not null",
    "class": f"{_SAME} and {_FEATURE} and {_TIME} and {_STRATUM} and p.class = 'all' and c.class <> 'all'",
    "stratum": f"{_SAME} and {_FEATURE} and {_TIME} and {_CLASS} and p.stratum = 'all' and c.stratum <> 'all'",
    "value": f"{_SAME} and {_TIME} and {_CLASS} and {_STRATUM} and p.level = 'code' and c.level = 'value' "
    "and c.code = p.code",
    "group": f"{_SAME} and {_TIME} and {_CLASS} and {_STRATUM} and p.level = 'group' and c.level = 'code' "
    "and list_contains(c.parents, p.code)",
}
EXPOSURE_LINES = {
    "class": f"{_SAME} and {_TIME} and {_STRATUM} and p.class = 'all' and c.class <> 'all'",
    "stratum": f"{_SAME} and {_TIME} and {_CLASS} and p.stratum = 'all' and c.stratum <> 'all'",
}

#: What tells one cell or count from another.
CELL_KEYS = [
    "run_id",
    "target",
    "split",
    "class",
    "stratum",
    "level",
    "feature_value_id",
    "code",
    "time_axis",
    "time_bin",
]
EXPOSURE_KEYS = ["run_id", "target", "split", "class", "stratum", "time_axis", "time_bin"]


def shown_cells(cells: pa.Table, exposure: pa.Table, parents: pa.Table, threshold: int = MIN_PATIENTS) -> np.ndarray:
    """Whether each cell may be shown [cell].

    Args:
        cells: of `schema.CELLS`.
        exposure: of `schema.EXPOSURE`, all of it.
        parents: columns code, parents: the groups of each code.
        threshold: the fewest patients of a cell that is shown.
    """
    patients = cells["n_patients"].to_numpy().astype(np.float64)
    effective = cells["n_events"].to_numpy().astype(np.float64) ** 2 / cells["s_nn"].to_numpy()
    at_risk = {
        tuple(row[key] for key in EXPOSURE_KEYS): row["n_patients"]
        for row in exposure.select([*EXPOSURE_KEYS, "n_patients"]).to_pylist()
    }
    keys = cells.select(CELL_KEYS)
    lacking = np.array([at_risk[tuple(row[key] for key in EXPOSURE_KEYS)] for row in keys.to_pylist()]) - patients
    few = (patients < threshold) | (effective < threshold) | ((lacking > 0) & (lacking < threshold))
    links = _links(keys, CELL_LINES, parents)
    return ~_hidden(few, patients, *_with_siblings(keys, *links), threshold)


def shown_exposure(exposure: pa.Table, threshold: int = MIN_PATIENTS) -> np.ndarray:
    """Whether each count of patients at risk may be shown [row].

    Besides the lines: the counts of a cohort fall from all time to the oldest bin, and neighbours differ by
    those whose history ends there; a count is hidden if it differs from the last one shown by a few.
    """
    patients = exposure["n_patients"].to_numpy().astype(np.float64)
    predictions = exposure["n_predictions"].to_numpy().astype(np.float64)
    few = patients < threshold
    last: dict[tuple[str, ...], int] = {}
    rows = exposure.select(EXPOSURE_KEYS).to_pylist()
    for at in sorted(range(len(rows)), key=lambda at: -1 if rows[at]["time_bin"] is None else rows[at]["time_bin"]):
        cohort = tuple(rows[at][key] for key in EXPOSURE_KEYS[:-1])
        before = last.get(cohort)
        if few[at]:
            continue
        if before is not None and (
            patients[before] - patients[at] < threshold and predictions[before] != predictions[at]
        ):
            few[at] = True
        else:
            last[cohort] = at
    return ~_hidden(few, patients, *_links(exposure.select(EXPOSURE_KEYS), EXPOSURE_LINES, None), threshold)


def _with_siblings(
    keys: pa.Table, child: np.ndarray, parent: np.ndarray, line: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The links, and those of sibling codes (SEX//F and SEX//M), which add up to the patients at risk.

    Their margin is no cell: a place beyond the last cell stands for it.
    """
    places: dict[tuple[object, ...], int] = {}
    found = [
        (at, places.setdefault((*(row[k] for k in EXPOSURE_KEYS), row["code"].split("//")[0]), len(places)))
        for at, row in enumerate(keys.to_pylist())
        if row["level"] == "code" and row["time_bin"] is None and "//" in row["code"]
    ]
    at, place = np.array(found, dtype=np.int64).reshape(-1, 2).T
    first = int(line.max(initial=-1)) + 1
    return (
        np.concatenate([child, at]),
        np.concatenate([parent, keys.num_rows + place]),
        np.concatenate([line, first + place]),
    )


def _links(
    keys: pa.Table, lines: dict[str, str], parents: pa.Table | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row numbers child and parent of every line, and the line's own number [link]."""
    with duckdb.connect() as db:
        db.register("keys", keys.append_column("at", pa.array(np.arange(keys.num_rows))))
        if parents is None:
            db.execute("create table c as select * from keys")
        else:
            db.register("of_codes", parents)
            db.execute(
                "create table c as select k.*, coalesce(o.parents, []) as parents from keys k "
                "left join of_codes o on k.code = o.code"
            )
        # A line of strata is that of one declared stratum: sex=F and sex=M, apart from age bands.
        names = {kind: "split_part(c.stratum, '=', 1)" if kind == "stratum" else "''" for kind in lines}
        union = " union all ".join(
            f"select c.at as child, p.at as parent, '{kind} ' || {names[kind]} as kind from c join c p on {condition}"
            for kind, condition in lines.items()
        )
        found = db.sql(f"select child, parent, kind from ({union}) order by parent, kind, child").to_arrow_table()
    parent = found["parent"].to_numpy()
    kind = np.unique(found["kind"].to_numpy(zero_copy_only=False).astype(str), return_inverse=True)[1]
    line = np.unique(np.stack([parent, kind]), axis=1, return_inverse=True)[1].reshape(-1) if len(parent) else parent
    return found["child"].to_numpy(), parent, line


def _hidden(
    few: np.ndarray, patients: np.ndarray, child: np.ndarray, parent: np.ndarray, line: np.ndarray, threshold: int
) -> np.ndarray:
    """`few`, and what must be hidden with it so that nothing follows by subtraction [cell]."""
    beyond = max(0, int(parent.max(initial=-1)) + 1 - len(few))  # places of margins that are no cells
    hidden = np.concatenate([few, np.zeros(beyond, dtype=bool)])
    lines = int(line.max(initial=-1)) + 1
    parent_of_line = np.zeros(lines, dtype=np.int64)
    parent_of_line[line] = parent
    in_margin = np.concatenate([patients, np.zeros(beyond)])[parent_of_line]
    by_size = np.lexsort((child, patients[child], line))  # within a line the smallest cell first
    while True:
        gone = hidden[child]
        count = np.bincount(line[gone], minlength=lines)
        largest = np.zeros(lines)
        np.maximum.at(largest, line[gone], patients[child[gone]])
        less_shown = in_margin - np.bincount(line[~gone], weights=patients[child[~gone]], minlength=lines)
        together = np.maximum(largest, less_shown)
        subtracted = (count > 0) & ((count < 2) | (together < threshold)) & ~hidden[parent_of_line]
        added = (count == 0) & hidden[parent_of_line] & (parent_of_line < len(few))
        weak = subtracted | added
        if not weak.any():
            return hidden[: len(few)]
        candidates = by_size[weak[line[by_size]] & ~hidden[child[by_size]]]
        chosen, first = np.unique(line[candidates], return_index=True)
        hidden[child[candidates[first]]] = True
        hidden[parent_of_line[np.setdiff1d(np.flatnonzero(weak), chosen)]] = True
