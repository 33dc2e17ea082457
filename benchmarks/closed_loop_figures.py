"""What one training's losses say, and how trainings compare over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Figures", "figures", "interval", "regret"]

Floats = NDArray[np.float64]

SMOOTH = 10  # steps over which the loss is averaged before rises are looked for
MOST = 2.0  # a loss above this many times the first one, or none at all, counts as this much
TARGET = 0.8  # share of the best fixed threshold's progress that counts as having arrived
RECOVERED = 0.05  # share of the first loss within which a rise counts as made good


@dataclass(frozen=True)
class Figures:
    """One training in numbers.

    Attributes:
        start: Mean of the first three losses.
        final: Mean of the last tenth of the losses.
        diverged: A loss that was not finite, or an end above the start.
        overshoot: Largest rise of the smoothed loss over its running minimum, over ``start``.
        roughness: Mean change of the loss from one step to the next, over ``start``.
        recovery_steps: Steps from the top of that rise until the smoothed loss was back within 5 %
            of ``start`` above the minimum before it; to the end if it never was; 0 for a smaller rise.
        smoothed: Mean of the last 10 losses at every step.
    """

    start: float
    final: float
    diverged: bool
    overshoot: float
    roughness: float
    recovery_steps: int
    smoothed: Floats

    def steps_to(self, target: float) -> int:
        """First step at which the smoothed loss was at most ``target``; all steps if never."""
        reached = np.flatnonzero(self.smoothed <= target)
        return int(reached[0]) if len(reached) else len(self.smoothed)


def figures(losses: Sequence[float | None], steps: int) -> Figures:
    """The figures of a training of so many steps; its losses end early where one was not finite."""
    given = np.array([np.nan if x is None else x for x in losses], np.float64)
    broken = len(given) < steps or not np.isfinite(given).all()
    start = float(given[:3].mean())
    full = np.full(steps, np.inf)
    full[: len(given)] = np.where(np.isfinite(given), given, np.inf)
    full = np.minimum(full, MOST * start)
    final = float(full[-max(1, steps // 10) :].mean())
    smoothed = _smoothed(full)
    lowest = np.minimum.accumulate(smoothed)
    top = int(np.argmax(smoothed - lowest))
    rise = float(smoothed[top] - lowest[top])
    return Figures(
        start=start,
        final=final,
        diverged=broken or final > start,
        overshoot=rise / start,
        roughness=float(np.abs(np.diff(full)).mean()) / start,
        recovery_steps=_recovery(smoothed, top, lowest[top] + RECOVERED * start),
        smoothed=smoothed,
    )


def regret(final: float, best: float, start: float) -> float:
    """Share of the best fixed threshold's progress that was not made; below 0 when more was."""
    return (final - best) / (start - best)


def interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """Bounds that hold the mean with 95 %, by 2000 bootstrap draws of the values."""
    found = np.asarray(values, np.float64)
    draws = np.random.default_rng(seed).integers(0, len(found), (2000, len(found)))
    low, high = np.quantile(found[draws].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def _smoothed(losses: Floats) -> Floats:
    """Mean of the last 10, of fewer at the beginning."""
    sums = np.cumsum(np.concatenate([[0.0], losses]))
    ends = np.arange(1, len(losses) + 1)
    begins = np.maximum(0, ends - SMOOTH)
    found: Floats = (sums[ends] - sums[begins]) / (ends - begins)
    return found


def _recovery(smoothed: Floats, top: int, level: float) -> int:
    if smoothed[top] <= level:
        return 0
    back = np.flatnonzero(smoothed[top:] <= level)
    return int(back[0]) if len(back) else len(smoothed) - top
