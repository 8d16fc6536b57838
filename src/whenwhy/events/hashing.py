"""Whole numbers flow in, well mixed ones flow out, the same on every machine."""

from __future__ import annotations

import numpy as np

#: Between two consecutive counters: 2^64 over the golden ratio, odd.
GAMMA = np.uint64(0x9E3779B97F4A7C15)


def mixed(keys: np.ndarray) -> np.ndarray:
    """uint64 of the shape of `keys` (uint64): every bit of a key changes half of the bits.

    The finaliser of Steele, Lea and Flood's SplitMix64 (OOPSLA 2014).

    Example:
        >>> mixed(np.array([1, 2], np.uint64) + GAMMA).tolist()
        [10451216379200822465, 10905525725756348110]
    """
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(keys ^ (keys >> np.uint64(31)))
