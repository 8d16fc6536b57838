"""whenwhy: when did a feature's value matter, and why did the model predict what it did."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from whenwhy.attribution import attribute, fit_method, population_of, registered_methods
    from whenwhy.models.checkpoint import load_model
    from whenwhy.models.training import load_sequences
    from whenwhy.store import open_store

__version__ = "0.1.0"

#: Where each public name lives. They are imported when they are asked for: torch takes seconds.
_HOMES = {
    "attribute": "whenwhy.attribution",
    "fit_method": "whenwhy.attribution",
    "load_model": "whenwhy.models.checkpoint",
    "load_sequences": "whenwhy.models.training",
    "open_store": "whenwhy.store",
    "population_of": "whenwhy.attribution",
    "registered_methods": "whenwhy.attribution",
}

__all__ = [
    "attribute", "fit_method", "load_model", "load_sequences", "open_store", "population_of", "registered_methods",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'whenwhy' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
