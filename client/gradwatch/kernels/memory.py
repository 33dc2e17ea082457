"""Gradients as one row of memory each, for kernels that go by address and length."""

from collections.abc import Collection

import torch
from torch import Tensor

from gradwatch.kernels.base import Gradients

__all__ = ["split"]


def split(
    grads: Gradients, dtypes: Collection[torch.dtype]
) -> tuple[list[Tensor | None], Gradients | None]:
    """Return each gradient as a row, and those that cannot be one; None in the other's places.

    Args:
        grads: Gradients of any layout.
        dtypes: The dtypes wanted as rows.
    """
    rows = [None if g is None or g.dtype not in dtypes else _row(g) for g in grads.tensors]
    left = [g if row is None else None for g, row in zip(grads.tensors, rows, strict=True)]
    return rows, Gradients.of(left) if any(g is not None for g in left) else None


def _row(grad: Tensor) -> Tensor | None:
    """Return the memory of a gradient without gaps, in whatever order; None for any other."""
    extent = 1
    for stride, size in sorted(zip(grad.stride(), grad.shape, strict=True)):
        if size > 1 and stride != extent:
            return None
        extent *= size
    return grad.as_strided((grad.numel(),), (1,)) if grad.numel() else grad
