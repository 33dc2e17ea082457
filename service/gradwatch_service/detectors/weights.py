"""Weights that jump between two steps: a witness for what happens to the gradients afterwards."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["WeightState", "follow_weights"]

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
        return replace(self, logs=self.logs.copy())


def follow_weights(state: WeightState, step: int, norms: Floats) -> None:
    """Take [T] weight norms in (NaN or 0: not measured) and note the largest jump of one step."""
    state.age = min(NEVER, state.age + 1)
    logs = np.log(np.where(norms > 0, norms, np.nan))
    if len(logs) == len(state.logs):
        moved = np.nan_to_num(np.abs(logs - state.logs))
        worst = int(np.argmax(moved)) if len(moved) else -1
        if worst >= 0 and moved[worst] > JUMP:
            state.age, state.column, state.step = 0, worst, step
            state.ratio = math.exp(float(logs[worst] - state.logs[worst]))
    state.logs = (
        np.where(np.isfinite(logs), logs, state.logs) if len(logs) == len(state.logs) else logs
    )
