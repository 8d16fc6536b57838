"""What methods that draw say: the mean over the draws, and how much it would vary with other draws."""

from __future__ import annotations

import torch

from whenwhy.attribution.contributions import Contributions, PerValue
from whenwhy.models.sequence_model import Embedded


class Average:
    """The mean of contributions that come one draw at a time, so that memory does not grow with the draws.

    Welford, "Note on a method for calculating corrected sums of squares and products", Technometrics 1962.

    Example:
        >>> average = Average()
        >>> for number in (1.0, 3.0, 5.0, 7.0):
        ...     average.add(Contributions({"events": torch.tensor([number])}, {}))
        >>> average.mean.values["events"].item(), round(average.standard_error.values["events"].item(), 4)
        (4.0, 1.291)
    """

    def __init__(self) -> None:
        self._count: dict[tuple[str, str], torch.Tensor] = {}
        self._mean: dict[tuple[str, str], torch.Tensor] = {}
        self._squares: dict[tuple[str, str], torch.Tensor] = {}
        self._kinds: dict[tuple[str, str], torch.dtype] = {}

    def add(self, drawn: Contributions, counted: PerValue | None = None) -> None:
        """One more draw.

        Args:
            counted: [value] a stream, true where the draw says something of the value; None: of all.
        """
        for part, tensors in (("values", drawn.values), ("absent", drawn.absent)):
            for name, tensor in tensors.items():
                of, number = (part, name), tensor.double()
                if of not in self._mean:
                    self._kinds[of] = tensor.dtype
                    self._count[of], self._mean[of], self._squares[of] = (torch.zeros_like(number) for _ in range(3))
                told = counted[name].double() if counted and part == "values" else torch.ones_like(number)
                self._count[of] += told
                change = (number - self._mean[of]) * told
                self._mean[of] += change / self._count[of].clamp(min=1)
                self._squares[of] += change * (number - self._mean[of])

    @property
    def mean(self) -> Contributions:
        """Over the draws; 0 of a value of which none says anything."""
        return Contributions(self._part("values", self._mean), self._part("absent", self._mean))

    @property
    def standard_error(self) -> Contributions:
        """The mean's standard deviation over other draws; not a number where fewer than two say anything."""
        found = {
            of: (squares / (self._count[of] - 1).clamp(min=0) / self._count[of]).sqrt()
            for of, squares in self._squares.items()
        }
        return Contributions(self._part("values", found), self._part("absent", found))

    def _part(self, part: str, of: dict[tuple[str, str], torch.Tensor]) -> Embedded:
        return {name: tensor.to(self._kinds[kind, name]) for (kind, name), tensor in of.items() if kind == part}
