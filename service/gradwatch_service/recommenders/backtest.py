"""What a threshold would have done to the recorded steps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Backtest", "backtest_norm"]

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


def backtest_norm(norms: Floats, threshold: float) -> Backtest | None:
    """Clip recorded norms at ``threshold``, in float64; None when there is nothing to clip.

    Args:
        norms: [n] norms of finite steps, at least 0.
        threshold: Finite and above 0.
    """
    if not len(norms):
        return None
    norms = norms.astype(np.float64)
    # A norm of 0 is not clipped: its coefficient is 1, not threshold/0.
    ratios = np.divide(threshold, norms, out=np.ones_like(norms), where=norms > 0)
    coefficients = np.minimum(1.0, ratios)
    kept = coefficients * norms
    total = float(norms.sum())
    energy = float(norms @ norms)
    return Backtest(
        threshold=threshold,
        steps=len(norms),
        clipped_share=float(np.mean(norms > threshold)),
        mean_coefficient=float(coefficients.mean()),
        norm_removed_share=1 - float(kept.sum()) / total if total > 0 else 0.0,
        energy_removed_share=1 - float(kept @ kept) / energy if energy > 0 else 0.0,
    )
