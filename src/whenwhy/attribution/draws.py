"""Random numbers that belong to a prediction: the same ones alone as in any batch, on any worker and device.

Counter-based, as in Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011: a number is a hash of what
it is for.
"""

from __future__ import annotations

import numpy as np
import torch

from whenwhy.events.hashing import GAMMA, mixed


class Draws:
    """Numbers of some predictions.

    Args:
        keys: [patient] uint64, what tells a prediction from all others.
        seed: of the run.

    Example:
        >>> keys = np.array([3, 8], dtype=np.uint64)
        >>> both, one = Draws(keys, 0).uniform(1, (2, 4)), Draws(keys[1:], 0).uniform(1, (1, 4))
        >>> both.shape, bool((both[1:] == one).all())
        (torch.Size([2, 4]), True)
    """

    def __init__(self, keys: np.ndarray, seed: int) -> None:
        with np.errstate(over="ignore"):
            self.keys = mixed(np.asarray(keys, np.uint64) + GAMMA * np.uint64(seed + 1))

    def uniform(self, stream: int, shape: tuple[int, ...], rows: torch.Tensor | None = None) -> torch.Tensor:
        """Uniform in (0, 1), float64 [*shape]; its first axis is the patient's (or that of `rows`).

        An element depends on its own place along the other axes alone, so padding adds draws and changes none.

        Args:
            stream: another number, other draws.
            rows: which patients, by default all in order.
        """
        keys = self.keys if rows is None else self.keys[rows.cpu().numpy()]
        with np.errstate(over="ignore"):
            state = mixed(keys + GAMMA * np.uint64(stream + 1)).reshape(-1, *[1] * (len(shape) - 1))
            for axis, size in enumerate(shape[1:], start=1):
                place = np.arange(1, size + 1, dtype=np.uint64).reshape(-1, *[1] * (len(shape) - 1 - axis))
                state = mixed(state + GAMMA * place)
        return torch.from_numpy(((np.broadcast_to(state, shape) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53)

    def normal(self, stream: int, shape: tuple[int, ...], rows: torch.Tensor | None = None) -> torch.Tensor:
        """Standard normal, float64 [*shape]; otherwise as `uniform`."""
        found: torch.Tensor = torch.special.ndtri(self.uniform(stream, shape, rows))
        return found
