"""A stranger's network flows in; the same network behind bags of feature values flows out, proven to be the same.

Integrated gradients, and everything else here, walk in the embeddings, and need a first layer that is linear in
the bags. The network's own first layer is, so it is taken out, and its table is asked with the bags instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from whenwhy.errors import UserError, unknown_name
from whenwhy.events.feature_values import FOREIGN_OFFSET
from whenwhy.events.sequence_batch import EVENTS, STATIC, Bags, SequenceBatch, Sequences
from whenwhy.models.foreign.call import Call, how_called
from whenwhy.models.foreign.first_layer import Given, recurrence_given, table_of
from whenwhy.models.sequence_model import TWO_CLASSES, Embedded, ModelOfClasses, embed_bags

#: By how much the adapted score may differ, in units of the score or of 1, whichever is larger.
EQUAL = 1e-4

#: By how much probabilities of all classes may miss 1.
UNITY = 1e-3

#: Sequences that the proof compares, and the most numbers in the multi-hot form of one of them.
SAMPLE, DENSE_NUMBERS = 64, 1 << 25

#: Where the undated values of a record go: into its first step, into every step, or nowhere.
FIRST, EVERY, NONE = "first", "every", "none"
STATIC_IN = (FIRST, EVERY, NONE)

LOGIT, PROBABILITY = "logit", "probability"
OUTPUTS = (LOGIT, PROBABILITY)


@dataclass(frozen=True)
class Proof:
    """How far the adapted model is from the original, over `sequences` of `shortest` to `longest` steps."""

    sequences: int
    shortest: int
    longest: int
    largest_difference: float
    repeated: int  # sequences in which a step holds a value more than once


class ForeignModel(ModelOfClasses, nn.Module):
    """A stranger's network as a `SequenceModel`.

    Attributes:
        classes: as `classes_named` gives them.
        table: [feature value, width] what each feature value adds to the first layers' answers, side by side.
        network: the stranger's, with something `Given` in place of those layers.
        mean: a step's values are averaged, so that each weighs 1 / n; n is the record's, and stays on the path.
        padded: sequences of unlike lengths share a batch; else only like ones do, and padding never exists.
    """

    def __init__(
        self,
        original: nn.Module,
        size: int,
        static_in: str = FIRST,
        output: str = LOGIT,
        classes: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.vocabulary_size, self.static_in, self.output = size + FOREIGN_OFFSET, static_in, output
        self.call, readers = how_called(original, size)
        self.classes = classes_named(classes, self.call.logits)
        self.readers = [reader.name for reader in readers]
        self.network = deepcopy(original)
        tables = []
        for reader in readers:
            layer = self.network.get_submodule(reader.name)
            tables.append(table_of(layer))
            given = (recurrence_given if isinstance(layer, nn.RNNBase) else Given)(layer, reader.turned)  # type: ignore[arg-type]
            if not reader.name:
                self.network = given  # the network is its own first layer
            else:
                self.network.set_submodule(reader.name, given)
        self.widths = [table.shape[1] for table in tables]
        table = torch.cat(tables, dim=1)
        # Rows of nothing stand before the model's index 0, so that ids need no arithmetic.
        self.table = nn.Parameter(torch.cat([table.new_zeros(FOREIGN_OFFSET, table.shape[1]), table]))
        self.mean = False
        self.padded = bool(self.call.lengths or self.call.mask)
        self.placeholder = torch.ones(size)
        self.requires_grad_(False)  # explained, not trained

    def embed(self, batch: SequenceBatch, weights: Mapping[str, torch.Tensor] | None = None) -> Embedded:
        """The bags' sums: events [patient, step, width], static [patient, width].

        Raises:
            UserError: a step of several values, where the network takes one a step.
        """
        shares = self._shares(batch)
        embedded = {}
        for name, bags in batch.streams.items():
            given = bags.weights if weights is None else weights[name]
            embedded[name] = embed_bags(self.table, bags, given * shares[name] if name in shares else given)
        events = embedded[EVENTS].view(len(batch), batch.n_steps, -1)
        return {EVENTS: events, STATIC: embedded[STATIC] if self.static_in != NONE else 0 * embedded[STATIC]}

    def seen(self, batch: SequenceBatch) -> SequenceBatch:
        """The batch in which a record of undated values alone is one step, unless they go nowhere.

        So only a record of nothing at all has the length 0, and a network that masks empty steps sees which.
        """
        alone = (batch.lengths == 0) & (batch.streams[STATIC].sizes > 0)
        return batch if self.static_in == NONE else replace(batch, lengths=batch.lengths.masked_fill(alone, 1))

    def outputs(self, embedded: Embedded, lengths: torch.Tensor) -> torch.Tensor:
        """One output, or one a class [patient, output]; a record without steps is one empty step."""
        events, static = embedded[EVENTS], embedded[STATIC].unsqueeze(1)
        n_steps = lengths.clamp(min=1)
        step = torch.arange(events.shape[1], device=events.device)
        if self.static_in == EVERY:
            events = events + static * (step < n_steps.unsqueeze(1)).unsqueeze(2)
        elif self.static_in == FIRST:
            events = events + static * (step == 0).view(1, -1, 1)
        if self.padded:
            return self._outputs(events, n_steps, (step < lengths.unsqueeze(1)))
        groups = [torch.nonzero(lengths == length).squeeze(1) for length in torch.unique(lengths).tolist()]
        found = [
            self._outputs(events[rows, : int(n_steps[rows[0]])], n_steps[rows], lengths[rows].unsqueeze(1) > 0)
            for rows in groups
        ]
        return torch.cat(found)[torch.argsort(torch.cat(groups))]

    def forward(self, batch: SequenceBatch) -> torch.Tensor:
        """The logit of the later of two classes [patient]."""
        return self.score(self.embed(batch), self.seen(batch).lengths)

    def _outputs(self, events: torch.Tensor, n_steps: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
        layers = [self.network.get_submodule(reader) for reader in self.readers]
        for layer, value in zip(layers, events.split(self.widths, dim=2), strict=True):
            layer.value = value
        try:
            outputs = self.call.outputs(self.network, self._in_its_place(events, there), n_steps)
        finally:
            for layer in layers:
                layer.value = torch.empty(0)  # a batch and its gradients are not kept, and the model can be copied
        return told_apart(outputs, self.output)

    def _in_its_place(self, events: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
        """What the network is called with: of the right shape, something where there is a step, else nothing."""
        there = there.expand(events.shape[:2])
        if not self.call.ids:
            placeholder = self.placeholder.to(events)
            if len(placeholder) > 1 and bool(there.all()):
                return placeholder.expand(*events.shape[:2], -1)  # takes no memory
            return there.unsqueeze(2) * placeholder
        some = int(self.placeholder.argmax())
        if some == self.call.padding:
            some = (some + 1) % (self.vocabulary_size - FOREIGN_OFFSET)
        ids = torch.where(there, some, self.call.padding)
        return ids if self.call.ids == 2 else ids.unsqueeze(2)

    def _shares(self, batch: SequenceBatch) -> dict[str, torch.Tensor]:
        """What each value weighs beside its own weight; empty where that is 1."""
        if not self.mean and self.call.ids != 2:
            return {}
        n_events = batch.streams[EVENTS].sizes.view(len(batch), batch.n_steps).clone()
        n_static = batch.streams[STATIC].sizes if self.static_in != NONE else 0 * n_events[:, 0]
        steps = slice(0, 1) if self.static_in == FIRST else slice(None)
        n_events[:, steps] += n_static.unsqueeze(1)
        if self.call.ids == 2:
            if (n_events > 1).any():
                raise UserError(
                    "The model takes one index a step, and the sequences have steps of several values: prepare them "
                    "with one value a step, and give --static-in none if undated values are not among them."
                )
            return {}
        if self.static_in == EVERY and (n_static > 0).any():
            raise UserError("The model averages the values of a step: give --static-in first or none.")
        of_bag = 1 / n_events.clamp(min=1).to(self.table.dtype)  # [patient, step]
        return {
            EVENTS: torch.repeat_interleave(of_bag.flatten(), batch.streams[EVENTS].sizes),
            STATIC: torch.repeat_interleave(of_bag[:, 0], batch.streams[STATIC].sizes),
        }


def classes_named(names: Sequence[str] | None, answers: int) -> tuple[str, ...]:
    """The classes of a network of so many answers: those named, else false and true, or of more than two 0, 1, ...

    Raises:
        UserError: there are fewer or more names than classes, or two the same.

    Example:
        >>> classes_named(None, 1), classes_named(None, 3), classes_named(["alive", "dead"], 2)
        (('false', 'true'), ('0', '1', '2'), ('alive', 'dead'))
    """
    classes = max(2, answers)
    if names is None:
        return TWO_CLASSES if classes == 2 else tuple(map(str, range(classes)))
    if len(names) != classes or len(set(names)) != classes or not all(names):
        raise UserError(
            f"--classes names {', '.join(names)}, and the model has {classes} classes: name each once, in the order of "
            f"its answers{', the class of the logit last' if answers == 1 else ''}."
        )
    return tuple(names)


def told_apart(answers: torch.Tensor, output: str) -> torch.Tensor:
    """What tells the classes apart [patient, output], of logits or probabilities [patient, 1 or a class].

    Of one or two answers it is the log-odds of the later class, of more a logit each.

    Raises:
        UserError: a probability is exactly 0 or 1, so that its log-odds are infinite, or is none.

    Example:
        >>> told_apart(torch.tensor([[1.0, 3.0]]), "logit"), told_apart(torch.tensor([[0.5]]), "probability")
        (tensor([[2.]]), tensor([[0.]]))
    """
    if output == PROBABILITY:
        if not ((answers > 0) & (answers < 1)).all():
            raise UserError(
                "The model's answer is not strictly between 0 and 1 everywhere, so it has no log-odds: give a callable "
                "that returns the logit, and --output logit."
            )
        answers = torch.logit(answers) if answers.shape[1] == 1 else answers.log()
    return (answers[:, 1] - answers[:, 0]).unsqueeze(1) if answers.shape[1] == 2 else answers


def adapted(
    original: nn.Module,
    size: int,
    sequences: Sequences,
    static_in: str = FIRST,
    output: str | None = None,
    classes: Sequence[str] | None = None,
) -> tuple[ForeignModel, Proof]:
    """The network behind bags, and the proof on `sequences` that its outputs are the original's.

    Args:
        size: values that the network counts; feature value i + 1 is its index i.
        sequences: some of the user's own; up to 64 of them, from the shortest to the longest, are compared.
        static_in: where undated values go: "first" step, "every" step or "none".
        output: "logit" or "probability"; needed where the answers could be either.
        classes: their names, in the order of the network's answers; None: see `classes_named`.

    Raises:
        UserError: the network cannot be called, or is not the same behind bags.

    Example: `adapted(TheirGRU(), 500, sequences)`
    """
    if static_in not in STATIC_IN:
        raise unknown_name("place for static values", static_in, STATIC_IN)
    if output is not None and output not in OUTPUTS:
        raise unknown_name("kind of output", output, OUTPUTS)
    original = original.cpu().eval()
    model = ForeignModel(original, size, static_in, classes=classes).eval()
    rows = _sample(sequences, size)
    singles = [sequences.batch(np.array([row])) for row in rows]
    with torch.no_grad():
        answers = torch.cat([_original_outputs(original, model, single) for single in singles])
    if not answers.isfinite().all():
        raise UserError("The model's answer is not finite (NaN or infinite) for some sequences: check its weights.")
    if output is None and ((answers >= 0) & (answers <= 1)).all():
        raise UserError(
            "All of the model's answers lie between 0 and 1: say --output probability if they are probabilities, "
            "or --output logit."
        )
    model.output = output or LOGIT
    if model.output == PROBABILITY and answers.shape[1] > 1 and ((answers.sum(1) - 1).abs() > UNITY).any():
        raise UserError(
            "The model's probabilities of the classes do not sum to 1, so the classes do not exclude each other: give a "
            "callable that returns the answer of one class, or a softmax of all."
        )
    wanted = told_apart(answers, model.output)
    difference = _proven(model, sequences.batch(rows), wanted)
    n_steps = sequences.n_steps[rows]
    repeated = sum(_has_repeats(single.streams[EVENTS]) for single in singles)
    return model, Proof(len(rows), int(n_steps.min()), int(n_steps.max()), difference, repeated)


def _proven(model: ForeignModel, batch: SequenceBatch, wanted: torch.Tensor) -> float:
    """The largest difference, of the first way to pool and pad that is equal in every output; `UserError` if none is.

    Whatever stands in the input's place, the score must be the same: so the input is used nowhere else, or
    only to see that something is there.
    """
    size = model.vocabulary_size - FOREIGN_OFFSET
    stands = [torch.ones(size), torch.nn.functional.one_hot(torch.tensor(size - 1), size).float()]
    ways = [
        (mean, padded) for mean in ((False, True) if model.call.ids else (False,)) for padded in ({model.padded, False})
    ]
    ways.sort(key=lambda way: (way[0], not way[1]))
    least: tuple[float, str] = (float("inf"), "")
    for model.mean, model.padded in ways:
        try:
            scores = [_with(model, placeholder, batch) for placeholder in stands]
        except UserError:
            raise
        except Exception as error:  # a stranger's code that looks into the layer that was taken out
            least = min(least, (float("inf"), f"it raises {type(error).__name__}: {str(error).splitlines()[0][:200]}"))
            continue
        differences = torch.stack([(score - wanted).abs() for score in scores]).nan_to_num(float("inf")).amax(0)
        if (differences <= EQUAL * wanted.abs().clamp(min=1)).all():
            _narrow_if_equal(model, batch, wanted)
            return float(differences.max())
        worst = divmod(int(differences.argmax()), wanted.shape[1])  # (sequence, output)
        told = (
            f"a sequence of {int(batch.lengths[worst[0]])} steps scores {float(wanted[worst]):.6g}, and "
            f"{float(scores[0][worst]):.6g} behind bags (largest difference {float(differences.max()):.3g}, "
            f"allowed {EQUAL:g})"
        )
        least = min(least, (float(differences.max()), told))
    if model.call.ids and bool(model.table[model.call.padding + FOREIGN_OFFSET].any()):
        cause = f"the row of its padding index {model.call.padding} is not zero, and what it fills counts: make it zero"
    else:
        names = ", ".join(name or "its first layer" for name in model.readers)
        cause = (
            f"it reads its input elsewhere than in {names}, or not linearly, so nothing is attributed: "
            "give a callable whose first layer alone reads the input"
        )
    raise UserError(f"The model is not the same behind bags: {least[1]}; {cause}.")


def _with(model: ForeignModel, placeholder: torch.Tensor, batch: SequenceBatch) -> torch.Tensor:
    model.placeholder = placeholder
    with torch.no_grad():
        return model.outputs(model.embed(batch), model.seen(batch).lengths)


def _narrow_if_equal(model: ForeignModel, batch: SequenceBatch, wanted: torch.Tensor) -> None:
    """One number in the input's place instead of a vocabulary, where the network does not mind.

    Where it does, like lengths go together: without padding, what stands there takes no memory.
    """
    wide, padded = model.placeholder, model.padded
    if model.call.ids:
        return
    for placeholder, model.padded in ((torch.ones(1), padded), (wide, False)):
        try:
            difference = (_with(model, placeholder, batch) - wanted).abs()
        except Exception:  # its code wants the vocabulary's width
            continue
        if (difference <= EQUAL * wanted.abs().clamp(min=1)).all():
            return
    model.placeholder, model.padded = wide, padded


def _original_outputs(original: nn.Module, model: ForeignModel, single: SequenceBatch) -> torch.Tensor:
    """The original's answer to one sequence, given as it wants it [1, logit].

    The sequence is given twice, since some networks lose the axis of a single patient.
    """
    x = original_input(single, model.call, model.vocabulary_size - FOREIGN_OFFSET, model.static_in)
    x = x.to(model.table.dtype) if x.is_floating_point() else x
    return model.call.outputs(original, x.repeat(2, *[1] * (x.ndim - 1)), torch.full((2,), x.shape[1]))[:1]


def original_input(single: SequenceBatch, call: Call, size: int, static_in: str = FIRST) -> torch.Tensor:
    """One sequence as the network was trained on it: multi-hot or counts [1, step, value], or indexes.

    Example: `original_input(sequences.batch(np.array([0])), Call(ids=0), 500)` has the shape [1, steps, 500].
    """
    n_steps = single.n_steps
    static = single.streams[STATIC].ids.long() - FOREIGN_OFFSET
    where = {FIRST: [0], EVERY: list(range(n_steps)), NONE: []}[static_in]
    step = torch.repeat_interleave(torch.arange(n_steps), single.streams[EVENTS].sizes)
    step = torch.cat([step, *[torch.full_like(static, at) for at in where]])
    index = torch.cat([single.streams[EVENTS].ids.long() - FOREIGN_OFFSET, *[static for _ in where]])
    if not call.ids:
        x = torch.zeros(n_steps, size, dtype=torch.float64)
        return x.index_put((step, index), torch.ones(len(index), dtype=x.dtype), accumulate=True).unsqueeze(0)
    by_step = [index[step == at] for at in range(n_steps)]
    places = max(1, max(len(values) for values in by_step))
    if call.ids == 2 and places > 1:
        places = 1  # refused where the bags are read, with the reason
    ids = torch.full((1, n_steps, places), call.padding)
    for at, values in enumerate(by_step):
        ids[0, at, : len(values)] = values[:places]
    return ids.squeeze(2) if call.ids == 2 else ids


def _sample(sequences: Sequences, size: int) -> np.ndarray:
    """Rows from the shortest to the longest sequence whose multi-hot form is of a reasonable size."""
    reasonable = np.flatnonzero(
        sequences.n_steps * size <= max(DENSE_NUMBERS, int(sequences.n_steps.min(initial=0)) * size)
    )
    if not len(reasonable):
        raise UserError("There is no sequence to compare the model on: prepare some.")
    ordered = reasonable[np.argsort(sequences.n_steps[reasonable], kind="stable")]
    return np.asarray(ordered[np.unique(np.linspace(0, len(ordered) - 1, SAMPLE).round().astype(int))])


def _has_repeats(bags: Bags) -> bool:
    pairs = torch.stack([bags.bag, bags.ids.long()])
    return bool(torch.unique(pairs, dim=1).shape[1] < pairs.shape[1])
