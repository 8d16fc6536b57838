"""A file of weights flows in, tensors that fit a network flow out: data, never code, unless it is trusted."""

from __future__ import annotations

import difflib
import hashlib
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from whenwhy.errors import UserError

State = dict[str, torch.Tensor]

PICKLED = (".pt", ".pth", ".ckpt", ".bin")

PICKLE_BEGINS = b"\x80"

TORCHSCRIPT = "a TorchScript archive is code"

#: Where training libraries keep the weights in what they save.
NESTED_UNDER = ("state_dict", "model_state_dict", "model_state", "model")

#: Parts of a training wrapper that no prediction needs.
OF_TRAINING = ("loss", "criterion", "metric", "auroc", "accuracy")


def read_weights(path: Path, trust: bool = False) -> State:
    """The tensors that a file of weights holds, by name, on the CPU.

    Args:
        path: .safetensors; or .pt, .pth, .ckpt, .bin, read without running what they hold.
        trust: run code that the file holds, where it cannot be read otherwise.

    Raises:
        UserError: no such file, damaged, not finite, or it would run code.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "weights.pt"
        >>> torch.save({"state_dict": {"head.bias": torch.zeros(1)}}, path)
        >>> read_weights(path)
        {'head.bias': tensor([0.])}
    """
    if not path.is_file():
        raise UserError(f"{path} is no file of weights: give --weights a .safetensors or {', '.join(PICKLED)} file.")
    if path.suffix == ".safetensors":
        try:
            state: State = load_file(path)
        except SafetensorError as error:
            raise UserError(f"{path} is damaged or no safetensors file ({error}): save the weights again.") from None
    elif path.suffix == ".pt2":
        if not trust:
            raise _would_run_code(path, "an exported program is code")
        state = _tensors(torch.export.load(str(path)).state_dict, path)
    elif path.suffix in PICKLED:
        state = _tensors(_unpickled(path, trust), path)
    else:
        raise UserError(f"{path} has an unknown ending: weights are .safetensors, {', '.join(PICKLED)} files.")
    broken = [name for name, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if broken:
        raise UserError(f"{path} has weights that are not finite ({_some(broken)}): take a sound checkpoint.")
    return state


def put_weights(network: torch.nn.Module, state: Mapping[str, torch.Tensor], where: str) -> None:
    """The network holds the weights; a prefix such as "model." that all its names share is left out.

    Raises:
        UserError: a name is missing or unexpected, or a shape differs.

    Example:
        >>> network = torch.nn.Linear(1, 1)
        >>> put_weights(network, {"model.weight": torch.ones(1, 1), "model.bias": torch.zeros(1)}, "a checkpoint")
        >>> float(network.weight)
        1.0
    """
    expected = network.state_dict()
    prefix = _common_prefix(state, expected)
    fitting = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    others = [name for name in state if not name.startswith(prefix)]
    fitting |= {name: state[name] for name in others if not any(word in name.lower() for word in OF_TRAINING)}
    missing = [name for name in expected if name not in fitting]
    unexpected = [name for name in fitting if name not in expected]
    if missing:
        near = difflib.get_close_matches(missing[0], unexpected or list(fitting), n=1, cutoff=0.3)
        hint = f" (the nearest that it has is '{near[0]}')" if near else ""
        raise UserError(
            f"{where} has no weights '{missing[0]}'{hint}; {len(missing)} of {len(expected)} are missing: "
            "give the callable, or the --arguments, that the weights were trained with."
        )
    if unexpected:
        near = difflib.get_close_matches(unexpected[0], expected, n=1, cutoff=0.3)
        hint = f" (the nearest that it has is '{near[0]}')" if near else ""
        raise UserError(
            f"{where} has weights that the model has no place for: {_some(unexpected)}{hint}: "
            "give the callable that they were trained with."
        )
    for name, tensor in expected.items():
        if fitting[name].shape != tensor.shape:
            raise UserError(
                f"{where}: '{name}' has the shape {list(fitting[name].shape)}, the model's has {list(tensor.shape)}: "
                "give the --arguments that the weights were trained with."
            )
    network.load_state_dict(fitting)


def state_sha256(network: torch.nn.Module) -> str:
    """The hash of a network's weights.

    Example:
        >>> state_sha256(torch.nn.LayerNorm(2)) == state_sha256(torch.nn.LayerNorm(2))
        True
    """
    return hashlib.sha256(
        save({name: t.detach().contiguous().clone() for name, t in network.state_dict().items()})
    ).hexdigest()


def _common_prefix(state: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> str:
    """What stands before every expected name in the state; empty where there is no such thing."""
    if not expected or all(name in state for name in expected):
        return ""
    first = next(iter(expected))
    for name in state:
        prefix = name.removesuffix(first)
        if name.endswith("." + first) and all(prefix + other in state for other in expected):
            return prefix
    return ""


def _unpickled(path: Path, trust: bool) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of torch, about the very files that are refused here
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
            reason = _what_it_wanted(error, path)
        if not trust:
            raise _would_run_code(path, reason)
        if reason == TORCHSCRIPT:
            return torch.jit.load(str(path), map_location="cpu")
        return torch.load(path, map_location="cpu", weights_only=False)


def _what_it_wanted(error: Exception, path: Path) -> str:
    """What a file that could not be read as data wanted to do; raises `UserError` if it is merely damaged."""
    if "TorchScript" in str(error):
        return TORCHSCRIPT
    if imported := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return f"it wants to import {imported.group(1)}"
    with path.open("rb") as file:
        if file.read(1) == PICKLE_BEGINS and isinstance(error, pickle.UnpicklingError):
            return "it is a pickle of more than tensors"
    raise UserError(f"{path} is damaged or no file of weights: save the state_dict again.")


def _would_run_code(path: Path, reason: str) -> UserError:
    return UserError(
        f"{path} would run code when it is read ({reason}; a Lightning checkpoint's hyper_parameters can be the cause): "
        "save its state_dict alone, as .safetensors or by torch.save, or add --trust if you made the file."
    )


def _tensors(told: Any, path: Path) -> State:
    """The tensors of a state dict, of what a training library wraps around one, or of a whole module."""
    if isinstance(told, torch.nn.Module):
        told = told.state_dict()
    for name in NESTED_UNDER:
        if isinstance(told, Mapping) and isinstance(told.get(name), Mapping):
            told = told[name]
            break
    if not isinstance(told, Mapping) or not any(isinstance(value, torch.Tensor) for value in told.values()):
        raise UserError(f"{path} holds no state_dict: save model.state_dict(), as .safetensors or by torch.save.")
    return {str(name): value for name, value in told.items() if isinstance(value, torch.Tensor)}


def _some(names: list[str]) -> str:
    return ", ".join(f"'{name}'" for name in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
