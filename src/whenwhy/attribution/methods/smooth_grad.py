"""SmoothGrad: the slope's mean around the record, times the way.

Smilkov, Thorat, Kim, Viégas and Wattenberg, "SmoothGrad: removing noise by adding noise", arXiv 1706.03825, section 2.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from whenwhy.attribution.averages import Average
from whenwhy.attribution.baselines import first_layer_rows
from whenwhy.attribution.question import Question
from whenwhy.attribution.registry import Explanation, method
from whenwhy.errors import UserError
from whenwhy.events.sequence_batch import EVENTS, STATIC
from whenwhy.models.sequence_model import Embedded
from whenwhy.schema import EVERYTHING_ABSENT

#: Rows of a first layer that are looked at together.
ROWS_AT_ONCE = 8192

#: The streams of random numbers.
STREAMS = {EVENTS: 0, STATIC: 1}


@method(
    "gradients",
    "the slope's mean over noise in all feature values, times the way from the baseline: not complete",
    laws={"linearity", "zero_on_padding", "alone_equals_batched", "dummy", "symmetry"},
    tells_absence=True,
)
def smooth_grad(question: Question, *, samples: int = 25, sigma: float = 0.02) -> Explanation:
    """The mean of gradient times way, where every feature value, recorded or not, has noise of deviation sigma.

    The noise of a step is a vector e over the whole vocabulary. The model sees it through the first layer alone,
    as e W, which is normal with covariance sigma^2 W^T W: so drawing that in the embeddings, with as many numbers
    as they are wide, is the same as drawing e. Noise in the recorded weights alone would be another method, with
    less noise the less a step records. The embeddings' noise grows with the root of the vocabulary: of 10,000
    feature values, a sigma of 0.02 moves a step by as much as two values together would.

    Raises:
        UserError: no samples, a sigma below 0, or a model that averages the values of a step.
    """
    if samples < 1 or not sigma >= 0:
        raise UserError(f"smooth_grad needs at least 1 of samples and a sigma from 0, not {samples} and {sigma:g}.")
    average = Average()
    mean = {name: torch.zeros_like(record) for name, record in question.embedded.items()}
    for gradients in question.gradients_along(noisy(question, samples, sigma)):
        average.add(question.contributions(gradients))
        for name, gradient in gradients.items():
            mean[name] += gradient / samples
    return Explanation(average.mean, question.evaluations(samples), spread=average.standard_error, gradients=mean)


def noisy(question: Question, samples: int, sigma: float) -> Iterator[Embedded]:
    """The records' embeddings with noise, one sample at a time; padding has none."""
    question.require_finite()  # a first layer that is no number has no root
    # The root that is symmetric is the only one of its kind, so every device draws the same noise.
    roots = {name: symmetric_root(square) for name, square in table_squares(question).items()}
    true = question.true_steps
    for sample in range(samples):
        found = {}
        for name, record in question.embedded.items():
            root = roots[name]
            places = record.shape[1:2] if name == EVENTS else ()
            drawn = question.draws.normal(2 * sample + STREAMS[name], (len(question), *places, len(root)))
            noise = (drawn.to(root) @ root).to(record).view_as(record) * sigma
            if name == EVENTS:
                noise = noise * true.view(*true.shape, *[1] * (record.ndim - 2))
            found[name] = record + noise
        yield found


def table_squares(question: Question) -> dict[str, torch.Tensor]:
    """W^T W of each stream's first layer W [feature value, width], float64 [width, width].

    The feature value "everything absent" is never recorded, so it is in no sum.

    Raises:
        UserError: the model averages the values of a step.
    """
    model = question.model
    if getattr(model, "mean", False):
        raise UserError(
            "The model averages the values of a step, so values that are not recorded have no weight in it: "
            "use a method without noise in them, such as integrated_gradients."
        )
    found: dict[str, torch.Tensor] = {}
    for name in question.batch.streams:
        every = torch.arange(EVERYTHING_ABSENT + 1, model.vocabulary_size, device=question.lengths.device)
        for ids in every.split(ROWS_AT_ONCE):
            rows = first_layer_rows(model, name, ids).double()  # [value, width]
            found[name] = found.get(name, 0) + rows.T @ rows
    return found


def symmetric_root(square: torch.Tensor) -> torch.Tensor:
    """The symmetric R whose R R is a positive semidefinite matrix.

    Example:
        >>> symmetric_root(torch.tensor([[4.0, 0.0], [0.0, 9.0]]))
        tensor([[2., 0.],
                [0., 3.]])
    """
    values, vectors = torch.linalg.eigh(square)
    root: torch.Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return root
