"""Steps as the analysis reads them: numpy columns, free of any store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwatch_wire import Manifest

__all__ = ["HistogramRows", "StepRows"]

Array = NDArray[Any]
Floats = NDArray[np.float64]
Steps = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class HistogramRows:
    """Magnitude histograms of H steps, which may be fewer than the steps reported.

    Attributes:
        steps: [H] steps they belong to, increasing.
        bins_per_octave: B in 1, 2, 4, 8.
        lowest_exponent: Bin b counts finite non-zero elements with
            ``2**(lowest_exponent + b/B) <= |g| < 2**(lowest_exponent + (b+1)/B)``.
        sampled: Share of elements looked at, 0 to 1.
        counts: [H, T, bins] unsigned.
    """

    steps: Steps
    bins_per_octave: int
    lowest_exponent: int
    sampled: float
    counts: Array


@dataclass(frozen=True, slots=True, eq=False)
class StepRows:
    """Consecutive reported steps of one (attempt, optimizer, rank), oldest first.

    Attributes:
        attempt: Attempt of the run.
        optimizer: Name of the optimizer.
        rank: Rank that reported.
        steps: [n] step numbers, strictly increasing, not always without holes.
        time: [n] client Unix seconds, for display; NaN where it was not sent.
        scalars: Name to [n]; NaN means not measured.
        tensors: Name of a statistic to [n, T], tensors in manifest order; NaN means not measured.
        manifest: The tensors that the columns belong to.
        histograms: Magnitude histograms of some of the steps.
    """

    attempt: int
    optimizer: str
    rank: int
    steps: Steps
    time: Floats
    scalars: Mapping[str, Floats]
    tensors: Mapping[str, Array]
    manifest: Manifest
    histograms: tuple[HistogramRows, ...] = field(default=())

    def __len__(self) -> int:
        """Return the number of steps."""
        return len(self.steps)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays; where they are views, of what they show."""
        columns = (self.steps, self.time, *self.scalars.values(), *self.tensors.values())
        counts = (part.counts for part in self.histograms)
        return sum(values.nbytes for values in (*columns, *counts))

    def bare(self) -> StepRows:
        """The steps alone, without a number, holding on to no other array."""
        empty = np.full(len(self), np.nan)
        return replace(
            self, steps=self.steps.copy(), time=empty, scalars={}, tensors={}, histograms=()
        )

    def cut(self, start: int, stop: int) -> StepRows:
        """Rows ``start`` to ``stop`` (half-open row indices) as views, with their histograms."""
        steps = self.steps[start:stop]
        return replace(
            self,
            steps=steps,
            time=self.time[start:stop],
            scalars={name: values[start:stop] for name, values in self.scalars.items()},
            tensors={name: values[start:stop] for name, values in self.tensors.items()},
            histograms=tuple(self._histograms_of(steps)),
        )

    def _histograms_of(self, steps: Steps) -> list[HistogramRows]:
        if not len(steps):
            return []
        kept = []
        for part in self.histograms:
            inside = (part.steps >= steps[0]) & (part.steps <= steps[-1])
            if inside.any():
                kept.append(replace(part, steps=part.steps[inside], counts=part.counts[inside]))
        return kept
