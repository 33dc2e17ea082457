"""Energy above a limit, from histograms of element magnitudes alone.

Bin b counts elements with ``low_b <= |g| < high_b``; the bins of a report are cut at
``2**(lowest + b/B)``, and an element whose magnitude is known exactly is a bin of its own. Inside a
bin the elements are taken to be spread evenly in ln |g|; :func:`limit_bounds` assumes nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "OCTAVES",
    "aligned",
    "elements_above",
    "limit_bounds",
    "limit_for",
    "removed_share",
    "spans",
    "with_known",
]

Floats = NDArray[np.float64]

OCTAVES = 64
_HALVINGS = 48  # bisection steps over 64 octaves: to 2e-13 of an octave


def spans(bins_per_octave: int, lowest_exponent: int) -> Floats:
    """[2, 64 B] lower and upper edge of every bin. The outermost also hold what lies beyond."""
    at = np.arange(OCTAVES * bins_per_octave + 1) / bins_per_octave
    cut = np.exp2(lowest_exponent + at)
    return np.stack([cut[:-1], cut[1:]])


def with_known(counts: Floats, bins: Floats, known: Floats) -> tuple[Floats, Floats]:
    """The histogram with elements of known magnitude taken out of their bins.

    The largest elements decide how much energy a limit removes, and they are the ones that a
    report names exactly, as ``max_abs``.

    Args:
        counts: [b] elements by bin.
        bins: [2, b] bins.
        known: [k] magnitudes of elements that are among those counted.

    Returns:
        Counts [b + k] and bins [2, b + k]; the last k are one element each.
    """
    known = known[known >= bins[0, 0]]
    if not len(known):
        return counts, bins
    bins = bins.copy()
    bins[1, -1] = max(bins[1, -1], known.max())  # the last bin also holds what lies beyond
    at = np.searchsorted(bins[0], known, side="right") - 1
    left = np.maximum(counts - np.bincount(at, minlength=len(counts)), 0.0)
    # Not wider than float32 can tell apart, not so narrow that its logarithm vanishes.
    alone = np.stack([known, known * (1 + 1e-7)])
    return np.concatenate([left, np.ones(len(known))]), np.concatenate([bins, alone], axis=1)


def aligned(
    counts: NDArray[Any], bins_per_octave: int, lowest: int, *, to_bins: int, to_lowest: int
) -> Floats:
    """[..., 64 to_bins] the counts in coarser or shifted bins, every element kept.

    Args:
        counts: [..., k] counts; missing trailing bins are empty.
        bins_per_octave: B of ``counts``, a multiple of ``to_bins``.
        lowest: Lowest exponent of ``counts``.
        to_bins: B wanted.
        to_lowest: Lowest exponent wanted.
    """
    width = OCTAVES * to_bins
    factor = bins_per_octave // to_bins
    at = np.arange(counts.shape[-1]) // factor + (lowest - to_lowest) * to_bins
    goes = np.zeros((counts.shape[-1], width))
    goes[np.arange(len(at)), np.clip(at, 0, width - 1)] = 1.0
    placed: Floats = counts.astype(np.float64) @ goes  # whole numbers below 2**53: exact
    return placed


def removed_share(counts: Floats, bins: Floats, limits: Floats) -> Floats:
    """[w] share of the energy that clipping every element at ``limits[i]`` removes.

    1 - sum min(|g|, c)^2 / sum g^2, with elements spread evenly in ln |g| inside each bin.

    Args:
        counts: [w, b] histograms.
        bins: [2, b] bins.
        limits: [w] limits, above 0.
    """
    low, high = bins
    octave = np.log(high / low)
    energy = counts * (high**2 - low**2) / (2 * octave)
    c = np.clip(limits[:, None], low, high)
    above = counts / octave * ((high**2 - c**2) / 2 - limits[:, None] ** 2 * np.log(high / c))
    total = energy.sum(axis=1)
    share: Floats = np.divide(above.sum(axis=1), total, out=np.zeros(len(total)), where=total > 0)
    return share


def elements_above(counts: Floats, bins: Floats, limit: float) -> float:
    """Share of the non-zero elements above the limit, spread evenly in ln |g| inside bins."""
    low, high = np.log(bins)
    part = np.clip((high - np.log(limit)) / (high - low), 0, 1)
    total = float(counts.sum())
    return float(counts @ part) / total if total else 0.0


def limit_for(counts: Floats, bins: Floats, share: float) -> Floats:
    """[w] smallest limit that removes at most ``share`` of the energy; 0 for an empty histogram."""
    low = np.full(len(counts), np.log(bins.min()))
    high = np.full(len(counts), np.log(bins.max()))
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        enough = removed_share(counts, bins, np.exp(middle)) <= share
        high = np.where(enough, middle, high)
        low = np.where(enough, low, middle)
    return np.where(counts.sum(axis=1) > 0, np.exp(high), 0.0)


def limit_bounds(counts: Floats, bins: Floats, share: float) -> tuple[float, float]:
    """Least and greatest limit that any elements with these counts can ask for.

    The removed share grows with every element above the limit and falls with every one below, so
    its extremes have each element at an edge of its bin.
    """
    found = []
    for worst in (_least_share, _greatest_share):
        low, high = float(np.log(bins.min())), float(np.log(bins.max()))
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            if worst(counts, bins, float(np.exp(middle))) <= share:
                high = middle
            else:
                low = middle
        found.append(float(np.exp(high)))
    return found[0], found[1]


def _least_share(counts: Floats, bins: Floats, limit: float) -> float:
    low, high = bins
    # Above the limit an element lies as low as it can, below it as high as it can.
    placed = np.where(low >= limit, low, np.minimum(high, limit))
    return _share(counts, placed, limit)


def _greatest_share(counts: Floats, bins: Floats, limit: float) -> float:
    low, high = bins
    split = (low < limit) & (high > limit)  # this bin's elements lie at whichever edge is worse
    placed = np.where(low >= limit, high, low)
    return max(
        _share(counts, np.where(split, low, placed), limit),
        _share(counts, np.where(split, high, placed), limit),
    )


def _share(counts: Floats, placed: Floats, limit: float) -> float:
    energy = float(counts @ placed**2)
    kept = float(counts @ np.minimum(placed, limit) ** 2)
    return 1 - kept / energy if energy > 0 else 0.0
