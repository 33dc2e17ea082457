"""How far spikes lower a limit, on the device: the service's recommenders/restraint.py in tensors.

Everything counts in ticks of 0.1 %, whole numbers.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from gradwatch.clipping.window import log_spread, quantile

__all__ = ["FIRST", "LIMIT", "MOST", "TICK", "Restraint", "look_back", "restrain"]

LIMIT = math.log(2.5)  # these numbers are those of the service's rule
SPREADS = 3.0
STEADY = 0.25
SHORT = 16
FEWEST = 3
TICK = math.log(1.001)
DROP = 400.0
MOST = 2800.0
QUIET = 200.0
FIRST = 16.0
OPEN = 280.0
SLOW, FAST = 1.0, 10.0


class Restraint(NamedTuple):
    """What the norms of a run have done to its limit; each [].

    Attributes:
        lowered: Ticks by which the limit is lowered.
        quiet: Norms since the newest spike or the start, at most ``QUIET``.
        opening: Norms left in which a steady run gets its limit back at once; none after a spike.
    """

    lowered: Tensor
    quiet: Tensor
    opening: Tensor


def look_back(ring: Tensor, count: Tensor, median: Tensor, spread: Tensor) -> tuple[Tensor, Tensor]:
    """Return the [] level above which the next value is a spike, and whether the newest lie close together.

    The level lies by ln 2.5, or three spreads, above the larger median of the whole window and of the
    newest 16; it is infinite before the third value.

    Args:
        ring: [size] ln of norms; the newest lies at ``count - 1`` modulo ``size``.
        count: [] norms ever taken in.
        median: [] median of the whole window.
        spread: [] robust deviation of the whole window.
    """
    short = min(SHORT, ring.shape[0])
    back = torch.arange(1, short + 1, device=ring.device)
    # Places that were never written hold infinity and go last.
    newest = ring.gather(0, (count - back).remainder(ring.shape[0]).long()).sort().values
    held = count.clamp(max=short)
    centre = quantile(newest, held, 0.5)
    known = held >= FEWEST
    steady = known & (log_spread(newest, held, centre) <= STEADY)
    bound = torch.maximum(median, centre) + (SPREADS * spread).clamp(min=LIMIT)
    return torch.where(known, bound, math.inf), steady


def restrain(before: Restraint, struck: Tensor, steady: Tensor) -> tuple[Restraint, Tensor]:
    """Return what a new norm leaves, and the [] ticks by which the limit may rise.

    Args:
        before: What the norms before it left.
        struck: [] flag, whether it is a spike.
        steady: [] flag, whether the newest norms, it included, lie close together.
    """
    quiet = torch.where(struck, 0.0, (before.quiet + 1).clamp(max=QUIET))
    may_open = (before.opening > 0) & ~struck
    opening = torch.where(may_open, before.opening - 1, 0.0)
    opens, calm = may_open & steady, quiet >= QUIET
    fast = SLOW + (FAST - SLOW) * steady.to(quiet)
    pace = torch.where(opens, OPEN, torch.where(calm, fast, SLOW))
    back = (before.lowered - pace).clamp(min=0.0)
    rise = torch.where(calm & (back <= 0) & ~opens, FAST, pace)
    lowered = torch.where(struck, (before.lowered + DROP).clamp(max=MOST), back)
    opened = may_open & (lowered <= 0)
    quiet = torch.where(opened, QUIET, quiet)
    return Restraint(lowered, quiet, torch.where(opened, 0.0, opening)), rise
