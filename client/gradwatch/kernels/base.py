"""What a kernel is: two passes over gradients, in place, from which every policy is built."""

from collections.abc import Sequence
from enum import IntEnum
from typing import Protocol

import torch
from torch import Tensor

from gradwatch.statistics import STATISTICS

__all__ = ["Gradients", "Kernel", "Row", "new_rows"]

Gradients = Sequence[Tensor | None]


class Row(IntEnum):
    """Rows of a kernel's output ``[len(Row), T]``.

    ``HELD`` is internal: the squared norm of the infinite elements that a limit turned into finite
    ones. They are in the gradient that the optimizer uses, yet not in ``norm_after``.
    """

    HELD = 0
    NORM = 1
    MAX_ABS = 2
    MEAN = 3
    NONFINITE = 4
    NAN = 5
    ZERO = 6
    CLIPPED = 7
    NORM_AFTER = 8
    COSINE_AFTER = 9
    PRESENT = 10


# The public rows are the ones after HELD; a new statistic must be added on both sides.
if len(Row) != 1 + len(STATISTICS):
    raise ImportError("gradwatch.kernels.base.Row and gradwatch.statistics.STATISTICS differ")


class Kernel(Protocol):
    """Clips and measures in one pass. All tensors of a call live on one device.

    ``grads[i]`` is real, strided, of a floating dtype, without two elements in one place, or None.
    No method reads a value back to the host on a device that has to be waited for.
    """

    name: str

    def measure_(
        self, grads: Gradients, limits: Tensor | None, rows: Tensor, *, zero_nonfinite: bool = False
    ) -> None:
        """Measure, hold every element of ``grads[i]`` within ``limits[i]``, measure again.

        Args:
            grads: T gradients, changed in place where an element lies beyond its limit.
            limits: [T] float64 (rows' dtype), above 0, ``inf`` for none; rounded toward zero into
                the gradient's dtype. None: nothing is clipped.
            rows: [len(Row), T] output, on the gradients' device, zero on entry; the columns of
                tensors that are None stay zero.
            zero_nonfinite: First set NaN and infinite elements to zero.
        """

    def scale_(self, grads: Gradients, coefficients: Tensor, rows: Tensor) -> None:
        """Multiply ``grads[i]`` by ``coefficients[i]`` where that is below 1; measure the result.

        The coefficient is used as float32 rounded toward zero (float64 gradients: as it is), the
        product rounded once into the gradient's dtype: every kernel gives the same bits.

        Args:
            grads: T gradients, changed in place.
            coefficients: [T] in the rows' dtype, above 0; 1 leaves a tensor as it is.
            rows: [len(Row), T]; only ``NORM_AFTER`` is written, and only where the coefficient is
                below 1: the norm of all elements that are finite now.
        """

    def zero_(self, grads: Gradients, when: Tensor) -> None:
        """Set every element to zero, NaN included, if the [] tensor ``when`` is not 0."""


def new_rows(count: int, device: torch.device) -> Tensor:
    """Return zeroed rows for ``count`` tensors, in float64 where the device has it."""
    return torch.zeros(len(Row), count, dtype=accumulator(device), device=device)


def accumulator(device: torch.device) -> torch.dtype:
    """Return the dtype that statistics are kept in on a device."""
    return torch.float32 if device.type == "mps" else torch.float64  # Apple GPUs have no float64
