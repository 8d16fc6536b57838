"""A first layer over the vocabulary flows in; its table, and what stands in its place, flow out."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence


def counts(layer: nn.Module) -> int | None:
    """How many values the layer's input has, if the layer is linear in each of them; None for other layers.

    Example:
        >>> counts(nn.Linear(5, 2)), counts(nn.GRU(5, 2)), counts(nn.Embedding(5, 2)), counts(nn.LayerNorm(5))
        (5, 5, 5, None)
    """
    if isinstance(layer, nn.Linear):
        return layer.in_features
    if isinstance(layer, nn.RNNBase):
        return layer.input_size
    if isinstance(layer, nn.Embedding):
        return layer.num_embeddings if layer.max_norm is None else None
    if isinstance(layer, nn.EmbeddingBag):
        return layer.num_embeddings if layer.max_norm is None and layer.mode != "max" else None
    plain = isinstance(layer, nn.Conv1d) and layer.kernel_size == (1,) and layer.stride == (1,) and layer.groups == 1
    return layer.in_channels if plain and layer.padding in ((0,), 0) else None  # type: ignore[return-value]


def takes_ids(layer: nn.Module) -> bool:
    """Whether the layer is asked with indexes rather than with a multi-hot vector."""
    return isinstance(layer, nn.Embedding | nn.EmbeddingBag)


def table_of(layer: nn.Module) -> torch.Tensor:
    """What each value adds to the layer's answer, before the bias [value, width].

    Of a recurrent layer: to the gates of its first level, both directions side by side.
    """
    if isinstance(layer, nn.RNNBase):
        names = ["weight_ih_l0"] + (["weight_ih_l0_reverse"] if layer.bidirectional else [])
        return torch.cat([getattr(layer, name) for name in names]).detach().T
    weight: torch.Tensor = layer.weight.detach()  # type: ignore[operator]
    if isinstance(layer, nn.EmbeddingBag) and layer.padding_idx is not None:
        weight = weight.clone()
        weight[layer.padding_idx] = 0.0  # torch leaves it out of the bag
    if takes_ids(layer):
        return weight
    return (weight[:, :, 0] if isinstance(layer, nn.Conv1d) else weight).T


class Given(nn.Module):
    """Answers what the bags say, whatever it is asked, in the shape in which the layer would have answered.

    Attributes:
        value: [patient, step, width] what the bags say; set before every use.
        turned: the network asks with steps first.
    """

    def __init__(self, layer: nn.Module, turned: bool) -> None:
        super().__init__()
        self.turned, self.value = turned, torch.empty(0)
        self.by_channel = isinstance(layer, nn.Conv1d)
        self.in_bags = isinstance(layer, nn.EmbeddingBag)
        self.in_ids = isinstance(layer, nn.Embedding)
        bias = None if takes_ids(layer) else layer.bias
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())  # type: ignore[operator]

    def forward(self, asked: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """What the bags say, and the bias."""
        answer = self.value if self.bias is None else self.value + self.bias
        if self.by_channel:
            return answer.transpose(1, 2)
        if self.turned:
            answer = answer.transpose(0, 1)
        return answer.reshape(*(asked.shape if self.in_ids else asked.shape[:-1]), answer.shape[-1])


def recurrence_given(layer: nn.RNNBase, turned: bool) -> nn.RNNBase:
    """The same recurrent layer, fed at its gates: its first input weights are an identity, its input is `value`.

    Nothing of the vocabulary's width is built, and the network finds the layer that it knows.
    """
    width = table_of(layer).shape[1]
    cell = deepcopy(layer)
    cell.input_size = width
    rows = width // (2 if layer.bidirectional else 1)
    identity = torch.eye(width, dtype=layer.weight_ih_l0.dtype)  # type: ignore[arg-type]
    cell.weight_ih_l0 = nn.Parameter(identity[:rows].clone())
    if layer.bidirectional:
        cell.weight_ih_l0_reverse = nn.Parameter(identity[rows:].clone())
    cell.value = torch.empty(0)

    def give(module: nn.RNNBase, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        asked = arguments[0] if arguments else named.pop("input")
        value: torch.Tensor = module.value  # type: ignore[assignment]
        if isinstance(asked, PackedSequence):
            given: Any = _packed_like(asked, value)
        else:
            given = value.transpose(0, 1) if turned else value
        return (given, *arguments[1:]), named

    cell.register_forward_pre_hook(give, with_kwargs=True)
    return cell


def _packed_like(asked: PackedSequence, value: torch.Tensor) -> PackedSequence:
    """`value` [patient, step, width] packed in the order in which `asked` is."""
    order = asked.sorted_indices
    ordered = value if order is None else value.index_select(0, order)  # as torch packs, so that rules see the order
    data = torch.cat([ordered[:count, step] for step, count in enumerate(asked.batch_sizes.tolist())])
    return PackedSequence(data, asked.batch_sizes, asked.sorted_indices, asked.unsorted_indices)
