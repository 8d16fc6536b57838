"""The JSON text of a manifest, with a checksum of its own: a flipped bit in it is noticed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from whenwhy.errors import UserError

Json = dict[str, Any]


def canonical(value: Any) -> bytes:
    """The one JSON text of a value: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def sealed(told: Json) -> bytes:
    """A manifest's text, with its own checksum.

    Example:
        >>> unsealed(Path("a.json"), sealed({"rows": 1}))
        {'rows': 1}
    """
    return json.dumps(told | {"sha256": _seal_of(told)}, indent=2).encode()


def unsealed(file: Path, content: bytes, mend: str = "remove it, and run the command that wrote it again") -> Json:
    """What a manifest says, if it says what was written.

    Raises:
        UserError: it is damaged.
    """
    try:
        told = json.loads(content)
        seal = told.pop("sha256")
    except (ValueError, AttributeError, KeyError, TypeError):
        seal = None
    if seal is None or seal != _seal_of(told):
        raise UserError(f"{file} is damaged (its checksum is not the recorded one): {mend}.")
    return dict(told)


def _seal_of(told: Json) -> str:
    return hashlib.sha256(canonical(told)).hexdigest()
