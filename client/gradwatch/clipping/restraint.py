"""How far spikes lower a limit, on the device: the service's recommenders/restraint.py in tensors.

Everything counts in ticks of 0.1 %, whole numbers.
"""

import math

import torch
from torch import Tensor

from gradwatch.clipping.window import quantile

__all__ = ["QUIET", "SHORT", "SPIKE", "TICK", "newest_median", "restrain"]

SPIKE = math.log(2.5)  # these numbers are those of the service's rule
SHORT = 16
FEWEST = 3
TICK = math.log(1.001)
DROP = 400.0
MOST = 1600.0
QUIET = 200.0
SLOW, FAST = 1.0, 10.0


def newest_median(ring: Tensor, count: Tensor) -> Tensor:
    """Return the [] median of the last 16 values of a ring; infinite while there are fewer than 3.

    Args:
        ring: [size] values; the newest lies at ``count - 1`` modulo ``size``.
        count: [] values ever taken in.
    """
    size = ring.shape[0]
    short = min(SHORT, size)
    back = torch.arange(1, short + 1, device=ring.device)
    # Places that were never written hold infinity and go last.
    newest = ring.gather(0, (count - back).remainder(size).long()).sort().values
    held = count.clamp(max=short)
    return torch.where(held >= FEWEST, quantile(newest, held, 0.5), math.inf)


def restrain(struck: Tensor, lowered: Tensor, quiet: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the [] ticks by which the limit is lowered, norms since a spike, ticks it may rise.

    Args:
        struck: [] flag, whether the new norm is a spike.
        lowered: [] ticks before it.
        quiet: [] norms since the newest spike, at most ``QUIET``.
    """
    quiet = torch.where(struck, 0.0, (quiet + 1).clamp(max=QUIET))
    rise = (quiet >= QUIET) * (FAST - SLOW) + SLOW
    lowered = torch.where(struck, (lowered + DROP).clamp(max=MOST), (lowered - rise).clamp(min=0.0))
    return lowered, quiet, rise
