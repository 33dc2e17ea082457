"""What one reported step amounts to as a whole: its global norm and its non-finite elements."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gradwatch_service.rows import StepRows

__all__ = ["global_norm", "nonfinite_count"]

Floats = NDArray[np.float64]


def global_norm(rows: StepRows) -> Floats:
    """[n] L2 norm over all tensors in float64: sqrt(sum of norm^2); NaN where nothing was measured.

    A tensor that was not present has norm 0 and so adds nothing. Steps that a script posted without
    a manifest carry the scalar ``global_norm`` instead.
    """
    norms = rows.tensors.get("norm")
    if norms is not None and norms.shape[1]:
        wide = norms.astype(np.float64)
        total: Floats = np.sqrt(np.einsum("nt,nt->n", wide, wide))
        return total
    return scalar(rows, "global_norm")


def nonfinite_count(rows: StepRows) -> Floats:
    """[n] elements that were NaN or infinite, all tensors together; 0 where it was not measured."""
    counts = rows.tensors.get("nonfinite_count")
    if counts is not None and counts.shape[1]:
        total: Floats = counts.sum(axis=1, dtype=np.float64)
        return total
    return np.nan_to_num(scalar(rows, "nonfinite_count"))


def scalar(rows: StepRows, name: str) -> Floats:
    """[n] the scalar, NaN at every step where it was not sent."""
    values = rows.scalars.get(name)
    return np.full(len(rows), np.nan) if values is None else np.asarray(values, np.float64)
