"""The ratio |gradient| / |weight| at which adaptive gradient clipping should set in."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwatch_service.detectors.base import RunContext
from gradwatch_service.recommenders.answer import answer_norm
from gradwatch_service.recommenders.base import Asked
from gradwatch_service.recommenders.norm import MIN_NORMS, advance_norms, initial_state

__all__ = ["SMALLEST_WEIGHT", "answer_ratio", "ratios"]

Floats = NDArray[np.float64]

# A weight near zero must not make a ratio infinite (Brock et al. 2021, "High-performance
# large-scale image recognition without normalization", section 4.1, use the same 1e-3).
SMALLEST_WEIGHT = 1e-3


def ratios(norms: Floats, weights: Floats) -> Floats:
    """[n, T] |g| / max(|w|, 1e-3); NaN where either was not measured."""
    return norms / np.maximum(weights, SMALLEST_WEIGHT)


def answer_ratio(
    steps: NDArray[np.int64],
    largest: Floats,
    finite: NDArray[np.bool_],
    asked: Asked,
    context: RunContext | None,
) -> dict[str, Any]:
    """The recommendation for ``policy=agc``: the norm rule on the largest ratio of each step.

    A limit on the largest ratio clips the tensors that move fastest for their size, and leaves
    the others alone.

    Args:
        steps: [n] newest steps.
        largest: [n] largest ratio over the tensors; NaN where it was not measured.
        finite: [n] whether the step was finite.
        asked: Preference and bounds, of the ratio.
        context: The stream.
    """
    known = ~np.isnan(largest) | ~finite
    state = advance_norms(
        initial_state(), steps[known], largest[known], finite[known], np.full(known.sum(), np.nan)
    )
    given = answer_norm(state, asked, context=context)
    words = given["reason"].replace("norms", "largest ratios |g| / |w|")
    given |= {"policy": "agc", "ratio": given["threshold"], "reason": words}
    if state.accepted == 0 and np.count_nonzero(finite) >= MIN_NORMS:
        given["reasons"] = ["unknown_policy_data"]
        given["reason"] = "no threshold: no weight norms were reported beside the gradient norms"
    return given
