"""The ratio |gradient| / |weight| at which adaptive gradient clipping should set in."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gradwatch_service.detectors.base import RunContext
from gradwatch_service.recommenders.answer import answer_norm
from gradwatch_service.recommenders.base import Asked
from gradwatch_service.recommenders.norm import MIN_NORMS, advance_norms, initial_state

__all__ = ["SMALLEST_WEIGHT", "Of", "answer_ratio", "ratios"]

Floats = NDArray[np.float64]
Of = Literal["units", "tensors", "given"]
WORDS: dict[Of, str] = {
    "units": "largest ratios |g| / |w| of a unit",
    "tensors": "largest ratios |g| / |w| of a tensor",
    "given": "largest ratios |g| / |w|",
}

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
    *,
    of: Of = "given",
    context: RunContext | None = None,
    rates: Floats | None = None,
) -> dict[str, Any]:
    """The recommendation for ``policy=agc``: the norm rule on the largest ratio of each step.

    A limit on the largest ratio clips what moves fastest for its size, and leaves the rest alone.
    The share it is meant to clip is one of steps: those in which at least one unit is clipped.

    Args:
        steps: [n] newest steps.
        largest: [n] largest ratio over units or tensors; NaN where it was not measured.
        finite: [n] whether the step was finite.
        asked: Preference and bounds, of the ratio.
        of: What the ratios are of: ``units`` (rows, filters, vectors: what unit-wise clipping goes
            by), whole ``tensors`` (all that weight norms tell), or ``given`` by the asker.
        context: The stream.
        rates: [n] learning rates, NaN where not sent; None is none.
    """
    known = ~np.isnan(largest) | ~finite
    rates = np.full(len(steps), np.nan) if rates is None else rates
    state = advance_norms(
        initial_state(), steps[known], largest[known], finite[known], rates[known]
    )
    given = answer_norm(state, asked, context=context)
    words = given["reason"].replace("norms", WORDS[of])
    if of == "tensors" and given["status"] != "none":
        words += (
            "; measured for whole tensors, so unit-wise clipping clips these steps and usually more "
            "(a job that clips with agc reports its units)"
        )
    given |= {"policy": "agc", "ratio": given["threshold"], "ratio_of": of, "reason": words}
    if given["backtest"] is not None:
        # The largest ratio tells whether something is clipped, not how much of the whole goes with it.
        told = {name: given["backtest"][name] for name in ("steps", "clipped_share")}
        given |= {"backtest": dict.fromkeys(given["backtest"]) | told, "advice": None}
    if state.accepted == 0 and np.count_nonzero(finite) >= MIN_NORMS:
        given["reasons"] = ["unknown_policy_data"]
        given["reason"] = (
            "no threshold: neither ratios nor weight norms were reported beside the gradient norms "
            "(a job that clips with agc reports them)"
        )
    return given
