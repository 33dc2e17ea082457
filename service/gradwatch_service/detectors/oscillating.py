"""Oscillating gradients: successive ones turn against each other, compared with the run's own past.

An absolute limit would be useless: healthy clipped recurrent networks sit at a cosine of -0.6 to
-0.9 and adversarial training at +0.95.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

from gradwatch_service.detectors.state_codec import shallow
from gradwatch_service.detectors.window import Window

__all__ = ["OscillatingState", "Turning", "find_oscillating"]

FEWEST: Final = 30
LASTING: Final = 4
SMOOTHING: Final = 0.8
FALL: Final = 0.6  # of the smoothed cosine without another witness
LOW: Final = -0.4
FALL_AFTER_JUMP: Final = 0.3  # after the learning rate jumped: a witness of its own


@dataclass(frozen=True, slots=True)
class Turning:
    """What was found: the smoothed cosine, its usual level, the limit's score, and since when."""

    cosine: float
    usual: float
    score: float
    onset: int
    proven: bool


@dataclass(slots=True)
class OscillatingState:
    """What the detector remembers. Mutable; :meth:`copy` first."""

    history: Window = field(default_factory=lambda: Window(150))
    smooth: float = 0.0
    low_free: int = 0  # steps in a row under the limit for a cosine alone
    low_jump: int = 0  # the same after a jump of the learning rate

    def copy(self) -> OscillatingState:
        """Return a state of its own."""
        twin = shallow(self)
        twin.history = self.history.copy()
        return twin


def find_oscillating(state: OscillatingState, cosine: float, *, after_jump: bool) -> Turning | None:
    """Take one cosine in (NaN: not measured); say whether gradients turn against each other.

    Proven means that the learning rate had jumped: at the edge of stability the cosine falls.
    """
    if not math.isfinite(cosine):
        return None
    state.smooth = SMOOTHING * state.smooth + (1 - SMOOTHING) * cosine
    if len(state.history.values) < FEWEST:
        state.history.push(state.smooth)
        return None
    usual = state.history.median
    fall = usual - state.smooth
    if fall < FALL_AFTER_JUMP:  # the least that either rule asks for: most steps end here
        state.low_free = state.low_jump = 0
        state.history.push(state.smooth)
        return None
    spread = state.history.spread()
    alone = min(fall / max(FALL, 3 * spread), state.smooth / LOW)
    jump = fall / max(FALL_AFTER_JUMP, 3 * spread) if after_jump else 0.0
    state.low_free = state.low_free + 1 if alone >= 1 else 0
    state.low_jump = state.low_jump + 1 if jump >= 1 else 0
    # An oscillation must not become the usual state while it lasts.
    state.history.push(max(state.smooth, usual - spread) if max(alone, jump) >= 1 else state.smooth)
    lasting = max(state.low_free, state.low_jump)
    if lasting < LASTING:
        return None
    return Turning(
        cosine=state.smooth,
        usual=usual,
        score=max(alone, jump),
        onset=lasting,
        proven=state.low_jump >= LASTING,
    )
