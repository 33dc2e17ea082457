"""The usual size of every tensor's gradient, in ln, tracked so that bursts and deaths move it little."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy import add, maximum, minimum, multiply
from numpy.typing import NDArray

__all__ = ["TensorLevels"]

GAIN: Final = 1 / 16
LARGEST_FALL: Final = 0.1  # a tensor that dies may pull its level down so slowly that it is noticed
LARGEST_RISE: Final = 0.5

YOUNG: Final = 12  # steps during which the level is a plain mean

Floats = NDArray[np.float64]


@dataclass(slots=True)
class TensorLevels:
    """Level of T tensors. Mutable; :meth:`copy` first.

    Attributes:
        level: [T] usual ln norm.
        count: [T] steps at which the tensor had a gradient that was not zero.
    """

    level: Floats = field(default_factory=lambda: np.zeros(0))
    count: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    def copy(self) -> TensorLevels:
        """Return levels of their own."""
        return TensorLevels(self.level.copy(), self.count.copy())

    def grow(self, tensors: int) -> None:
        """Make room for tensors that were added."""
        more = tensors - len(self.level)
        if more > 0:
            self.level = np.concatenate([self.level, np.zeros(more)])
            self.count = np.concatenate([self.count, np.zeros(more, np.int64)])

    def distance(self, logs: Floats) -> Floats:
        """[T] ln of how many times the usual size each tensor has; 0 where none is known yet."""
        return np.where(self.count > 0, logs - self.level, 0.0)

    def settled(self) -> bool:
        """Whether every level rests on enough steps to be followed by :meth:`follow`."""
        return bool((self.count >= YOUNG).all())

    def follow(self, logs: Floats) -> None:
        """Do what :meth:`accept` does where all tensors are live and settled, bit for bit."""
        level = self.level
        step = logs - level
        maximum(step, -LARGEST_FALL, out=step)  # np.clip takes five times as long here
        minimum(step, LARGEST_RISE, out=step)
        multiply(step, GAIN, out=step)
        add(level, step, out=level)
        self.count += 1

    def accept(self, logs: Floats, live: NDArray[np.bool_]) -> None:
        """Move the levels of the live tensors a little towards the newest values."""
        held = np.clip(self.distance(logs), -LARGEST_FALL, LARGEST_RISE)
        free = logs - self.level  # the first steps are a plain mean
        young = self.count < YOUNG
        step = np.where(young, free / (self.count + 1), held * GAIN)
        self.level = np.where(live, self.level + step, self.level)
        self.count = self.count + live
