"""Augmented occlusion: what the score loses when a value is replaced by what other patients have there.

Tonekaboni, Joshi, Campbell, Duvenaud and Goldenberg, "What went wrong and when?", NeurIPS 2020, section 4, where it is
a method to compare with; with the difference's sign, and draws at the same distance from the prediction.
"""

from __future__ import annotations

import torch

from whenwhy.attribution.baselines import references_beside
from whenwhy.attribution.players import CODE_CELL, Players, recorded, scores_without, value_ways
from whenwhy.attribution.question import Question
from whenwhy.attribution.registry import Explanation, method
from whenwhy.errors import UserError

#: Draws of references begin at this stream.
REFERENCES = 1 << 17


@method(
    "perturbation",
    "what the score loses when a code's values in a step are another patient's at the same distance; not complete",
    laws={"alone_equals_batched", "dummy"},
    needs_population=lambda options: True,
    compares_with=lambda baseline: "other patients",
)
def augmented_occlusion(question: Question, *, samples: int = 16) -> Explanation:
    """The score of the record less its mean score with all values of a code in a step replaced by a training patient's.

    A feature is a code here, and its values in a step share what the score loses equally. The replacement is what
    a drawn training record holds of the same code at the same distance from the prediction, counted in steps: often
    nothing. Static values are replaced by the drawn record's of the same code. The baseline plays no part, and absence
    is not told of. The spread is the standard error of the mean over draws.

    Args:
        samples: training records drawn for each prediction, at least 2.

    Raises:
        UserError: no training records, fewer than 2 samples, or a model that averages the values of a step.
    """
    population = question.population
    if population is None or population.references is None or not len(population.references):
        raise UserError(
            "Augmented occlusion draws from records of training patients: give a population with references."
        )
    if samples < 2:
        raise UserError(f"Augmented occlusion draws at least 2 records a prediction: samples={samples} is too few.")
    if getattr(question.model, "mean", False):
        raise UserError(
            "The model averages the values of a step, so one cannot be replaced by several: use the method occlusion."
        )
    references = population.references
    own, theirs = (
        value_ways(question.model, batch, {name: bags.weights for name, bags in batch.streams.items()})
        for batch in (question.batch, references)
    )
    players = Players(question, CODE_CELL, items=recorded(question.batch, own))
    total, square = (torch.zeros(len(players), dtype=torch.float64, device=players.patient.device) for _ in range(2))
    for sample in range(samples):
        drawn = (question.draws.uniform(REFERENCES + sample, (len(question), 1))[:, 0] * len(references)).long()
        other = references_beside(question.batch, references, drawn)
        ways = {name: theirs[name][torch.as_tensor(bags.at)] for name, bags in other.streams.items()}
        replaced = scores_without(players, instead=players.beside(recorded(other, ways)))
        lost = (question.score[players.patient] - replaced).double()
        total += lost
        square += lost.square()
    mean = total / samples
    error = ((square / samples - mean.square()).clamp(min=0) / (samples - 1)).sqrt()
    return Explanation(
        players.contributions(mean.to(question.score)),
        (samples * players.count + 1).int(),
        spread=players.contributions(error.to(question.score)),
    )
