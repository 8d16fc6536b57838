"""Whole numbers of more than 64 bits, in numpy: products and sums that are exact, and at last a decimal column.

A number is a list of limbs, the lowest first: value = sum of limb[i] * 2^(28 i). All limbs but the highest are in
[0, 2^28), so that 2^35 of them add up in 64 bits; the highest has the sign.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

BITS = 28
MASK = (1 << BITS) - 1

#: Decimals of 38 digits.
LARGE = pa.decimal128(38, 0)

Limbs = list[np.ndarray]  # of int64 [row] each


def limbs(numbers: np.ndarray) -> Limbs:
    """The limbs of int64 numbers, as few as they need.

    Example:
        >>> [limb.tolist() for limb in limbs(np.array([1 << 30, -1]))]
        [[0, 268435455], [4, -1]]
    """
    return carried([numbers])


def limbs_of_decimals(column: pa.Array) -> Limbs:
    """The limbs of a column of `LARGE` numbers without nulls."""
    words = np.frombuffer(column.buffers()[1], dtype=np.int64).reshape(-1, 2)[
        column.offset : column.offset + len(column)
    ]
    low, high = words[:, 0].view(np.uint64), words[:, 1]
    return carried(
        [
            (low & np.uint64(MASK)).astype(np.int64),
            ((low >> np.uint64(BITS)) & np.uint64(MASK)).astype(np.int64),
            (low >> np.uint64(2 * BITS)).astype(np.int64) + ((high & ((1 << 20) - 1)) << 8),
            high >> 20,
        ]
    )


def carried(parts: Sequence[np.ndarray]) -> Limbs:
    """The same numbers with every limb in its range, the highest in (-2^28, 2^28)."""
    found: Limbs = []
    carry: np.ndarray | int = 0
    for part in parts[:-1]:
        whole = part + carry
        found.append(whole & MASK)
        carry = whole >> BITS
    top = parts[-1] + carry
    while np.abs(top).max(initial=0) >> BITS:
        found.append(top & MASK)
        top = top >> BITS
    return [*found, top]


def product(one: Limbs, other: Limbs) -> Limbs:
    """The exact product of numbers, row by row.

    Example:
        >>> a = limbs(np.array([3 * 10**12, -5]))
        >>> decimals(product(a, product(a, a))).to_pylist()
        [Decimal('27000000000000000000000000000000000000'), Decimal('-125')]
    """
    parts = [np.zeros_like(one[0]) for _ in range(len(one) + len(other) - 1)]
    for i, left in enumerate(one):
        for j, right in enumerate(other):
            parts[i + j] += left * right
    return carried(parts)


def total(one: Limbs, other: Limbs) -> Limbs:
    """The sum of numbers, or of sums of limbs, row by row."""
    short, long = sorted((one, other), key=len)
    return [*(a + b for a, b in zip(short, long, strict=False)), *long[len(short) :]]


def decimals(parts: Sequence[np.ndarray]) -> pa.Array:
    """A column of `LARGE` numbers from limbs, or from sums of limbs."""
    *lower, top = carried(parts)
    sign = top >> BITS  # 0 or -1
    first, second, third, fourth, fifth = [*lower, top & MASK, *[sign & MASK] * 4][:5]
    # As two words of 64 bits; what is shifted out of a word is the next one's.
    low = first | (second << BITS) | (third << (2 * BITS))
    high = (third >> 8) | (fourth << 20) | (fifth << 48)
    words = np.ascontiguousarray(np.stack([low, high], axis=1))
    return pa.Array.from_buffers(LARGE, len(words), [None, pa.py_buffer(words)])
