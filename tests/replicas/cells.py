"""Every cell and every exposure row of a run, by plain loops over its attribution rows: slow, exact, independent.

It knows the design's definitions and nothing of whenwhy.statistics. Sums are of Python integers (attributions
are whole multiples of 2^-24), divided once at the end, so that each number is the correctly rounded one.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from whenwhy.shards import StageDirectory

UNIT = 2**24
ALL = "all"

#: target, split, class, stratum, level, feature_value_id (None: a code or group), code, time_bin (None: all time)
CellKey = tuple[str, str, str, str, str, int | None, str, int | None]
#: target, split, class, stratum, time_bin
ExposureKey = tuple[str, str, str, str, int | None]
Row = dict[str, Any]


class RunReplica:
    """A run read back from its shards: `predictions` by id, attribution `rows`, `vocabulary` by feature value."""

    def __init__(self, path: Path, width_hours: int, n_bins: int) -> None:
        stage = StageDirectory.open(path, "attribute")
        self.run_id, self.width_hours, self.n_bins = stage.run_id, width_hours, n_bins
        self.vocabulary = {row["feature_value_id"]: row for row in stage.read("about", "feature_values").to_pylist()}
        self.predictions: dict[int, Row] = {}
        self.rows: list[Row] = []
        self.places: list[Row] = []  # of a run that tells absence: a step's, or the static values', gradient
        for shard in stage.shards:
            for row in stage.read(shard, "predictions").to_pylist():
                self.predictions[row["prediction_id"]] = row
            self.rows += stage.read(shard, "attributions").to_pylist()
            if "gradients" in stage.entry(shard).files:
                self.places += stage.read(shard, "gradients").to_pylist()

    def bounds(self, time_bin: int | None) -> tuple[float | None, float | None]:
        """low_hours and high_hours: the last bin is open, all time has none."""
        if time_bin is None:
            return None, None
        last = time_bin == self.n_bins - 1
        return float(time_bin * self.width_hours), math.inf if last else float((time_bin + 1) * self.width_hours)

    def bin_of(self, minutes: int) -> int:
        """The bin with low_hours <= hours < high_hours."""
        for time_bin in range(self.n_bins - 1):
            if minutes < 60 * (time_bin + 1) * self.width_hours:
                return time_bin
        return self.n_bins - 1

    def at_risk(self) -> dict[ExposureKey, dict[int, int]]:
        """Patient -> number of predictions whose first step lies at least as far back as the bin's lower edge."""
        found: dict[ExposureKey, dict[int, int]] = defaultdict(lambda: defaultdict(int))
        for prediction in self.predictions.values():
            history = prediction["history_minutes"]
            reached: list[int | None] = [None]
            if history is not None:
                reached += [b for b in range(self.n_bins) if history >= 60 * b * self.width_hours]
            for cohort in cohorts(prediction):
                for time_bin in reached:
                    found[(*cohort, time_bin)][prediction["subject_id"]] += 1
        return found

    def exposure(self) -> dict[ExposureKey, Row]:
        """Every row of the exposure table."""
        places = self.summed_places()
        return {
            key: {
                **self._told(key[-1]),
                "n_predictions": sum(patients.values()),
                "n_patients": len(patients),
                "s_NN": float(sum(n * n for n in patients.values())),
                **places(key),
            }
            for key, patients in self.at_risk().items()
        }

    def summed_places(self) -> Callable[[ExposureKey], Row]:
        """A cohort's number of steps in a bin, and its sums of gradients, one number of one place at a time."""
        width = len(self.places[0]["gradient"]) if self.places else 0
        count: dict[tuple, int] = defaultdict(int)
        total: dict[tuple, list[int]] = defaultdict(lambda: [0] * width)
        for place in self.places:
            dated = place["step"] is not None
            for cohort in cohorts(self.predictions[place["prediction_id"]]):
                for time_bin in (None, self.bin_of(place["minutes"])) if dated else (None,):
                    key = dated, *cohort, time_bin
                    count[key] += 1
                    for at, number in enumerate(place["gradient"]):
                        assert number * UNIT == int(number * UNIT), "gradients lie on the grid"
                        total[key][at] += int(number * UNIT)

        def told(key: ExposureKey) -> Row:
            vectors = [[units / UNIT for units in total[dated, *key]] for dated in (True, False)]
            return {
                "n_places": count[True, *key] if width else None,
                "sum_gradient_vector": vectors[0] if width else None,
                "sum_static_gradient_vector": vectors[1] if width and key[-1] is None else None,
            }

        return told

    def cells(self) -> dict[CellKey, Row]:
        """Every row of the cells table."""
        units: dict[CellKey, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
        slopes: dict[CellKey, list[int]] = defaultdict(list)
        for row in self.rows:
            prediction = self.predictions[row["prediction_id"]]
            patient = prediction["subject_id"]
            contribution = row["attribution"] * UNIT
            assert contribution == int(contribution), "attributions lie on the grid"
            times = [None] if row["minutes"] is None else [None, self.bin_of(row["minutes"])]
            for feature in self._features(row["feature_value_id"]):
                for target, split, label, stratum in cohorts(prediction):
                    for time_bin in times:
                        key = target, split, label, stratum, *feature, time_bin
                        units[key][patient].append(int(contribution))
                        if row["slope"] is not None:
                            slopes[key].append(int(row["slope"] * UNIT))
        at_risk = self.at_risk()
        return {
            key: self._cell(key, patients, at_risk)
            | {"sum_gradient": sum(slopes[key]) / UNIT if key in slopes else None}
            for key, patients in units.items()
        }

    def _features(self, feature_value_id: int) -> Iterator[tuple[str, int | None, str]]:
        """The value itself, its code, and each of its code's groups."""
        word = self.vocabulary[feature_value_id]
        yield "value", feature_value_id, word["code"]
        yield "code", None, word["code"]
        for group in word["parents"]:
            yield "group", None, group

    def _cell(self, key: CellKey, patients: dict[int, list[int]], at_risk: dict[ExposureKey, dict[int, int]]) -> Row:
        risk = at_risk[(*key[:4], key[-1])]
        triples = [(sum(events), len(events), risk[patient]) for patient, events in patients.items()]
        every = [event for events in patients.values() for event in events]

        def total(term: Callable[[int, int, int], int], power: int = 0) -> float:
            return sum(term(s, n, at) for s, n, at in triples) / UNIT**power

        histogram: dict[int, int] = defaultdict(int)
        for event in every:
            histogram[signed_power(event)] += 1
        return {
            **self._told(key[-1]),
            "n_events": len(every),
            "n_patients": len(patients),
            "sum": sum(every) / UNIT,
            "sum_abs": sum(abs(event) for event in every) / UNIT,
            "sum_sq": sum(event * event for event in every) / UNIT**2,
            "s_ss": total(lambda s, n, at: s * s, 2),
            "s_sn": total(lambda s, n, at: s * n, 1),
            "s_nn": total(lambda s, n, at: n * n),
            "s_s_N": total(lambda s, n, at: s * at, 1),
            "s_sss": total(lambda s, n, at: s**3, 3),
            "s_ssn": total(lambda s, n, at: s * s * n, 2),
            "s_snn": total(lambda s, n, at: s * n * n, 1),
            "s_nnn": total(lambda s, n, at: n**3),
            "histogram": sorted(histogram.items()) if key[3] == ALL else None,
        }

    def _told(self, time_bin: int | None) -> Row:
        low, high = self.bounds(time_bin)
        return {"run_id": self.run_id, "time_axis": "before_prediction", "low_hours": low, "high_hours": high}


def cohorts(prediction: Row) -> Iterator[tuple[str, str, str, str]]:
    """target, split, class, stratum of everybody a prediction counts for: its own and the margins."""
    strata = [ALL] + [f"{name}={value}" for name, value in prediction["strata"]]
    for label in (prediction["label"], ALL):
        for stratum in strata:
            yield prediction["target"], prediction["split"], label, stratum


def signed_power(units: int) -> int:
    """0, or the sign times (25 + floor(log2 |contribution|)): bit_length is exact where a logarithm rounds."""
    return int(math.copysign(min(64, abs(units).bit_length()), units)) if units else 0


def remade(
    source: Path,
    folder: Path,
    *,
    rows: Callable[[pa.Table], pa.Table] = lambda table: table,
    predictions: Callable[[pa.Table], pa.Table] = lambda table: table,
    gradients: Callable[[pa.Table], pa.Table] = lambda table: table,
    vocabulary: Callable[[pa.Table], pa.Table] = lambda table: table,
    about: Row | None = None,
    shards: Callable[[list[str]], list[str]] = lambda names: names,
    settings: Row | None = None,
) -> Path:
    """A directory of attributions like `source`, with some tables changed; other settings give another run id."""
    old = StageDirectory.open(source, "attribute")
    new = StageDirectory.create(
        folder,
        stage="attribute",
        settings=old.settings | (settings or {}),
        inputs=old.manifest["inputs"],
        shards=shards(old.shards),
        besides=old.manifest["besides"],
        code_version=old.manifest["code_version"],
    )
    new.publish(
        "about",
        {"feature_values": vocabulary(old.read("about", "feature_values"))},
        old.entry("about").summary | (about or {}),
    )
    for beside in old.manifest["besides"][1:]:
        new.publish(beside, {file: old.read(beside, file) for file in old.entry(beside).files})
    changes = {"attributions": rows, "predictions": predictions, "gradients": gradients}
    for shard in new.shards:
        tables = {file: changes[file](old.read(shard, file)) for file in old.entry(shard).files}
        summary = {"n_predictions": tables["predictions"].num_rows, "n_rows": tables["attributions"].num_rows}
        new.publish(shard, tables, old.entry(shard).summary | summary)
    return folder
