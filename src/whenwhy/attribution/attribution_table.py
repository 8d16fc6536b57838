"""A shard's sequences and their attributions flow in; the shard's attribution rows and predictions flow out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from whenwhy.attribution.absence import vectors
from whenwhy.attribution.attribute import Attributions
from whenwhy.attribution.targets import target_named
from whenwhy.events.sequence_batch import EVENTS, STATIC, SequenceBatch, Sequences
from whenwhy.schema import ATTRIBUTIONS, EVERYTHING_ABSENT, GRADIENTS, PREDICTIONS, on_grid


def attribution_tables(
    sequences: Sequences, first_id: int, target: str, attributed: Iterable[tuple[SequenceBatch, Attributions]]
) -> tuple[pa.Table, pa.Table, pa.Table | None]:
    """Tables of `schema.ATTRIBUTIONS`, sorted by feature value, and of `schema.PREDICTIONS`, one row a sequence.

    The third is of `schema.GRADIENTS`, one row a place in the order of the sequences; None unless absence is told.

    `probability` is that of the class that the target names, else of the positive one, else of the predicted one.
    A prediction's id is its row in the shard, counted from `first_id`. Where the baselines record something, each
    step has a row of "everything absent" too, and so have the static values, without a spread. The residual is that
    of the rows as they are stored, on the grid. Notes are those that a method tells of whole predictions.
    """
    count = len(sequences)
    contribution = {
        EVENTS: np.zeros(len(sequences.event_id)),
        STATIC: np.zeros(len(sequences.static_id)),
    }
    spread = {name: np.full(len(parts), np.nan) for name, parts in contribution.items()}
    absent = {EVENTS: np.zeros(int(sequences.n_steps.sum())), STATIC: np.zeros(count)}
    against_something = False  # the baselines record something
    slope = {name: np.zeros_like(parts) for name, parts in contribution.items()}
    gradients: dict[str, np.ndarray] = {}  # [place, width] a stream
    predicted, probability = np.full(count, "", dtype=object), np.zeros(count)
    asked = target_named(target)
    score, baseline, nodes = np.zeros(count), np.zeros(count), np.zeros(count, dtype=np.int32)
    unsummed = np.full(count, False)
    notes: list[dict[str, float]] = [{} for _ in range(count)]
    for batch, found in attributed:
        for name, values in found.streams.items():
            contribution[name][batch.streams[name].at] = values.double().cpu().numpy()
        for name, values in found.spread.items():
            spread[name][batch.streams[name].at] = values.double().cpu().numpy()
        for name, of_each in found.notes.items():
            if of_each.ndim == 1:
                for row, note in zip(batch.rows, of_each.tolist(), strict=True):
                    notes[row][name] = note
        for name, values in found.slopes.items():
            slope[name][batch.streams[name].at] = values.double().cpu().numpy()
        lengths = sequences.n_steps[batch.rows]
        patient = np.repeat(np.arange(len(batch)), lengths)
        step = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        # Where the places of the batch lie among those of the shard, and in its tensors.
        place = {EVENTS: sequences.step_offsets[batch.rows][patient] + step, STATIC: batch.rows}
        within: dict[str, Any] = {EVENTS: (patient, step), STATIC: slice(None)}
        for name, parts in found.absent.items():
            against_something = True
            absent[name][place[name]] = parts.double().cpu().numpy()[within[name]]
        for name, parts in found.gradients.items():
            told = parts.flatten(2 if name == EVENTS else 1).double().cpu().numpy()[within[name]]
            if name not in gradients:
                gradients[name] = np.zeros((len(absent[name]), told.shape[1]), dtype=np.float32)
            gradients[name][place[name]] = on_grid(told)
        score[batch.rows] = found.score.double().cpu().numpy()
        told = found.probabilities.cpu().numpy()
        # Ties go to the class that is named later: a probability of one half predicts the positive class.
        most = told.shape[1] - 1 - told[:, ::-1].argmax(1)
        predicted[batch.rows] = [found.classes[at] for at in most]
        shown = asked.shown_class(found.classes, found.probabilities).cpu().numpy()
        probability[batch.rows] = told[np.arange(len(told)), shown]
        baseline[batch.rows] = found.baseline_score.double().cpu().numpy()
        nodes[batch.rows] = found.n_evaluations.cpu().numpy()
        unsummed[batch.rows] = found.residual.isnan().cpu().numpy()

    n_events, n_static = len(sequences.event_id), len(sequences.static_id)
    row = np.concatenate(
        [np.repeat(np.arange(count), np.diff(o)) for o in (sequences.event_offsets, sequences.static_offsets)]
    )
    ids = np.concatenate([sequences.event_id, sequences.static_id]).astype(np.int32)
    value = np.concatenate([sequences.event_value, sequences.static_value]).astype(np.float32)
    dated = np.arange(n_events + n_static) < n_events
    step = np.concatenate([sequences.event_step, np.zeros(n_static)]).astype(np.int32)
    minutes = np.zeros(n_events + n_static, dtype=np.int32)
    minutes[dated] = sequences.event_minutes
    attribution = on_grid(np.concatenate([contribution[EVENTS], contribution[STATIC]]))
    deviation = np.concatenate([spread[EVENTS], spread[STATIC]]).astype(np.float32)

    n_values = np.bincount(row, minlength=count)
    if against_something:
        n_steps = sequences.n_steps
        row = np.concatenate([row, np.repeat(np.arange(count), n_steps), np.arange(count)])
        ids = np.concatenate([ids, np.full(len(row) - len(ids), EVERYTHING_ABSENT, dtype=np.int32)])
        value = np.concatenate([value, np.full(len(row) - len(value), np.nan, dtype=np.float32)])
        of_step = np.arange(n_steps.sum()) - np.repeat(np.cumsum(n_steps) - n_steps, n_steps)
        step = np.concatenate([step, of_step, np.zeros(count)]).astype(np.int32)
        minutes = np.concatenate([minutes, sequences.step_minutes, np.zeros(count)]).astype(np.int32)
        dated = np.concatenate([dated, np.full(int(n_steps.sum()), True), np.full(count, False)])
        attribution = np.concatenate([attribution, on_grid(np.concatenate([absent[EVENTS], absent[STATIC]]))])
        deviation = np.concatenate([deviation, np.full(len(row) - len(deviation), np.nan, dtype=np.float32)])

    order = np.lexsort((value, step, row, ids))
    static = ~dated[order]
    of_place = np.zeros(len(order), dtype=np.float32)
    if gradients:
        of_place[: n_events + n_static] = on_grid(np.concatenate([slope[EVENTS], slope[STATIC]]))
        first = _first_of_place(ids[order], row[order], step[order], static)
        step_minutes = np.zeros(len(order), dtype=np.int32)
        step_minutes[dated] = sequences.step_minutes[sequences.step_offsets[row[dated]] + step[dated]]
    prediction_id = np.int64(first_id) + np.arange(count)
    rows = pa.table(
        {
            "prediction_id": prediction_id[row[order]],
            "step": pa.array(step[order], mask=static),
            "feature_value_id": ids[order],
            "minutes": pa.array(minutes[order], mask=static),
            "numeric_value": pa.array(value[order], from_pandas=True),
            "attribution": attribution[order],
            "spread": pa.array(deviation[order], from_pandas=True),
            "slope": pa.array(of_place[order], mask=~first) if gradients else pa.nulls(len(order)),
            "step_minutes": pa.array(step_minutes[order], mask=static) if gradients else pa.nulls(len(order)),
        }
    ).cast(ATTRIBUTIONS)

    total = np.bincount(row, weights=attribution.astype(np.float64), minlength=count)
    steps = sequences.n_steps
    table = sequences.table
    predictions = pa.table(
        {
            "prediction_id": prediction_id,
            "subject_id": table["subject_id"],
            "prediction_time": table["prediction_time"],
            "target": pa.array([target] * count, pa.string()),
            "label": table["label"],
            "predicted": pa.array(predicted, pa.string()),
            "split": table["split"],
            "score": score,
            "baseline_score": baseline,
            "probability": probability,
            "completeness_residual": pa.array(total - (score - baseline), mask=unsummed),
            "source": table["source"],
            "n_nodes": nodes,
            "notes": pa.array([list(told.items()) for told in notes], PREDICTIONS.field("notes").type),
            "n_steps": steps.astype(np.int32),
            "n_values": n_values.astype(np.int32),
            "history_minutes": table["history_minutes"],
            "anchor_minutes": table["anchor_minutes"],
            "strata": table["strata"],
        }
    ).cast(PREDICTIONS)
    return rows, predictions, _gradient_table(sequences, prediction_id, gradients) if gradients else None


def _first_of_place(ids: np.ndarray, row: np.ndarray, step: np.ndarray, static: np.ndarray) -> np.ndarray:
    """Which rows are the first that their place has of a feature value, of all but "everything absent" [row] bool."""
    new = np.ones(len(ids), dtype=bool)  # rows come in this order
    new[1:] = (np.diff(ids) != 0) | (np.diff(row) != 0) | (np.diff(step) != 0)
    _, first = np.unique(2 * np.cumsum(new) + static, return_index=True)
    found = np.zeros(len(ids), dtype=bool)
    found[first] = True
    found[ids == EVERYTHING_ABSENT] = False
    return found


def _gradient_table(sequences: Sequences, prediction_id: np.ndarray, gradients: dict[str, np.ndarray]) -> pa.Table:
    """The table of `schema.GRADIENTS`: all steps, then all static values."""
    n_steps, count = sequences.n_steps, len(sequences)
    of_step = np.arange(n_steps.sum()) - np.repeat(np.cumsum(n_steps) - n_steps, n_steps)
    none = pa.nulls(count, pa.int32())
    columns = {
        EVENTS: [np.repeat(prediction_id, n_steps), of_step, sequences.step_minutes, vectors(gradients[EVENTS])],
        STATIC: [prediction_id, none, none, vectors(gradients[STATIC])],
    }
    return pa.concat_tables([pa.table(of, names=GRADIENTS.names).cast(GRADIENTS) for of in columns.values()])
