"""The limit for every single element: the smallest that removes little of the gradient's energy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwatch_service.detectors.base import RunContext
from gradwatch_service.recommenders.advice import advice
from gradwatch_service.recommenders.backtest import backtest_value
from gradwatch_service.recommenders.base import Asked, Status, version
from gradwatch_service.recommenders.magnitudes import (
    elements_above,
    limit_bounds,
    limit_for,
    removed_share,
    spans,
    with_known,
)

__all__ = ["MagnitudeHistory", "answer_value"]

Floats = NDArray[np.float64]

WINDOW = 64  # histograms that are pooled
ENOUGH = 32
MIN_STEPS = 3
WIDE = 1.5
POINT = 0.01  # realised and intended share of energy may differ by this, or by half of the intended
RESAMPLES = 200


@dataclass(frozen=True, slots=True, eq=False)
class MagnitudeHistory:
    """Histograms of healthy steps, all tensors together, oldest first.

    Attributes:
        steps: [h] steps.
        counts: [h, 64 B] elements by magnitude.
        bins_per_octave: B.
        lowest_exponent: Exponent of the lowest edge.
        sampled: Share of the elements that was looked at.
        largest: [h, k] magnitudes of elements of each step that are known exactly, such as the
            largest of each tensor; k may be 0.
        finite_steps: Finite steps of the run, with or without a histogram.
        flood: Whether more than half of the last 20 steps were not finite.
        last_step: Newest step, or None.
    """

    steps: NDArray[np.int64]
    counts: Floats
    bins_per_octave: int
    lowest_exponent: int
    sampled: float
    largest: Floats
    finite_steps: int
    flood: bool
    last_step: int | None


def answer_value(
    history: MagnitudeHistory,
    asked: Asked,
    removed_energy: float = 0.01,
    context: RunContext | None = None,
) -> dict[str, Any]:
    """The recommendation for ``policy=value``, with the fields of the REST answer.

    The limit is the smallest c with ``1 - sum min(|g|, c)^2 / sum g^2 <= removed_energy`` over the
    pooled last 64 histograms of healthy steps.
    """
    used = len(history.steps[-WINDOW:])
    code = _missing(history)
    given: dict[str, Any] = {
        "run": None,
        "policy": "value",
        "threshold": None,
        "interval": None,
        "status": "none",
        "effective_threshold": asked.effective(None),
        "spike_threshold": None,
        "reason": f"no threshold: {WORDS[code]}" if code else "",
        "reasons": [code] if code else ["ok"],
        "steps_used": used,
        "version": version(context, 0 if history.last_step is None else history.last_step + 1),
        "valid_from_step": None if history.last_step is None else history.last_step + 1,
        "removed_energy": removed_energy,
        "error_factor": None,
        "intended_share": removed_energy,
        "realised_share": None,
        "realised_steps": 0,
        "advice": None,
        "backtest": None,
    }
    if code:
        return given
    counts, bins = _pool(history)
    threshold = float(limit_for(counts[None, :], bins, removed_energy)[0])
    interval = _interval(history, removed_energy, threshold)
    status, realised, judged = _status(history, interval, threshold, removed_energy)
    evidence = _evidence(history, threshold, counts, bins)
    given |= {
        "threshold": threshold,
        "interval": list(interval),
        "status": status,
        "effective_threshold": asked.effective(threshold),
        "error_factor": 2 ** (1 / history.bins_per_octave) if history.sampled >= 1 else None,
        "reason": (
            f"smallest limit that removes at most {100 * removed_energy:g} % of the gradient's "
            f"energy over the last {used} histograms of healthy steps"
        ),
        "realised_share": realised,
        "realised_steps": judged,
        "advice": advice(
            context.optimizer_class if context else None, evidence["mean_coefficient"]
        ),
        "backtest": evidence,
    }
    if status == "provisional":
        given["reasons"] = ["too_few_steps"]
    return given


def _evidence(
    history: MagnitudeHistory, threshold: float, counts: Floats, bins: Floats
) -> dict[str, Any]:
    """What the threshold would have done to the histograms it rests on."""
    each = history.counts[-WINDOW:]
    tried = backtest_value(each, spans(history.bins_per_octave, history.lowest_exponent), threshold)
    return {
        "steps": len(each),
        "clipped_share": float(np.mean(_clips_any(history, threshold))),
        "mean_coefficient": tried.mean_coefficient if tried else None,
        "norm_removed_share": tried.norm_removed_share if tried else None,
        "energy_removed_share": float(
            removed_share(counts[None, :], bins, np.array([threshold]))[0]
        ),
        "clipped_elements_share": elements_above(counts, bins, threshold),
    }


WORDS = {
    "unknown_policy_data": (
        "no magnitude histogram was reported (histogram_every=10 in watch() sends them)"
    ),
    "too_few_steps": "fewer than 3 finite steps",
    "nonfinite_flood": "more than half of the last 20 steps were not finite",
    "tensor_all_zero": "every element was zero",
}


def _missing(history: MagnitudeHistory) -> str | None:
    if history.flood:
        return "nonfinite_flood"
    if not len(history.steps):
        return "too_few_steps" if history.finite_steps < MIN_STEPS else "unknown_policy_data"
    if history.finite_steps < MIN_STEPS:
        return "too_few_steps"
    return None if history.counts.any() else "tensor_all_zero"


def _pool(history: MagnitudeHistory) -> tuple[Floats, Floats]:
    """Counts and bins of the newest window, elements known exactly in bins of their own."""
    bins = spans(history.bins_per_octave, history.lowest_exponent)
    counts = history.counts[-WINDOW:].sum(axis=0)
    if history.sampled < 1:
        return counts, bins  # the largest element need not be in the sample
    return with_known(counts, bins, history.largest[-WINDOW:].ravel())


def _limits(history: MagnitudeHistory, share: float) -> Floats:
    """[h] the limit that each window of up to 64 histograms, ending at each one, asks for.

    The law of slow rise is left to the client: here an answer that is exact for the pool serves
    better, and steps that exploded are not in it.
    """
    total = np.concatenate([np.zeros((1, history.counts.shape[1])), history.counts.cumsum(axis=0)])
    ends = np.arange(1, len(history.steps) + 1)
    pooled = total[ends] - total[np.maximum(0, ends - WINDOW)]
    bins = spans(history.bins_per_octave, history.lowest_exponent)
    return limit_for(pooled, bins, share)


def _interval(history: MagnitudeHistory, share: float, threshold: float) -> tuple[float, float]:
    """Limits that the elements behind the counts could ask for, around the threshold."""
    counts, bins = _pool(history)
    low, high = limit_bounds(counts, bins, share)
    if history.sampled < 1:
        # What was not looked at: counts of a sample scatter like Poisson numbers.
        random = np.random.default_rng(0)
        again = random.poisson(counts, (RESAMPLES, len(counts))).astype(np.float64)
        seen = limit_for(again, bins, share)
        factor = 2 ** (1 / history.bins_per_octave)
        low = min(low, float(np.quantile(seen, 0.025)) / factor)
        high = max(high, float(np.quantile(seen, 0.975)) * factor)
    return min(low, threshold), max(high, threshold)


def _clips_any(history: MagnitudeHistory, threshold: float) -> NDArray[np.bool_]:
    above = spans(history.bins_per_octave, history.lowest_exponent)[0] >= threshold
    clips: NDArray[np.bool_] = np.any(history.counts[-WINDOW:][:, above], axis=1)
    return clips


def _status(
    history: MagnitudeHistory,
    interval: tuple[float, float],
    threshold: float,
    share: float,
) -> tuple[Status, float | None, int]:
    """The ladder, and the energy that the limits in force before each histogram would remove.

    Shares of energy are small numbers: a promise of 1 % is not kept by removing 10 %.
    """
    bins, limits = spans(history.bins_per_octave, history.lowest_exponent), _limits(history, share)
    each = removed_share(history.counts[1:], bins, limits[:-1])[-WINDOW:]
    realised = float(each.mean()) if len(each) else None
    used = len(history.steps[-WINDOW:])
    if used < ENOUGH or interval[1] > WIDE * threshold or interval[0] < threshold / WIDE:
        return "provisional", realised, len(each)
    kept = realised is not None and abs(realised - share) <= max(POINT, share / 2)
    return ("validated" if kept and len(each) == WINDOW else "estimated"), realised, len(each)
