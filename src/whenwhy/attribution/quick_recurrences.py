"""GRU and LSTM layers on the processor, with the way back written out: torch's own gradients, in less time.

Steps work in place, the weights are constants, and a first layer projects a record once for all places of a walk,
there and back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from whenwhy.attribution.recurrences import GRU, LSTM, CellWeights, RecurrentCall
from whenwhy.attribution.walks import Walk
from whenwhy.errors import UserError

#: Below so many numbers of a step's state, torch's own layer is the quicker one: measured with 2 threads, hidden 32 to 128.
LEAST_STATE = {GRU: 4096, LSTM: 32768}

States = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Reading:
    """In which order a layer reads rows that may end early, step by step.

    Attributes:
        rows: of each step, not growing.
        backwards: the last step is read first.
    """

    rows: tuple[int, ...]
    backwards: bool

    def places(self) -> range:
        """The steps in the order of reading."""
        return range(len(self.rows))[::-1] if self.backwards else range(len(self.rows))

    def parts(self, flat: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Each step's own [row, ...] of what is kept of all steps: [step, row, ...], or [step * row, ...] one after another."""
        return flat.unbind(0) if flat.ndim == 3 else flat.split(self.rows)

    def shape(self, width: int) -> tuple[int, ...]:
        """Of what is kept of all steps."""
        rows = self.rows
        return (sum(rows), width) if rows[-1] < rows[0] else (len(rows), rows[0], width)

    def before(self, place: int, kept: Sequence[torch.Tensor], start: torch.Tensor) -> torch.Tensor:
        """What stands before a step is read [row, ...]: the start, or what was kept of the step read before."""
        rows, previous = self.rows[place], place + 1 if self.backwards else place - 1
        known = kept[previous] if 0 <= previous < len(self.rows) else start
        if len(known) == rows:
            return known
        return known[:rows] if len(known) > rows else torch.cat([known, start[len(known) : rows]])


class Gru:
    """Cho et al. 2014, in torch's convention. Gates: reset, update. Aside: what the state projects to for the new one."""

    n_gates = 2

    def __init__(self, weights: CellWeights) -> None:
        hidden = self.hidden = weights.hidden
        inputs, states = weights.inputs.detach(), weights.states.detach()
        bias, state_bias = weights.input_bias.detach(), weights.state_bias.detach()
        gates = 2 * hidden
        self.input_gates, self.input_new = inputs[:gates], inputs[gates:]
        self.state_gates, self.state_new = states[:gates], states[gates:]
        self.bias_gates, self.bias_new = bias[:gates] + state_bias[:gates], bias[gates:]
        self.state_bias = state_bias[gates:]

    def step(self, before: States, after: States, gates: torch.Tensor, new: torch.Tensor, aside: torch.Tensor) -> None:
        """The states after a step; the projected input in `gates` and `new` becomes what they are, `aside` is filled."""
        hidden = self.hidden
        gates.addmm_(before[0], self.state_gates.t()).sigmoid_()
        aside.copy_(self.state_bias).addmm_(before[0], self.state_new.t())
        new.addcmul_(gates[:, :hidden], aside).tanh_()
        torch.lerp(new, before[0], gates[:, hidden:], out=after[0])

    def back(
        self, before: States, slopes: States, gates: torch.Tensor, new: torch.Tensor, aside: torch.Tensor
    ) -> States:
        """The gradients of the states before; in `gates` and `new` stand then those of the projected input."""
        hidden, (slope,) = self.hidden, slopes
        reset, update = gates[:, :hidden], gates[:, hidden:]
        found = update * slope
        by_gate = torch.empty_like(gates)
        torch.sub(before[0], new, out=by_gate[:, hidden:]).mul_(slope)
        torch.ops.aten.tanh_backward(slope - found, new, grad_input=new)
        torch.mul(new, aside, out=by_gate[:, :hidden])
        torch.mul(new, reset, out=aside)
        torch.ops.aten.sigmoid_backward(by_gate, gates, grad_input=gates)
        return (found.addmm_(gates, self.state_gates).addmm_(aside, self.state_new),)


class Lstm:
    """Hochreiter and Schmidhuber 1997, with forget gates (Gers et al. 2000). Gates: input, forget, output.

    Aside: tanh of the memory.
    """

    n_gates = 3

    def __init__(self, weights: CellWeights) -> None:
        hidden = self.hidden = weights.hidden

        def divided(whole: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            of_input, of_forget, of_cell, of_output = whole.detach().split(hidden)
            return torch.cat([of_input, of_forget, of_output]), of_cell

        self.input_gates, self.input_new = divided(weights.inputs)
        self.state_gates, self.state_new = divided(weights.states)
        self.bias_gates, self.bias_new = divided(weights.input_bias + weights.state_bias)

    def step(self, before: States, after: States, gates: torch.Tensor, new: torch.Tensor, aside: torch.Tensor) -> None:
        """As of `Gru`."""
        gates.addmm_(before[0], self.state_gates.t()).sigmoid_()
        new.addmm_(before[0], self.state_new.t()).tanh_()
        of_input, of_forget, of_output = gates.split(self.hidden, dim=1)
        torch.mul(of_forget, before[1], out=after[1]).addcmul_(of_input, new)
        torch.tanh(after[1], out=aside)
        torch.mul(of_output, aside, out=after[0])

    def back(
        self, before: States, slopes: States, gates: torch.Tensor, new: torch.Tensor, aside: torch.Tensor
    ) -> States:
        """As of `Gru`."""
        of_input, of_forget, of_output = gates.split(self.hidden, dim=1)
        slope, memory_slope = slopes
        by_gate = torch.empty_like(gates)
        by_input, by_forget, by_output = by_gate.split(self.hidden, dim=1)
        torch.mul(slope, aside, out=by_output)
        memory_slope = torch.ops.aten.tanh_backward(slope * of_output, aside).add_(memory_slope)
        torch.mul(memory_slope, new, out=by_input)
        torch.mul(memory_slope, before[1], out=by_forget)
        torch.ops.aten.tanh_backward(memory_slope * of_input, new, grad_input=new)
        memory_slope.mul_(of_forget)
        torch.ops.aten.sigmoid_backward(by_gate, gates, grad_input=gates)
        return (gates @ self.state_gates).addmm_(new, self.state_new), memory_slope


Cell = Gru | Lstm


class Projected:
    """What a layer's inputs [step * row, input] say to its gates and new states, of all steps.

    Steps overwrite it with what gates and new states are, and the way back with gradients.
    """

    def __init__(self, cell: Cell, reading: Reading, x: torch.Tensor) -> None:
        self.cell = cell
        self.gates = torch.addmm(cell.bias_gates, x, cell.input_gates.t())
        self.new = torch.addmm(cell.bias_new, x, cell.input_new.t())
        self.parts = list(zip(reading.parts(self.gates), reading.parts(self.new), strict=True))

    def at(self, place: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A step's gates [row, gate * hidden] and new states [row, hidden]."""
        return self.parts[place]

    def slopes(self) -> torch.Tensor:
        """The gradients of the inputs, when those of all steps stand in their places."""
        return (self.gates @ self.cell.input_gates).addmm_(self.new, self.cell.input_new)


class ProjectedWalk(Projected):
    """The same of a walk's places, from the projections of the ways [step * record, input] alone."""

    def __init__(self, cell: Cell, reading: Reading, x: torch.Tensor, walk: Walk) -> None:
        self.cell, self.shares = cell, walk.shares
        at, n_steps = walk.at.view(-1, 1), len(reading.rows)
        begin = None if walk.begin is None else walk.begin.transpose(0, 1).flatten(0, 1)

        def placed(inputs: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
            way = (x @ inputs.t()).view(n_steps, 1, -1)
            base = bias.repeat(len(x) // n_steps) if begin is None else torch.addmm(bias, begin, inputs.t())
            return torch.addcmul(base.view(-1, 1, way.shape[2]), at, way)

        def flat(every: torch.Tensor, width: int) -> tuple[torch.Tensor, ...]:
            return every.view(n_steps, -1, width).unbind(0)

        self.gates = placed(cell.input_gates, cell.bias_gates)  # [step, node, record * gate * hidden]
        self.new = placed(cell.input_new, cell.bias_new)
        width = cell.hidden
        self.parts = list(zip(flat(self.gates, cell.n_gates * width), flat(self.new, width), strict=True))

    def slopes(self) -> torch.Tensor:
        """The mean gradients that come back to the ways."""
        gates, new = (
            torch.matmul(self.shares, of).view(-1, width)
            for of, width in ((self.gates, self.cell.n_gates * self.cell.hidden), (self.new, self.cell.hidden))
        )
        return (gates @ self.cell.input_gates).addmm_(new, self.cell.input_new)


class _Layer(torch.autograd.Function):
    """One layer in one direction: (inputs [step * row, input], start) -> each step's states.

    They are [step, row, hidden], or [step * row, hidden] where rows end early. Of a walk the inputs are its ways [step *
    record, input]. Of `own` steps the states before are constants.
    """

    @staticmethod
    def forward(
        ctx: Any, cell: Cell, reading: Reading, walk: Walk | None, own: bool, x: torch.Tensor, *start: torch.Tensor
    ) -> States:
        inputs = Projected(cell, reading, x) if walk is None else ProjectedWalk(cell, reading, x, walk)
        shape = reading.shape(cell.hidden)
        *states, aside = (x.new_empty(shape) for _ in range(len(start) + 1))
        kept, asides = [reading.parts(of) for of in states], reading.parts(aside)
        for place in reading.places():
            before = tuple(reading.before(place, of, first) for of, first in zip(kept, start, strict=True))
            cell.step(before, tuple(of[place] for of in kept), *inputs.at(place), asides[place])
        ctx.cell, ctx.reading, ctx.own, ctx.inputs, ctx.aside = cell, reading, own, inputs, aside
        ctx.save_for_backward(*start, *states)
        ctx.set_materialize_grads(False)
        return tuple(states)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *given: torch.Tensor | None) -> tuple[Any, ...]:
        cell, reading, inputs = ctx.cell, ctx.reading, ctx.inputs
        if inputs is None:
            raise RuntimeError("A quick recurrent layer goes back once: its gradients overwrite what it had kept.")
        ctx.inputs = None
        both = ctx.saved_tensors
        start, states = both[: len(both) // 2], both[len(both) // 2 :]
        kept, asides = [reading.parts(of) for of in states], reading.parts(ctx.aside)
        told = [None if of is None else reading.parts(of) for of in given]
        first = tuple(torch.zeros_like(of) for of in start)
        carried = tuple(of[:0] for of in start)
        for place in reversed(reading.places()):
            rows = reading.rows[place]
            slopes = []
            for of, here, began in zip(told, carried, first, strict=True):
                if len(here) > rows:  # the others begin after this step
                    began[rows : len(here)] = here[rows:]
                    here = here[:rows]
                if len(here) < rows:
                    here = torch.cat([here, here.new_zeros(rows - len(here), cell.hidden)])
                slopes.append(here if of is None else here + of[place])
            before = tuple(reading.before(place, of, begin) for of, begin in zip(kept, start, strict=True))
            carried = cell.back(before, tuple(slopes), *inputs.at(place), asides[place])
            if ctx.own:
                carried = tuple(of[:0] for of in start)
        for began, slope in zip(first, carried, strict=True):
            began[: len(slope)] = slope
        return None, None, None, None, inputs.slopes(), *first


def answered(call: RecurrentCall, walk: Walk | None = None, own: bool = False) -> tuple[Any, ...]:
    """What torch answers to the call, with gradients in inputs and start alone.

    Args:
        own: the gradient of a step's states reaches this step's input alone, as if the states before were constants.
        walk: whose places are meant where the call's steps are of its ways; None: the steps themselves.
    """
    nodes = 1 if walk is None else len(walk.at)
    rows = tuple(nodes * len(given) for given in call.steps)
    inputs = torch.cat(list(call.steps))
    last: list[States] = []
    for layer in call.cells:
        by_direction = []
        for direction, weights in enumerate(layer):
            cell = (Lstm if weights.kind == LSTM else Gru)(weights)
            reading = Reading(rows, direction == 1)
            start = tuple(of[len(last)] for of in call.start)
            found = _Layer.apply(cell, reading, walk, own, inputs, *start)  # type: ignore[no-untyped-call]
            by_direction.append(found[0])
            last.append(tuple(_ends(reading, of) for of in found))
        states, walk = by_direction[0] if len(layer) == 1 else torch.cat(by_direction, dim=-1), None
        inputs = states.flatten(0, -2)
    if states.ndim < 3:
        return call.answered(states.split(rows), last)
    whole = states.flatten(0, 1) if call.packed else states.transpose(0, 1) if call.batch_first else states
    return whole, *(torch.stack([of[at] for of in last]) for at in range(len(call.start)))


def _ends(reading: Reading, states: torch.Tensor) -> torch.Tensor:
    """Each row's state when all of it has been read [row, hidden]."""
    parts, rows = reading.parts(states), reading.rows
    if reading.backwards or rows[-1] == rows[0]:
        return parts[0 if reading.backwards else -1]
    ended = [part[after:] for part, after in zip(parts, [*rows[1:], 0], strict=True)]
    return torch.cat(ended[::-1])


class QuickRecurrences(torch.overrides.TorchFunctionMode):
    """While it is entered, the recurrent layers of any network that have a gradient are computed here.

    Layers on another device, in training with dropout, of other numbers than float32 and float64, small ones, and
    calls that follow a rule are torch's.

    Args:
        own_steps: each step's states have a gradient in this step's input alone; then all layers are computed here.
    """

    def __init__(self, own_steps: bool = False) -> None:
        super().__init__()
        self.own_steps = own_steps

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        if function in (torch.gru, torch.lstm) and torch.is_grad_enabled():
            found = _quickly(function, arguments, self.own_steps)
            if found is not None:
                return found
        return function(*arguments, **(named or {}))


def _quickly(function: Any, arguments: Sequence[Any], own: bool) -> tuple[Any, ...] | None:
    """The answer to a call that is to be computed here; None: it is not."""
    data, *others = arguments
    walk = data if isinstance(data, Walk) else None
    if walk is not None:
        data = walk.way
    if own:
        return answered(RecurrentCall.of(function, [data, *others]), walk, own)
    if not all(type(tensor) in (torch.Tensor, torch.nn.Parameter) for tensor in _tensors([data, *others])):
        return None
    if data.device.type != "cpu" or data.dtype not in (torch.float32, torch.float64) or not data.numel():
        return None
    try:
        call = RecurrentCall.of(function, [data, *others])
    except UserError:  # torch knows layers that this package does not
        return None
    state = call.start[0][0]
    return None if call.dropout or state.numel() < LEAST_STATE[call.kind] else answered(call, walk)


def _tensors(told: Any) -> Iterator[torch.Tensor]:
    if isinstance(told, torch.Tensor):
        yield told
    elif isinstance(told, tuple | list):
        for one in told:
            yield from _tensors(one)
