"""The operations of torch by what a rule must know of them, each by its name."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

#: Operations that are linear in each tensor that they take, or only arrange numbers.
LINEAR = frozenset(
    [
        "__getitem__",
        "_pack_padded_sequence",
        "_pad_packed_sequence",
        "alpha_dropout",
        "cat",
        "chunk",
        "clone",
        "concat",
        "concatenate",
        "contiguous",
        "cpu",
        "cumsum",
        "cuda",
        "detach",
        "diagonal",
        "double",
        "dropout",
        "dropout1d",
        "dropout2d",
        "expand",
        "expand_as",
        "flatten",
        "flip",
        "float",
        "gather",
        "index_select",
        "masked_select",
        "mean",
        "moveaxis",
        "movedim",
        "narrow",
        "neg",
        "__neg__",
        "permute",
        "repeat",
        "repeat_interleave",
        "reshape",
        "reshape_as",
        "roll",
        "select",
        "split",
        "split_with_sizes",
        "squeeze",
        "stack",
        "sum",
        "swapaxes",
        "t",
        "take_along_dim",
        "tensor_split",
        "to",
        "transpose",
        "type",
        "type_as",
        "unbind",
        "unflatten",
        "unsqueeze",
        "view",
        "view_as",
        "where",
        "tile",
        "tril",
        "triu",
        "as_subclass",
        "mT_get",
        "T_get",
        "hstack",
        "vstack",
    ]
)
#: Which of them join signals with constants, and which may move steps to other places.
JOINS = frozenset(["cat", "concat", "concatenate", "stack", "where", "hstack", "vstack"])
MOVES = frozenset(["flip", "roll"])

#: Questions about a tensor, answered plainly.
ABOUT = frozenset(
    [
        "__get__",
        "__len__",
        "__hash__",
        "__bool__",
        "dim",
        "ndimension",
        "size",
        "numel",
        "element_size",
        "is_floating_point",
        "is_complex",
        "stride",
        "is_contiguous",
        "get_device",
        "data_ptr",
        "storage_offset",
        "requires_grad_",
        "isfinite",
        "isnan",
        "isinf",
        "__repr__",
        "__format__",
        "is_same_size",
        "lt",
        "gt",
        "le",
        "ge",
        "eq",
        "ne",
        "__lt__",
        "__gt__",
        "__le__",
        "__ge__",
        "__eq__",
        "__ne__",
        "zeros_like",
        "ones_like",
        "full_like",
        "empty_like",
        "rand_like",
        "new_zeros",
        "new_ones",
        "new_empty",
        "new_full",
        "new_tensor",
        "argmax",
        "argmin",
        "is_nonzero",
        "any",
        "all",
        "is_pinned",
        "tolist",
        "item",
    ]
)
ELEMENTWISE: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "tanh": torch.tanh, "relu": torch.relu, "relu_": torch.relu, "gelu": functional.gelu, "silu": functional.silu,
    "elu": functional.elu, "leaky_relu": functional.leaky_relu, "softplus": functional.softplus, "exp": torch.exp,
    "softsign": functional.softsign, "hardtanh": functional.hardtanh, "tanhshrink": functional.tanhshrink,
    "reciprocal": torch.reciprocal, "square": torch.square, "mish": functional.mish, "selu": functional.selu,
}  # fmt: skip
SIGMOID = ("sigmoid", "sigmoid_")
SOFTMAX = ("softmax", "_softmax")
ADD = ("add", "__add__", "__radd__", "__iadd__", "add_")
SUBTRACT = ("sub", "__sub__", "__isub__", "sub_", "subtract")
MULTIPLY = ("mul", "__mul__", "__rmul__", "__imul__", "mul_", "multiply")
MATRIX = ("matmul", "__matmul__", "__rmatmul__", "bmm", "mm")
DIVIDE = ("div", "__truediv__", "true_divide", "div_", "__itruediv__", "divide")
MAXIMUM = ("amax", "max")
