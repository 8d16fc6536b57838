"""Masks the slow way: one record at a time, values in lists, cells written out, Adam from its paper, float64.

Enguehard, ICML 2023, equation 2; Kingma and Ba, "Adam", ICLR 2015, algorithm 1. Imports nothing from the package.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

Weights = dict[str, torch.Tensor]


def gru_states(x: list[torch.Tensor], w_in: torch.Tensor, b_in: torch.Tensor, w_h: torch.Tensor, b_h: torch.Tensor,
               start: torch.Tensor) -> list[torch.Tensor]:  # fmt: skip
    """The states after each step, in torch's convention; weights are [3 * hidden, input]."""
    states, h = [], start
    for one in x:
        a, b = (w_in @ one + b_in).chunk(3), (w_h @ h + b_h).chunk(3)
        r, z = torch.sigmoid(a[0] + b[0]), torch.sigmoid(a[1] + b[1])
        h = (1 - z) * torch.tanh(a[2] + r * b[2]) + z * h
        states.append(h)
    return states


def perturbation(x: list[torch.Tensor], networks: Weights) -> list[torch.Tensor]:
    """What a bidirectional GRU and a linear layer make of each step."""
    both = []
    for direction, seen in enumerate((x, x[::-1])):
        w = {name: tensor[direction] for name, tensor in networks.items() if not name.startswith("head")}
        start = torch.zeros(w["states"].shape[0], dtype=torch.float64)
        states = gru_states(seen, w["inputs"].T, w["input_bias"][0], w["states"].T, w["state_bias"][0], start)
        both.append(states if direction == 0 else states[::-1])
    return [
        torch.cat([forwards, backwards]) @ networks["head"] + networks["head_bias"][0]
        for forwards, backwards in zip(*both, strict=True)
    ]


def adam(
    objective: Callable[[], torch.Tensor],
    masks: list[torch.Tensor],
    others: list[torch.Tensor],
    epochs: int,
    rate: float,
) -> None:
    """Changes masks, kept in [0, 1], and others in place."""
    moving = [tensor.requires_grad_() for tensor in masks + others]
    first, second = [torch.zeros_like(t) for t in moving], [torch.zeros_like(t) for t in moving]
    for t in range(1, epochs + 1):
        gradients = torch.autograd.grad(objective(), moving, materialize_grads=True)
        with torch.no_grad():
            for at, gradient in enumerate(gradients):
                first[at] = 0.9 * first[at] + 0.1 * gradient
                second[at] = 0.999 * second[at] + 0.001 * gradient**2
                corrected = first[at] / (1 - 0.9**t)
                moving[at] -= rate * corrected / ((second[at] / (1 - 0.999**t)).sqrt() + 1e-8)
            for mask in masks:
                mask.clamp_(0, 1)
    for tensor in moving:
        tensor.requires_grad_(False)


def bag_masks(
    parameters: Weights,
    events: list[tuple[int, int]],
    static: list[int],
    n_steps: int,
    networks: Weights,
    *,
    deletion: bool,
    epochs: int,
    l1: float,
    l2: float,
    rate: float = 0.01,
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """The masks of the values (step, id) of a record and of its static ids, and the objective they reach."""
    tables = parameters["tables.events"], parameters["tables.static"]
    hidden = tables[0].shape[1]

    def score(steps: list[torch.Tensor], of_static: torch.Tensor) -> torch.Tensor:
        start = torch.tanh(of_static)
        names = ("weight_ih_l0", "bias_ih_l0", "weight_hh_l0", "bias_hh_l0")
        last = gru_states(steps, *(parameters[f"cell.{name}"] for name in names), start)[-1] if steps else start
        return parameters["head.weight"][0] @ torch.cat([last, of_static]) + parameters["head.bias"][0]

    zero = torch.zeros(hidden, dtype=torch.float64)
    record = [sum((tables[0][i] for t, i in events if t == step), zero) for step in range(n_steps)]
    own_static = sum((tables[1][i] for i in static), zero)
    wanted = score([zero] * n_steps, zero) if deletion else score(record, own_static)
    masks = [torch.full((len(values),), 0.5, dtype=torch.float64) for values in (events, static)]
    free = torch.zeros(hidden, dtype=torch.float64)

    def objective() -> torch.Tensor:
        kept = [1 - mask if deletion else mask for mask in masks]
        made = perturbation(record, networks) if record else []
        mixed = []
        for step in range(n_steps):
            mine = [at for at, (t, _) in enumerate(events) if t == step]
            here = sum((kept[0][at] * tables[0][events[at][1]] for at in mine), zero)
            if mine:
                here = here + sum(1 - kept[0][at] for at in mine) / len(mine) * made[step]
            mixed.append(here)
        of_static = sum((kept[1][at] * tables[1][i] for at, i in enumerate(static)), zero)
        if static:
            of_static = of_static + (1 - kept[1]).mean() * free
        size = sum((one.abs().sum() for one in made), free.abs().sum()) / (hidden * (n_steps + 1))
        both = torch.cat(masks)
        return (score(mixed, of_static) - wanted) ** 2 + l1 * (both.mean() if len(both) else both.sum()) + l2 * size

    adam(objective, masks, [*networks.values(), free], epochs, rate)
    return masks[0], masks[1], float(objective())


def dense_masks(
    forward: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    baseline: torch.Tensor,
    networks: Weights,
    *,
    deletion: bool,
    epochs: int,
    l1: float,
    l2: float,
    rate: float = 0.01,
) -> torch.Tensor:
    """The paper's own form, of an input [time, feature]: a mask for each cell, all outputs compared."""
    mask = torch.full_like(x, 0.5)
    wanted = forward((baseline if deletion else x).unsqueeze(0)).flatten()

    def objective() -> torch.Tensor:
        made = torch.stack(perturbation(list(x), networks))
        kept = 1 - mask if deletion else mask
        mixed = kept * x + (1 - kept) * (baseline + made)
        outputs = forward(mixed.unsqueeze(0)).flatten()
        return ((outputs - wanted) ** 2).mean() + l1 * mask.mean() + l2 * made.abs().mean()

    adam(objective, [mask], list(networks.values()), epochs, rate)
    return mask


def amortised_masks(
    fitted: Weights,
    parameters: Weights,
    events: list[tuple[int, int]],
    static: list[int],
    n_steps: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The masks that a fitted network predicts for the values of a record."""
    tables = parameters["tables.events"], parameters["tables.static"]
    hidden = tables[0].shape[1]
    zero = torch.zeros(hidden, dtype=torch.float64)
    record = [sum((tables[0][i] for t, i in events if t == step), zero) for step in range(n_steps)]
    own_static = sum((tables[1][i] for i in static), zero)
    x = []
    for at, step in enumerate(record):
        place = torch.tensor([1 / (at + 1), 1 / (n_steps - at)], dtype=torch.float64)
        x.append(torch.cat([(torch.cat([step, own_static]) - fitted["middle"]) / fitted["spread"], place]))
    width = fitted["cell.weight_hh_l0"].shape[1]
    both = []
    for way in ("", "_reverse"):
        names = ("weight_ih_l0", "bias_ih_l0", "weight_hh_l0", "bias_hh_l0")
        w = [fitted[f"cell.{name}{way}"] for name in names]
        states = gru_states(x[::-1] if way else x, *w, torch.zeros(width, dtype=torch.float64))
        both.append(states[::-1] if way else states)
    states = [torch.cat(pair) for pair in zip(*both, strict=True)]
    of_events = []
    for step, value in events:
        told = fitted["of_step.weight"] @ states[step] + fitted["of_step.bias"]
        of_events.append((0.5 + told[:hidden] @ tables[0][value] + told[2 * hidden]).clamp(0, 1))
    mean = sum(states, torch.zeros(2 * width, dtype=torch.float64)) / max(1, n_steps)
    own = (own_static - fitted["middle"][hidden:]) / fitted["spread"][hidden:]
    told = fitted["of_record.weight"] @ torch.cat([mean, own]) + fitted["of_record.bias"]
    of_static = [(0.5 + told[:hidden] @ tables[1][value] + told[2 * hidden]).clamp(0, 1) for value in static]
    none = torch.zeros(0, dtype=torch.float64)
    return torch.stack(of_events) if of_events else none, torch.stack(of_static) if of_static else none
