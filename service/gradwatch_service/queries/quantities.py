"""Every quantity that a series can show, computed from reported columns."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from gradwatch_service.measures import global_norm, nonfinite_count, scalar
from gradwatch_service.rows import StepRows
from gradwatch_wire import TENSOR_COLUMNS

__all__ = [
    "COMMON_SCALARS",
    "RUN_METRICS",
    "TENSOR_METRICS",
    "columns_of",
    "counts_every_step",
    "run_quantity",
    "tensor_nonfinite",
    "tensor_quantity",
]

Floats = NDArray[np.float64]

# Metric -> the columns it is computed from.
RUN_METRICS: dict[str, tuple[str, ...]] = {
    "global_norm": ("norm",),
    "global_norm_after": ("norm_after",),
    "max_abs": ("max_abs", "present"),
    "rms": ("norm", "present"),
    "clip_fraction": ("clipped_count", "present"),
    "zero_fraction": ("zero_count", "present"),
    "nonfinite_count": ("nonfinite_count",),
}
TENSOR_METRICS: dict[str, tuple[str, ...]] = {
    **{name: (name, "present") for name in TENSOR_COLUMNS},
    "rms": ("norm", "present"),
    "clip_fraction": ("clipped_count", "present"),
    "zero_fraction": ("zero_count", "present"),
}
# Scalars that the client sends by itself: asking for one that a run lacks is no mistake.
COMMON_SCALARS = (
    "loss",
    "learning_rate",
    "grad_scale",
    "threshold",
    "recommendation_version",
    "skipped",
    "cosine_previous",
    "duration_seconds",
    "overhead_seconds",
)
# These say how much was not finite, or are not gradients: a non-finite step is part of them.
_EVERY_STEP = ("nonfinite_count", "nan_count", "present")


def columns_of(metric: str, *, tensor: bool) -> tuple[str, ...]:
    """The tensor columns that the metric and its finite mask need; none but the mask for a scalar."""
    needed = (TENSOR_METRICS if tensor else RUN_METRICS).get(metric, ())
    return tuple(dict.fromkeys((*needed, "nonfinite_count")))


def counts_every_step(metric: str, *, tensor: bool) -> bool:
    """Whether a step with non-finite gradients counts in this metric."""
    return metric in _EVERY_STEP or metric not in (TENSOR_METRICS if tensor else RUN_METRICS)


def run_quantity(rows: StepRows, metric: str) -> Floats:
    """[n] the metric over all tensors of the rows; NaN where it was not measured.

    Steps without a manifest have only scalars, so there a run metric is the scalar of its name.
    """
    if metric not in RUN_METRICS or not rows.manifest.tensors:
        return nonfinite_count(rows) if metric == "nonfinite_count" else scalar(rows, metric)
    return _RUN_QUANTITIES[metric](rows)


def _norm_after(rows: StepRows) -> Floats:
    after = _column(rows, "norm_after")
    total: Floats = np.sqrt(np.einsum("nt,nt->n", after, after))
    return total


def _rms(rows: StepRows) -> Floats:
    spread: Floats = global_norm(rows) / np.sqrt(_elements(rows))
    return spread


def _largest(rows: StepRows) -> Floats:
    largest: Floats = _column(rows, "max_abs").max(axis=1)
    return largest


def _share_clipped(rows: StepRows) -> Floats:
    share: Floats = _column(rows, "clipped_count").sum(axis=1) / _elements(rows)
    return share


def _share_zero(rows: StepRows) -> Floats:
    share: Floats = _column(rows, "zero_count").sum(axis=1) / _elements(rows)
    return share


_RUN_QUANTITIES: dict[str, Callable[[StepRows], Floats]] = {
    "global_norm": global_norm,
    "global_norm_after": _norm_after,
    "max_abs": _largest,
    "rms": _rms,
    "clip_fraction": _share_clipped,
    "zero_fraction": _share_zero,
    "nonfinite_count": nonfinite_count,
}


def tensor_quantity(rows: StepRows, metric: str, index: int) -> Floats:
    """[n] the metric of one tensor; NaN where it was not measured or had no gradient."""
    absent = _column(rows, "present")[:, index] == 0
    numel = max(1, rows.manifest.tensors[index].numel)

    def one(name: str) -> Floats:
        values: Floats = _column(rows, name)[:, index]
        return values

    match metric:
        case "rms":
            values = one("norm") / np.sqrt(numel)
        case "clip_fraction":
            values = one("clipped_count") / numel
        case "zero_fraction":
            values = one("zero_count") / numel
        case "present":
            return np.where(absent, 0.0, 1.0)
        case _:
            values = one(metric)
    return np.where(absent, np.nan, values)


def tensor_nonfinite(rows: StepRows, index: int) -> Floats:
    """[n] elements of the tensor that were not finite; 0 where it was not measured."""
    return np.nan_to_num(_column(rows, "nonfinite_count")[:, index])


def _column(rows: StepRows, name: str) -> Floats:
    values = rows.tensors.get(name)
    if values is None:
        return np.full((len(rows), len(rows.manifest.tensors)), np.nan)
    return np.asarray(values, np.float64)


def _elements(rows: StepRows) -> Floats:
    """[n] elements of the tensors that had a gradient, NaN where none had."""
    sizes = np.array([t.numel for t in rows.manifest.tensors], np.float64)
    present = _column(rows, "present") != 0  # NaN, not sent, counts as present
    total = present @ sizes
    return np.where(total > 0, total, np.nan)
