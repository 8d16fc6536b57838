"""A PyHealth 2 checkpoint flows in, the same RNN or RETAIN on bags flows out; PyHealth itself is not needed.

PyHealth gives every feature key (conditions, drugs...) a vocabulary, an embedding table and a network of its own,
and joins them in a last linear layer. Here the keys' vocabularies follow each other in one table, and every step
has a vector a key. Features are visits of codes ("nested_sequence"), whose embeddings PyHealth sums.

Three habits of PyHealth 2.1 are kept, since a checkpoint was trained with them:
- a visit without a code of a key counts as padding, wherever it is: a key's length is its number of other visits,
  and so many are read from the front;
- RETAIN weighs visits by attention that was computed backwards, without turning it round again;
- RETAIN's attention is spread over a patient's padding too, so that PyHealth's own answer depends on the batch.
  Here, as for a patient alone, there are the patient's own visits.

Choi et al., "RETAIN: an interpretable predictive model for healthcare using reverse time attention mechanism",
NIPS 2016; PyHealth: Yang et al., KDD 2023.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from whenwhy.errors import UserError, unknown_name
from whenwhy.events.feature_values import FOREIGN_OFFSET
from whenwhy.events.sequence_batch import EVENTS, STATIC, Bags, SequenceBatch
from whenwhy.models.foreign.adapter import FIRST, LOGIT, NONE, classes_named, told_apart
from whenwhy.models.foreign.weights import State, put_weights
from whenwhy.models.sequence_model import Embedded, ModelOfClasses, embed_bags

TABLE_NAME = re.compile(r"embedding_model\.embedding_layers\.(.+)\.weight")

#: Gates of a recurrent cell -> the cell.
CELLS: dict[int, Callable[..., nn.RNNBase]] = {1: nn.RNN, 3: nn.GRU, 4: nn.LSTM}


class RecurrentKey(nn.Module):
    """One key's recurrent layer, read at its last step (backwards: at its first), [patient, hidden]."""

    def __init__(self, state: State, width: int) -> None:
        super().__init__()
        hidden = state["rnn.weight_hh_l0"].shape[1]
        cell = CELLS[state["rnn.weight_hh_l0"].shape[0] // hidden]
        levels = sum(bool(re.fullmatch(r"rnn\.weight_hh_l\d+", name)) for name in state)
        both = "rnn.weight_hh_l0_reverse" in state
        self.rnn = cell(width, hidden, num_layers=levels, bidirectional=both, batch_first=True)
        self.down_projection = nn.Linear(2 * hidden, hidden) if both else None

    def forward(self, x: torch.Tensor, key_steps: torch.Tensor, n_steps: torch.Tensor) -> torch.Tensor:
        """The key's summary, of the first `key_steps` of x [patient, step, width]."""
        packed = pack_padded_sequence(x, key_steps.cpu(), batch_first=True, enforce_sorted=False)
        states, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True)  # [patient, step, hidden]
        last = states[torch.arange(len(x), device=x.device), key_steps - 1]
        if self.down_projection is None:
            return last
        forwards, backwards = last.shape[1] // 2, states[:, 0]
        summary: torch.Tensor = self.down_projection(torch.cat([last[:, :forwards], backwards[:, forwards:]], dim=1))
        return summary


class RetainKey(nn.Module):
    """One key's reverse-time attention: visits summed with a weight each and a weight a dimension."""

    def __init__(self, state: State, width: int) -> None:
        super().__init__()
        self.alpha_gru, self.beta_gru = (nn.GRU(width, width, batch_first=True) for _ in range(2))
        self.alpha_li, self.beta_li = nn.Linear(width, 1), nn.Linear(width, width)

    def forward(self, x: torch.Tensor, key_steps: torch.Tensor, n_steps: torch.Tensor) -> torch.Tensor:
        """The context vector [patient, width] of x [patient, step, width]."""
        step = torch.arange(x.shape[1], device=x.device)
        back = (key_steps.unsqueeze(1) - 1 - step).clamp(min=0)  # [patient, step], where the reversed record looks
        turned = x.gather(1, back.unsqueeze(2).expand_as(x))
        packed = pack_padded_sequence(turned, key_steps.cpu(), batch_first=True, enforce_sorted=False)
        g, h = (
            pad_packed_sequence(gru(packed)[0], batch_first=True, total_length=x.shape[1])[0]
            for gru in (self.alpha_gru, self.beta_gru)
        )
        beyond = (step >= n_steps.unsqueeze(1)).unsqueeze(2)
        alpha = self.alpha_li(g).masked_fill(beyond, -torch.inf).softmax(1)  # [patient, step, 1]
        context: torch.Tensor = (alpha * torch.tanh(self.beta_li(h)) * x).sum(1)
        return context


#: Model -> the name of its part with one network a key, and that network.
MODELS: dict[str, tuple[str, type[nn.Module]]] = {"rnn": ("rnn", RecurrentKey), "retain": ("retain", RetainKey)}


class PyHealthModel(ModelOfClasses, nn.Module):
    """PyHealth's RNN or RETAIN as a `SequenceModel`.

    Which steps hold nothing of a key must not change on the way to the empty record, and embeddings on the
    way do not tell: `seen` puts it into the batch's lengths, which are plain where every step holds every key.

    Args:
        kind: "rnn" or "retain".
        state: the checkpoint's tensors.
        sizes: how many indexes each feature key has, in the order in which they follow each other.
        static_in: "first" or "none".
        classes: their names, in the order of the model's answers; None: see `classes_named`.

    Raises:
        UserError: an unknown kind, or a checkpoint of another model or vocabulary.
    """

    #: Why its embeddings cannot be replaced by others that hold something everywhere.
    not_dense = (
        "PyHealth tells a visit without a code of a feature key by its empty embedding, and counts it as padding"
    )

    def __init__(
        self,
        kind: str,
        state: State,
        sizes: Mapping[str, int],
        static_in: str = FIRST,
        classes: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        if kind not in MODELS:
            raise unknown_name("PyHealth model", kind, MODELS)
        if static_in not in (FIRST, NONE):
            raise unknown_name("place for static values of a PyHealth model", static_in, (FIRST, NONE))
        part, network = MODELS[kind]
        tables = {found.group(1): state[name] for name in state if (found := TABLE_NAME.fullmatch(name))}
        if not tables or not any(name.startswith(part + ".") for name in state):
            raise UserError(
                f"The weights are no PyHealth {kind}: they have no embedding_model.embedding_layers and {part}; "
                "name the model that they were trained as."
            )
        for key, size in sizes.items():
            if key not in tables:
                raise unknown_name("feature key", key, tables, "the PyHealth checkpoint")
            if len(tables[key]) != size:
                raise UserError(
                    f"The PyHealth checkpoint counts {len(tables[key])} codes of '{key}', and the vocabulary has "
                    f"{size}: give the vocabulary that the model was trained with."
                )
        left = [key for key in tables if key not in sizes]
        if left:
            raise UserError(f"The vocabulary lacks the feature key '{left[0]}' of the PyHealth checkpoint: add it.")
        self.kind, self.static_in = kind, static_in
        self.keys = list(tables)  # in the order in which the last layer reads them
        self.vocabulary_size = sum(sizes.values()) + FOREIGN_OFFSET
        width = next(iter(tables.values())).shape[1]
        self.key_networks = nn.ModuleDict()
        for key in self.keys:
            prefix = f"{part}.{key}."
            own = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
            self.key_networks[key] = network(own, width)
            put_weights(self.key_networks[key], own, f"the PyHealth checkpoint's {part}.{key}")
        self.fc = nn.Linear(state["fc.weight"].shape[1], len(state["fc.weight"]))
        self.fc.load_state_dict({"weight": state["fc.weight"], "bias": state["fc.bias"]})
        self.classes = classes_named(classes, self.fc.out_features)
        rows = [torch.zeros(FOREIGN_OFFSET, width), *(tables[key] for key in sizes)]
        self.table = nn.Parameter(torch.cat(rows))
        place = {key: i for i, key in enumerate(self.keys)}
        key_of = [0] * FOREIGN_OFFSET + [place[key] for key, size in sizes.items() for _ in range(size)]
        self.register_buffer("key_of", torch.tensor(key_of))  # [feature value]
        self.base = 1 << (62 // (len(self.keys) + 1))  # lengths and what is missing of each key, as digits
        self.requires_grad_(False)

    def embed(self, batch: SequenceBatch, weights: Mapping[str, torch.Tensor] | None = None) -> Embedded:
        """The sums of each key's bags: events [patient, step, key, width], static [patient, key, width]."""
        given = weights or {}
        events, static = (self._sums(batch.streams[n], given.get(n)) for n in (EVENTS, STATIC))
        return {
            EVENTS: events.view(len(batch), batch.n_steps, *events.shape[1:]),
            STATIC: static if self.static_in == FIRST else 0 * static,
        }

    def seen(self, batch: SequenceBatch) -> SequenceBatch:
        """The batch with lengths that also say, a digit a key, how many steps hold nothing of the key."""
        counts = self._counts(batch.streams[EVENTS]).view(len(batch), batch.n_steps, -1).clone()
        if self.static_in == FIRST:
            counts[:, 0] += self._counts(batch.streams[STATIC])
        n_steps = (batch.lengths % self.base).clamp(min=1)
        if int(n_steps.max()) >= self.base:
            raise UserError(
                f"A sequence has {int(n_steps.max())} steps, and a PyHealth model of {len(self.keys)} feature keys "
                f"takes at most {self.base - 1} here: prepare with --max-steps {self.base - 1}."
            )
        missing = n_steps.unsqueeze(1) - (counts > 0).sum(1)  # [patient, key]
        digits = self.base ** torch.arange(1, len(self.keys) + 1, device=missing.device)
        return replace(batch, lengths=n_steps + (missing * digits).sum(1))

    def outputs(self, embedded: Embedded, lengths: torch.Tensor) -> torch.Tensor:
        """One output, or one a class [patient, output]; `lengths` as `seen` gave them, or plain ones."""
        n_steps = (lengths % self.base).clamp(min=1)
        events, static = embedded[EVENTS], embedded[STATIC]
        events = torch.cat([events[:, :1] + static.unsqueeze(1), events[:, 1:]], dim=1)
        summaries = []
        for place, key in enumerate(self.keys):
            missing = lengths // self.base ** (place + 1) % self.base
            key_steps = (n_steps - missing).clamp(min=1)
            summaries.append(self.key_networks[key](events[:, :, place], key_steps, n_steps))
        return told_apart(self.fc(torch.cat(summaries, dim=1)), LOGIT)

    def forward(self, batch: SequenceBatch) -> torch.Tensor:
        """The logit of the later of two classes [patient]."""
        seen = self.seen(batch)
        return self.score(self.embed(seen), seen.lengths)

    def _place(self, bags: Bags) -> torch.Tensor:
        """Which (bag, key) each value belongs to [value]."""
        return bags.bag * len(self.keys) + self.key_of[bags.ids.long()]  # type: ignore[index]

    def _counts(self, bags: Bags) -> torch.Tensor:
        """How many values each bag has of each key [bag, key]."""
        n_keys = len(self.keys)
        return torch.bincount(self._place(bags), minlength=len(bags.offsets) * n_keys).view(-1, n_keys)

    def _sums(self, bags: Bags, weights: torch.Tensor | None) -> torch.Tensor:
        """Each bag's sum of each key [bag, key, width]: the bags are divided by key."""
        order = torch.argsort(self._place(bags), stable=True)
        ends = self._counts(bags).flatten().cumsum(0)
        given = (bags.weights if weights is None else weights)[order]
        divided = Bags(bags.ids[order], given, torch.cat([ends.new_zeros(1), ends[:-1]]).to(bags.offsets), bags.at)
        sums: torch.Tensor = embed_bags(self.table, divided).unflatten(0, (-1, len(self.keys)))
        return sums
