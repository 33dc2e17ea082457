"""Weights that jump between two steps: a witness for what happens to the gradients afterwards."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gradwatch_service.detectors.state_codec import shallow

__all__ = ["WeightState", "follow_weights", "weight_moves"]

JUMP: Final = math.log(2)
NEVER: Final = 1 << 20
Floats = NDArray[np.float64]


@dataclass(slots=True)
class WeightState:
    """Newest weight norms and the newest jump. Mutable; :meth:`copy` first."""

    logs: Floats = field(default_factory=lambda: np.zeros(0))
    age: int = NEVER  # steps since the jump
    ratio: float = 1.0
    column: int = -1
    step: int = -1

    def copy(self) -> WeightState:
        """Return a state of its own."""
        twin = shallow(self)
        twin.logs = self.logs.copy()
        return twin


def weight_moves(state: WeightState, norms: Floats) -> Floats:
    """[n, T] change of ln weight norm at each step; 0 where it is not known.

    Args:
        state: Its newest norms move on to the end of the block.
        norms: [n, T] weight norms; NaN or 0 means not measured.
    """
    if not len(norms):
        return np.zeros(norms.shape)
    before = np.full(norms.shape[1], np.nan)
    before[: len(state.logs)] = state.logs[: norms.shape[1]]
    logs = np.vstack([before, np.log(np.where(norms > 0, norms, np.nan))])
    if not np.isfinite(logs[1:]).all():
        for i in range(1, len(logs)):  # a norm that is not measured is as it was
            logs[i] = np.where(np.isfinite(logs[i]), logs[i], logs[i - 1])
    state.logs = logs[-1]
    return np.nan_to_num(np.diff(logs, axis=0))


def follow_weights(state: WeightState, step: int, moved: Floats, largest: float) -> None:
    """Take one step in and note the largest jump, if there is one.

    Args:
        state: Moves on in place.
        step: Optimizer step.
        moved: [T] change of ln weight norm.
        largest: Largest absolute value in ``moved``.
    """
    state.age = min(NEVER, state.age + 1)
    if largest > JUMP:
        worst = int(np.argmax(np.abs(moved)))
        state.age, state.column, state.step = 0, worst, step
        state.ratio = math.exp(float(moved[worst]))
