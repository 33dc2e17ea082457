"""A norm that steps up and stays up: several newest steps together against the run's own past.

What adds up (a missing ``zero_grad``) or is scaled wrongly grows by a moderate factor at every
step. No single step is far out, but four in a row are, most of all when they vary less than usual
and when every tensor grew alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

__all__ = ["BEFORE", "LASTING_STEPS", "LEAST_OVER", "agreement", "step_up"]

LASTING_STEPS: Final = 4
LEAST_OVER: Final = math.log(1.35)  # at each of them, over the usual level
FEWEST: Final = 60  # usual values
BEFORE: Final = 8  # steps before, which a drifting level is compared with
LEVEL_LIMIT: Final = 5.5  # robust sigmas of a mean of four
SMOOTH_LIMIT: Final = 4.2  # the same where the newest steps vary at most half as much as usual
SMOOTH: Final = 0.5
LOCAL_LIMIT: Final = 7.0  # robust sigmas over the steps just before
LEVEL_LEAST: Final = 2.0  # of the first kind, where the second decides
LOCAL_LEAST: Final = 3.0  # of the second, where the first decides: a slow rise is no step
ALIKE: Final = 0.5  # of how much the tensors grew; beyond it limits are wider
UNUSUALLY_ALIKE: Final = 1.0  # of the run's usual share: in some jobs all tensors always agree
APART_FACTOR: Final = 1.8
COSINES_FEWEST: Final = 24
COSINE_LEAST: Final = 1.0  # robust sigmas, each of four
COSINE_LIMIT: Final = 6.0  # a mean of four in sigmas of such means
COSINE_ALONE: Final = 4.5  # what a single one is held to elsewhere
SPREAD_FLOOR: Final = 0.05
MOVE_FLOOR: Final = 0.02
MAD_TO_SIGMA: Final = 1.4826

Floats = NDArray[np.float64]


def step_up(
    usual: Sequence[float],
    newest: Sequence[float],
    *,
    sigma: float,
    apart: float,
    usually: float = math.inf,
) -> float:
    """Score of a step up: 1 is the limit, 0 where the past is too short to tell.

    The spread of a mean of four is that of such means in the past, so that slow waves, in which
    successive steps resemble one another, are not taken for news.

    Args:
        usual: Accepted ln norms, oldest first, up to the newest that is judged.
        newest: The last 12 ln norms as they were, the four judged included.
        sigma: Robust spread of one ln norm.
        apart: How differently the tensors grew, as a share of the growth; infinite when unknown.
        usually: The same, as it usually is.
    """
    if len(usual) < FEWEST or len(newest) < BEFORE + LASTING_STEPS:
        return 0.0
    past, before, new = np.asarray(usual), newest[:BEFORE], np.asarray(newest[BEFORE:])
    means = sliding_window_view(past, LASTING_STEPS).mean(axis=1)
    now = float(new.mean())
    spread = max(_spread(means), sigma / math.sqrt(LASTING_STEPS), SPREAD_FLOOR)
    level = (now - float(np.median(past))) / spread
    local = (now - float(np.median(before))) / max(_spread(_rises(past, means)), SPREAD_FLOOR)
    if level < LEVEL_LEAST or local < LOCAL_LEAST:
        return 0.0
    moved = float(np.abs(np.diff(new)).mean())
    smooth = moved <= SMOOTH * max(MOVE_FLOOR, float(np.median(np.abs(np.diff(past)))))
    score = max(level / (SMOOTH_LIMIT if smooth else LEVEL_LIMIT), local / LOCAL_LIMIT)
    alike = apart <= min(ALIKE, UNUSUALLY_ALIKE * usually)
    return score if alike else score / APART_FACTOR


def agreement(usual: Sequence[float], newest: Sequence[float]) -> float:
    """Sigmas of a single cosine that four newest ones together are worth; 0 where one is not up.

    Args:
        usual: Accepted Fisher z of cosines, oldest first.
        newest: Robust sigmas of the last four.
    """
    if len(usual) < COSINES_FEWEST or len(newest) < LASTING_STEPS:
        return 0.0
    if not min(newest) >= COSINE_LEAST:
        return 0.0
    past = np.asarray(usual)
    means = sliding_window_view(past, LASTING_STEPS).mean(axis=1)
    spread = max(_spread(past), SPREAD_FLOOR)
    share = min(1.0, max(_spread(means) / spread, 1 / math.sqrt(LASTING_STEPS)))
    return COSINE_ALONE / COSINE_LIMIT * sum(newest) / len(newest) / share


def _rises(past: Floats, means: Floats) -> Floats:
    """How far every mean of four lay above the eight values before it."""
    before = np.median(sliding_window_view(past, BEFORE), axis=1)
    rises: Floats = means[BEFORE:] - before[: len(means) - BEFORE]
    return rises


def _spread(values: Floats) -> float:
    return MAD_TO_SIGMA * float(np.median(np.abs(values - np.median(values))))
