"""Rules that find their own thresholds, on recorded norms: by what each would have scaled each step.

The published ones as the client carries them out (``gradwatch.clip.published``), which a test holds
them to. Only finite steps come here, so none of them can be poisoned.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque

import numpy as np
from numpy.typing import NDArray

__all__ = ["adagc", "autoclip", "quantile_tracker", "scaled_down", "zclip"]

Floats = NDArray[np.float64]


def scaled_down(limits: Floats, norms: Floats) -> Floats:
    """min(1, limit / norm); 1 for a norm of 0."""
    factors: Floats = np.divide(limits, norms, out=np.ones_like(norms), where=norms > limits)
    return factors


def autoclip(norms: Floats, percentile: float = 10.0, history: int = 10_000) -> Floats:
    """[n] factors of AutoClip: a percentile of all norms so far, the step's own included.

    Seetharaman et al. 2020, Algorithm 1, arXiv:2007.14469; after ``history`` norms the oldest leaves.
    """
    ordered: list[float] = []
    came: deque[float] = deque()
    limits = np.empty(len(norms))
    for i, norm in enumerate(norms.tolist()):
        if len(came) == history:
            del ordered[bisect_left(ordered, came.popleft())]
        insort(ordered, norm)
        came.append(norm)
        place = (len(ordered) - 1) * percentile / 100
        low = math.floor(place)
        high = min(low + 1, len(ordered) - 1)
        limits[i] = ordered[low] + (place - low) * (ordered[high] - ordered[low])
    return scaled_down(limits, norms)


def zclip(norms: Floats, z: float = 2.5, decay: float = 0.97, warmup: int = 25) -> Floats:
    """[n] factors of ZClip as its authors' code has it, the fixed limit of 1.0 on top included.

    Kumar et al. 2025, Algorithm 1, arXiv:2504.02507.
    """
    epsilon, cap = 1e-6, 1.0
    mean = variance = 0.0
    factors = np.ones(len(norms))
    for i, norm in enumerate(norms.tolist()):
        value = norm
        if i < warmup:
            stays = i / (i + 1)
            new = stays * mean + (1 - stays) * norm
            variance = stays * variance + (1 - stays) * (norm - mean) * (norm - new)
            mean = new
        else:
            spread = math.sqrt(variance)
            score = (norm - mean) / (spread + epsilon)
            value = mean + z**2 * spread / score if score > z else norm
            mean = decay * mean + (1 - decay) * value
            variance = decay * variance + (1 - decay) * (value - mean) ** 2
        target = min(value, cap)
        if norm > target:
            factors[i] = target / (norm + epsilon)
    return factors


def adagc(
    norms: Floats, ratio: float = 1.05, decay: float = 0.98, warmup: int = 100, cap: float = 1.0
) -> Floats:
    """[n, T] factors of AdaGC: each tensor by the mean of its own clipped norms.

    Wang et al. 2025, Algorithm 1, arXiv:2502.11034. A tensor counts the steps it was there at.

    Args:
        norms: [n, T] tensor norms; NaN where a tensor had no gradient.
        ratio: Largest norm in units of the mean.
        decay: Share of the mean that stays.
        warmup: First step, from 1, at which a tensor goes by its own mean.
        cap: Joint norm until then.
    """
    epsilon = 1e-8
    mean, count = np.zeros((2, norms.shape[1]))
    factors = np.ones_like(norms)
    for row, factor in zip(norms, factors, strict=True):
        there = ~np.isnan(row)
        norm = np.where(there, row, 0.0)
        early = count + 1 < warmup
        together = cap / (math.sqrt(float(norm @ norm)) + epsilon)
        alone = ratio * np.maximum(mean, epsilon) / np.maximum(norm, epsilon)
        factor[:] = np.minimum(1.0, np.where(early, together, alone))
        clipped = norm * factor
        least = np.where(count > 0, np.minimum(mean, clipped), clipped)
        new = np.where(early, least, decay * mean + (1 - decay) * clipped)
        mean = np.where(there, new, mean)
        count += there
    return factors


def quantile_tracker(
    norms: Floats, share: float = 0.5, rate: float = 0.2, initial: float = 0.1
) -> Floats:
    """[n] factors of the geometric tracker of a quantile (Andrew et al. 2021, arXiv:1905.03871)."""
    limits, limit = np.empty(len(norms)), initial
    for i, norm in enumerate(norms.tolist()):
        limits[i] = limit
        limit *= math.exp(-rate * ((norm <= limit) - share))
    return scaled_down(limits, norms)
