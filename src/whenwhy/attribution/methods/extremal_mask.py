"""A mask learned for each record: which of its values its prediction needs.

Enguehard, "Learning perturbations to explain time series predictions", ICML 2023, equation 2.
"""

from __future__ import annotations

import torch

from whenwhy.attribution.masks import PRESERVATION, SQUARED, MaskGame, descend, objective_of, shown
from whenwhy.attribution.perturbation_networks import PerturbationNetworks
from whenwhy.attribution.question import Question
from whenwhy.attribution.registry import Explanation, method


@method(
    "learned",
    "how much of each value its prediction needs, in [0, 1], by a mask learned for each record: for samples",
    laws={"zero_on_padding", "alone_equals_batched", "symmetry", "share"},
    measures="share",
)
def extremal_mask(
    question: Question,
    *,
    mode: str = PRESERVATION,
    loss: str = SQUARED,
    epochs: int = 500,
    l1: float = 1.0,
    l2: float = 1.0,
    learning_rate: float = 0.01,
    perturb: bool = True,
) -> Explanation:
    """A mask for each value, and a perturbation that takes the place of what it leaves out, learned together.

    Minimised for each record: loss(f(mixed), wanted) + l1 mean(mask) + l2 mean|perturbation|, see `MaskGame`.
    Attributions are the masks: not signed, and not complete. What it is worth is told as the note "objective".

    Args:
        mode: "preservation" wants the record's own outputs, "deletion" the baseline's.
        loss: "squared" or "cross_entropy".
        epochs: steps of Adam, a forward and a backward pass of the model each.
        l1, l2: l2 is in units of the embeddings.
        perturb: False: what is left out becomes the baseline.
    """
    game = MaskGame(question, mode, loss, l1, l2)
    question.require_affordable(question.evaluations(epochs), "take fewer epochs, or amortised_mask")
    masks = game.masks(0.5)
    if perturb:
        networks = PerturbationNetworks(question)
        descend(game, masks, networks, networks.parameters, epochs, learning_rate)
        with torch.no_grad():
            made = networks()
    else:
        made = {name: torch.zeros_like(tensor) for name, tensor in question.embedded.items()}
        descend(game, masks, lambda: made, [], epochs, learning_rate)
    contributions, objective = shown(game, masks), objective_of(game, masks, made)
    return Explanation(contributions, question.evaluations(epochs + 1), notes={"objective": objective})
