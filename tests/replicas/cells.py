"""Every cell and every exposure row of a run, by plain loops over its attribution rows: slow, exact, independent.

It knows the design's definitions and nothing of whenwhy.statistics. Sums are of Python integers (attributions
are whole multiples of 2^-24), divided once at the end, so that each number is the correctly rounded one.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from whenwhy.shards import StageDirectory

UNIT = 2**24
ALL = "all"

#: target, split, class, stratum, level, feature_value_id (None: a code or group), code, time_axis, time_bin (None: all)
CellKey = tuple[str, str, str, str, str, int | None, str, str, int | None]
#: target, split, class, stratum, time_axis, time_bin
ExposureKey = tuple[str, str, str, str, str, int | None]
Row = dict[str, Any]
BEFORE, AFTER, SINCE = "before_prediction", "after_anchor", "since:"


@dataclass(frozen=True)
class Axis:
    """Bins of a width, numbered from `first`; the last is open, and so is a first one before 0."""

    name: str
    width_hours: int
    n_bins: int
    first: int = 0

    def bounds(self, time_bin: int | None) -> tuple[float | None, float | None]:
        """low_hours and high_hours; all time has none."""
        if time_bin is None:
            return None, None
        last = time_bin == self.first + self.n_bins - 1
        return (
            -math.inf if time_bin == self.first and self.first < 0 else float(time_bin * self.width_hours),
            math.inf if last else float((time_bin + 1) * self.width_hours),
        )

    def bin_of(self, minutes: int) -> int:
        """The bin with low_hours <= hours < high_hours; what lies before the first is in it."""
        for time_bin in range(self.first, self.first + self.n_bins - 1):
            if minutes < 60 * (time_bin + 1) * self.width_hours:
                return time_bin
        return self.first + self.n_bins - 1


class RunReplica:
    """A run read back from its shards: `predictions` by id, attribution `rows`, `vocabulary` by feature value."""

    def __init__(self, path: Path, *axes: Axis) -> None:
        stage = StageDirectory.open(path, "attribute")
        self.run_id, self.axes = stage.run_id, axes
        self.vocabulary = {row["feature_value_id"]: row for row in stage.read("about", "feature_values").to_pylist()}
        self.hierarchy = stage.read("about", "code_groups").to_pylist()
        self.predictions: dict[int, Row] = {}
        self.rows: list[Row] = []
        self.places: list[Row] = []  # of a run that tells absence: a step's, or the static values', gradient
        for shard in stage.shards:
            for row in stage.read(shard, "predictions").to_pylist():
                self.predictions[row["prediction_id"]] = row
            self.rows += stage.read(shard, "attributions").to_pylist()
            if "gradients" in stage.entry(shard).files:
                self.places += stage.read(shard, "gradients").to_pylist()

    def origin(self, axis: Axis, prediction: Row) -> int | None:
        """Minutes before the prediction at which an axis is 0; None: the prediction is not on it."""
        if axis.name == BEFORE:
            return 0
        if axis.name == AFTER:
            return prediction["anchor_minutes"]
        code = axis.name.removeprefix(SINCE)
        return max(
            (
                row["minutes"]
                for row in self.rows
                if row["prediction_id"] == prediction["prediction_id"]
                and row["minutes"] is not None
                and self.vocabulary[row["feature_value_id"]]["code"] == code
                and self.vocabulary[row["feature_value_id"]]["kind"] == "recorded"
            ),
            default=None,
        )

    @cached_property
    def origins(self) -> dict[tuple[str, int], int | None]:
        return {
            (axis.name, known): self.origin(axis, prediction)
            for axis in self.axes
            for known, prediction in self.predictions.items()
        }

    def place(self, axis: Axis, prediction_id: int, minutes: int) -> int | None:
        """Where on an axis something lies that was so many minutes before a prediction."""
        if axis.name == BEFORE:
            return minutes
        origin = self.origins[axis.name, prediction_id]
        return None if origin is None else origin - minutes

    def at_risk(self) -> dict[ExposureKey, dict[int, int]]:
        """Patient -> number of predictions whose record, from its first step to the prediction, meets a bin."""
        found: dict[ExposureKey, dict[int, int]] = defaultdict(lambda: defaultdict(int))
        for known, prediction in self.predictions.items():
            for axis in self.axes:
                if self.origins[axis.name, known] is None:
                    continue
                reached: list[int | None] = [None]
                if prediction["history_minutes"] is not None:
                    ends = [self.place(axis, known, minutes) for minutes in (0, prediction["history_minutes"])]
                    first, last = sorted(axis.bin_of(end) for end in ends)  # type: ignore[arg-type]
                    reached += list(range(first, last + 1))
                for cohort in cohorts(prediction):
                    for time_bin in reached:
                        found[(*cohort, axis.name, time_bin)][prediction["subject_id"]] += 1
        return found

    def exposure(self) -> dict[ExposureKey, Row]:
        """Every row of the exposure table."""
        places = self.summed_places()
        return {
            key: {
                **self._told(*key[-2:]),
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
                for time_bin in (None, self.axes[0].bin_of(place["minutes"])) if dated else (None,):
                    key = dated, *cohort, BEFORE, time_bin
                    count[key] += 1
                    for at, number in enumerate(place["gradient"]):
                        assert number * UNIT == int(number * UNIT), "gradients lie on the grid"
                        total[key][at] += int(number * UNIT)

        def told(key: ExposureKey) -> Row:
            vectors = [[units / UNIT for units in total[dated, *key]] for dated in (True, False)]
            told = width and key[-2] == BEFORE
            return {
                "n_places": count[True, *key] if told else None,
                "sum_gradient_vector": vectors[0] if told else None,
                "sum_static_gradient_vector": vectors[1] if told and key[-1] is None else None,
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
            times: list[tuple[str, int | None]] = [(BEFORE, None)]
            for axis in self.axes if row["minutes"] is not None else ():
                place = self.place(axis, row["prediction_id"], row["minutes"])
                if place is not None:
                    times.append((axis.name, axis.bin_of(place)))
            for feature in self._features(row["feature_value_id"]):
                for target, split, label, stratum in cohorts(prediction):
                    for time in times:
                        key = target, split, label, stratum, *feature, *time
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
        """The value itself, its code, and each group that holds the code."""
        word = self.vocabulary[feature_value_id]
        yield "value", feature_value_id, word["code"]
        yield "code", None, word["code"]
        for group in self.groups_of(word["code"]):
            yield "group", None, group

    def groups_of(self, code: str) -> set[str]:
        """All that the hierarchy has above a code, one step up at a time; the code too if it is above another."""
        found = {code} if any(edge["parent"] == code for edge in self.hierarchy) else set()
        below = {code}
        while below:
            below = {edge["parent"] for edge in self.hierarchy if edge["code"] in below} - {None} - (found - {code})
            found |= below
        return found

    def _cell(self, key: CellKey, patients: dict[int, list[int]], at_risk: dict[ExposureKey, dict[int, int]]) -> Row:
        risk = at_risk[(*key[:4], *key[-2:])]
        triples = [(sum(events), len(events), risk[patient]) for patient, events in patients.items()]
        # A patient's sum beyond 1,024 has no third power in the table, nor has its cell.
        beyond = any(abs(s) > 1024 * UNIT for s, _, _ in triples)
        every = [event for events in patients.values() for event in events]

        def total(term: Callable[[int, int, int], int], power: int = 0) -> float:
            return sum(term(s, n, at) for s, n, at in triples) / UNIT**power

        histogram: dict[int, int] = defaultdict(int)
        for event in every:
            histogram[quarter_octave(event)] += 1
        return {
            **self._told(*key[-2:]),
            "n_events": len(every),
            "n_patients": len(patients),
            "sum": sum(every) / UNIT,
            "sum_abs": sum(abs(event) for event in every) / UNIT,
            "sum_sq": sum(event * event for event in every) / UNIT**2,
            "s_ss": total(lambda s, n, at: s * s, 2),
            "s_sn": total(lambda s, n, at: s * n, 1),
            "s_nn": total(lambda s, n, at: n * n),
            "s_s_N": total(lambda s, n, at: s * at, 1),
            "s_sss": None if beyond else total(lambda s, n, at: s**3, 3),
            "s_ssn": None if beyond else total(lambda s, n, at: s * s * n, 2),
            "s_snn": None if beyond else total(lambda s, n, at: s * n * n, 1),
            "s_nnn": None if beyond else total(lambda s, n, at: n**3),
            "histogram": sorted(histogram.items()) if key[3] == ALL else None,
        }

    def _told(self, time_axis: str, time_bin: int | None) -> Row:
        [axis] = (axis for axis in self.axes if axis.name == time_axis)
        low, high = axis.bounds(time_bin)
        return {"run_id": self.run_id, "low_hours": low, "high_hours": high}


def cohorts(prediction: Row) -> Iterator[tuple[str, str, str, str]]:
    """target, split, class, stratum of everybody a prediction counts for: its own and the margins."""
    strata = [ALL] + [f"{name}={value}" for name, value in prediction["strata"]]
    strata += [f"predicted={prediction['predicted']}"]
    strata += ["correct=yes" if prediction["predicted"] == prediction["label"] else "correct=no"]
    for label in (prediction["label"], ALL):
        for stratum in strata:
            yield prediction["target"], prediction["split"], label, stratum


def quarter_octave(units: int) -> int:
    """0, or the sign times (1 + floor(4 log2 |units|)): how many quarter powers of two there are up to it, exactly."""
    if not units:
        return 0
    octave = abs(units).bit_length() - 1
    within = sum(abs(units) ** 4 >= 2 ** (4 * octave + quarter) for quarter in (1, 2, 3))
    return int(math.copysign(min(256, 1 + 4 * octave + within), units))


def remade(
    source: Path,
    folder: Path,
    *,
    rows: Callable[[pa.Table], pa.Table] = lambda table: table,
    predictions: Callable[[pa.Table], pa.Table] = lambda table: table,
    gradients: Callable[[pa.Table], pa.Table] = lambda table: table,
    vocabulary: Callable[[pa.Table], pa.Table] = lambda table: table,
    hierarchy: Callable[[pa.Table], pa.Table] = lambda table: table,
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
        {
            "feature_values": vocabulary(old.read("about", "feature_values")),
            "code_groups": hierarchy(old.read("about", "code_groups")),
        },
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
