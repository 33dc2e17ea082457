"""How far spikes lower the limit of a run, and how fast a quiet run gets it back.

A calm job loses by being clipped, an unstable one by not being clipped, and what tells them apart
before the damage is done is norms that stand out from their neighbours. A run starts restrained: what
explodes in its first ten steps is lost before anything can stand out. Everything counts in ticks of
0.1 %, whole numbers, so that no split of the steps into blocks changes a bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradwatch_service.recommenders.window import log_spread, quantile, sorted_windows

__all__ = ["LIMIT", "Restraint", "restrained", "signs", "spike_width"]

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Ticks = NDArray[np.int64]

LIMIT = math.log(2.5)  # ln of how many medians a calm run is clipped at, and at least a spike
SPREADS = 3.0  # how many spreads above the median are at least a spike
STEADY = 0.25  # spread of the last 16 ln norms up to which a run counts as steady
SHORT = 16  # norms whose median keeps a steady rise from looking like spikes
FEWEST = 3  # norms before one can stand out
TICK = math.log(1.001)
DROP = 400  # ticks by which each spike lowers the limit: to two thirds
MOST = 2800  # ticks it can be lowered in all: to a sixteenth, if `tight` is no higher
QUIET = 200  # norms without a spike after which a run is calm
FIRST = 16  # norms at the start in which a steady run gets its limit back at once
OPEN = 280  # ticks per norm by which it then comes back
SLOW, FAST = 1, 10  # the same later: until a run is calm and steady, and from then on


@dataclass(frozen=True, slots=True)
class Restraint:
    """What the norms of a run have done to its limit.

    Attributes:
        lowered: Ticks by which the limit is lowered now, 0 to ``MOST``; ``MOST`` at the start.
        quiet: Norms since the last spike or the start, at most ``QUIET``.
        opening: Norms left in which a steady run gets its limit back at once; none after a spike.
    """

    lowered: int = MOST
    quiet: int = 0
    opening: int = FIRST

    @property
    def down(self) -> float:
        """Ln by which the limit is lowered."""
        return TICK * self.lowered

    @property
    def share(self) -> float:
        """What is left of the limit: 1 when nothing lowers it."""
        return math.exp(-self.down)

    @property
    def calm(self) -> bool:
        """Whether there was no spike for long enough."""
        return self.quiet >= QUIET


CALM = Restraint(0, QUIET, 0)


def signs(past: Floats, logs: Floats, medians: Floats, spreads: Floats) -> tuple[Flags, Flags]:
    """[n] which norms are spikes, and [n] where the last 16 lie close together.

    A spike exceeds both medians before it, of the last 64 and of the last 16, by a factor of 2.5
    and by three spreads: noise that was always there is none.

    Args:
        past: ln of the norms before, oldest first.
        logs: [n] ln of the new norms.
        medians: [n or n + 1] medians of the last 64 up to each new norm, and, when there is a past,
            first of those before the new ones.
        spreads: The same of their spreads.
    """
    struck = np.zeros(len(logs), np.bool_)
    recent = past[-SHORT:]
    joined = np.concatenate([recent[-1:], logs])
    ordered, counts = sorted_windows(recent[:-1], joined, SHORT)
    centres = quantile(ordered, counts, 0.5)
    bounds = np.maximum(medians, centres) + spike_width(spreads)
    known = counts >= FEWEST
    earlier = len(joined) - 1
    if earlier:
        struck[-earlier:] = known[:-1] & (logs[-earlier:] > bounds[:-1])
    steady = known & (log_spread(ordered, counts, centres) <= STEADY)
    return struck, steady[-len(logs) :]


def spike_width(spreads: Floats) -> Floats:
    """[n] by how much ln norm exceeds the median at least in a spike."""
    return np.maximum(LIMIT, SPREADS * spreads)


def restrained(
    before: Restraint, struck: Flags, steady: Flags, held: Flags
) -> tuple[Floats, Ticks, Restraint]:
    """[n] ln by which the limit is lowered at each norm, [n] ticks it may rise, and what is left.

    Args:
        before: What earlier norms have done.
        struck: [n] which norms are spikes.
        steady: [n] where the last norms lie close together.
        held: [n] after which the limit may not rise.
    """
    if before == CALM and not struck.any():
        return np.zeros(len(struck)), np.where(held, 0, FAST), before
    lowered, quiet, opening = before.lowered, before.quiet, before.opening
    downs, ticks = [], []
    for hit, close in zip(struck.tolist(), steady.tolist(), strict=True):
        quiet = 0 if hit else min(quiet + 1, QUIET)
        may_open = opening > 0 and not hit
        opening = opening - 1 if may_open else 0
        opens, calm = may_open and close, quiet == QUIET
        # What spikes took comes back fast only while the norms lie close together: an unstable run
        # that got it back after 200 quiet steps, whatever they looked like, exploded again.
        pace = OPEN if opens else FAST if calm and close else SLOW
        lowered = min(MOST, lowered + DROP) if hit else max(0, lowered - pace)
        rise = FAST if calm and not lowered and not opens else pace
        if may_open and lowered == 0:
            opening, quiet = 0, QUIET
        downs.append(lowered)
        ticks.append(rise)
    return (
        TICK * np.array(downs, np.float64),
        np.where(held, 0, np.array(ticks, np.int64)),
        Restraint(lowered, quiet, opening),
    )
