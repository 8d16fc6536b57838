"""Any registered method, quick enough for a test of what holds however long a method learns."""

from __future__ import annotations

from typing import Any

from whenwhy.attribution import Attributions, attribute, fit_method, registered_methods
from whenwhy.events.sequence_batch import SequenceBatch
from whenwhy.models.sequence_model import SequenceModel

#: Options of methods that learn or draw. TIMING draws as by default: a value that never moves would get nothing.
QUICK: dict[str, dict[str, Any]] = {
    "augmented_occlusion": {"samples": 3},
    "amortised_mask": {"epochs": 2, "hidden": 4, "gap_epochs": 0},
    "expected_gradients": {"samples": 3},
    "extremal_mask": {"epochs": 12},
    "shapley": {"samples": 4},
    "relevance_dropout": {"runs": 3},
    "smooth_grad": {"samples": 3},
}


#: Methods that explain some models alone, and the name that tests give to one of these.
OWN_MODEL = {"attention": "additive", "retain_contributions": "retain"}

#: Methods that explain any model.
OF_ANY_MODEL = [name for name in registered_methods() if name not in OWN_MODEL]


def explained(
    model: SequenceModel, batch: SequenceBatch, sample: SequenceBatch, *, method: str, **asked: Any
) -> Attributions:
    """`attribute`; a method that must be fitted first is fitted on `sample`."""
    options, fitted = QUICK.get(method), None
    if registered_methods()[method].fit is not None:
        fitted = fit_method(model, [sample], method=method, options=options, **asked)
    return attribute(model, batch, method=method, options=options, fitted=fitted, **asked)
