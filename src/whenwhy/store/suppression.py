"""Cells flow in; which of them may be shown flows out.

A cell of 1 to 10 patients, or dominated by as few, is hidden. Because margins are shown, one hidden cell
among its siblings would follow by subtraction: so in every line (a margin and the cells that add up to
it) either nothing is hidden, or at least two cells that hold enough patients together; where that cannot
be had, the margin is hidden too.
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


def shown_cells(cells: pa.Table, parents: pa.Table, threshold: int = MIN_PATIENTS) -> np.ndarray:
    """Whether each cell may be shown [cell].

    Args:
        cells: of `schema.CELLS`.
        parents: columns code, parents: the groups of each code.
        threshold: the fewest patients of a cell that is shown.
    """
    patients = cells["n_patients"].to_numpy().astype(np.float64)
    effective = cells["n_events"].to_numpy().astype(np.float64) ** 2 / cells["s_nn"].to_numpy()
    keys = [
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
    child, parent, line = _links(cells.select(keys), CELL_LINES, parents)
    return ~_hidden((patients < threshold) | (effective < threshold), patients, child, parent, line, threshold)


def shown_exposure(exposure: pa.Table, threshold: int = MIN_PATIENTS) -> np.ndarray:
    """Whether each count of patients at risk may be shown [row].

    Besides the lines: neighbouring bins differ by the patients whose history ends there, so a bin is hidden
    if it differs from the last one shown by fewer than the threshold.
    """
    patients = exposure["n_patients"].to_numpy().astype(np.float64)
    keys = ["run_id", "target", "split", "class", "stratum", "time_axis", "time_bin"]
    few = patients < threshold
    series: dict[tuple[str, ...], float] = {}
    for at, row in enumerate(exposure.select(keys).to_pylist()):
        if row["time_bin"] is None:
            continue
        name = tuple(row[key] for key in keys[:-1])
        last = series.get(name)
        if few[at] or (last is not None and 0 < last - patients[at] < threshold):
            few[at] = True
        else:
            series[name] = patients[at]
    child, parent, line = _links(exposure.select(keys), EXPOSURE_LINES, None)
    return ~_hidden(few, patients, child, parent, line, threshold)


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
    hidden: np.ndarray, patients: np.ndarray, child: np.ndarray, parent: np.ndarray, line: np.ndarray, threshold: int
) -> np.ndarray:
    """`hidden`, and what must go with it so that nothing follows by subtraction."""
    hidden = hidden.copy()
    lines = int(line.max(initial=-1)) + 1
    parent_of_line = np.zeros(lines, dtype=np.int64)
    parent_of_line[line] = parent
    by_size = np.lexsort((child, patients[child], line))  # within a line the smallest cell first
    while True:
        gone = hidden[child]
        count = np.bincount(line[gone], minlength=lines)
        held = np.bincount(line[gone], weights=patients[child[gone]], minlength=lines)
        weak = (count > 0) & ((count < 2) | (held < threshold)) & ~hidden[parent_of_line]
        if not weak.any():
            return hidden
        candidates = by_size[weak[line[by_size]] & ~hidden[child[by_size]]]
        chosen, first = np.unique(line[candidates], return_index=True)
        hidden[child[candidates[first]]] = True
        hidden[parent_of_line[np.setdiff1d(np.flatnonzero(weak), chosen)]] = True
