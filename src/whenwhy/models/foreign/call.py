"""A network flows in; how it is called, how it answers and which layers read the vocabulary flow out."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from whenwhy.errors import UserError
from whenwhy.models.foreign.first_layer import counts, takes_ids

#: Under which of its names an answer of several is taken, logits before probabilities.
ANSWERS = ("logit", "logits", "y_prob", "prob", "probs")

LENGTHS = ("lengths", "length", "lens", "seq_len", "seq_lens", "seq_lengths", "input_lengths", "x_lengths", "n_steps")
MASKS = ("mask", "masks", "attention_mask", "valid", "valid_mask", "padding_mask", "pad_mask", "key_padding_mask",
         "src_key_padding_mask")  # fmt: skip

#: The made-up records that a network is tried with: sizes that no two axes share.
PATIENTS, STEPS, VALUES = 3, 5, 4


@dataclass(frozen=True)
class Call:
    """How a network is called, and what its answer is.

    Attributes:
        ids: 0 for multi-hot [patient, step, value]; else the number of axes of the indexes, 2 or 3.
        padding: the index that fills up.
        steps_first: the network wants [step, patient, ...].
        lengths, mask: the names of such arguments.
        mask_is_padding: the mask is true where there is nothing.
        logits: 1, or one a class.
        every_step: the answer has a step axis, of which the last true step counts.
        answer_turned: the answer's first axis is the step.
    """

    ids: int
    padding: int = 0
    steps_first: bool = False
    lengths: str | None = None
    mask: str | None = None
    mask_is_padding: bool = False
    logits: int = 1
    every_step: bool = False
    answer_turned: bool = False

    def ask(self, network: nn.Module, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """The network's own answer to x [patient, step, ...]."""
        named: dict[str, torch.Tensor] = {}
        if self.lengths:
            named[self.lengths] = lengths.cpu()  # where torch wants the lengths of what it packs
        if self.mask:
            there = torch.arange(x.shape[1], device=x.device) < lengths.to(x.device).unsqueeze(1)  # [patient, step]
            named[self.mask] = ~there if self.mask_is_padding else there
        return answer_of(network(x.transpose(0, 1) if self.steps_first else x, **named))

    def outputs(self, network: nn.Module, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """The answer at each patient's last true step [patient, logit]."""
        answer = self.ask(network, x, lengths)
        if not self.every_step:
            return answer.reshape(len(x), self.logits)
        if self.answer_turned:
            answer = answer.transpose(0, 1)
        answer = answer.reshape(len(x), x.shape[1], self.logits)
        return answer[torch.arange(len(x), device=answer.device), (lengths - 1).to(answer.device)]

    def words(self) -> str:
        """What the network takes and answers, for people."""
        taken = {
            0: "multi-hot [patient, step, value]",
            2: "indexes [patient, step]",
            3: "indexes [patient, step, place]",
        }
        number = {1: "one logit", 2: "two logits"}.get(self.logits, f"{self.logits} logits")
        answer = number + (" a step" if self.every_step else "")
        return f"{taken[self.ids]}{', steps first' if self.steps_first else ''} -> {answer}"


def answer_of(told: Any) -> torch.Tensor:
    """The tensor that counts, of what a network returns.

    Example:
        >>> answer_of({"loss": torch.tensor(0.5), "logits": torch.tensor([2.0])})
        tensor([2.])
    """
    if isinstance(told, torch.Tensor):
        return told
    if isinstance(told, Mapping):
        for name in ANSWERS:
            if name in told:
                return answer_of(told[name])
        raise _NoFitError(4, f"it returns {', '.join(map(str, told))}, and none of {', '.join(ANSWERS[:3])}")
    if isinstance(told, tuple | list) and told:
        return answer_of(told[0])
    raise _NoFitError(4, f"it returns a {type(told).__name__}, not a tensor")


class _NoFitError(Exception):
    """Why a way to call a network is not the right one; of several reasons the one that came furthest is told."""

    def __init__(self, far: int, reason: str) -> None:
        super().__init__(reason)
        self.far = far


@dataclass(frozen=True)
class Reader:
    """A layer that the input itself goes into. `turned`: it is asked with steps first."""

    name: str
    turned: bool


def how_called(network: nn.Module, size: int) -> tuple[Call, list[Reader]]:
    """How a network over `size` values is called, and which of its layers read the input, found by trying.

    Raises:
        UserError: no way to call it works, with the reason.

    Example:
        >>> call, readers = how_called(nn.Sequential(nn.Linear(7, 2), nn.Flatten(0, 1), nn.Linear(2, 1)), 7)
        >>> call.every_step, [reader.name for reader in readers]
        (True, ['0'])
    """
    wide = {name: layer for name, layer in network.named_modules() if counts(layer) == size}
    if not wide:
        found = sorted({n for layer in network.modules() if (n := counts(layer)) is not None}, reverse=True)
        raise UserError(
            f"The model has no first layer over the {size} values of the vocabulary (its layers read "
            f"{', '.join(map(str, found[:5])) or 'nothing that is a Linear, Embedding or recurrent layer'}): "
            "prepare the sequences with the model's own vocabulary."
        )
    named = _arguments(network)
    ways = ([0] if any(not takes_ids(layer) for layer in wide.values()) else []) + (
        [3, 2] if any(takes_ids(layer) for layer in wide.values()) else []
    )
    reasons: list[_NoFitError] = []
    for ids in ways:
        paddings = [getattr(layer, "padding_idx", None) for layer in wide.values()]
        padding = next((index for index in paddings if index is not None), 0)
        for steps_first in (False, True):
            try:
                return _tried(network, wide, size, Call(ids, padding, steps_first, **named))
            except _NoFitError as reason:
                reasons.append(reason)
            except Exception as error:  # whatever a stranger's code raises when it is called the wrong way
                reasons.append(_NoFitError(0, f"it raises {type(error).__name__}: {str(error).splitlines()[0][:200]}"))
    furthest = max(reasons, key=lambda tried: tried.far)
    raise UserError(
        f"The model could not be called with the sequences: {furthest}; give --model a callable whose forward takes "
        "multi-hot [patient, step, value] or indexes, and returns a logit a patient, or one a class."
    )


def _arguments(network: nn.Module) -> dict[str, Any]:
    """Which arguments beside the input are lengths and masks."""
    named: dict[str, Any] = {}
    parameters = list(inspect.signature(network.forward).parameters.values())
    for parameter in parameters[1:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if parameter.name.lower() in LENGTHS and "lengths" not in named:
            named["lengths"] = parameter.name
        elif parameter.name.lower() in MASKS and "mask" not in named:
            named["mask"] = parameter.name
        elif parameter.default is parameter.empty:
            raise UserError(
                f"The model's forward needs '{parameter.name}', which is not known here (an input, lengths and a mask "
                "are): give --model a callable that fills it in."
            )
    return named


def _tried(network: nn.Module, wide: Mapping[str, nn.Module], size: int, call: Call) -> tuple[Call, list[Reader]]:
    """The call, completed by what the answer looks like, and the layers that the input went into."""
    dtype = next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)
    x, full = _made_up(call, size, dtype, seed=0), torch.full((PATIENTS,), STEPS)
    received: dict[str, Reader] = {}

    def note(name: str, layer: nn.Module) -> Any:
        def hook(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            asked = arguments[0] if arguments else next(iter(named.values()))
            data = asked.data if isinstance(asked, PackedSequence) else asked
            if takes_ids(layer) == bool(call.ids) and data.numel() == x.numel() and _same_values(data, x):
                turned = not isinstance(asked, PackedSequence) and tuple(asked.shape[:2]) == (STEPS, PATIENTS)
                received[name] = Reader(name, turned)

        return layer.register_forward_pre_hook(hook, with_kwargs=True)

    hooks = [note(name, layer) for name, layer in wide.items()]
    try:
        with torch.no_grad():
            answer = call.ask(network, x, full)
    finally:
        for hook in hooks:
            hook.remove()
    if not received:
        raise _NoFitError(1, f"none of its layers over {size} values ({', '.join(wide)}) receives the input itself")
    with torch.no_grad():
        shorter = call.ask(network, x[:, :-1], full - 1)
    # An answer that grows with the steps has one for each; five classes and five steps look alike otherwise.
    every_step = shorter.numel() != answer.numel()
    of_each, rest = divmod(answer.numel(), PATIENTS)
    logits, rest_of_step = divmod(of_each, STEPS) if every_step else (of_each, 0)
    if rest or rest_of_step or not logits or (every_step and shorter.numel() != PATIENTS * (STEPS - 1) * logits):
        raise _NoFitError(2, f"it answers {PATIENTS} patients of {STEPS} steps with the shape {list(answer.shape)}")
    turned = every_step and tuple(answer.shape[:2]) == (STEPS, PATIENTS)
    call = replace(call, logits=logits, every_step=every_step, answer_turned=turned)
    _require_patients_apart(network, call, size, x, full)
    return _with_mask_understood(network, call, size, x), list(received.values())


def _made_up(call: Call, size: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Records that differ in every step: two values each."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, size - 1, (PATIENTS, STEPS, VALUES), generator=generator)
    ids += ids >= call.padding  # [patient, step, place], padding left out
    if call.ids:
        return ids[:, :, 0] if call.ids == 2 else ids
    return torch.zeros(PATIENTS, STEPS, size, dtype=dtype).scatter(2, ids[:, :, :2], 1.0)


def _same_values(asked: torch.Tensor, x: torch.Tensor) -> bool:
    """Whether a layer is asked with the input itself: another tensor of that size has other numbers in it."""
    if x.is_floating_point():
        return bool(((asked == 0) | (asked == 1)).all()) and float(asked.sum()) == float(x.sum())
    return not asked.is_floating_point() and int(asked.sum()) == int(x.sum())


def _differs(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Which patients' answers differ by more than rounding [patient]."""
    return ((first - second).abs() > 1e-5 * first.abs().clamp(min=1)).flatten(1).any(1)


def _require_patients_apart(network: nn.Module, call: Call, size: int, x: torch.Tensor, full: torch.Tensor) -> None:
    """Another first patient changes nobody else's answer: else its first axis is not the patient's."""
    other = torch.cat([_made_up(call, size, x.dtype, seed=1)[:1], x[1:]])
    with torch.no_grad():
        changed = _differs(call.outputs(network, x, full), call.outputs(network, other, full))
    if changed[1:].any():
        raise _NoFitError(3, "a patient's answer depends on the other patients of the batch")


def _with_mask_understood(network: nn.Module, call: Call, size: int, x: torch.Tensor) -> Call:
    """The call with the mask's sense that makes the answer blind to what lies in padding."""
    if not call.mask:
        return call
    lengths = torch.tensor([STEPS, STEPS - 2, STEPS - 1])
    padding = torch.arange(STEPS) >= lengths.unsqueeze(1)  # [patient, step]
    other = torch.where(padding.view(*padding.shape, *[1] * (x.ndim - 2)), _made_up(call, size, x.dtype, seed=2), x)
    by_name = "pad" in call.mask
    for sense in (by_name, not by_name):
        tried = replace(call, mask_is_padding=sense)
        with torch.no_grad():
            first, second = tried.outputs(network, x, lengths), tried.outputs(network, other, lengths)
        if first.isfinite().all() and not _differs(first, second).any():
            return tried
    raise _NoFitError(
        4, f"its answer depends on steps that '{call.mask}' says are not there, in either sense of the mask"
    )
