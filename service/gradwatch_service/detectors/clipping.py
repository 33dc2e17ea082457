"""Notices about the way gradients are treated: clipped too hard, or lost below their dtype's range."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from gradwatch_service.detectors.state_codec import shallow
from gradwatch_service.detectors.window import Window
from gradwatch_service.rows import HistogramRows, StepRows

__all__ = ["NARROW", "ClippingState", "Underflow", "find_overclipping", "find_underflow"]

KEPT_LEAST: Final = 0.1  # of the norm, at three of four of the last 64 steps
WINDOW: Final = 64
NARROW: Final = {"float16": -14}  # bfloat16 and float32 reach below any gradient
UNDERFLOW_SHARE: Final = 0.5
UNDERFLOW_LASTING: Final = 3  # histograms in a row

ADAPTIVE: Final = ("adam", "adagrad", "rmsprop", "lion", "adafactor", "muon")


@dataclass(slots=True)
class ClippingState:
    """What the notices remember. Mutable; :meth:`copy` first."""

    kept: Window = field(default_factory=lambda: Window(WINDOW))
    underflows: int = 0
    adaptive: bool = False  # scale-free optimizers are not slowed down by clipping

    def copy(self) -> ClippingState:
        """Return a state of its own."""
        twin = shallow(self)
        twin.kept = self.kept.copy()
        return twin


@dataclass(frozen=True, slots=True)
class Underflow:
    """Tensors of which more than half the elements lie below the normal range, and that share."""

    step: int
    columns: list[int]
    share: float


def find_overclipping(state: ClippingState, kept: float) -> float | None:
    """Take in the share of the norm that clipping left; return its upper quartile if too small."""
    if not math.isfinite(kept):
        return None
    state.kept.push(kept)
    if len(state.kept) < WINDOW:
        return None
    usual = state.kept.quantile(0.75)
    return usual if usual < KEPT_LEAST else None


def find_underflow(
    state: ClippingState, rows: StepRows, histograms: Sequence[HistogramRows]
) -> list[Underflow]:
    """Look at the magnitude histograms of these rows, in step order."""
    found: list[Underflow] = []
    tensors = rows.manifest.tensors
    if not histograms or not any(tensor.dtype in NARROW for tensor in tensors):
        return found
    narrow = np.array([tensor.dtype in NARROW for tensor in tensors], np.bool_)
    numel = np.array([tensor.numel for tensor in tensors], np.float64)
    for part in histograms:
        last = (NARROW["float16"] - part.lowest_exponent) * part.bins_per_octave
        below = part.counts[:, :, : max(0, last)].sum(axis=2, dtype=np.float64)
        shares = below / np.maximum(1.0, numel * part.sampled)
        for step, share in zip(part.steps.tolist(), shares, strict=True):
            lost = np.flatnonzero(narrow & (share > UNDERFLOW_SHARE))
            state.underflows = state.underflows + 1 if len(lost) else 0
            if state.underflows >= UNDERFLOW_LASTING:
                found.append(Underflow(step, lost.tolist(), float(share[lost].max())))
    return found
