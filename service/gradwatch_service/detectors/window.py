"""The usual level of a value: median and robust spread of the last accepted ones."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Final

__all__ = ["Window"]

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

    __slots__ = ("_sorted", "size", "values")

    def __init__(self, size: int, values: Sequence[float] = ()) -> None:
        self.size = size
        self.values = list(values)
        self._sorted = sorted(values)

    def __len__(self) -> int:
        """Return the number of values kept."""
        return len(self.values)

    def copy(self) -> Window:
        """Return a window of its own with the same values."""
        twin = Window(self.size)
        twin.values = self.values.copy()
        twin._sorted = self._sorted.copy()
        return twin

    def push(self, value: float) -> None:
        """Accept a finite value; the oldest leaves once ``size`` are kept."""
        if len(self.values) == self.size:
            old = self.values.pop(0)
            del self._sorted[bisect_left(self._sorted, old)]
        self.values.append(value)
        insort(self._sorted, value)

    @property
    def median(self) -> float:
        """Middle value, the mean of the middle two for an even number; needs one value."""
        ordered, count = self._sorted, len(self._sorted)
        half = count // 2
        return ordered[half] if count % 2 else 0.5 * (ordered[half - 1] + ordered[half])

    def quantile(self, share: float) -> float:
        """Value below which about ``share`` of the window lies; the nearest one kept."""
        return self._sorted[round(share * (len(self._sorted) - 1))]

    def spread(self) -> float:
        """Robust standard deviation: 1.4826 times the median distance from the median."""
        middle = self.median
        distances = sorted(abs(value - middle) for value in self._sorted)
        half, count = len(distances) // 2, len(distances)
        mad = distances[half] if count % 2 else 0.5 * (distances[half - 1] + distances[half])
        return MAD_TO_SIGMA * mad
