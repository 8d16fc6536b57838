"""Expected gradients (GradientSHAP): integrated gradients whose baselines are drawn from the population.

Erion, Janizek, Sturmfels, Lundberg and Lee, "Improving performance of deep learning models with axiomatic attribution
priors and expected gradients", Nature Machine Intelligence 2021, equation 3.
"""

from __future__ import annotations

import torch

from whenwhy.attribution.averages import Average
from whenwhy.attribution.baselines import EMPTY, REFERENCE
from whenwhy.attribution.question import Question
from whenwhy.attribution.registry import Explanation, method
from whenwhy.errors import UserError

#: The stream of random numbers that say how far along the path.
PLACES = 1 << 20


@method(
    "gradients",
    "integrated gradients against baselines drawn from training patients, a random place on the path of each",
    laws={"zero_on_padding", "alone_equals_batched", "dummy", "symmetry"},
    tells_absence=True,
    needs_population=lambda options: True,
    compares_with=lambda baseline: REFERENCE if baseline == EMPTY else baseline,
)
def expected_gradients(question: Question, *, samples: int = 16) -> Explanation:
    """The mean over draws of (record - reference) times the gradient at a random place between the two.

    The baseline "empty" names none that could be drawn, so references are drawn as for "reference"; against "rates"
    or "carried_forward", which are not drawn, only the places are.

    Given the references, the mean over places sums to the score less the mean of the references' scores. That mean
    is told as the baseline's score: the attributions are then complete but for the places' own chance, while
    against any other number the chance of the references would be added to the residual.

    Raises:
        UserError: no samples, or no reference records.
    """
    if samples < 1:
        raise UserError(f"expected_gradients needs at least 1 of samples, not {samples}.")
    place = question.draws.uniform(PLACES, (len(question), samples)).to(question.lengths.device)  # [patient, sample]
    average, total = Average(), torch.zeros_like(question.score)
    mean = {name: torch.zeros_like(record) for name, record in question.embedded.items()}
    for draw in range(samples):
        beside = question.beside_reference(draw)
        total += beside.baseline_score
        between = {}
        for name, record in question.embedded.items():
            share = place[:, draw].to(record).view(-1, *[1] * (record.ndim - 1))
            between[name] = torch.lerp(beside.baseline[name], record, share)
        gradients = question.gradients_at(between)
        average.add(beside.contributions(gradients))
        for name, gradient in gradients.items():
            mean[name] += gradient / samples
    return Explanation(
        average.mean,
        question.evaluations(samples),
        spread=average.standard_error,
        baseline_score=total / samples,
        gradients=mean,
    )
