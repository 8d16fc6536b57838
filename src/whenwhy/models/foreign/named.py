"""What a user names on the command line flows in; their model, ready to be explained, flows out."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from whenwhy.errors import UserError, unknown_name
from whenwhy.events.feature_values import FOREIGN_OFFSET
from whenwhy.events.foreign_vocabulary import foreign_vocabulary, stream_sizes
from whenwhy.events.sequence_batch import Sequences
from whenwhy.events.sequences import TABLE, VOCABULARY
from whenwhy.models.foreign.adapter import FIRST, adapted
from whenwhy.models.foreign.pyhealth import PyHealthModel
from whenwhy.models.foreign.weights import put_weights, read_weights, state_sha256
from whenwhy.models.sequence_model import SequenceModel
from whenwhy.shards import Json, StageDirectory, content_sha256

#: Names that begin so are PyHealth's own models.
PYHEALTH = "pyhealth"

#: Shards that the sequences of the proof are taken from.
SHARDS_OF_PROOF = 4


@dataclass(frozen=True)
class ForeignSource:
    """A model that was trained elsewhere, as its user names it; workers load it from this.

    Attributes:
        name: "module:callable" (a class, a function that makes the network, or a network), or "pyhealth:rnn".
        weights: the file of weights; None if the callable brings its own.
        arguments: keyword arguments for the callable, JSON.
        output: "logit" or "probability", where the answers could be either.
        static_in: where undated values go: "first" step, "every" step or "none".
        classes: their names, separated by commas, in the order of the answers; None: false and true, or 0, 1, ...
        vocabulary: the file that the sequences were prepared with; PyHealth's models need it.
        trust: run code that the weights file holds.
        folder: where the module is looked for first.
    """

    name: str
    weights: Path | None = None
    arguments: str = "{}"
    output: str | None = None
    static_in: str = FIRST
    classes: str | None = None
    vocabulary: Path | None = None
    trust: bool = False
    folder: str = ""

    def settled(self) -> ForeignSource:
        """The same with paths that hold in every worker: the current folder's."""
        absolute = {n: p.resolve() for n in ("weights", "vocabulary") if (p := getattr(self, n)) is not None}
        return replace(self, folder=str(Path.cwd()), **absolute)

    def as_input(self) -> Json:
        """What a run records of the model: every fact that its numbers depend on.

        Raises:
            UserError: no such module, callable or file, or a callable that gives other weights every time.
        """
        recorded: Json = {
            "path": str(self.weights or self.name),
            "model": self.name,
            "sha256": self.weights_sha256(),
            "arguments": self._arguments(),
            "output": self.output,
            "static_in": self.static_in,
        }
        if self.classes is not None:
            recorded["classes"] = self._class_names
        return recorded if self._is_pyhealth else recorded | {"code_sha256": _code_sha256(self._callable())}

    def weights_sha256(self) -> str:
        """The hash of the weights: of their file, or of what the callable brings."""
        if self.weights is not None:
            if not self.weights.is_file():
                raise UserError(f"{self.weights} is no file of weights: give --weights the file that training wrote.")
            return content_sha256(self.weights)
        if self._is_pyhealth:
            raise UserError(f"{self.name} needs --weights: the checkpoint that PyHealth's Trainer wrote.")
        first, second = (state_sha256(self._made()) for _ in range(2))
        if first != second:
            raise UserError(f"{self.name} gives other weights every time it is called: give --weights.")
        return first

    def load(self, sequences: StageDirectory, device: torch.device | str = "cpu") -> tuple[SequenceModel, Json]:
        """The model, ready to be explained, and what is to be said of how that was proven.

        Raises:
            UserError: the model and the sequences do not fit, or the model is not the same behind bags.
        """
        codes = sequences.read(VOCABULARY, VOCABULARY, ["code"])["code"].to_pylist()[FOREIGN_OFFSET:]
        vocabulary = None
        if self.vocabulary is not None:
            vocabulary = foreign_vocabulary(self.vocabulary)
            _require_same_codes(codes, vocabulary["code"].to_pylist(), sequences.path, self.vocabulary)
        if self._is_pyhealth:
            if vocabulary is None or self.weights is None:
                raise UserError(f"{self.name} needs --weights and --vocabulary, a JSON file {{key: {{code: index}}}}.")
            state = read_weights(self.weights, self.trust)
            kind = self.name.partition(":")[2]
            model = PyHealthModel(kind, state, stream_sizes(vocabulary), self.static_in, self._class_names).eval()
            facts: Json = {"model": self.name, "layers": model.keys, "classes": list(model.classes), "proof": None}
            return model.to(device), facts
        network = self._made()
        if self.weights is not None:
            put_weights(network, read_weights(self.weights, self.trust), str(self.weights))
        foreign, proof = adapted(
            network, len(codes), _some_of(sequences), self.static_in, self.output, self._class_names
        )
        told: Json = {
            "model": self.name,
            "called_with": foreign.call.words(),
            "layers": foreign.readers,
            "output": foreign.output,
            "classes": list(foreign.classes),
            "mean_of_values": foreign.mean,
            "proof": proof.__dict__,
        }
        return foreign.to(device), told

    @property
    def _class_names(self) -> list[str] | None:
        return None if self.classes is None else [name.strip() for name in self.classes.split(",")]

    @property
    def _is_pyhealth(self) -> bool:
        return self.name.partition(":")[0] == PYHEALTH

    def _arguments(self) -> Json:
        try:
            told = json.loads(self.arguments)
        except ValueError as error:
            raise UserError(
                f"--arguments {self.arguments} is not JSON ({error}): write e.g. '{{\"hidden\": 64}}'."
            ) from None
        if not isinstance(told, dict):
            raise UserError(f"--arguments {self.arguments} is no JSON object: write e.g. '{{\"hidden\": 64}}'.")
        return told

    def _callable(self) -> Any:
        """What the user's name stands for: their own code, run by their wish."""
        module_name, colon, path = self.name.partition(":")
        if not colon or not module_name or not path:
            raise UserError(f"'{self.name}' names no model: write module:callable, or a directory of `whenwhy train`.")
        folder = self.folder or str(Path.cwd())
        if folder not in sys.path:
            sys.path.insert(0, folder)
        try:
            found: Any = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            raise UserError(
                f"There is no module '{error.name}' for --model {self.name}: run where the module lies ({folder} was "
                "looked in), or put its folder on PYTHONPATH."
            ) from None
        except Exception as error:  # the user's own code
            raise UserError(f"{module_name} could not be imported ({_in_words(error)}): mend it.") from error
        for name in path.split("."):
            if not hasattr(found, name):
                raise unknown_name("callable", name, (n for n in vars(found) if n[0] != "_"), module_name)
            found = getattr(found, name)
        return found

    def _made(self) -> torch.nn.Module:
        found = self._callable()
        if not isinstance(found, torch.nn.Module):
            if not callable(found):
                raise UserError(f"{self.name} is a {type(found).__name__}: name a class, a function or a network.")
            try:
                found = found(**self._arguments())
            except Exception as error:  # the user's own code
                raise UserError(f"{self.name} could not be called ({_in_words(error)}): mend --arguments.") from error
        if not isinstance(found, torch.nn.Module):
            raise UserError(f"{self.name} gives a {type(found).__name__}: name what gives a torch.nn.Module.")
        return found.eval()


def proof_sentence(told: Json) -> str:
    """How the model was proven to be the same behind bags, in one sentence for people."""
    proof = told["proof"]
    if proof is None:
        return f"{told['model']}: whenwhy's own form of PyHealth's equations, keys {', '.join(told['layers'])}"
    sentence = (
        f"{told['model']} takes {told['called_with']}; behind bags its scores differ by at most "
        f"{proof['largest_difference']:.1e} over {proof['sequences']} sequences of {proof['shortest']} to "
        f"{proof['longest']} steps"
    )
    if proof["repeated"]:
        sentence += (
            f"; {proof['repeated']} of them hold a value more than once in a step, and the model is given the count "
            "(prepare with --repeats once if it was trained on 0 and 1)"
        )
    return sentence


def _some_of(sequences: StageDirectory) -> Sequences:
    """Sequences of some shards, for the proof."""
    names = sequences.shards
    places = np.unique(np.linspace(0, len(names) - 1, SHARDS_OF_PROOF).round().astype(int))
    return Sequences(pa.concat_tables([sequences.read(names[at], TABLE) for at in places]))


def _require_same_codes(own: list[str], given: list[str], sequences: Path, vocabulary: Path) -> None:
    for index, (code, wanted) in enumerate(zip(own, given, strict=False)):
        if code != wanted:
            raise UserError(
                f"{sequences} has '{code}' at index {index}, and {vocabulary} has '{wanted}': "
                "prepare the sequences with --vocabulary of that file."
            )
    if len(own) != len(given):
        raise UserError(
            f"{sequences} has {len(own)} feature values, and {vocabulary} {len(given)}: "
            "prepare the sequences with --vocabulary of that file."
        )


def _in_words(error: Exception) -> str:
    """An error of the user's code, on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _code_sha256(found: Callable[..., Any] | torch.nn.Module) -> str | None:
    """The hash of the file that defines the callable; other files that it imports do not count."""
    try:
        file = inspect.getsourcefile(type(found) if isinstance(found, torch.nn.Module) else found)
    except TypeError:
        return None
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file and Path(file).is_file() else None
