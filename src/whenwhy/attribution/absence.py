"""What not having a feature value adds: beside the population's rates, absence is a value like any other.

Against rates p_j a place (a step, or the static values) of an embedding's mean gradient g along the way has the
contributions (w_j - p_j) W_j . g of what it records and -p_j W_j . g of what it does not, W_j the first layer's row.
Over all feature values they sum to the score less the baseline's. The sum of the second over the places that lack j is
-p_j [W_j . sum of g over all places - sum of W_j . g over those that record j]: so one vector a cohort, and one number
a feature value, tell the mean for every feature value at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import torch

from whenwhy.attribution.baselines import RATES, Population, first_layer_rows
from whenwhy.attribution.registry import Method, registered_methods
from whenwhy.errors import UserError
from whenwhy.events.sequence_batch import EVENTS, STATIC, SequenceBatch
from whenwhy.models.sequence_model import Embedded, SequenceModel
from whenwhy.schema import FIRST_LAYER

if TYPE_CHECKING:
    from whenwhy.attribution.attribute import Attributions

#: Feature values whose rows of the first layer are asked for together.
ROWS_AT_ONCE = 8192


def require_absence_told(method: Method, baseline: str) -> None:
    """Raises `UserError` with the reason where a method, or a baseline, cannot say what absence adds."""
    if not method.tells_absence:
        telling = ", ".join(name for name, other in registered_methods().items() if other.tells_absence)
        raise UserError(
            f"The method '{method.name}' does not tell what the absence of a feature value adds, since its contributions "
            f"are not the way from the baseline times one gradient a step: use one of {telling}."
        )
    if baseline != RATES:
        raise UserError(
            f"The baseline '{baseline}' does not say how much of each feature value a step lacks, so the absence of one "
            f"adds nothing that could be told: use the baseline '{RATES}'."
        )


def absent_contributions(
    model: SequenceModel, batch: SequenceBatch, found: Attributions, population: Population, ids: torch.Tensor
) -> Embedded:
    """What not having each of some feature values adds: events [patient, step, id], static [patient, id].

    Not a number where the value is recorded, and in padding. Of all feature values that are not recorded, the sum is
    that of `found.absent`.

    Args:
        found: what `attribute(model, batch, baseline="rates", absence=True)` said.
        population: whose rates were the baseline.
        ids: [id] feature values.

    Raises:
        UserError: `found` was not asked for absence.

    Example: `absent_contributions(model, batch, found, population, torch.tensor([5]))["events"].nanmean((0, 1))`
    """
    if not found.gradients:
        raise UserError("These attributions do not tell absence: attribute with the baseline 'rates' and absence=True.")
    device = batch.lengths.device
    distinct, place = torch.unique(ids.long().to(device), return_inverse=True)
    column = torch.full((model.vocabulary_size,), -1, dtype=torch.int64, device=device)
    column[distinct] = torch.arange(len(distinct), device=device)
    true = batch.true_steps  # [patient, step]
    told = {}
    for name, rates in ((EVENTS, population.step_rates), (STATIC, population.static_rates)):
        bags = batch.streams[name]
        gradients = found.gradients[name].flatten(2 if name == EVENTS else 1).double()
        rows = first_layer_rows(model, name, distinct).double()  # [id, width]
        parts = -(gradients @ rows.T) * rates.to(device)[distinct].double()
        lacks = torch.ones(len(bags.offsets), len(distinct), dtype=torch.bool, device=device)
        asked = column[bags.ids.long()] >= 0
        lacks[bags.bag[asked], column[bags.ids.long()][asked]] = False
        lacks = lacks.view_as(parts) & true.unsqueeze(2) if name == EVENTS else lacks
        told[name] = parts.masked_fill(~lacks, torch.nan)[..., place]
    return told


def first_layer_table(model: SequenceModel, population: Population) -> pa.Table:
    """A table of `schema.FIRST_LAYER`: the rates, and the first layer's rows, of what training patients record."""
    parts = [FIRST_LAYER.empty_table()]
    for stream, rates in ((EVENTS, population.step_rates), (STATIC, population.static_rates)):
        for ids in torch.nonzero(rates).squeeze(1).split(ROWS_AT_ONCE):
            rows = first_layer_rows(model, stream, ids).float().cpu().numpy()
            columns = [ids.int().cpu().numpy(), [stream] * len(ids), rates[ids].cpu().numpy(), vectors(rows)]
            parts.append(pa.table(columns, names=FIRST_LAYER.names).cast(FIRST_LAYER))
    return pa.concat_tables(parts)


def vectors(rows: np.ndarray) -> pa.ListArray:
    """An array [row, width] as a column of lists.

    Example:
        >>> vectors(np.array([[1.0, 2.0]])).to_pylist()
        [[1.0, 2.0]]
    """
    return pa.ListArray.from_arrays(np.arange(len(rows) + 1, dtype=np.int32) * rows.shape[1], rows.ravel())
