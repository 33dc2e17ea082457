"""Joining the norms of tensors without overflow, and norms of orders other than two."""

import math

import torch
from torch import Tensor

from gradwatch.kernels import Gradients

__all__ = ["joint_norm", "norms_of_order"]


def joint_norm(norms: Tensor, order: float = 2.0) -> Tensor:
    """Return the [] norm of a whole whose parts have the [T] norms given; always finite.

    Dividing by the largest part first keeps the powers of very large and very small norms in range.
    """
    if norms.numel() == 0:
        return norms.new_zeros(())
    largest = norms.max()
    if order == math.inf:
        return largest
    unit = torch.where(largest > 0, largest, 1)
    total = largest * (norms / unit).pow(order).sum().pow(1 / order)
    return total.clamp(max=torch.finfo(norms.dtype).max)


def norms_of_order(grads: Gradients, order: float, like: Tensor) -> Tensor:
    """Return the [T] norms of that order over the finite elements; 0 where there is no gradient."""
    return torch.stack(
        [
            like.new_zeros(()) if grad is None else _norm(grad.detach(), order, like)
            for grad in grads
        ]
    )


def _norm(grad: Tensor, order: float, like: Tensor) -> Tensor:
    magnitude = torch.where(grad.isfinite(), grad, 0).abs().to(like.dtype)
    if grad.numel() == 0:
        return like.new_zeros(())
    return joint_norm(magnitude, order)
