"""How far spikes lower a limit, on the device: the service's recommenders/restraint.py in tensors.

Everything counts in ticks of 0.1 %, whole numbers.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from gradwatch.clipping.window import log_spread, quantile

__all__ = ["LIMIT", "MOST", "TICK", "Restraint", "is_spike", "is_steady", "restrain"]

LIMIT = math.log(2.5)  # these numbers are those of the service's rule
SPIKE = math.log(3)
STEADY = 0.25
SHORT = 16
FEWEST = 3
TICK = math.log(1.001)
DROP = 400.0
MOST = 1600.0
QUIET = 200.0
OPEN = 200.0
SLOW, FAST = 1.0, 10.0


class Restraint(NamedTuple):
    """What the norms of a run have done to its limit; each [].

    Attributes:
        lowered: Ticks by which the limit is lowered.
        quiet: Norms since the newest spike, at most ``QUIET``.
        opening: 1 while there was no spike and the limit has never come back whole.
    """

    lowered: Tensor
    quiet: Tensor
    opening: Tensor


def is_spike(value: Tensor, median: Tensor, ring: Tensor, count: Tensor) -> Tensor:
    """Return the [] flag whether ln of a norm exceeds 3 times the medians of those before it.

    Args:
        value: [] ln of the new norm.
        median: [] median of the window before it.
        ring: [size] ln of the norms before it; the newest lies at ``count - 1`` modulo ``size``.
        count: [] norms ever taken in.
    """
    newest, held = _newest(ring, count)
    usual = torch.maximum(median, quantile(newest, held, 0.5))
    return (held >= FEWEST) & (value > usual + SPIKE)


def is_steady(ring: Tensor, count: Tensor) -> Tensor:
    """Return the [] flag whether the newest 16 values lie close together."""
    newest, held = _newest(ring, count)
    spread = log_spread(newest, held, quantile(newest, held, 0.5))
    return (held >= FEWEST) & (spread <= STEADY)


def restrain(before: Restraint, struck: Tensor, steady: Tensor) -> tuple[Restraint, Tensor]:
    """Return what a new norm leaves, and the [] ticks by which the limit may rise.

    Args:
        before: What the norms before it left.
        struck: [] flag, whether it is a spike.
        steady: [] flag, whether the newest norms, it included, lie close together.
    """
    quiet = torch.where(struck, 0.0, (before.quiet + 1).clamp(max=QUIET))
    opening = torch.where(struck, 0.0, before.opening)
    rise = (quiet >= QUIET) * (FAST - SLOW) + SLOW
    rise = torch.where((opening > 0) & steady, OPEN, rise)
    back = (before.lowered - rise).clamp(min=0.0)
    lowered = torch.where(struck, (before.lowered + DROP).clamp(max=MOST), back)
    opened = (opening > 0) & (lowered <= 0)
    quiet = torch.where(opened, QUIET, quiet)
    return Restraint(lowered, quiet, torch.where(opened, 0.0, opening)), rise


def _newest(ring: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Return the newest 16 values by size, infinity after them, and the [] number of them."""
    short = min(SHORT, ring.shape[0])
    back = torch.arange(1, short + 1, device=ring.device)
    # Places that were never written hold infinity and go last.
    newest = ring.gather(0, (count - back).remainder(ring.shape[0]).long()).sort().values
    return newest, count.clamp(max=short)
