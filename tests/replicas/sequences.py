"""A slow, independent reading of a cohort: what each prediction's record holds, event by event."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pandas as pd

MINUTE = 60


def read_cohort(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Events and labels of a MEDS data set as frames."""
    events = pd.concat([pd.read_parquet(file) for file in sorted((folder / "data").rglob("*.parquet"))])
    labels = pd.concat([pd.read_parquet(file) for file in sorted((folder / "labels" / "outcome").rglob("*.parquet"))])
    return events, labels


def feature_value(features: pd.DataFrame, code: str, value: float) -> int | None:
    """The id of the one feature value of `code` whose range holds `value` (NaN: recorded without a number)."""
    for row in features[features.code == code].itertuples():
        if pd.isna(row.bin):
            if pd.isna(value):
                return int(row.feature_value_id)
        elif not pd.isna(value) and row.low <= value < row.high:
            return int(row.feature_value_id)
    return None


def record_of(
    events: pd.DataFrame, features: pd.DataFrame, subject_id: int, prediction_time: datetime
) -> tuple[list[tuple[int, list[tuple[int, float]]]], list[tuple[int, float]]]:
    """Steps [(minutes before the prediction, [(id, value)...])...] and static [(id, value)...], each sorted."""
    own = events[events.subject_id == subject_id]
    static, steps = [], {}
    for row in own.itertuples():
        value = float("nan") if pd.isna(row.numeric_value) else float(row.numeric_value)
        if row.code == "MEDS_BIRTH":
            if row.time <= prediction_time:
                years = prediction_time.year - row.time.year
                years -= (prediction_time.month, prediction_time.day, prediction_time.time()) < (
                    row.time.month,
                    row.time.day,
                    row.time.time(),
                )
                static.append((feature_value(features, "AGE", float(years)), float(years)))
        elif row.code == "MEDS_DEATH":
            continue
        elif pd.isna(row.time):
            static.append((feature_value(features, row.code, value), value))
        elif row.time <= prediction_time:
            steps.setdefault(row.time, []).append((feature_value(features, row.code, value), value))
    told = []
    for time in sorted(steps):
        known = sorted((i, v) for i, v in steps[time] if i is not None)
        if known:
            told.append((int((prediction_time - time).total_seconds() // MINUTE), known))
    return told, sorted((i, v) for i, v in static if i is not None)
