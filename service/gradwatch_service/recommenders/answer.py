"""From the state of the norm rule to the recommendation that a script reads, in words and numbers."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwatch_service.detectors.base import RunContext
from gradwatch_service.recommenders.advice import advice
from gradwatch_service.recommenders.backtest import backtest_norm
from gradwatch_service.recommenders.base import STATUSES, Asked, Preference, Status, version
from gradwatch_service.recommenders.norm import (
    FLOOD_WINDOW,
    HOLD_STEPS,
    MIN_NORMS,
    PREFERENCES,
    TIGHT,
    WINDOW,
    NormState,
    alarm_level,
    usual_level,
)
from gradwatch_service.recommenders.prior import PRIOR_NORMS, Prior, blended, disagrees
from gradwatch_service.recommenders.window import order_intervals

__all__ = ["already_normalised", "answer", "answer_norm"]

ENOUGH = 32  # norms from which a threshold counts as estimated
WIDE = 1.5  # an interval that leaves threshold / 1.5 .. threshold * 1.5 is not an estimate
TOLERANCE = 0.15  # by how much realised and intended share may differ
SAME = 1e-3  # norms this close together (relative) come from a job that normalises by itself
SAME_SHARE = 0.9
HEAP_SHARE = 0.6  # so many norms at the very top are the work of another clipping

WORDS: dict[Preference, str] = {
    "tight": "lowest tenth of the last {n} norms, falling at once, rising at most 0.1 % per step",
    "balanced": (
        "2.5 times the median of the last {n} norms{spikes}, falling at once, rising {rise}"
    ),
    "guard": (
        "spike level of the last {n} norms (median and spread of ln norm), falling at once, "
        "rising at most 1 % per step"
    ),
}
CODES = {
    "nonfinite_flood": "more than half of the last 20 steps were not finite",
    "too_few_steps": "too few steps to tell more",
    "already_normalised": (
        "the norms agree within 0.1 %, or most of them with the largest: the job already normalises "
        "or clips its gradient before it is measured, so its norm says nothing about a threshold"
    ),
    "tensor_all_zero": "every gradient so far was zero in all elements",
    "lr_changed": "the learning rate just changed by more than 2x, so the threshold may only fall",
    "open_incident": "an incident is open, so at most provisional",
    "stale": "no new finite step for a while",
}


def answer(state: NormState, context: RunContext) -> dict[str, Any]:
    """The bare recommendation of one stream, as kept by the analyser and sent with ingest answers."""
    return answer_norm(state, Asked(), context=context)


def answer_norm(
    state: NormState,
    asked: Asked,
    *,
    context: RunContext | None = None,
    incident: bool = False,
    stale: bool = False,
    prior: Prior | None = None,
) -> dict[str, Any]:
    """The recommendation for ``policy=norm``, with the fields of the REST answer.

    Args:
        state: What the rule remembers.
        asked: Preference and bounds.
        context: The stream, for advice that depends on the optimizer; None when it is not known.
        incident: Whether an incident of the run is open.
        stale: Whether the newest report is old although the run has not finished.
        prior: What earlier runs of the same model say; used while this one has few norms, and
            never for more than ``provisional``.
    """
    preference = asked.preference
    threshold = state.threshold(preference)
    logs = np.log(state.norms[-WINDOW:])
    interval = _interval(state, logs, preference, threshold) if threshold is not None else None
    status, reasons = _ladder(state, logs, preference, interval, threshold)
    usable = reasons == ["too_few_steps"] and len(logs) < PRIOR_NORMS
    drawn = prior if prior is not None and usable and not disagrees(state, prior) else None
    if drawn is not None:
        status = "provisional"
        threshold, interval = blended(state, drawn, preference)
    if threshold is not None and status != "none":
        status, reasons = _overlay(state, status, reasons, incident=incident, stale=stale)
    if status == "none":
        threshold, interval = None, None
    tried = None if threshold is None else backtest_norm(state.norms, threshold)
    realised = state.exceeded[PREFERENCES[preference]]
    return {
        "run": context.run if context else None,
        "policy": "norm",
        "threshold": threshold,
        "interval": None if interval is None else list(interval),
        "status": status,
        "effective_threshold": asked.effective(threshold),
        "spike_threshold": _spike(logs) if threshold is not None and len(logs) else None,
        "reason": _words(status, reasons, preference, state, len(logs)) + _drawn(drawn),
        "reasons": reasons or ["ok"],
        "steps_used": len(logs),
        "version": version(context, state.accepted),
        "valid_from_step": None if state.last_step is None else state.last_step + 1,
        "preference": preference,
        "intended_share": _intended(state, logs, preference),
        "realised_share": float(realised.mean()) if len(realised) else None,
        "realised_steps": len(realised),
        "prior": None if prior is None else _told(prior, used=drawn is not None),
        "advice": advice(
            context.optimizer_class if context else None, tried.mean_coefficient if tried else None
        ),
        "backtest": None if tried is None else _evidence(asdict(tried)),
    }


def _drawn(prior: Prior | None) -> str:
    if prior is None:
        return ""
    return f"; drawn towards {len(prior.runs)} earlier runs of the same model, worth 16 norms"


def _told(prior: Prior, *, used: bool) -> dict[str, Any]:
    return {"runs": list(prior.runs), "threshold": math.exp(prior.level), "used": used}


def _aim(state: NormState, logs: NDArray[np.float64], preference: Preference) -> float:
    """Where the rule aims now, as ln norm, whatever the law of slow rise allows."""
    if preference == "tight":
        return float(np.quantile(logs, TIGHT))
    if preference == "guard":
        return math.log(_spike(logs))
    tight = np.array([math.log(state.threshold("tight") or 1.0)])
    return float(usual_level(np.median(logs, keepdims=True), tight, state.restraint.down)[0])


def _intended(state: NormState, logs: NDArray[np.float64], preference: Preference) -> float:
    """Share of steps that the rule means to clip: fixed for two, and by the evidence for the third."""
    if preference == "balanced":
        return float(np.mean(logs > _aim(state, logs, preference))) if len(logs) else 0.0
    return 1 - TIGHT if preference == "tight" else 0.0


def _interval(
    state: NormState, logs: NDArray[np.float64], preference: Preference, threshold: float
) -> tuple[float, float]:
    """Bounds of where the rule's level lies, always around the threshold itself.

    The law "rise slowly" may hold the threshold below the level; then the interval says so by
    reaching from one to the other.
    """
    aim, tight = _aim(state, logs, preference), float(np.quantile(logs, TIGHT))
    share = TIGHT if preference == "tight" or aim <= tight else 0.5
    lower, upper = order_intervals(logs[None, :], share)
    # Below the lowest tenth it is the law of slow rise that holds the aim down, not the level itself.
    lift = 0.0 if aim <= tight else aim - float(np.quantile(logs, share))
    low, high = (math.exp(min(float(x[0]) + lift, 700.0)) for x in (lower, upper))
    return min(low, threshold), max(high, threshold)


def _spike(logs: NDArray[np.float64]) -> float:
    level = alarm_level(np.sort(logs)[None, :], np.array([len(logs)]))[0]
    return math.exp(min(float(level), 700.0))


def _ladder(
    state: NormState,
    logs: NDArray[np.float64],
    preference: Preference,
    interval: tuple[float, float] | None,
    threshold: float | None,
) -> tuple[Status, list[str]]:
    """How much the evidence carries, and the codes that say why not more."""
    if np.count_nonzero(~state.finite) > FLOOD_WINDOW // 2:
        return "none", ["nonfinite_flood"]
    if threshold is None or interval is None:
        nothing_but_zero = state.accepted == 0 and state.zeros >= MIN_NORMS
        return "none", ["tensor_all_zero" if nothing_but_zero else "too_few_steps"]
    if already_normalised(logs):
        return "none", ["already_normalised"]
    narrow = interval[1] <= WIDE * threshold and interval[0] >= threshold / WIDE
    if len(logs) < ENOUGH or not narrow:
        return "provisional", ["too_few_steps"]
    realised = state.exceeded[PREFERENCES[preference]]
    kept = abs(float(realised.mean()) - _intended(state, logs, preference)) <= TOLERANCE
    return ("validated" if len(realised) == WINDOW and kept else "estimated"), []


def already_normalised(logs: NDArray[np.float64]) -> bool:
    """Whether norms are all alike, or heaped up at their largest: somebody scales them before us."""
    if len(logs) < ENOUGH:
        return False
    alike = np.mean(np.abs(logs - np.median(logs)) <= SAME) >= SAME_SHARE
    return bool(alike or np.mean(logs >= logs.max() - SAME) >= HEAP_SHARE)


def _overlay(
    state: NormState, status: Status, reasons: list[str], *, incident: bool, stale: bool
) -> tuple[Status, list[str]]:
    """What holds beyond the record of norms: it can only lower the status."""
    reasons = list(reasons)
    if state.seen - 1 - state.last_change < HOLD_STEPS:
        reasons.append("lr_changed")
    if incident:
        reasons.append("open_incident")
        status = STATUSES[min(STATUSES.index(status), STATUSES.index("provisional"))]
    if stale:
        reasons.append("stale")
    return status, reasons


def _words(
    status: Status, reasons: list[str], preference: Preference, state: NormState, n: int
) -> str:
    told = [CODES[code] for code in reasons]
    if status == "none":
        return "no threshold: " + "; ".join(told)
    if status == "provisional" and n >= ENOUGH and "too_few_steps" in reasons:
        told[reasons.index("too_few_steps")] = (
            "the interval is wider than a factor 1.5, so only provisional"
        )
    restraint = state.restraint
    why = "at the start" if state.accepted <= restraint.quiet else "by spikes"
    spikes = f", lowered to {restraint.share:.0%} of that {why}" if restraint.lowered else ""
    rise = f"at most {1 if restraint.calm else 0.1} % per step"
    if restraint.opening:
        rise = "at once while these first norms lie close together"
    rule = WORDS[preference].format(n=n, spikes=spikes, rise=rise)
    return "; ".join([rule, *told])


def _evidence(tried: dict[str, Any]) -> dict[str, Any]:
    tried.pop("threshold")
    return tried
