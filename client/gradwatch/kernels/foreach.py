"""The multi-tensor kernels that torch ships without a public name, in one place.

torch.nn.utils and torch.optim call them; nothing else in this library does. If torch renames one,
this file is where it breaks.
"""

import torch
from torch import Tensor

__all__ = ["copy_"]


def copy_(tensors: list[Tensor], sources: list[Tensor]) -> None:
    """Copy every source into its tensor of the same shape."""
    torch._foreach_copy_(tensors, sources)
