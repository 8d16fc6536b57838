"""The perturbation network of each record: many small networks that learn side by side, none from another's record."""

from __future__ import annotations

import math

import torch

from whenwhy.attribution.question import Question
from whenwhy.events.sequence_batch import EVENTS, STATIC
from whenwhy.models.sequence_model import Embedded

#: The most states a direction has: the paper has as many as features, of which it has 3 to 50. Every record has
#: weights of its own, about eight times states times features.
WIDEST = 16

#: Which draws of a prediction become weights.
DRAWS = 7001


class PerturbationNetworks:
    """A bidirectional GRU and a linear layer for the events of each record, and a vector for its static values.

    Enguehard, ICML 2023, section 3.2, shares one network among the records of a batch, so that what is said of a
    record depends on its neighbours. Here each has its own, whose first weights are its own draws, uniform within
    1 / sqrt(fan-in) as torch has them. The static values are one vector, of which a network could make any other:
    that vector is learned itself.

    Attributes:
        parameters: [patient, ...] each; those of the two directions lie side by side, [2 * patient, ...].
    """

    def __init__(self, question: Question) -> None:
        events, static = question.embedded[EVENTS], question.embedded[STATIC]
        self.question = question
        self.x = events.flatten(2)  # [patient, step, width]
        patients, width = len(self.x), self.x.shape[2]
        hidden = self.hidden = min(width, WIDEST)
        near, far = 1 / math.sqrt(hidden), 1 / math.sqrt(2 * hidden)
        shapes = {
            "inputs": ((2, width, 3 * hidden), near),
            "input_bias": ((2, 1, 3 * hidden), near),
            "states": ((2, hidden, 3 * hidden), near),
            "state_bias": ((2, 1, 3 * hidden), near),
            "head": ((2 * hidden, width), far),
            "head_bias": ((1, width), far),
        }
        sizes = [math.prod(shape) for shape, _ in shapes.values()]
        drawn = 2 * question.draws.uniform(DRAWS, (patients, sum(sizes))).to(self.x) - 1
        self.weights = {}
        for (name, (shape, most)), part in zip(shapes.items(), drawn.split(sizes, dim=1), strict=True):
            weight = most * part.view(patients, *shape)
            if shape[0] == 2 and len(shape) == 3:
                weight = weight.transpose(0, 1).flatten(0, 1)  # [direction * patient, ...]
            self.weights[name] = weight.contiguous()
        self.static = torch.zeros_like(static)
        self.parameters = [*self.weights.values(), self.static]
        step = torch.arange(self.x.shape[1], device=self.x.device)
        lengths = question.lengths.unsqueeze(1)
        # Each record turned within its own length; turning it again puts it right.
        self.turned = torch.where(step < lengths, lengths - 1 - step, step).unsqueeze(2)  # [patient, step, 1]

    def __call__(self) -> Embedded:
        """What the networks make of the records, shaped as the embeddings; padding says nothing."""
        w, patients = self.weights, len(self.x)
        both = torch.cat([self.x, self.x.gather(1, self.turned.expand_as(self.x))])  # [2 * patient, step, width]
        projected = torch.baddbmm(w["input_bias"], both, w["inputs"])  # [2 * patient, step, 3 * hidden]
        state = projected.new_zeros(2 * patients, 1, self.hidden)
        states = []
        for of_input in projected.split(1, dim=1):
            of_state = torch.baddbmm(w["state_bias"], state, w["states"])
            gates = torch.sigmoid(of_input[..., : 2 * self.hidden] + of_state[..., : 2 * self.hidden])
            reset, update = gates.chunk(2, dim=2)
            new = torch.tanh(of_input[..., 2 * self.hidden :] + reset * of_state[..., 2 * self.hidden :])
            state = torch.lerp(new, state, update)
            states.append(state)
        forwards, backwards = torch.cat(states, dim=1).chunk(2)  # [patient, step, hidden] each
        backwards = backwards.gather(1, self.turned.expand_as(backwards))
        made = torch.baddbmm(w["head_bias"], torch.cat([forwards, backwards], dim=2), w["head"])
        return {EVENTS: made.view_as(self.question.embedded[EVENTS]), STATIC: self.static}
