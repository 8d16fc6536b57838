"""A store flows in, what a person may choose in it flows out: runs, splits, classes, strata, features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from whenwhy.errors import UserError
from whenwhy.schema import HELD_OUT, SPLITS
from whenwhy.server.answers import Asks


@dataclass(frozen=True)
class Offered:
    """What one run offers. `features` holds each code's description, unit, n_values and has_time."""

    splits: tuple[str, ...]
    classes: tuple[str, ...]
    strata: tuple[str, ...]
    features: Mapping[str, Mapping[str, Any]]
    default_split: str
    default_feature: str

    def name_of(self, code: str) -> str:
        """The description of a feature, or its code where it has none."""
        return str(self.features.get(code, {}).get("description") or code)


@dataclass(frozen=True)
class Choices:
    """Every run of a store (its row of the query `runs`), and what each offers."""

    runs: Mapping[str, Mapping[str, Any]]
    offered: Mapping[str, Offered]


def choices_of(store: Asks) -> Choices:
    """What there is to choose.

    Raises:
        UserError: the store has no cell that may be shown.
    """
    runs = {row["run_id"]: row for row in store.ask("runs").to_pylist()}
    offered = {run: found for run in runs if (found := _offered(store, run)) is not None}
    if not offered:
        raise UserError(
            "The store has no cell that may be shown (cells of 1 to 10 patients never are): "
            "aggregate the attributions of more patients."
        )
    return Choices({run: runs[run] for run in offered}, offered)


def _offered(store: Asks, run: str) -> Offered | None:
    cohorts = store.ask("cohorts", run=run).to_pylist()
    features = {row["code"]: row for row in store.ask("features", run=run).to_pylist()}
    if not cohorts or not features:
        return None
    found = {row["split"] for row in cohorts}
    splits = tuple(name for name in SPLITS if name in found) + tuple(sorted(found - set(SPLITS)))
    default_split = HELD_OUT if HELD_OUT in found else splits[0]
    ranked = [row["code"] for row in store.ask("top_features", run=run, split=default_split, top=100).to_pylist()]
    # A first look is at when something mattered, so at a feature that has a time.
    ranked.sort(key=lambda code: not features[code]["has_time"])
    return Offered(
        splits=splits,
        classes=_all_first(row["class"] for row in cohorts),
        strata=_all_first(row["stratum"] for row in cohorts),
        features=features,
        default_split=default_split,
        default_feature=ranked[0] if ranked else next(iter(features)),
    )


def _all_first(names: Any) -> tuple[str, ...]:
    return ("all", *sorted(set(names) - {"all"}))
