"""What a kernel is: passes over gradients, in place, from which every policy is built."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Protocol

import torch
from torch import Tensor

from gradwatch.statistics import STATISTICS

__all__ = ["Gradients", "Histogram", "Kernel", "Row", "accumulator", "new_rows"]


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


@dataclass(frozen=True, slots=True)
class Gradients:
    """T gradients of one device, or None where there is none.

    Each is real, strided, of a floating dtype, and has no two elements in one place. What is asked
    of every tensor costs time, so it is asked once and kept here.

    Attributes:
        tensors: The gradients, changed in place by a kernel.
        numel: Elements of each; 0 for None.
        dtypes: Dtype of each; None for None.
        contiguous: Whether every one is.
        notes: What a kernel has found out about them, for its next pass.
    """

    tensors: Sequence[Tensor | None]
    numel: tuple[int, ...]
    dtypes: tuple[torch.dtype | None, ...]
    contiguous: bool
    notes: dict[object, Any] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, tensors: Sequence[Tensor | None]) -> "Gradients":
        """Ask every tensor."""
        return cls(
            tensors,
            tuple(0 if g is None else g.numel() for g in tensors),
            tuple(None if g is None else g.dtype for g in tensors),
            all(g is None or g.is_contiguous() for g in tensors),
        )

    def __iter__(self) -> Iterator[Tensor | None]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


@dataclass(frozen=True, slots=True)
class Histogram:
    """Magnitudes to be counted on the way; see :mod:`gradwatch.kernels.sampling`.

    Attributes:
        counts: [T, BINS] int64, contiguous, on the gradients' device; what is found is added.
        every: One in this many stretches is looked at; 1 is every element.
        phase: The first of them, 0 to every - 1.
    """

    counts: Tensor
    every: int
    phase: int


class Kernel(Protocol):
    """Clips and measures in one pass. All tensors of a call live on one device.

    No method reads a value back to the host on a device that has to be waited for.
    """

    name: str

    def measure_(
        self,
        grads: Gradients,
        limits: Tensor | None,
        rows: Tensor,
        *,
        zero_nonfinite: bool = False,
        histogram: Histogram | None = None,
    ) -> None:
        """Measure, hold every element of gradient i within ``limits[i]``, measure again.

        Args:
            grads: T gradients, changed in place where an element lies beyond its limit.
            limits: [T] in the rows' dtype, contiguous, above 0, ``inf`` for none; rounded toward
                zero into the gradient's dtype. None: nothing is clipped.
            rows: [len(Row), T] output, contiguous, on the gradients' device, zero on entry; the
                columns of tensors that are None stay zero.
            zero_nonfinite: First set NaN and infinite elements to zero.
            histogram: Counts the magnitudes as they were before anything was changed.
        """

    def scale_(self, grads: Gradients, coefficients: Tensor, rows: Tensor) -> None:
        """Multiply gradient i by ``coefficients[i]`` where that is below 1; measure the result.

        The coefficient is used as float32 rounded toward zero (float64 gradients: as it is), the
        product rounded once into the gradient's dtype: every kernel gives the same bits. Below
        2^-126 a coefficient has few digits left; it is still rounded down, so a limit holds.

        Args:
            grads: T gradients, changed in place.
            coefficients: [T] in the rows' dtype, contiguous, above 0; 1 leaves a tensor as it is.
            rows: [len(Row), T]; only ``NORM_AFTER`` is written, and only where the coefficient is
                below 1: the norm of all elements that are finite now.
        """

    def zero_(self, grads: Gradients, when: Tensor) -> None:
        """Set every element to zero, NaN included, if the [] tensor ``when`` is not 0."""

    def sample(self, tensors: Gradients) -> Tensor:
        """Return samples of all tensors one after the other, float32; see ``sample_length``."""

    def products(self, a: Tensor, b: Tensor, lengths: Sequence[int]) -> Tensor:
        """Return [3, T]: sum a*a, sum b*b, sum a*b of each tensor's part of two samples."""


def new_rows(count: int, device: torch.device) -> Tensor:
    """Return zeroed rows for ``count`` tensors, in float64 where the device has it."""
    return torch.zeros(len(Row), count, dtype=accumulator(device), device=device)


@functools.cache
def accumulator(device: torch.device) -> torch.dtype:
    """Return the dtype that statistics are kept in on a device: float64 where it has that."""
    lacking = device.type == "mps"  # Apple's GPUs have none, Intel's small ones neither
    if device.type == "xpu":
        lacking = not torch.xpu.get_device_properties(device).has_fp64
    return torch.float32 if lacking else torch.float64
