"""Records and baselines as dense numbers, and what each player's items are told: shared by tests of removal."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import torch

from method_laws.test_laws import SIZE, cohort, everything, model_of, population
from replicas.integrated_gradients import dense_score
from replicas.removal import Dense, Score
from whenwhy.attribution import Attributions, attribute
from whenwhy.events.sequence_batch import EVENTS, STATIC, Sequences
from whenwhy.models.recurrent import GRUClassifier


class Case:
    """One record of a small cohort, dense, with its baseline and a model's score of dense records."""

    def __init__(self, seed: int, row: int, baseline: str = "empty", longest: int = 4) -> None:
        self.sequences: Sequences = cohort(seed, patients=6, longest=longest)
        self.model: GRUClassifier = model_of(seed, scale=2.0)
        self.batch = self.sequences.batch(np.array([row]))
        self.name, self.row = baseline, self.sequences.table.to_pylist()[row]
        self.record = dense_record(self.row)
        self.baseline: Dense = {name: torch.zeros_like(tensor) for name, tensor in self.record.items()}
        if baseline == "rates":
            self.baseline[EVENTS] += population().step_rates.double()
            self.baseline[STATIC] += population().static_rates.double()
        parameters = {name: tensor.detach() for name, tensor in self.model.state_dict().items()}
        self.score: Score = lambda dense: float(dense_score(parameters, dense[EVENTS], dense[STATIC]))

    def attributed(self, method: str, **options: Any) -> Attributions:
        """What the package says."""
        return attribute(
            self.model, self.batch, method=method, baseline=self.name, population=population(), options=options
        )

    def by_player(self, kind: str, found: Attributions, spread: bool = False) -> dict[tuple[object, ...], float]:
        """What the items of each player are told together, having asserted that they share it equally."""
        told: dict[tuple[object, ...], list[float]] = {}
        streams = found.spread if spread else found.streams
        for name, steps, ids in (
            (EVENTS, self.row["event_step"], self.row["event_id"]),
            (STATIC, [0] * len(self.row["static_id"]), self.row["static_id"]),
        ):
            for step, value, share in zip(steps, ids, streams[name].tolist(), strict=True):
                of = {"cells": (step, value), "features": (value,), "events": (step,)}[kind]
                told.setdefault((name, "recorded", *of), []).append(share)
            if not spread:
                for step, share in enumerate(found.absent[name][0].reshape(-1).tolist() if found.absent else []):
                    if name == EVENTS and step >= len(self.row["step_minutes"]):
                        assert share == 0
                    else:
                        key = (name, "absent", *(() if kind == "features" else (step,)))
                        told.setdefault(key, []).append(share)
        for shares in told.values():
            np.testing.assert_allclose(shares, shares[0], rtol=1e-12)
        return {player: sum(shares) for player, shares in told.items()}


def dense_record(row: dict[str, Any]) -> Dense:
    """How often a record holds each feature value in each step."""
    events = torch.zeros(len(row["step_minutes"]), SIZE, dtype=torch.float64)
    static = torch.zeros(SIZE, dtype=torch.float64)
    for (step, value), number in Counter(zip(row["event_step"], row["event_id"], strict=True)).items():
        events[step, value] = number
    for value in row["static_id"]:
        static[value] += 1
    return {EVENTS: events, STATIC: static}


__all__ = ["SIZE", "Case", "cohort", "dense_record", "everything", "model_of", "population"]
