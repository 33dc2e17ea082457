"""An explosion before there is a history to judge it by: the first step is the measure."""

from __future__ import annotations

import math
from typing import Final

from gradwatch_service.detectors.excursions import ExplodingState, Witness

__all__ = ["START_STEPS", "start_score"]

START_STEPS: Final = 32  # during which there may be too little history for anything else
RISE: Final = math.log(30)  # of ln norm over the first step, twice, while the loss doubled
ONCE: Final = math.log(1000)  # at a single step
ALONE: Final = math.log(300)  # twice, where no loss is reported


def start_score(state: ExplodingState, x: Witness) -> float:
    """Score of a norm that explodes from the start: 1 is the limit, 0 that nothing speaks for it.

    The gradient of the first step has seen no update yet. Norms move by a factor of ten on healthy
    starts, so that it takes far more, and a loss that has doubled: on healthy starts it falls.
    """
    if not state.raw or state.seen > START_STEPS:
        return 0.0
    first = state.norms.values[0]
    rise, before = x.log_norm - first, state.raw[-1] - first
    limit = ALONE if before >= RISE else math.inf
    if math.isfinite(x.loss) and len(state.losses):
        if x.loss - state.losses.values[0] < abs(state.losses.values[0]):
            return 0.0
        limit = RISE if before >= RISE else ONCE
    return rise / limit
