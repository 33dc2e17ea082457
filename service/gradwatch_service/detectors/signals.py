"""The signals that detectors read, one column per witness, taken from reported rows once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gradwatch_service.measures import global_norm, nonfinite_count, scalar
from gradwatch_service.rows import StepRows

__all__ = ["TINY", "Signals", "read_signals"]

TINY: Final = 1e-30  # keeps ln(norm) finite where a gradient is exactly zero

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Signals:
    """Witnesses of n steps and T tensors. NaN means not measured.

    Attributes:
        steps: Step numbers.
        rank: Rank that reported.
        names: T tensor names, forward order.
        norm: [n] global norm of the finite elements.
        log_norm: [n] its natural logarithm.
        bad: [n] NaN and Inf elements, those of unreported steps included.
        loss: [n] loss.
        loss_bad: [n] above 0 where the loss was NaN or infinite.
        cosine: [n] cosine of the gradient with the previous step's.
        rate: [n] learning rate.
        scale: [n] loss scale.
        skipped: [n] 1 where the optimizer step was not applied.
        kept: [n] share of the norm that clipping left, 0 to 1.
        tensor_logs: [n, T] ln of the tensor norms.
        zero: [n, T] every element is exactly zero.
        present: [n, T] the tensor had a gradient.
        nonfinite: [n, T] NaN and Inf elements, or None where no tensor is known.
        nans: [n, T] NaN elements, or None.
        weight_norms: [n, T] norms of the parameters; [n, 0] when they are not sent.
    """

    steps: list[int]
    rank: int
    names: tuple[str, ...]
    norm: list[float]
    log_norm: list[float]
    bad: list[float]
    loss: list[float]
    loss_bad: list[float]
    cosine: list[float]
    rate: list[float]
    scale: list[float]
    skipped: list[float]
    kept: list[float]
    tensor_logs: Floats
    zero: NDArray[np.bool_]
    present: NDArray[np.bool_]
    nonfinite: NDArray[Any] | None
    nans: NDArray[Any] | None
    weight_norms: Floats


def read_signals(rows: StepRows) -> Signals:
    """Read the witnesses of some rows. The rows are not changed."""
    norms = np.asarray(rows.tensors.get("norm", np.zeros((len(rows), 0))), np.float64)
    total = global_norm(rows)
    present = _present(rows, norms)
    with np.errstate(invalid="ignore", divide="ignore"):
        kept = global_norm_after(rows) / total
        tensor_logs = np.log(np.maximum(norms, TINY))
    return Signals(
        steps=rows.steps.tolist(),
        rank=rows.rank,
        names=tuple(tensor.name for tensor in rows.manifest.tensors) or ("gradient",),
        # Plain numbers: they are read one by one, which arrays are slow at.
        norm=total.tolist(),
        log_norm=np.log(np.maximum(total, TINY)).tolist(),
        bad=(nonfinite_count(rows) + np.nan_to_num(scalar(rows, "nonfinite_steps_since"))).tolist(),
        loss=scalar(rows, "loss").tolist(),
        loss_bad=scalar(rows, "loss_nonfinite").tolist(),
        cosine=_cosine(rows, norms).tolist(),
        rate=scalar(rows, "learning_rate").tolist(),
        scale=scalar(rows, "grad_scale").tolist(),
        skipped=scalar(rows, "skipped").tolist(),
        kept=kept.tolist(),
        tensor_logs=tensor_logs,
        zero=(norms <= 0) & present,
        present=present,
        nonfinite=rows.tensors.get("nonfinite_count"),
        nans=rows.tensors.get("nan_count"),
        weight_norms=_weight_norms(rows),
    )


def global_norm_after(rows: StepRows) -> Floats:
    """[n] global norm after clipping; NaN where it was not measured."""
    after = rows.tensors.get("norm_after")
    if after is None or not after.shape[1]:
        return np.full(len(rows), np.nan)
    wide = np.asarray(after, np.float64)
    total: Floats = np.sqrt(np.einsum("nt,nt->n", wide, wide))
    return total


def _weight_norms(rows: StepRows) -> Floats:
    column = rows.tensors.get("weight_norm")
    return np.zeros((len(rows), 0)) if column is None else np.asarray(column, np.float64)


def _present(rows: StepRows, norms: Floats) -> NDArray[np.bool_]:
    column = rows.tensors.get("present")
    if column is None:
        return np.isfinite(norms)
    return np.asarray(np.nan_to_num(np.asarray(column, np.float64), nan=1.0) > 0) & np.isfinite(
        norms
    )


def _cosine(rows: StepRows, norms: Floats) -> Floats:
    """Global cosine with the step before: as sent, else put together from the tensors' own."""
    sent = scalar(rows, "cosine_previous")
    parts = rows.tensors.get("cosine_previous")
    if parts is None or not parts.shape[1]:
        return sent
    # Exact when the norms of the step before had the same proportions; good enough for a witness.
    energy = norms * norms
    parts = np.asarray(parts, np.float64)
    known = np.isfinite(parts)
    weight = np.where(known, energy, 0.0).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mixed = np.where(known, parts * energy, 0.0).sum(axis=1) / weight
    return np.where(np.isfinite(sent), sent, np.where(weight > 0, mixed, np.nan))
