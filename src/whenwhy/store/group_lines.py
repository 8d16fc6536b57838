"""The groups of every code flow in; how each group adds up from groups inside it and codes flows out.

A group is the sum of its codes, but also of any groups inside it that share no code and of the codes outside these:
what A10 holds outside A10B is A10 less A10B, whatever is hidden within A10B. Each such sum is a line of its own.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class GroupLine:
    """`group` is the sum of `subgroups` and `codes`."""

    group: str
    subgroups: tuple[str, ...]
    codes: tuple[str, ...]


def group_lines(groups: Mapping[str, Sequence[str]]) -> Iterator[GroupLine]:
    """The lines of each group: the largest groups inside it that share no code, and the codes outside these.

    Where groups inside overlap, there is one more line for each that the others left no room for, so that each is in
    a line of every group that holds it, but for those within a group that stands for them.

    Args:
        groups: of each code.

    Example:
        >>> lines = group_lines({"A10BA02": ["A10B", "A10"], "A10BB09": ["A10B", "A10"], "A10AB01": ["A10"]})
        >>> for line in lines:
        ...     print(line.group, line.subgroups, line.codes)
        A10B () ('A10BA02', 'A10BB09')
        A10 ('A10B',) ('A10AB01',)
    """
    codes_of: dict[str, set[str]] = defaultdict(set)
    for code, names in groups.items():
        for name in names:
            codes_of[name].add(code)
    order = sorted(codes_of, key=lambda name: (len(codes_of[name]), name))
    place = {name: at for at, name in enumerate(order)}
    for name in order:
        shared = Counter(other for code in codes_of[name] for other in groups[code])
        # Of groups of the same codes each holds the one before it.
        inside = [other for other, n in shared.items() if n == len(codes_of[other]) and place[other] < place[name]]
        inside.sort(key=lambda other: -place[other])
        left: list[str] | None = None
        while left is None or left:
            chosen: list[str] = []
            rest = set(codes_of[name])
            for other in [*(left or [])[:1], *inside]:
                if codes_of[other] <= rest:
                    chosen.append(other)
                    rest -= codes_of[other]
            yield GroupLine(name, tuple(chosen), tuple(sorted(rest)))
            left = [
                other
                for other in (inside if left is None else left)
                if not any(codes_of[other] <= codes_of[one] for one in chosen)
            ]
