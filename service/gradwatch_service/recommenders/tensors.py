"""A threshold for every tensor by itself: the norm rule on each tensor's own norms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwatch_service.recommenders.answer import CODES, ENOUGH, SAME, SAME_SHARE, WIDE
from gradwatch_service.recommenders.base import STATUSES, Asked, Status
from gradwatch_service.recommenders.norm import (
    MIN_NORMS,
    PREFERENCES,
    QUANTILES,
    RISE,
    WINDOW,
    alarm_level,
)
from gradwatch_service.recommenders.window import order_intervals, quantile

__all__ = ["TENSOR_STEPS", "answer_tensors"]

Floats = NDArray[np.float64]

# The law of slow rise looks back over windows that end this many steps apart.
STRIDE = 16
TENSOR_STEPS = 2 * WINDOW


def answer_tensors(
    norms: Floats, names: Sequence[str], asked: Asked, *, flood: bool, last_step: int | None
) -> dict[str, Any]:
    """The recommendation for ``policy=per_tensor``, with the fields of the REST answer.

    Args:
        norms: [n, T] tensor norms of the newest finite steps, at most ``TENSOR_STEPS``; NaN where
            a tensor had no gradient.
        names: [T] tensor names.
        asked: Preference and bounds, applied to every tensor.
        flood: Whether more than half of the last 20 steps were not finite.
        last_step: Newest step, or None.
    """
    logs = np.log(norms, out=np.full(norms.shape, np.nan), where=norms > 0).T
    window = logs[:, -WINDOW:]
    counts = (~np.isnan(window)).sum(axis=1)
    found: dict[str, dict[str, Any]] = {}
    known = np.flatnonzero((counts >= MIN_NORMS) & (not flood))
    levels = _levels(logs[known], asked)
    lows, highs = _intervals(window[known], levels, asked)
    rows = {int(t): i for i, t in enumerate(known)}
    for index, name in enumerate(names):
        row = rows.get(index)
        if row is None:
            code = "nonfinite_flood" if flood else _why_none(norms[:, index])
            found[name] = _none(code, asked)
            continue
        threshold, low, high = (math.exp(x[row]) for x in (levels, lows, highs))
        found[name] = _one(window[index], threshold, (low, high), asked)
    return _together(found, asked, steps=len(norms[-WINDOW:]), last_step=last_step)


def _levels(logs: Floats, asked: Asked) -> Floats:
    """[k] ln threshold: the least over windows, each raised by what the law has allowed since."""
    rise = float(RISE[PREFERENCES[asked.preference]])
    level = np.full(len(logs), np.inf)
    width = logs.shape[1]
    for back in range(0, WINDOW + 1, STRIDE):
        window = logs[:, max(0, width - back - WINDOW) : width - back]
        counts = (~np.isnan(window)).sum(axis=1)
        enough = counts >= MIN_NORMS
        if enough.any():
            targets = _targets(window[enough], counts[enough], asked)
            level[enough] = np.minimum(level[enough], targets + rise * back)
    return level


def _targets(window: Floats, counts: NDArray[np.int64], asked: Asked) -> Floats:
    ordered = np.sort(window, axis=1)
    column = PREFERENCES[asked.preference]
    if column < len(QUANTILES):
        return quantile(ordered, counts, QUANTILES[column])
    return alarm_level(np.where(np.isnan(ordered), np.inf, ordered), counts)


def _intervals(window: Floats, levels: Floats, asked: Asked) -> tuple[Floats, Floats]:
    if not len(window):
        return levels, levels
    column = PREFERENCES[asked.preference]
    guarded = column >= len(QUANTILES)
    low, high = order_intervals(window, 0.5 if guarded else QUANTILES[column])
    if guarded:
        counts = (~np.isnan(window)).sum(axis=1)
        lift = _targets(window, counts, asked) - quantile(np.sort(window, axis=1), counts, 0.5)
        low, high = low + lift, high + lift
    return np.minimum(low, levels), np.maximum(high, levels)


def _one(
    window: Floats, threshold: float, interval: tuple[float, float], asked: Asked
) -> dict[str, Any]:
    values = window[~np.isnan(window)]
    status: Status = "estimated"
    reasons = ["ok"]
    if len(values) >= ENOUGH:
        near = np.abs(values - np.median(values)) <= SAME
        if near.mean() >= SAME_SHARE:
            return _none("already_normalised", asked)
    wide = interval[1] > WIDE * threshold or interval[0] < threshold / WIDE
    if len(values) < ENOUGH or wide:
        status, reasons = "provisional", ["too_few_steps"]
    return {
        "threshold": threshold,
        "interval": list(interval),
        "status": status,
        "effective_threshold": asked.effective(threshold),
        "reasons": reasons,
    }


def _why_none(norms: Floats) -> str:
    """All zeros, or too few steps with a gradient."""
    there = norms[~np.isnan(norms)]
    zero = len(there) >= MIN_NORMS and not there.any()
    return "tensor_all_zero" if zero else "too_few_steps"


def _none(code: str, asked: Asked) -> dict[str, Any]:
    return {
        "threshold": None,
        "interval": None,
        "status": "none",
        "effective_threshold": asked.effective(None),
        "reasons": [code],
    }


def _together(
    found: dict[str, dict[str, Any]], asked: Asked, *, steps: int, last_step: int | None
) -> dict[str, Any]:
    """The run's answer: as sure as its least sure tensor that has a threshold at all."""
    ranks = [STATUSES.index(one["status"]) for one in found.values() if one["status"] != "none"]
    status = STATUSES[min(ranks)] if ranks else "none"
    codes = dict.fromkeys(code for one in found.values() for code in one["reasons"])
    reasons = [code for code in codes if code != "ok"] or ["ok"]
    if not found:
        reasons = ["unknown_policy_data"]
    rule = (
        f"the {asked.preference} rule on each tensor's own norms of the last {steps} finite steps"
    )
    told = "no tensor was reported" if not found else rule
    if ranks and reasons != ["ok"]:
        told += "; for some tensors: " + "; ".join(CODES[c] for c in reasons)
    elif found and not ranks:
        told = "no threshold: " + "; ".join(CODES[c] for c in reasons)
    return {
        "run": None,
        "policy": "per_tensor",
        "threshold": None,
        "interval": None,
        "status": status,
        "effective_threshold": asked.default,
        "spike_threshold": None,
        "reason": told,
        "reasons": reasons,
        "steps_used": steps,
        "version": 0 if last_step is None else last_step + 1,
        "valid_from_step": None if last_step is None else last_step + 1,
        "preference": asked.preference,
        "thresholds": found,
        "backtest": None,
    }
