"""Ranks that hold the same tensors: who reports what, and how drifting apart is noticed."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["CHECK_EVERY_STEPS", "check_interval", "weight_checksum"]

# Every rank reports these steps; the others only rank 0 does.
CHECK_EVERY_STEPS = 50


def check_interval(every: int) -> int:
    """Return how often all ranks report: at steps that rank 0 reports as well."""
    return math.lcm(every, CHECK_EVERY_STEPS)


@torch.no_grad()
def weight_checksum(parameters: Sequence[Tensor]) -> Tensor | None:
    """Sum up the weights in one number, on their device.

    Under data parallelism the reduced gradients stay the same on every rank even after the weights
    have drifted apart; so it is the weights that are compared. Equal weights give the same number to
    the last bit. Each tensor counts with another factor, so swapped tensors show too.

    Args:
        parameters: The weights.

    Returns:
        A float64 scalar [], or None without a tensor that can be summed.
    """
    kept = [p for p in parameters if p.is_floating_point() and p.numel()]
    if not kept:
        return None
    norms = torch.stack(
        [torch.linalg.vector_norm(p, dtype=torch.float64).to(kept[0].device) for p in kept]
    )
    factors = torch.arange(1, len(kept) + 1, dtype=torch.float64, device=norms.device).sqrt()
    return torch.dot(norms, factors)
