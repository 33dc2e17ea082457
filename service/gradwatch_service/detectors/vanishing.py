"""Vanishing gradients: exactly zero, far below a tensor's own past, or fading with depth at the start."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gradwatch_service.detectors.levels import GAIN, LARGEST_RISE, TensorLevels
from gradwatch_service.detectors.state_codec import shallow

__all__ = ["Loss", "VanishingState", "find_vanishing", "follow_calm", "is_calm"]

ALIVE_STEPS: Final = 8  # steps with a gradient before a tensor can be said to have lost it
ZERO_STEPS: Final = 2
LOW: Final = math.log(1e-2)
LOW_STEPS: Final = 4
DEPTH_LOW: Final = math.log(2e-3)  # of the largest root mean square among the weights
DEPTH_STEPS: Final = 6
DEPTH_LAST: Final = 60  # the rule by depth looks at the first steps only
FEW_ELEMENTS: Final = 32

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Loss:
    """Tensors that have lost their gradient at a step.

    Attributes:
        rule: ``zero``, ``low``, ``whole`` (all fell together) or ``depth``.
        columns: Indices of the tensors, forward order.
        onset: Steps since which the first of them has been so.
        observed: Root of their summed squares now.
        expected: The same, usually; for ``depth`` the largest root mean square instead.
    """

    rule: str
    columns: list[int]
    onset: int
    observed: float
    expected: float


@dataclass(slots=True)
class VanishingState:
    """What the detector remembers of T tensors. Mutable; :meth:`copy` first."""

    levels: TensorLevels = field(default_factory=TensorLevels)
    zeros: Counts = field(default_factory=lambda: np.zeros(0, np.int64))  # steps in a row
    longest: Counts = field(default_factory=lambda: np.zeros(0, np.int64))  # innocent run of zeros
    low: Counts = field(default_factory=lambda: np.zeros(0, np.int64))
    depth: Counts = field(default_factory=lambda: np.zeros(0, np.int64))
    whole: int = 0  # steps in a row at which the typical tensor was that low
    seen: int = 0

    def copy(self) -> VanishingState:
        """Return a state of its own."""
        twin = shallow(self)
        twin.levels = self.levels.copy()
        twin.zeros = self.zeros.copy()
        twin.longest = self.longest.copy()
        twin.low = self.low.copy()
        twin.depth = self.depth.copy()
        return twin

    def grow(self, tensors: int) -> None:
        """Make room for tensors that were added."""
        self.levels.grow(tensors)
        for name in ("zeros", "longest", "low", "depth"):
            old: Counts = getattr(self, name)
            if len(old) < tensors:
                setattr(self, name, np.concatenate([old, np.zeros(tensors - len(old), np.int64)]))


def find_vanishing(
    state: VanishingState,
    logs: Floats,
    *,
    zero: Flags,
    present: Flags,
    numel: Counts,
    weights: Flags,
) -> list[Loss]:
    """Take one finite step in; say which tensors have lost their gradient.

    A tensor that is zero now and then (an expert nobody was sent to, a branch not taken) is left
    alone until it is zero for longer than three times its longest innocent run.

    Args:
        state: Moves on in place.
        logs: [T] ln of the tensor norms.
        zero: [T] every element is exactly zero.
        present: [T] the tensor had a gradient.
        numel: [T] elements.
        weights: [T] the tensor has two or more dimensions.
    """
    state.grow(len(logs))
    state.seen += 1
    levels = state.levels
    alive = levels.count >= ALIVE_STEPS
    distance = levels.distance(logs)
    live = present & ~zero
    _count_zeros(state, zero, present)
    together = min(0.0, float(np.median(distance[live]))) if live.any() else 0.0
    # Where all fall together it is convergence or a schedule, which no tensor is to blame for.
    low = live & alive & (distance < LOW) & (distance - together < 0.5 * LOW)
    state.low = np.where(low, state.low + 1, np.where(present, 0, state.low))
    found = []
    # A handful of elements may all be zero, or all be small, by chance.
    few = (numel < FEW_ELEMENTS) & live.any()
    needed = 3 * state.longest + np.where(few, 2 * ZERO_STEPS, ZERO_STEPS)
    dead = alive & (state.zeros >= needed)
    if dead.any():
        found.append(_loss("zero", dead, int(state.zeros[dead].max()), logs, levels.level))
    faint = state.low >= np.where(few, 3 * LOW_STEPS, LOW_STEPS)
    if faint.any():
        found.append(_loss("low", faint, int(state.low[faint].max()), logs, levels.level))
    state.whole = state.whole + 1 if together < LOW else 0
    if state.whole >= LOW_STEPS:
        found.append(_loss("whole", live, state.whole, logs, levels.level))
    if state.seen <= DEPTH_LAST and (fading := _by_depth(state, logs, live, numel, weights)):
        found.append(fading)
    levels.accept(logs, live)
    return found


def is_calm(state: VanishingState, logs: Floats, live: Flags) -> bool:
    """Whether no step of a block can lose a gradient, so that the levels alone need following.

    Sound: levels rise by at most GAIN x LARGEST_RISE per step, so the distance of every tensor at
    every step is at least its distance from the level before the block, less that rise.

    Args:
        state: Before the block; not changed.
        logs: [n, T] ln of the tensor norms.
        live: [n, T] the tensor had a gradient that was not zero.
    """
    levels = state.levels
    if not logs.size or state.seen < DEPTH_LAST or len(levels.level) != logs.shape[1]:
        return False
    if not live.all():
        return False
    if state.whole or state.low.any() or state.zeros.any() or not levels.settled():
        return False
    rise = len(logs) * GAIN * LARGEST_RISE
    return bool((logs - levels.level).min() - rise > LOW)


def follow_calm(state: VanishingState, logs: Floats) -> None:
    """Take in one step of a calm block: the same as :func:`find_vanishing`, which finds nothing."""
    state.seen += 1
    state.levels.follow(logs)


def _count_zeros(state: VanishingState, zero: Flags, present: Flags) -> None:
    ended = present & ~zero & (state.zeros > 0)
    if ended.any():
        state.longest = np.where(ended, np.maximum(state.longest, state.zeros), state.longest)
    state.zeros = np.where(zero, state.zeros + 1, np.where(present, 0, state.zeros))


def _loss(rule: str, columns: Flags, onset: int, logs: Floats, level: Floats) -> Loss:
    at = np.flatnonzero(columns)
    return Loss(
        rule=rule,
        columns=at.tolist(),
        onset=onset,
        observed=0.0 if rule == "zero" else math.sqrt(float(np.exp(2 * logs[at]).sum())),
        expected=math.sqrt(float(np.exp(2 * level[at]).sum())),
    )


def _by_depth(
    state: VanishingState, logs: Floats, live: Flags, numel: Counts, weights: Flags
) -> Loss | None:
    """Weights near the input whose gradient is hundreds of times smaller than elsewhere."""
    judged = weights & live & (numel >= FEW_ELEMENTS)
    if judged.sum() < 3:
        return None
    sizes = logs - 0.5 * np.log(np.maximum(numel, 1))  # ln of the root mean square
    largest = float(sizes[judged].max())
    small = live & (sizes < largest + DEPTH_LOW)
    state.depth = np.where(small, state.depth + 1, 0)
    fading = state.depth >= DEPTH_STEPS
    at = np.flatnonzero(fading & judged)
    if not len(at):
        return None
    # Vanishing with depth spares the layers near the output: the weights after the last faint one
    # are all larger, and among the faint ones the first is the smallest.
    order = np.flatnonzero(judged)
    prefix = order[: len(at)]
    if not np.array_equal(at, prefix) or len(at) < 2 or sizes[at[0]] > sizes[at[-1]]:
        return None
    columns = np.flatnonzero(fading & (np.arange(len(logs)) <= at[-1] + 1))
    return Loss(
        rule="depth",
        columns=columns.tolist(),
        onset=int(state.depth[at].max()),
        observed=math.exp(float(sizes[at].max())),
        expected=math.exp(largest),
    )
