"""How far spikes lower the limit of a run, and how fast a quiet run gets it back.

A calm job loses by being clipped, an unstable one by not being clipped, and what tells them apart
before the damage is done is norms that stand out from their neighbours. Everything counts in ticks
of 0.1 %, whole numbers, so that no split of the steps into blocks changes a bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradwatch_service.recommenders.window import quantile, sorted_windows

__all__ = ["SPIKE", "Restraint", "restrained", "spikes"]

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Ticks = NDArray[np.int64]

SPIKE = math.log(2.5)  # ln of how many medians are a spike, and of where a calm run is clipped
SHORT = 16  # norms whose median keeps a steady rise from looking like spikes
FEWEST = 3  # norms before one can stand out
TICK = math.log(1.001)
DROP = 400  # ticks by which each spike lowers the limit: to two thirds
MOST = 1600  # ticks it can be lowered in all: to a fifth, which is half of a median
QUIET = 200  # norms without a spike after which a run is calm
SLOW, FAST = 1, 10  # ticks per norm by which the limit comes back, until then and from then on


@dataclass(frozen=True, slots=True)
class Restraint:
    """What the spikes of a run have done.

    Attributes:
        lowered: Ticks by which the limit is lowered now, 0 to ``MOST``.
        quiet: Norms since the last spike, ``QUIET`` before the first: a run starts calm.
    """

    lowered: int = 0
    quiet: int = QUIET

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


def spikes(past: Floats, logs: Floats, medians: Floats) -> Flags:
    """[n] whether each norm exceeds 2.5 times both medians before it: of the last 64 and the last 16.

    Args:
        past: ln of the norms before, oldest first.
        logs: [n] ln of the new norms.
        medians: [n or n + 1] medians of the last 64 up to each new norm, and, when there is a past,
            first of those before the new ones.
    """
    found = np.zeros(len(logs), np.bool_)
    recent = past[-SHORT:]
    joined = np.concatenate([recent[-1:], logs])
    ordered, counts = sorted_windows(recent[:-1], joined, SHORT)
    usual = np.maximum(medians, quantile(ordered, counts, 0.5))[:-1]
    known = counts[:-1] >= FEWEST
    if len(usual):
        found[-len(usual) :] = known & (logs[-len(usual) :] > usual + SPIKE)
    return found


def restrained(before: Restraint, struck: Flags, held: Flags) -> tuple[Floats, Ticks, Restraint]:
    """[n] ln by which the limit is lowered at each norm, [n] ticks it may rise, and what is left.

    Args:
        before: What earlier spikes have done.
        struck: [n] which norms are spikes.
        held: [n] after which the limit may not rise.
    """
    if before == Restraint() and not struck.any():
        return np.zeros(len(struck)), np.where(held, 0, FAST), before
    lowered, quiet = before.lowered, before.quiet
    downs, ticks = [], []
    for hit in struck.tolist():
        quiet = 0 if hit else min(quiet + 1, QUIET)
        rise = FAST if quiet >= QUIET else SLOW
        lowered = min(MOST, lowered + DROP) if hit else max(0, lowered - rise)
        downs.append(lowered)
        ticks.append(rise)
    return (
        TICK * np.array(downs, np.float64),
        np.where(held, 0, np.array(ticks, np.int64)),
        Restraint(lowered, quiet),
    )
