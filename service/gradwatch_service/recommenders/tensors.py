"""A threshold for every tensor by itself: the norm rule on each tensor's own norms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwatch_service.recommenders.answer import CODES, ENOUGH, TOLERANCE, WIDE, already_normalised
from gradwatch_service.recommenders.backtest import backtest_norm
from gradwatch_service.recommenders.base import STATUSES, Asked, Status
from gradwatch_service.recommenders.norm import (
    MIN_NORMS,
    PREFERENCES,
    RISE,
    TIGHT,
    WINDOW,
    alarm_level,
    usual_level,
)
from gradwatch_service.recommenders.restraint import DROP, MOST, TICK, spike_width
from gradwatch_service.recommenders.window import log_spread, order_intervals, quantile

__all__ = ["TENSOR_STEPS", "answer_tensors"]

Floats = NDArray[np.float64]

# Windows end this many steps apart: the law of slow rise looks back over a window's worth of them,
# and the promise is judged on the last 64 norms, each against the newest threshold before it.
STRIDE = 16
TENSOR_STEPS = 3 * WINDOW


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
    lows, highs = _intervals(window[known], levels[0], asked)
    above, judged = _promises(logs[known], levels)
    meant = _intended(window[known], asked)
    rows = {int(t): i for i, t in enumerate(known)}
    for index, name in enumerate(names):
        row = rows.get(index)
        if row is None:
            code = "nonfinite_flood" if flood else _why_none(norms[:, index])
            found[name] = _none(code, asked)
            continue
        threshold, low, high = (math.exp(x[row]) for x in (levels[0], lows, highs))
        one = _one(window[index], threshold, (low, high), asked)
        found[name] = _judged(one, int(above[row]), int(judged[row]), float(meant[row]))
    tried = _tried(norms, [found[name]["threshold"] for name in names])
    given = _together(found, asked, steps=len(norms[-WINDOW:]), last_step=last_step)
    kept = above.sum(), judged.sum()
    return given | {
        "intended_share": float(meant.mean()) if len(meant) else None,
        "realised_share": float(kept[0] / kept[1]) if kept[1] else None,
        "realised_steps": int(judged.max(initial=0)),
        "backtest": None if given["status"] == "none" else tried,
    }


def _levels(logs: Floats, asked: Asked) -> Floats:
    """[5, k] ln threshold now and 16, 32, 48 and 64 steps ago; infinite where there was none.

    Each is the least over windows, each raised by what the law has allowed since.
    """
    rise = float(RISE[PREFERENCES[asked.preference]])
    ends = logs.shape[1] - np.arange(0, 2 * WINDOW + 1, STRIDE)
    targets = np.full((len(ends), len(logs)), np.inf)
    for row, end in zip(targets, ends.tolist(), strict=True):
        if end <= 0:
            break
        window = logs[:, max(0, end - WINDOW) : end]
        counts = (~np.isnan(window)).sum(axis=1)
        enough = counts >= MIN_NORMS
        if enough.any():
            row[enough] = _targets(window[enough], counts[enough], asked)
    looked_back = WINDOW // STRIDE + 1
    raised = rise * STRIDE * np.arange(looked_back)[:, None]
    return np.stack(
        [(targets[i : i + looked_back] + raised).min(axis=0) for i in range(looked_back)]
    )


def _promises(logs: Floats, levels: Floats) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """[k], [k] how many of the last 64 norms lay above the threshold before them, of how many."""
    above, judged = np.zeros((2, len(logs)), np.int64)
    for back, level in enumerate(levels[1:], start=1):
        end = logs.shape[1] - back * STRIDE
        block = logs[:, max(0, end) : max(0, end + STRIDE)]
        known = ~np.isnan(block) & np.isfinite(level)[:, None]
        above += np.count_nonzero(known & (block > level[:, None]), axis=1)
        judged += np.count_nonzero(known, axis=1)
    return above, judged


def _intended(window: Floats, asked: Asked) -> Floats:
    """[k] share of its norms that the rule means to clip, for each tensor."""
    if asked.preference != "balanced" or not len(window):
        return np.full(len(window), 1 - TIGHT if asked.preference == "tight" else 0.0)
    counts = (~np.isnan(window)).sum(axis=1)
    above = window > _targets(window, counts, asked)[:, None]
    found: Floats = above.sum(axis=1) / counts
    return found


def _judged(one: dict[str, Any], above: int, judged: int, intended: float) -> dict[str, Any]:
    """Whether the promise was kept on as many norms as a window holds."""
    share = above / judged if judged else None
    one |= {"realised_share": share, "realised_steps": judged}
    kept = share is not None and abs(share - intended) <= TOLERANCE
    if one["status"] == "estimated" and judged == WINDOW and kept:
        one["status"] = "validated"
    return one


def _tried(norms: Floats, thresholds: Sequence[float | None]) -> dict[str, Any] | None:
    """What each tensor's threshold would have done, over pairs of step and tensor."""
    limits = np.array([math.nan if t is None else t for t in thresholds], np.float64)
    pairs = ~np.isnan(norms) & ~np.isnan(limits)
    tried = backtest_norm((norms / limits)[pairs], 1.0, scaled=norms[pairs])
    if tried is None:
        return None
    fields = asdict(tried) | {"steps": int(pairs.any(axis=1).sum())}
    fields.pop("threshold")
    return fields


def _targets(window: Floats, counts: NDArray[np.int64], asked: Asked) -> Floats:
    """[k] where each tensor's threshold would stand, as ln norm.

    For ``balanced`` the spikes of the window itself lower it: unlike the run's norm, a tensor's
    is not followed from the first step on.
    """
    ordered = np.sort(window, axis=1)
    tight = quantile(ordered, counts, TIGHT)
    if asked.preference == "tight":
        return tight
    if asked.preference == "guard":
        return alarm_level(np.where(np.isnan(ordered), np.inf, ordered), counts)
    medians = quantile(ordered, counts, 0.5)
    filled = np.where(np.isnan(ordered), np.inf, ordered)
    bounds = medians + spike_width(log_spread(filled, counts, medians))
    struck = (window > bounds[:, None]).sum(axis=1)
    return usual_level(medians, tight, TICK * np.minimum(MOST, DROP * struck))


def _intervals(window: Floats, levels: Floats, asked: Asked) -> tuple[Floats, Floats]:
    if not len(window):
        return levels, levels
    share = TIGHT if asked.preference == "tight" else 0.5
    low, high = order_intervals(window, share)
    counts = (~np.isnan(window)).sum(axis=1)
    level = quantile(np.sort(window, axis=1), counts, share)
    lift = _targets(window, counts, asked) - level
    return np.minimum(low + lift, levels), np.maximum(high + lift, levels)


def _one(
    window: Floats, threshold: float, interval: tuple[float, float], asked: Asked
) -> dict[str, Any]:
    values = window[~np.isnan(window)]
    status: Status = "estimated"
    reasons = ["ok"]
    if already_normalised(values):
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
        "realised_share": None,
        "realised_steps": 0,
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
        "advice": None,
        "thresholds": found,
    }
