"""Numbers of values: where the values of a stream stand, and what each contributes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from whenwhy.models.sequence_model import Embedded

#: A number a value of a stream: [value].
PerValue = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Values:
    """Where the values of a stream stand.

    Attributes:
        patient, step: [value] int64; step is 0 for static values.
        id: [value] feature value.
    """

    patient: torch.Tensor
    step: torch.Tensor
    id: torch.Tensor


@dataclass(frozen=True)
class Contributions:
    """A number for each value, and for what is absent.

    Attributes:
        values: a tensor [value] a stream, in the order of the batch's.
        absent: of everything that a step does not record and the baseline does, events [patient, step],
            static [patient]; empty where the baseline records nothing.
    """

    values: PerValue
    absent: Embedded
