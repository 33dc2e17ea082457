"""The multi-tensor kernels that torch ships without a public name, in one place.

torch.nn.utils and torch.optim call them; nothing else in this library does. If torch renames one,
this file is where it breaks.
"""

import torch
from torch import Tensor

__all__ = ["mul_"]


def mul_(tensors: list[Tensor], factors: list[Tensor]) -> None:
    """Multiply every tensor by its own [] factor, in place, without reading the factor."""
    if tensors:
        torch._foreach_mul_(tensors, factors)
