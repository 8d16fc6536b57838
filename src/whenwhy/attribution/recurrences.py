"""The recurrent layers of any network, unrolled: what torch computes in one fused call, step by step.

The rules of `signals` reach every gate that way, whoever wrote the network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import linear

from whenwhy.errors import UserError
from whenwhy.events.sequence_batch import EVENTS
from whenwhy.models.sequence_model import Embedded, SequenceModel, logits_of

GRU, LSTM = "gru", "lstm"


@dataclass(frozen=True)
class CellWeights:
    """One layer and direction: to the gates, in torch's order (GRU: reset, update, new; LSTM: input, forget, cell, output)."""

    kind: str
    inputs: torch.Tensor  # [gate * hidden, input]
    states: torch.Tensor  # [gate * hidden, hidden]
    input_bias: torch.Tensor  # [gate * hidden]
    state_bias: torch.Tensor

    @property
    def hidden(self) -> int:
        """The width of the state."""
        return int(self.states.shape[1])


@dataclass(frozen=True)
class RecurrentCall:
    """A call of torch.gru or torch.lstm, its arguments by name.

    Attributes:
        steps: the input of each step [row, input]; rows do not grow from step to step.
        start: hidden (and for an LSTM cell) states [layer * direction, patient, hidden].
        cells: [layer][direction].
        dropout: between layers; 0 outside training.
    """

    kind: str
    steps: Sequence[torch.Tensor]
    start: tuple[torch.Tensor, ...]
    cells: Sequence[Sequence[CellWeights]]
    packed: bool
    batch_first: bool
    dropout: float = 0.0

    @classmethod
    def of(cls, function: Callable[..., Any], arguments: Sequence[Any]) -> RecurrentCall:
        """What a call says; both overloads, padded and packed, are told apart by their second argument."""
        kind = LSTM if function is torch.lstm else GRU
        second_is_sizes = isinstance(arguments[1], torch.Tensor) and not arguments[1].is_floating_point()
        if second_is_sizes:
            data, sizes, start, parameters, biased, layers, dropout, training, bidirectional = arguments
            steps, batch_first = list(data.split(sizes.tolist())), False
        else:
            data, start, parameters, biased, layers, dropout, training, bidirectional, batch_first = arguments
            steps = list(data.unbind(1 if batch_first else 0))
        directions = 2 if bidirectional else 1
        each = len(parameters) // (layers * directions)
        if each > (4 if biased else 2):
            raise UserError("A recurrent layer with projections (proj_size) is not understood here: use one without.")
        flat = []
        for at in range(0, len(parameters), each):
            own = parameters[at : at + each]
            none = own[0].new_zeros(len(own[0]))
            flat.append(CellWeights(kind, own[0], own[1], *(own[2:4] if biased else (none, none))))
        cells = [flat[at : at + directions] for at in range(0, len(flat), directions)]
        starts = tuple(start) if kind == LSTM else (start,)
        share = dropout if training and layers > 1 else 0.0
        return cls(kind, steps, starts, cells, second_is_sizes, bool(batch_first), share)

    def answered(self, outputs: Sequence[torch.Tensor], last: Sequence[tuple[torch.Tensor, ...]]) -> tuple[Any, ...]:
        """What torch would have answered: the outputs of the last layer, and each cell's last states."""
        states = tuple(torch.stack([states[at] for states in last]) for at in range(len(self.start)))
        if self.packed:
            return torch.cat(list(outputs)), *states
        return torch.stack(list(outputs), dim=1 if self.batch_first else 0), *states


#: One step: (the projected input, the states before) -> the states after, of which the first is the output.
Step = Callable[[CellWeights, torch.Tensor, tuple[torch.Tensor, ...]], tuple[torch.Tensor, ...]]


def unrolled(
    call: RecurrentCall, step: Step | None = None, begins: Callable[[int], None] = lambda place: None
) -> tuple[Any, ...]:
    """What torch answers to the call, computed a step at a time.

    Args:
        step: what a cell does; None: its own equations.
        begins: told the place of each step before it is computed, from 0; -1 before and after a layer.
    """
    inputs = list(call.steps)
    last: list[tuple[torch.Tensor, ...]] = []
    for layer in call.cells:
        by_direction = []
        for direction, cell in enumerate(layer):
            start = tuple(of[len(last)] for of in call.start)
            outputs, states = _one_way(cell, inputs, start, direction == 1, step or STEPS[cell.kind], begins)
            by_direction.append(outputs)
            last.append(states)
        inputs = (
            by_direction[0] if len(layer) == 1 else [torch.cat(pair, dim=1) for pair in zip(*by_direction, strict=True)]
        )
    return call.answered(inputs, last)


def _one_way(
    cell: CellWeights,
    inputs: Sequence[torch.Tensor],
    start: tuple[torch.Tensor, ...],
    backwards: bool,
    step: Step,
    begins: Callable[[int], None],
) -> tuple[list[torch.Tensor], tuple[torch.Tensor, ...]]:
    """Each step's output, and the last states [patient, hidden]; rows that end early keep theirs."""
    rows = [len(given) for given in inputs]
    begins(-1)
    projected = linear(torch.cat(list(inputs)), cell.inputs, cell.input_bias).split(rows)
    outputs: list[torch.Tensor] = [inputs[0]] * len(inputs)
    if backwards:
        states = tuple(of[: rows[-1]] for of in start)
        for at in reversed(range(len(inputs))):
            if rows[at] > len(states[0]):
                pairs = zip(states, start, strict=True)
                states = tuple(torch.cat([known, of[len(known) : rows[at]]]) for known, of in pairs)
            begins(at)
            states = step(cell, projected[at], states)
            outputs[at] = states[0]
        begins(-1)
        return outputs, states
    states = start
    ended: list[tuple[torch.Tensor, ...]] = []
    for at in range(len(inputs)):
        if rows[at] < len(states[0]):
            ended.append(tuple(of[rows[at] :] for of in states))
            states = tuple(of[: rows[at]] for of in states)
        begins(at)
        states = step(cell, projected[at], states)
        outputs[at] = states[0]
    begins(-1)
    whole = [states, *reversed(ended)]
    return outputs, states if not ended else tuple(torch.cat(list(of)) for of in zip(*whole, strict=True))


def gru_step(cell: CellWeights, projected: torch.Tensor, states: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Cho et al. 2014, in torch's convention: the reset gate multiplies what the state projects to, bias included."""
    (before,) = states
    x_reset, x_update, x_new = projected.chunk(3, dim=1)
    h_reset, h_update, h_new = linear(before, cell.states, cell.state_bias).chunk(3, dim=1)
    reset, update = torch.sigmoid(x_reset + h_reset), torch.sigmoid(x_update + h_update)
    new = torch.tanh(x_new + reset * h_new)
    return ((1 - update) * new + update * before,)


def lstm_step(cell: CellWeights, projected: torch.Tensor, states: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Hochreiter and Schmidhuber 1997, with forget gates (Gers et al. 2000), in torch's order."""
    before, memory = states
    gates = projected + linear(before, cell.states, cell.state_bias)
    of_input, of_forget, of_cell, of_output = gates.chunk(4, dim=1)
    memory = torch.sigmoid(of_forget) * memory + torch.sigmoid(of_input) * torch.tanh(of_cell)
    return torch.sigmoid(of_output) * torch.tanh(memory), memory


STEPS: dict[str, Step] = {GRU: gru_step, LSTM: lstm_step}


class _LastStates(torch.overrides.TorchFunctionMode):
    """Keeps what the last recurrent call answered [patient, step, width]."""

    states: torch.Tensor | None = None

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        answer = function(*arguments, **(named or {}))
        if function in (torch.gru, torch.lstm):
            call = RecurrentCall.of(function, arguments)
            if call.packed:
                raise UserError(
                    "The network packs its sequences, so its states cannot be told apart: name another target."
                )
            self.states = answer[0] if call.batch_first else answer[0].transpose(0, 1)
        return answer


def unit_states(model: SequenceModel, embedded: Embedded, lengths: torch.Tensor) -> torch.Tensor:
    """The states of the model's last recurrent layer after each step [patient, step, unit], with a gradient.

    Raises:
        UserError: it has none, or they cannot be reached.
    """
    if hasattr(model, "states"):
        found: torch.Tensor = model.states(embedded, lengths)
        return found
    events, n_steps = embedded[EVENTS], embedded[EVENTS].shape[1]
    groups = [torch.arange(len(lengths), device=lengths.device)]
    if not getattr(model, "padded", True):  # its own calls are of like lengths, so each is watched alone
        groups = [torch.nonzero(lengths == length).squeeze(1) for length in torch.unique(lengths)]
    parts = []
    for rows in groups:
        seen = _LastStates()
        with seen:
            logits_of(model, {name: tensor[rows] for name, tensor in embedded.items()}, lengths[rows])
        if seen.states is None:
            raise UserError("The network has no recurrent layer (GRU or LSTM), so it has no unit: name another target.")
        states = seen.states[:, :n_steps]
        missing = states.new_zeros(len(rows), n_steps - states.shape[1], states.shape[2])
        parts.append(torch.cat([states, missing], dim=1).to(events.dtype))
    return torch.cat(parts)[torch.argsort(torch.cat(groups))] if parts else events.new_zeros(0, n_steps, 0)
