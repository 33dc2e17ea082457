"""What a threshold would have done to the recorded steps."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradwatch_service.recommenders.magnitudes import elements_above, removed_share

__all__ = ["Backtest", "ElementBacktest", "backtest_factors", "backtest_norm", "backtest_value"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Backtest:
    """The effect of one threshold on the finite steps of a record.

    Attributes:
        threshold: The limit that was tried.
        steps: Finite steps it was tried on.
        clipped_share: Share of them with a norm above the threshold.
        mean_coefficient: Mean of ``min(1, threshold / norm)``: by how much the average step would
            have been scaled.
        norm_removed_share: 1 - sum(coefficient norm) / sum(norm).
        energy_removed_share: The same with squares.
    """

    threshold: float
    steps: int
    clipped_share: float
    mean_coefficient: float
    norm_removed_share: float
    energy_removed_share: float


def backtest_norm(
    norms: Floats, threshold: float, *, scaled: Floats | None = None
) -> Backtest | None:
    """Clip recorded norms at ``threshold``, in float64; None when there is nothing to clip.

    Args:
        norms: [n] norms of finite steps, at least 0.
        threshold: Finite and above 0.
        scaled: [n] what the coefficient would scale, where that is not the norm itself: the ratio
            rule compares |g| / |w| and scales |g|.
    """
    if not len(norms):
        return None
    norms = norms.astype(np.float64)
    scaled = norms if scaled is None else scaled.astype(np.float64)
    # A norm of 0 is not clipped: its coefficient is 1, not threshold/0.
    ratios = np.divide(threshold, norms, out=np.ones_like(norms), where=norms > 0)
    coefficients = np.minimum(1.0, ratios)
    return _tried(threshold, coefficients, scaled, float(np.mean(norms > threshold)))


def backtest_factors(coefficients: Floats, norms: Floats) -> Backtest | None:
    """Scale recorded norms by a rule's own coefficients, at most 1; None when there is no norm.

    Such a rule has no one threshold: that field is NaN.
    """
    if not len(norms):
        return None
    return _tried(math.nan, coefficients, norms, float(np.mean(coefficients < 1)))


def _tried(threshold: float, coefficients: Floats, scaled: Floats, clipped: float) -> Backtest:
    kept = coefficients * scaled
    total = float(scaled.sum())
    energy = float(scaled @ scaled)
    return Backtest(
        threshold=threshold,
        steps=len(scaled),
        clipped_share=clipped,
        mean_coefficient=float(coefficients.mean()),
        norm_removed_share=1 - float(kept.sum()) / total if total > 0 else 0.0,
        energy_removed_share=1 - float(kept @ kept) / energy if energy > 0 else 0.0,
    )


@dataclass(frozen=True, slots=True)
class ElementBacktest(Backtest):
    """The same for a limit on every element, as far as magnitude histograms tell.

    ``clipped_share`` is the share of steps in which an element may exceed the threshold, a step's
    coefficient the norm after clipping over the norm before.

    Attributes:
        clipped_elements_share: Share of the non-zero elements above the threshold.
    """

    clipped_elements_share: float


def backtest_value(counts: Floats, bins: Floats, threshold: float) -> ElementBacktest | None:
    """Hold every element in [-threshold, +threshold]; None without a histogram.

    Args:
        counts: [h, b] non-empty histograms of finite steps.
        bins: [2, b] bins.
        threshold: Finite and above 0.
    """
    if not len(counts):
        return None
    low, high = bins
    energy = counts @ ((high**2 - low**2) / (2 * np.log(high / low)))
    removed = removed_share(counts, bins, np.full(len(counts), threshold))
    coefficients = np.sqrt(np.clip(1 - removed, 0, 1))
    norms = np.sqrt(energy)
    return ElementBacktest(
        threshold=threshold,
        steps=len(counts),
        clipped_share=float(np.mean(counts[:, high > threshold].any(axis=1))),
        mean_coefficient=float(coefficients.mean()),
        norm_removed_share=1 - float(coefficients @ norms) / float(norms.sum()),
        energy_removed_share=float(removed @ energy) / float(energy.sum()),
        clipped_elements_share=elements_above(counts.sum(axis=0), bins, threshold),
    )
