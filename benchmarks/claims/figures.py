"""Differences between two arms over the same seeds, with an interval."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from benchmarks.claims.job import Outcome

__all__ = [
    "Figure",
    "largest_rise",
    "mean_interval",
    "paired",
    "ratio",
    "share",
    "smooth",
    "steps_to",
]

# Student's t, two-sided 95 %, by degrees of freedom (any table of it).
T975 = {4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228, 11: 2.201, 14: 2.145, 19: 2.093}  # fmt: skip
Z975 = 1.96


@dataclass(frozen=True, slots=True)
class Figure:
    """A difference, above 0 in favour of the claim, and the ends of its 95 % interval."""

    middle: float
    low: float
    high: float
    seeds: int


def mean_interval(numbers: Sequence[float]) -> Figure:
    """Mean and Student's t interval.

    Raises:
        KeyError: Fewer than 5 numbers, or a count that :data:`T975` lacks.
    """
    n = len(numbers)
    mean = float(np.mean(numbers))
    half = T975[n - 1] * float(np.std(numbers, ddof=1)) / math.sqrt(n)
    return Figure(mean, mean - half, mean + half, n)


def paired(worse: Sequence[float], better: Sequence[float]) -> Figure:
    """Mean of ``worse - better`` seed by seed, with a t interval: above 0 when ``better`` is lower."""
    return mean_interval([a - b for a, b in zip(worse, better, strict=True)])


def ratio(worse: Sequence[float], better: Sequence[float]) -> Figure:
    """Mean of ``log2(worse / better)`` seed by seed: 1 is a factor of two in favour of ``better``."""
    return paired([math.log2(x) for x in worse], [math.log2(x) for x in better])


def share(better: Sequence[bool], worse: Sequence[bool]) -> Figure:
    """Difference of two shares with Newcombe's hybrid score interval (1998, method 10).

    It takes the arms as independent, and does not collapse where all runs of an arm agree.
    """
    (p, low_p, high_p), (q, low_q, high_q) = _wilson(better), _wilson(worse)
    low = p - q - math.hypot(p - low_p, high_q - q)
    high = p - q + math.hypot(high_p - p, q - low_q)
    return Figure(p - q, low, high, len(better))


def _wilson(hits: Sequence[bool]) -> tuple[float, float, float]:
    n, p = len(hits), sum(hits) / len(hits)
    centre = (p + Z975**2 / (2 * n)) / (1 + Z975**2 / n)
    half = Z975 / (1 + Z975**2 / n) * math.sqrt(p * (1 - p) / n + Z975**2 / (4 * n * n))
    return p, centre - half, centre + half


def smooth(curve: Sequence[float], keep: float = 0.95) -> list[float]:
    """Exponential mean of a loss curve, from its first value on."""
    mean, means = curve[0], []
    for loss in curve:
        mean = keep * mean + (1 - keep) * loss
        means.append(mean)
    return means


def steps_to(target: float, outcome: Outcome) -> int:
    """Steps until the smoothed loss is at the target; one more than all where it never is."""
    for step, loss in enumerate(smooth(outcome.curve), start=1):
        if loss <= target:
            return step
    return len(outcome.curve) + 1


LARGEST_RISE = 1000.0  # what a lost run counts as


def largest_rise(outcome: Outcome) -> float:
    """Largest rise of the smoothed loss over its lowest value before, at least 0.001."""
    if outcome.lost:
        return LARGEST_RISE
    losses = np.array(smooth(outcome.curve, keep=0.8))
    rise = float((losses - np.minimum.accumulate(losses)).max())
    return min(max(rise, 0.001), LARGEST_RISE)
