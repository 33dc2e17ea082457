"""The usual level of a value: median and robust spread of the last accepted ones."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from math import inf, nan
from typing import Final

__all__ = ["Window"]

SPREAD_STEPS: Final = 8
MAD_TO_SIGMA: Final = 1.4826  # makes the median absolute deviation estimate a normal's sigma


class Window:
    """The last ``size`` values, kept in order of arrival and sorted. Mutable; :meth:`copy` first.

    Example:
        >>> window = Window(3, [1.0, 2.0, 9.0])
        >>> window.median, window.spread()
        (2.0, 1.4826)
        >>> window.push(3.0)
        >>> window.values
        [2.0, 9.0, 3.0]
    """

    __slots__ = ("_age", "_sorted", "_spread", "median", "size", "values")

    def __init__(self, size: int, values: Sequence[float] = ()) -> None:
        self.size = size
        self.values = list(values)
        self._sorted = sorted(values)
        self._spread = 0.0
        self._age = SPREAD_STEPS  # values since the spread was taken; this many make it stale
        #: Middle value, the mean of the middle two for an even number; NaN for none.
        self.median = _middle(self._sorted)

    def __len__(self) -> int:
        """Return the number of values kept."""
        return len(self.values)

    def copy(self) -> Window:
        """Return a window of its own with the same values."""
        twin = Window.__new__(Window)
        twin.size, twin.median = self.size, self.median
        twin.values = self.values.copy()
        twin._sorted = self._sorted.copy()
        twin._spread, twin._age = self._spread, self._age
        return twin

    def dump(self) -> list[float]:
        """Numbers that :meth:`load` restores exactly."""
        return [self._spread, float(self._age), *self.values]

    @classmethod
    def load(cls, size: int, data: Sequence[float]) -> Window:
        """Read what :meth:`dump` wrote."""
        window = cls(size, data[2:])
        window._spread, window._age = data[0], int(data[1])
        return window

    def push(self, value: float) -> None:
        """Accept a finite value; the oldest leaves once ``size`` are kept."""
        values, ordered = self.values, self._sorted
        if len(values) == self.size:
            del ordered[bisect_left(ordered, values.pop(0))]
        values.append(value)
        insort(ordered, value)
        self._age += 1
        count = len(ordered)
        half = count >> 1
        middle = ordered[half]
        self.median = middle if count & 1 else 0.5 * (ordered[half - 1] + middle)

    def quantile(self, share: float) -> float:
        """Value below which about ``share`` of the window lies; the nearest one kept."""
        return self._sorted[round(share * (len(self._sorted) - 1))]

    def spread(self) -> float:
        """Robust standard deviation: 1.4826 times the median distance from the median.

        Taken anew after every eighth value: it moves slowly, and it is what costs time.
        """
        if self._age < SPREAD_STEPS:
            return self._spread
        mad = _median_distance(self._sorted, self.median)
        self._spread, self._age = MAD_TO_SIGMA * mad, 0
        return self._spread


def _middle(ordered: list[float]) -> float:
    count = len(ordered)
    if not count:
        return nan
    half = count >> 1
    return ordered[half] if count & 1 else 0.5 * (ordered[half - 1] + ordered[half])


def _median_distance(ordered: list[float], middle: float) -> float:
    """Median of the distances from ``middle``, walking outwards from it: no sorting."""
    count = len(ordered)
    right = bisect_left(ordered, middle)
    left = right - 1
    before = last = 0.0
    for _ in range(count // 2 + 1):
        before = last
        below = middle - ordered[left] if left >= 0 else inf
        above = ordered[right] - middle if right < count else inf
        if below <= above:
            last, left = below, left - 1
        else:
            last, right = above, right + 1
    return last if count % 2 else 0.5 * (before + last)
