"""Non-finite gradients: a fact, not an estimate. One element in one tensor is enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwatch_service.detectors.base import Finding, Severity

__all__ = ["NonfiniteRow", "find_nonfinite"]


@dataclass(frozen=True, slots=True)
class NonfiniteRow:
    """What one step shows about non-finite elements. T tensors in forward order.

    Attributes:
        step: Optimizer step.
        rank: Rank that reported it.
        counts: [T] NaN and Inf elements.
        nans: [T] NaN elements, or None when they are not told apart.
        skipped: The optimizer step was not applied.
        scale_managed: A loss scaler is at work: a few skipped overflows are how it finds its scale.
        endless: It is at work, but far more steps in a row overflowed than it needs.
        after_exploding: The gradient exploded in the steps before.
        loss_finite: Whether the loss was finite, or None when that is not known.
    """

    step: int
    rank: int
    counts: NDArray[Any]
    nans: NDArray[Any] | None = None
    skipped: bool = False
    scale_managed: bool = False
    endless: bool = False
    after_exploding: bool = False
    loss_finite: bool | None = None


def find_nonfinite(row: NonfiniteRow, names: Sequence[str]) -> Finding | None:
    """Say whether a gradient held NaN or Inf, and where it came up first.

    Backward runs from the last tensor to the first, and a NaN spreads in that direction: of the
    tensors affected, the last in forward order is where it began.

    Returns:
        The finding, or None when every element was finite.
    """
    bad = np.flatnonzero(row.counts > 0)
    if not len(bad):
        return None
    first = names[int(bad[-1])]
    only_inf = row.nans is not None and not (row.nans[bad] > 0).any()
    harmless = row.scale_managed and row.skipped
    severity: Severity = "info" if harmless else "critical"
    return Finding(
        kind="nonfinite",
        step=row.step,
        onset_step=row.step,
        severity=severity,
        rank=row.rank,
        # Backward order: the way it spread.
        tensors=tuple(names[int(i)] for i in bad[::-1]),
        first_tensor=first,
        observed=float(row.counts[bad].sum()),
        expected=0.0,
        score=1.0 + float(np.log10(row.counts[bad].sum())),
        cause="loss_scale" if harmless else _cause(row, only_inf=only_inf),
        evidence={"tensors": len(bad), "elements": int(row.counts[bad].sum())},
    )


def _cause(row: NonfiniteRow, *, only_inf: bool) -> str:
    if row.endless and row.skipped:
        return "never_cleared"
    if row.after_exploding:
        return "after_exploding"
    if row.loss_finite is False:
        return "loss_not_finite"
    if only_inf:
        return "overflow"
    return "unknown" if row.loss_finite is None else "backward"
