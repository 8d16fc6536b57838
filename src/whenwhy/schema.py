"""The contract: Arrow schemas of every table that crosses a stage, and the constants they share.

Attributions lie on a fixed grid (multiples of 2^-24, the spacing of float32 just below 1), so every
sum of them is exact in float64 and does not depend on order, workers or shards.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import pyarrow as pa

FORMAT_VERSION: Final = 3

#: That of a store, whose tables and macros may change while attributions stay as they are.
STORE_FORMAT: Final = 4

#: The feature value that stands for everything a step does not record.
EVERYTHING_ABSENT: Final = 0

#: Attributions are whole multiples of 1 / ATTRIBUTION_UNITS.
ATTRIBUTION_UNITS: Final = 1 << 24

#: The farthest that a patient's sum in a cell may be from 0, in units, and its cube still be added up in 128 bits.
FARTHEST: Final = 1024 * ATTRIBUTION_UNITS

#: Cells of 1 to 10 patients are never shown.
MIN_PATIENTS: Final = 11

TRAIN: Final = "train"
TUNING: Final = "tuning"
HELD_OUT: Final = "held_out"
SPLITS: Final = (TRAIN, TUNING, HELD_OUT)

#: How a feature value comes into a record. Only a recorded one is a measurement; the others follow from
#: what was recorded, and have codes of their own, so that no contribution is taken for a measurement's.
RECORDED: Final = "recorded"
RARE: Final = "rare"  # recorded, under a code of too few training patients to stand alone
CARRIED: Final = "carried forward"  # the last recorded value, at a step that does not record it
SINCE_LAST: Final = "hours since last"  # hours from the code's last record to this one
NOT_MEASURED: Final = "not measured"  # the code has not been recorded for so many hours
NUMBER: Final = "number"  # a recorded or carried number itself, as a weight beside the feature value
KINDS: Final = (RECORDED, RARE, CARRIED, SINCE_LAST, NOT_MEASURED, NUMBER)

_TIME = pa.timestamp("us")
_STRATA = pa.map_(pa.string(), pa.string())

#: One row a prediction: what the patient's record held up to the prediction time.
SEQUENCES: Final = pa.schema(
    [
        ("subject_id", pa.int64()),
        ("prediction_time", _TIME),
        ("label", pa.string()),
        ("split", pa.string()),
        ("source", pa.string()),  # the MEDS shard that the patient's events lay in
        ("strata", _STRATA),
        ("anchor_minutes", pa.int32()),  # from the anchor to the prediction, whole minutes; null without an anchor
        ("history_minutes", pa.int32()),  # from the begin of the first step to the prediction; null without steps
        ("step_minutes", pa.list_(pa.int32())),  # whole minutes before the prediction, one a step, not increasing
        ("event_step", pa.list_(pa.int32())),  # the step of each recorded value, not decreasing
        ("event_id", pa.list_(pa.int32())),  # its feature value
        ("event_minutes", pa.list_(pa.int32())),  # whole minutes from its own time to the prediction
        ("event_value", pa.list_(pa.float32())),  # its number; null where it has none
        ("event_weight", pa.list_(pa.float32())),  # what it weighs in its bag; null: all of them 1
        ("static_id", pa.list_(pa.int32())),
        ("static_value", pa.list_(pa.float32())),
        ("static_weight", pa.list_(pa.float32())),
    ]
)

#: One row a feature value: a code and a range of its numbers.
FEATURE_VALUES: Final = pa.schema(
    [
        ("feature_value_id", pa.int32()),
        ("code", pa.string()),
        ("kind", pa.string()),  # one of KINDS: how it comes into a record
        ("description", pa.string()),
        ("unit", pa.string()),
        ("bin", pa.int32()),  # null: recorded without a number
        ("low", pa.float64()),  # low <= value < high, edges as float32
        ("high", pa.float64()),
        ("n_train", pa.int64()),  # events of training patients
        ("n_train_patients", pa.int64()),
        ("parents", pa.list_(pa.string())),  # those directly above the code, as the data set tells
        ("groups", pa.list_(pa.string())),  # all above it, nearest first; and the code itself where others lie below it
    ]
)

#: The hierarchy: one row a code or group, and a group directly above it.
CODE_GROUPS: Final = pa.schema(
    [
        ("code", pa.string()),
        ("parent", pa.string()),  # null: nothing lies above
        ("description", pa.string()),  # of the code
    ]
)

#: One row a recorded feature value of a prediction. step and minutes are null for static values.
#: slope and step_minutes are there where a run tells absence, and null elsewhere.
ATTRIBUTIONS: Final = pa.schema(
    [
        ("prediction_id", pa.int64()),
        ("step", pa.int32()),
        ("feature_value_id", pa.int32()),
        ("minutes", pa.int32()),  # before the prediction
        ("numeric_value", pa.float32()),
        ("attribution", pa.float32()),
        ("spread", pa.float32()),  # its standard error over other draws, of a method that draws; null: it does not
        # What one more of the value would have added at its place; null where the step holds it once already.
        ("slope", pa.float32()),
        ("step_minutes", pa.int32()),  # from the value's step to the prediction, whose time an absent value shares
    ]
)

#: One row a place (a step, or a prediction's static values) of a run that tells absence.
GRADIENTS: Final = pa.schema(
    [
        ("prediction_id", pa.int64()),
        ("step", pa.int32()),  # null: the static values
        ("minutes", pa.int32()),  # from the step to the prediction
        ("gradient", pa.list_(pa.float32())),  # of the place's embedding, on the grid; the path's mean
    ]
)

#: One row a stream and feature value that training patients record in it, of a run that tells absence.
FIRST_LAYER: Final = pa.schema(
    [
        ("feature_value_id", pa.int32()),
        ("stream", pa.string()),  # events or static
        ("rate", pa.float32()),  # mean weight in a step of a training record, or in a record
        ("weights", pa.list_(pa.float32())),  # what one of the value adds to its place's embedding
    ]
)

#: One row a prediction of a run.
PREDICTIONS: Final = pa.schema(
    [
        ("prediction_id", pa.int64()),
        ("subject_id", pa.int64()),
        ("prediction_time", _TIME),
        ("target", pa.string()),
        ("label", pa.string()),
        ("predicted", pa.string()),
        ("split", pa.string()),
        ("score", pa.float64()),
        ("baseline_score", pa.float64()),
        ("probability", pa.float64()),
        ("completeness_residual", pa.float64()),  # null: the numbers are not meant to sum to the score
        ("source", pa.string()),  # the MEDS shard that the patient's events lay in
        ("n_nodes", pa.int32()),  # quadrature nodes used
        ("notes", pa.map_(pa.string(), pa.float64())),  # what the method tells beside, by name
        ("n_steps", pa.int32()),
        ("n_values", pa.int32()),
        ("history_minutes", pa.int32()),  # from the begin of the first step to the prediction; null without steps
        ("anchor_minutes", pa.int32()),  # from the anchor to the prediction; null without an anchor
        ("strata", _STRATA),
    ]
)

#: One row a cell: sums over the events of one feature (value, code or group) in one time bin.
#: s and n are a patient's sum and count in the cell, N its predictions at risk.
CELLS: Final = pa.schema(
    [
        ("run_id", pa.string()),
        ("target", pa.string()),
        ("split", pa.string()),
        ("class", pa.string()),
        ("stratum", pa.string()),
        ("level", pa.string()),
        ("feature_value_id", pa.int32()),
        ("code", pa.string()),
        ("time_axis", pa.string()),
        ("time_bin", pa.int32()),  # null: all time
        ("low_hours", pa.float64()),
        ("high_hours", pa.float64()),
        ("n_events", pa.int64()),
        ("n_patients", pa.int64()),
        ("sum", pa.float64()),
        ("sum_abs", pa.float64()),
        ("sum_sq", pa.float64()),
        ("s_ss", pa.float64()),
        ("s_sn", pa.float64()),
        ("s_nn", pa.float64()),
        ("s_s_N", pa.float64()),  # not s_sN: column names in SQL do not tell N from n
        ("s_sss", pa.float64()),
        ("s_ssn", pa.float64()),
        ("s_snn", pa.float64()),
        ("s_nnn", pa.float64()),
        # Of the slopes of its events, once a place; null unless the run tells absence.
        ("sum_gradient", pa.float64()),
        ("histogram", pa.map_(pa.int16(), pa.int64())),  # stratum 'all' only: signed quarter octave -> events
    ]
)

#: A whole number that 64 bits may not hold.
_LARGE = pa.decimal128(38, 0)

#: What tells a cell from the others of its run.
_CELL = [field for field in CELLS if field.name in CELLS.names[1:10]]

#: Cells before they are divided: whole multiples of a unit's powers, so that those of disjoint patients add up, and
#: those of patients who leave are taken away, to the last bit. A patient whose sum passes FARTHEST is counted in
#: n_beyond, and is in none of the third-order sums.
CELL_SUMS: Final = pa.schema(
    [
        *_CELL,
        ("n_events", pa.int64()),
        ("n_patients", pa.int64()),
        ("sum", pa.int64()),
        ("sum_abs", pa.int64()),
        ("sum_sq", _LARGE),
        ("s_ss", _LARGE),
        ("s_sn", _LARGE),
        ("s_nn", pa.int64()),
        ("s_s_N", _LARGE),
        ("n_beyond", pa.int64()),
        ("s_sss", _LARGE),
        ("s_ssn", _LARGE),
        ("s_snn", _LARGE),
        ("s_nnn", _LARGE),
        ("n_slopes", pa.int64()),
        ("sum_gradient", pa.int64()),
    ]
)

#: One row a cell and quarter octave of contributions; of stratum 'all' only.
HISTOGRAMS: Final = pa.schema([*_CELL, ("quarter_octave", pa.int16()), ("n_events", pa.int64())])

#: One row a time bin and cohort: who was under observation then.
EXPOSURE: Final = pa.schema(
    [
        ("run_id", pa.string()),
        ("target", pa.string()),
        ("split", pa.string()),
        ("class", pa.string()),
        ("stratum", pa.string()),
        ("time_axis", pa.string()),
        ("time_bin", pa.int32()),
        ("low_hours", pa.float64()),
        ("high_hours", pa.float64()),
        ("n_predictions", pa.int64()),
        ("n_patients", pa.int64()),
        ("s_NN", pa.float64()),
        # Null unless the run tells absence; sum_static_gradient_vector also where there is a time bin.
        ("n_places", pa.int64()),  # steps of the predictions, by the step's own time
        ("sum_gradient_vector", pa.list_(pa.float64())),
        ("sum_static_gradient_vector", pa.list_(pa.float64())),
    ]
)

#: One row a feature value, time bin and cohort of a run that tells absence: sums over the places that record it.
#: A bin is that of the step's own time, which an event within a wide step need not share.
RECORDED_PLACES: Final = pa.schema(
    [
        ("run_id", pa.string()),
        ("target", pa.string()),
        ("split", pa.string()),
        ("class", pa.string()),
        ("stratum", pa.string()),
        ("feature_value_id", pa.int32()),
        ("stream", pa.string()),  # events or static
        ("time_axis", pa.string()),
        ("time_bin", pa.int32()),  # null: all time
        ("low_hours", pa.float64()),
        ("high_hours", pa.float64()),
        ("n_places", pa.int64()),
        ("n_patients", pa.int64()),
        ("sum", pa.float64()),  # of contributions
        ("sum_gradient", pa.float64()),  # of slopes
    ]
)

#: Exposure and recorded places, as whole multiples of a unit.
EXPOSURE_SUMS: Final = pa.schema(
    [
        *(field for field in EXPOSURE if field.name in EXPOSURE.names[1:7]),
        ("n_predictions", pa.int64()),
        ("n_patients", pa.int64()),
        ("s_NN", pa.int64()),
        ("n_places", pa.int64()),
        ("sum_gradient_vector", pa.list_(pa.int64())),
        ("sum_static_gradient_vector", pa.list_(pa.int64())),
    ]
)
PLACE_SUMS: Final = pa.schema(
    [
        *(field for field in RECORDED_PLACES if field.name in RECORDED_PLACES.names[1:9]),
        ("n_places", pa.int64()),
        ("n_patients", pa.int64()),
        ("sum", pa.int64()),
        ("sum_gradient", pa.int64()),
    ]
)

#: One row a run: how its numbers came to be.
RUNS: Final = pa.schema(
    [
        ("run_id", pa.string()),
        ("method", pa.string()),
        ("measures", pa.string()),  # what its numbers are: a contribution, or something that is none
        ("baseline", pa.string()),
        ("target", pa.string()),
        ("precision", pa.string()),  # float32, float64 or bfloat16
        ("outcome", pa.string()),
        ("model_sha256", pa.string()),
        ("vocabulary_sha256", pa.string()),
        ("input_sha256", pa.string()),
        ("code_version", pa.string()),
        ("format_version", pa.int32()),
        ("tolerance", pa.float64()),
        ("n_predictions", pa.int64()),
        ("residual_median", pa.float64()),
        ("residual_maximum", pa.float64()),
        ("n_over_tolerance", pa.int64()),
        ("quality", pa.string()),  # JSON: held-out measurements of the model that was explained
    ]
)


#: Columns whose numbers hardly repeat: a dictionary of them would cost time and space.
HARDLY_REPEATING: Final = (
    "step_minutes",
    "event_minutes",
    "minutes",
    "prediction_id",
    "attribution",
    "spread",
    "slope",
    "gradient",
    "weights",
    *CELL_SUMS.names[9:],
)


def with_dictionary(schema: pa.Schema) -> list[str]:
    """The columns of a table that Parquet should keep by a dictionary, by their paths in the file.

    Example:
        >>> with_dictionary(SEQUENCES)[-2:]
        ['static_value.list.element', 'static_weight.list.element']
    """
    return [
        f"{field.name}.list.element" if pa.types.is_list(field.type) else field.name
        for field in schema
        if field.name not in HARDLY_REPEATING and not pa.types.is_map(field.type)
    ]


def with_statistics(schema: pa.Schema) -> list[str]:
    """The columns whose least and greatest value a query may skip rows by; of a list's numbers they say nothing.

    Example:
        >>> with_statistics(SEQUENCES)[:2]
        ['subject_id', 'prediction_time']
    """
    if schema.names[:9] == CELL_SUMS.names[:9]:
        return []  # nobody reads a part of them
    return [field.name for field in schema if not pa.types.is_nested(field.type)]


def rows_a_group(schema: pa.Schema) -> int:
    """Rows that a Parquet file keeps together: few where readers look for a range of feature values.

    Example:
        >>> rows_a_group(ATTRIBUTIONS), rows_a_group(PREDICTIONS)
        (16384, 131072)
    """
    return 1 << 14 if schema.names == ATTRIBUTIONS.names else 1 << 17


def on_grid(attribution: np.ndarray) -> np.ndarray:
    """The float32 array [row] of the nearest multiples of 1 / ATTRIBUTION_UNITS.

    Example:
        >>> float(on_grid(np.array([0.1]))[0]) * ATTRIBUTION_UNITS
        1677722.0
    """
    units = np.rint(np.asarray(attribution, dtype=np.float64) * ATTRIBUTION_UNITS)
    return (units / ATTRIBUTION_UNITS).astype(np.float32)
