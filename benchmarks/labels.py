"""What a fault really did to the gradients, measured on the recording, as labels for a scorer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["label"]

BEFORE: Final = 40  # steps that say what is usual
SHORT: Final = 5  # steps of a rolling median
Array = NDArray[Any]


def label(
    kind: str,
    fault_class: str,
    span: tuple[int, int],
    columns: Mapping[str, Array],
    names: list[str],
) -> dict[str, Any]:
    """Return the label of one fault, active in the half-open ``span`` of steps.

    ``visible`` holds ``norm_up`` (at least 3x the usual norm), ``norm_down`` (at most a third),
    ``nonfinite``, ``tensors_vanished`` (below 1/100 of usual), ``cos_drop`` and ``cos_rise`` (the
    median by at least 0.3); it is empty for a fault that does not show in the gradients.
    """
    start, end = span
    norms = columns["norm"].astype(np.float64)
    norm = np.sqrt((norms**2).sum(axis=1))
    before, during = slice(max(0, start - BEFORE), start), slice(start, end)
    bad = columns["nonfinite"][during].any(axis=0)
    gone = _vanished(kind, norms, columns["sizes"], before, during)
    usual = float(np.median(norm[before])) if start else float(np.median(norm))
    finite = norm[during][columns["nonfinite"][during].sum(axis=1) == 0]
    largest = float(finite.max()) / usual if len(finite) else 0.0
    middle = float(np.median(finite)) / usual if len(finite) else 0.0
    turn = _median(columns["gcos"][during]) - _median(columns["gcos"][before]) if start else 0.0
    shows = {
        "norm_up": largest >= 3,
        "norm_down": bool(len(finite)) and middle <= 1 / 3,
        "nonfinite": bool(bad.any()),
        "tensors_vanished": bool(gone.any()),
        "cos_drop": turn <= -0.3,
        "cos_rise": turn >= 0.3,
    }
    affected = bad if fault_class == "nonfinite" else gone
    return {
        "kind": kind,
        "class": fault_class,
        "start": start,
        "end": end,
        "aftermath_end": _aftermath(norm, columns["loss"], start, end),
        "tensors": [n for n, hit in zip(names, affected, strict=True) if hit],
        "visible": [how for how, shown in shows.items() if shown],
        "ratio_max": round(largest, 4),
        "ratio_med": round(middle, 4),
    }


def _vanished(kind: str, norms: Array, sizes: Array, before: slice, during: slice) -> Array:
    if kind == "wrong_init":
        rms = np.median(norms[:60], axis=0) / np.sqrt(sizes)
        return np.asarray(rms < rms.max() / 500)
    gone = np.median(norms[during], axis=0) < np.median(norms[before], axis=0) / 100
    return np.asarray(gone)


def _median(values: Array) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else 0.0


def _aftermath(norm: Array, loss: Array, start: int, end: int) -> int:
    """First step from which loss and norm are near their level before again; all steps if never."""
    before, steps = slice(max(0, start - BEFORE), start), len(norm)
    if not start:
        return steps
    usual, most = _median(norm[before]), _beyond(loss[before])
    for step in range(end, steps):
        recent = slice(step, min(steps, step + SHORT))
        level = _median(norm[recent])
        # A gradient that has gone for good has not recovered either.
        if usual / 5 <= level <= 1.5 * usual and _median(loss[recent]) <= most:
            return step
    return steps


def _beyond(usual: Array) -> float:
    """Limit for a loss, which may be negative or near zero."""
    known = usual[np.isfinite(usual)]
    return float(np.median(known) + max(0.5 * abs(np.median(known)), 3 * known.std()))
