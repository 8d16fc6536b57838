"""A shard's sequences and their attributions flow in; the shard's attribution rows and predictions flow out."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from whenwhy.attribution.attribute import Attributions
from whenwhy.events.sequence_batch import EVENTS, STATIC, SequenceBatch, Sequences
from whenwhy.schema import ATTRIBUTIONS, PREDICTIONS, on_grid


def attribution_tables(
    sequences: Sequences, first_id: int, target: str, attributed: Iterable[tuple[SequenceBatch, Attributions]]
) -> tuple[pa.Table, pa.Table]:
    """Tables of `schema.ATTRIBUTIONS`, sorted by feature value, and of `schema.PREDICTIONS`, one row a sequence.

    A prediction's id is its row in the shard, counted from `first_id`. The residual is that of the rows as
    they are stored, on the grid.
    """
    count = len(sequences)
    contribution = {
        EVENTS: np.zeros(len(sequences.event_id)),
        STATIC: np.zeros(len(sequences.static_id)),
    }
    score, baseline, nodes = np.zeros(count), np.zeros(count), np.zeros(count, dtype=np.int32)
    for batch, found in attributed:
        for name, values in found.streams.items():
            contribution[name][batch.streams[name].at] = values.double().cpu().numpy()
        score[batch.rows] = found.score.double().cpu().numpy()
        baseline[batch.rows] = found.baseline_score.double().cpu().numpy()
        nodes[batch.rows] = found.n_nodes.cpu().numpy()

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

    order = np.lexsort((value, step, row, ids))
    static = ~dated[order]
    prediction_id = np.int64(first_id) + np.arange(count)
    rows = pa.table(
        {
            "prediction_id": prediction_id[row[order]],
            "step": pa.array(step[order], mask=static),
            "feature_value_id": ids[order],
            "minutes": pa.array(minutes[order], mask=static),
            "numeric_value": pa.array(value[order], from_pandas=True),
            "attribution": attribution[order],
        }
    ).cast(ATTRIBUTIONS)

    total = np.bincount(row, weights=attribution.astype(np.float64), minlength=count)
    probability = 1 / (1 + np.exp(-score))
    steps = sequences.n_steps
    table = sequences.table
    predictions = pa.table(
        {
            "prediction_id": prediction_id,
            "subject_id": table["subject_id"],
            "prediction_time": table["prediction_time"],
            "target": pa.array([target] * count, pa.string()),
            "label": table["label"],
            "predicted": pa.array(np.where(probability >= 0.5, "true", "false"), pa.string()),
            "split": table["split"],
            "score": score,
            "baseline_score": baseline,
            "probability": probability,
            "completeness_residual": total - (score - baseline),
            "source": table["source"],
            "n_nodes": nodes,
            "n_steps": steps.astype(np.int32),
            "n_values": np.bincount(row, minlength=count).astype(np.int32),
            "history_minutes": table["history_minutes"],
            "anchor_minutes": table["anchor_minutes"],
            "strata": table["strata"],
        }
    ).cast(PREDICTIONS)
    return rows, predictions
