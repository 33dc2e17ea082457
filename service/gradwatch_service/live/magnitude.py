"""The client's magnitude histograms, in the few decades that a scrape can carry."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from gradwatch_service.live.counts import MAGNITUDE_BOUNDS
from gradwatch_service.live.layout import Layout
from gradwatch_service.rows import HistogramRows

__all__ = ["magnitudes"]

# Above any float32; keeps a made-up exponent from overflowing the sum.
_TOP = 200.0


def magnitudes(
    histograms: Sequence[HistogramRows], layout: Layout
) -> Mapping[str, tuple[tuple[int, ...], float]]:
    """By group: elements per decade, one more number for what lies above, and their sum.

    A bin that a decade's bound cuts counts in the upper decade, so that no share below a bound is
    overstated. The sum takes each bin at its geometric middle: within ``2**(1/(2B))`` of the truth.
    """
    if not histograms:
        return {}
    buckets = np.zeros((len(layout.groups), len(MAGNITUDE_BOUNDS) + 1))
    totals = np.zeros(len(layout.groups))
    for part in histograms:
        octaves = _octaves(part)
        per_tensor = part.counts.sum(axis=0, dtype=np.float64)
        middles = np.exp2(np.minimum((octaves[1:] + octaves[:-1]) / 2, _TOP))
        totals += layout.sums(per_tensor @ middles)
        # Bins to decades first: few columns are left to be summed by group.
        to_decade = np.eye(buckets.shape[1])[_decades(octaves[1:])]
        for decade, column in enumerate((per_tensor @ to_decade).T):
            buckets[:, decade] += layout.sums(column)
    return {
        name: (tuple(int(n) for n in row), float(total))
        for name, row, total in zip(layout.groups, buckets, totals, strict=True)
        if row.any()
    }


def _octaves(part: HistogramRows) -> NDArray[np.float64]:
    """[bins + 1] base-2 logarithms of the bins' edges."""
    bins = part.counts.shape[2]
    return part.lowest_exponent + np.arange(bins + 1) / part.bins_per_octave


def _decades(upper: NDArray[np.float64]) -> NDArray[np.int64]:
    """[bins] the decade that each bin counts in, by the logarithm of its upper edge."""
    # 2^k hits no decade but 1 = 2^0 exactly; the slack keeps rounding from moving that one.
    bounds = np.log10(MAGNITUDE_BOUNDS)
    return np.asarray(np.searchsorted(bounds, upper * np.log10(2.0) - 1e-9, side="left"))
