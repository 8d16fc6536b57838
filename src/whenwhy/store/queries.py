"""The named queries: one SQL file each in queries/, its comment the documentation, one table macro."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from whenwhy.shipped import shipped


@dataclass(frozen=True)
class NamedQuery:
    """A query file: its name, what its comment says, and the statement that defines its macro."""

    name: str
    comment: str
    sql: str

    @property
    def purpose(self) -> str:
        """The comment's first line."""
        return self.comment.splitlines()[0]

    @property
    def needs(self) -> tuple[str, str] | None:
        r"""A table that not every store has, and the rest of what the comment says of it; None: there is none.

        Example:
            >>> NamedQuery("f", "Of f.\n\nNeeds g: ask for it.\nArguments: none.", "").needs
            ('g', 'ask for it.')
        """
        found = re.search(r"^Needs (\w+): (.*?\.)$", self.comment, re.MULTILINE)
        return (found[1], found[2]) if found else None

    @property
    def parameters(self) -> dict[str, str | None]:
        """Its arguments in order, and their defaults as SQL; None: it must be given.

        Example:
            >>> query = NamedQuery("f", "", "create temp macro f(feature, split := 'held_out') as table select 1")
            >>> query.parameters
            {'feature': None, 'split': "'held_out'"}
        """
        head = re.search(rf"macro\s+{self.name}\s*\((.*?)\)\s*as\s+table", self.sql, re.DOTALL | re.IGNORECASE)
        assert head, f"queries/{self.name}.sql does not define the table macro {self.name}"
        parts = (part.partition(":=") for part in head[1].split(",") if part.strip())
        return {name.strip(): default.strip() or None for name, _, default in parts}


@cache
def named_queries() -> dict[str, NamedQuery]:
    """Every named query.

    Example:
        >>> sorted(named_queries())[:2]
        ['absence', 'calibration']
    """
    found = {}
    for file in sorted(shipped("queries").glob("*.sql")):
        text = file.read_text()
        comment = "\n".join(line[2:].strip() for line in text.splitlines() if line.startswith("--"))
        found[file.stem] = NamedQuery(file.stem, comment, text)
    return found
