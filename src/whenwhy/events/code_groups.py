"""The hierarchy of codes: `parent_codes` of a MEDS data set flow in, the groups of every feature value flow out.

A group holds all that lies below it, however far (ATC A10 holds A10B, which holds A10BA02), each feature value once
by whatever ways it is reached, and the group's own code where that is recorded itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from whenwhy.events.feature_values import Row
from whenwhy.schema import CODE_GROUPS


def without_cycles(codes: pa.Table) -> tuple[pa.Table, list[tuple[str, str]]]:
    """The described codes with each parent once, and the (code, parent) that were left out.

    Those are the ones of which a code is its own parent, or comes back to itself: of codes in a ring none lies above
    the others, so what the ring says is left out, and what leads into it and out of it stays.

    Args:
        codes: columns code, parents, and more.

    Example:
        >>> codes = pa.table({"code": ["A10BA02", "A10B", "A10"], "parents": [["A10B"], ["A10"], ["A10B", "A"]]})
        >>> kept, left_out = without_cycles(codes)
        >>> kept["parents"].to_pylist(), left_out
        ([['A10B'], [], ['A']], [('A10', 'A10B'), ('A10B', 'A10')])
    """
    parents = codes["parents"].combine_chunks()
    child, parent = codes["code"].take(pc.list_parent_indices(parents)), pc.list_flatten(parents)
    names = pc.unique(pa.chunked_array([*child.chunks, parent]).drop_null())
    one, other = (pc.fill_null(pc.index_in(of, value_set=names), -1).to_numpy() for of in (child, parent))
    edge = (one >= 0) & (other >= 0)
    graph = coo_array((np.ones(edge.sum()), (one[edge], other[edge])), shape=(len(names), len(names)))
    _, ring = connected_components(graph, directed=True, connection="strong") if len(names) else (0, np.zeros(0))
    of_code = {name: int(number) for name, number in zip(names.to_pylist(), ring, strict=True)}
    kept: list[list[str]] = []
    left_out: set[tuple[str, str]] = set()
    for code, told in zip(codes["code"].to_pylist(), parents.to_pylist(), strict=True):
        above = [name for name in dict.fromkeys(told or []) if name is not None]
        back = [name for name in above if of_code[name] == of_code[code]]
        left_out.update((code, name) for name in back)
        kept.append([name for name in above if name not in back])
    return _with(codes, "parents", kept), sorted(left_out)


def with_groups(rows: Sequence[Row], codes: pa.Table) -> tuple[list[Row], pa.Table]:
    """The feature values with all of their groups, nearest first, and the hierarchy (`schema.CODE_GROUPS`).

    Args:
        rows: of `schema.FEATURE_VALUES`, with direct parents.
        codes: what the data set describes: code, description, parents, without cycles.

    Example:
        >>> codes = pa.table({"code": ["A10B", "A10"], "description": ["oral", "for diabetes"], "parents": [["A10"], []]})
        >>> rows, hierarchy = with_groups([{"code": "A10BA02", "parents": ["A10B"], "description": "metformin"}], codes)
        >>> rows[0]["groups"]
        ['A10B', 'A10']
        >>> [tuple(row.values()) for row in hierarchy.to_pylist()]
        [('A10', None, 'for diabetes'), ('A10B', 'A10', 'oral'), ('A10BA02', 'A10B', 'metformin')]
    """
    described = {row["code"]: row for row in codes.select(["code", "description", "parents"]).to_pylist()}
    direct = {code: row["parents"] or [] for code, row in described.items()}
    direct |= {row["code"]: row["parents"] or [] for row in rows}
    above = {code: list(_above(code, direct)) for code in {row["code"] for row in rows}}
    groups = {group for of_code in above.values() for group in of_code}
    told = []
    for row in rows:
        code = row["code"]
        told.append(row | {"groups": [code, *above[code]] if code in groups else above[code]})
    description = {code: row["description"] for code, row in described.items()}
    description |= {row["code"]: row["description"] for row in rows}
    edges = [
        {"code": code, "parent": parent, "description": description.get(code)}
        for code in sorted(groups | {code for code, of_code in above.items() if of_code})
        for parent in sorted(direct.get(code, [])) or [None]
    ]
    return told, pa.Table.from_pylist(edges, schema=CODE_GROUPS)


def _above(code: str, direct: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """All that lies above a code, nearest first, each once."""
    seen, level = {code}, [code]
    while level:
        level = list(dict.fromkeys(parent for name in level for parent in direct.get(name, []) if parent not in seen))
        seen.update(level)
        yield from level


def _with(table: pa.Table, name: str, values: list[list[str]]) -> pa.Table:
    at = table.column_names.index(name)
    return table.set_column(at, name, pa.array(values, pa.list_(pa.string())))
