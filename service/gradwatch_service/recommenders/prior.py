"""What earlier runs of the same model say before a run has spoken for itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gradwatch_service.recommenders.norm import MIN_NORMS, NormState, advance_norms, initial_state

__all__ = ["PRIOR_NORMS", "Prior", "blended", "disagrees", "learned"]

Floats = NDArray[np.float64]

WORTH = 16  # own norms that the earlier runs together outweigh
PRIOR_NORMS = 32  # from here on a run speaks for itself
FIRST = 8  # norms after which the run may contradict its prior
MIN_SPREAD = 0.1


@dataclass(frozen=True, slots=True)
class Prior:
    """Thresholds of earlier runs at the same age, in ln.

    Attributes:
        runs: The runs it comes from.
        level: Mean ln threshold.
        spread: Standard deviation of ln threshold between runs, at least 0.1.
        norm_level: Mean of the first ln norms.
        norm_spread: Standard deviation of the first ln norms, at least 0.1.
    """

    runs: tuple[str, ...]
    level: float
    spread: float
    norm_level: float
    norm_spread: float


def learned(
    earlier: Sequence[tuple[str, Floats]], *, age: int, preference: str = "balanced"
) -> Prior | None:
    """The prior for a run with ``age`` norms, or None when no earlier run is old enough.

    Args:
        earlier: Name and first norms (finite, above 0) of earlier runs that ended well.
        age: Norms that the new run has.
        preference: As in a recommendation.
    """
    age = max(FIRST, age)
    used = [(run, norms[:age]) for run, norms in earlier if len(norms) >= age]
    if not used:
        return None
    levels = [_level(norms, preference) for _, norms in used]
    first = np.log(np.concatenate([norms[:FIRST] for _, norms in used]))
    return Prior(
        runs=tuple(run for run, _ in used),
        level=float(np.mean(levels)),
        spread=max(MIN_SPREAD, float(np.std(levels))),
        norm_level=float(first.mean()),
        norm_spread=max(MIN_SPREAD, float(first.std())),
    )


def blended(state: NormState, prior: Prior, preference: str) -> tuple[float, tuple[float, float]]:
    """Threshold and interval between the prior, worth 16 norms, and the run's own norms."""
    n = state.accepted if state.accepted >= MIN_NORMS else 0
    own = state.threshold(preference)
    level = prior.level
    if own is not None:
        level = (WORTH * prior.level + n * math.log(own)) / (WORTH + n)
    margin = 1.96 * prior.spread
    low, high = level - margin, level + margin
    if own is not None:
        low, high = min(low, math.log(own)), max(high, math.log(own))
    return math.exp(level), (math.exp(low), math.exp(high))


def disagrees(state: NormState, prior: Prior) -> bool:
    """Whether the first 8 norms lie more than 3 standard deviations from those of the prior."""
    if state.accepted < FIRST:
        return False
    mean = float(np.log(state.norms[:FIRST]).mean())
    return abs(mean - prior.norm_level) > 3 * prior.norm_spread


def _level(norms: Floats, preference: str) -> float:
    steps, finite = np.arange(len(norms)), np.ones(len(norms), np.bool_)
    state = advance_norms(initial_state(), steps, norms, finite, np.full(len(norms), np.nan))
    return math.log(state.threshold(preference) or 1.0)
