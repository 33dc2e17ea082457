"""Order statistics over sliding windows and how far they can be trusted."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["effective_sizes", "log_spread", "order_intervals", "quantile", "sorted_windows"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

MAD_TO_SIGMA = 1.4826
# Below this a window of norms is so narrow that its spread says nothing about the next step.
MIN_SPREAD = 0.08


def sorted_windows(past: Floats, values: Floats, size: int) -> tuple[Floats, Integers]:
    """The window that ends at each value, sorted: [n, size], and how many entries it has, [n].

    A window shorter than ``size`` is filled with infinity at its end.

    Args:
        past: Values before the first of ``values``, oldest first; only the last ``size - 1`` count.
        values: [n] values, oldest first.
        size: Longest window.
    """
    past = past[-(size - 1) :]
    fill = np.full(size - 1 - len(past), np.inf)
    joined = np.concatenate([fill, past, values])
    # sliding_window_view, without what its checks cost at every block of a few steps.
    shape, strides = (len(values), size), joined.strides * 2
    windows = np.sort(np.lib.stride_tricks.as_strided(joined, shape, strides), axis=1)
    counts = np.minimum(len(past) + 1 + np.arange(len(values)), size)
    return windows, counts


def quantile(ordered: Floats, counts: Integers, q: float | Floats) -> Floats:
    """[n] quantile of the first ``counts[i]`` entries of each sorted row, linearly interpolated.

    One q for all rows or one for each; every count is at least 1.

    The same definition as numpy's default (Hyndman and Fan 1996, type 7).
    """
    place = q * (counts - 1)
    low = np.floor(place).astype(np.int64)
    high = np.minimum(low + 1, counts - 1)
    rows = np.arange(len(ordered))
    below, above = ordered[rows, low], ordered[rows, high]
    found: Floats = below + (place - low) * (above - below)
    return found


def log_spread(ordered: Floats, counts: Integers, centre: Floats) -> Floats:
    """[n] robust standard deviation of each row: 1.4826 MAD, never below ``MIN_SPREAD``."""
    deviations = np.sort(np.abs(ordered - centre[:, None]), axis=1)
    return np.maximum(MIN_SPREAD, MAD_TO_SIGMA * quantile(deviations, counts, 0.5))


def effective_sizes(windows: Floats) -> Floats:
    """[t] how many independent values each row is worth: n (1 - rho) / (1 + rho), at least 8.

    ``rho`` is the autocorrelation at lag one; never more than n, and n itself when n < 8.

    Args:
        windows: [t, w] values in the order they came; NaN where there is none.
    """
    there = ~np.isnan(windows)
    n = there.sum(axis=1)
    mean = np.where(there, windows, 0.0).sum(axis=1) / np.maximum(n, 1)
    centred = np.where(there, windows - mean[:, None], 0.0)
    power = np.einsum("tw,tw->t", centred, centred)
    lagged = np.einsum("tw,tw->t", centred[:, 1:], centred[:, :-1])
    rho = np.divide(lagged, power, out=np.zeros(len(n)), where=(power > 0) & (n >= 3))
    sizes: Floats = np.clip(n * (1 - rho) / (1 + rho), np.minimum(8, n), n)
    return sizes


def order_intervals(windows: Floats, q: float, z: float = 1.96) -> tuple[Floats, Floats]:
    """[t], [t] bounds of each row's q-quantile that hold with about 95 %, by order statistics.

    Free of any distribution: the ranks q +- z sqrt(q (1 - q) / n_eff) of the sorted values
    (David and Nagaraja 2003, "Order Statistics", section 7.1), with n replaced by the effective
    size because neighbouring steps resemble each other.

    Args:
        windows: [t, w] values in the order they came; NaN where there is none, at least one each.
        q: The quantile.
        z: Standard deviations on either side.
    """
    margin = z * np.sqrt(q * (1 - q) / effective_sizes(windows))
    ordered = np.sort(windows, axis=1)  # NaN goes last
    counts = (~np.isnan(windows)).sum(axis=1)
    low = quantile(ordered, counts, np.maximum(0.0, q - margin))
    high = quantile(ordered, counts, np.minimum(1.0, q + margin))
    return low, high
