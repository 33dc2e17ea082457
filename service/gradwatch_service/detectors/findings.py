"""From what a detector saw to a finding: tensors, cause, severity, and the numbers behind them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from gradwatch_service.detectors.base import Finding, Severity
from gradwatch_service.detectors.exploding import Spike
from gradwatch_service.detectors.oscillating import Turning
from gradwatch_service.detectors.signals import Signals
from gradwatch_service.detectors.vanishing import Loss
from gradwatch_service.detectors.weights import WeightState

__all__ = ["exploding_finding", "exploding_severity", "oscillating_finding", "vanishing_finding"]

MOST_NAMED: Final = 16
ALL_ALIKE: Final = 0.04  # of how much the tensors grew: nothing but a factor does that
LOSS_UP: Final = 2.0  # robust sigmas
GROWN: Final = 1.3  # times the usual norm
WEIGHTS_RECENT: Final = 16  # steps after a jump of the weights during which it is named as cause

LOSS_CAUSES: Final = {
    "zero": "dead_layer",
    "low": "saturation",
    "whole": "converged",
    "depth": "initialisation",
}

Evidence = Mapping[str, float | int | str]


def exploding_severity(spike: Spike, norm: float) -> Severity:
    """Critical when the evidence is overwhelming, warning otherwise; info when known by now."""
    if spike.known:
        return "info"
    far = spike.norm_sigmas >= 8 and norm >= 10 * spike.expected
    agreed = min(spike.norm_sigmas, spike.loss_sigmas) >= 8
    return "critical" if far or agreed else "warning"


def exploding_finding(
    signals: Signals,
    i: int,
    spike: Spike,
    grew: NDArray[np.float64],
    *,
    shape_spread: float,
    weights: WeightState,
    severity: Severity,
) -> Finding:
    """Finding of an explosion; ``grew`` is [T] ln of how many times its usual size each tensor has."""
    columns = _most_grown(grew)
    names = tuple(signals.names[c] for c in columns)
    cause, evidence = _exploding_cause(spike, signals, i, shape_spread)
    if cause in {"unknown", "unusual_batch", "grown_alike"}:
        cause, evidence = _weights(weights, signals, (cause, evidence))
    return Finding(
        kind="exploding",
        step=signals.steps[i],
        onset_step=spike.onset_step,
        severity=severity,
        rank=signals.rank,
        tensors=names,
        first_tensor=names[0] if names else None,
        observed=signals.norm[i],
        expected=spike.expected,
        score=spike.score,
        cause=cause,
        evidence=evidence,
    )


def _most_grown(grew: NDArray[np.float64]) -> list[int]:
    """Columns that carry the explosion, the most grown one first."""
    if not len(grew):
        return []
    order = np.argsort(-grew, kind="stable")[:MOST_NAMED]
    largest = float(grew[order[0]])
    return [int(c) for c in order if grew[c] >= 0.5 * largest] if largest > 0 else []


def _exploding_cause(
    spike: Spike, signals: Signals, i: int, shape_spread: float
) -> tuple[str, Evidence]:
    over = signals.norm[i] / spike.expected
    quiet_loss = math.isfinite(spike.loss_sigmas) and spike.loss_sigmas < LOSS_UP
    cause: tuple[str, Evidence] = ("unknown", {})
    if spike.rule == "start":
        cause = "bad_start", {"factor": over}
    elif spike.rate_ratio > 1:
        ratio = {"learning_rate_ratio": spike.rate_ratio, "at_step": spike.rate_step}
        cause = "learning_rate_change", ratio
    elif spike.same_direction and spike.loss_before < LOSS_UP:
        # Labels or data that have something in common raise the loss at once; adding up does not.
        cosines = {"cosine": spike.cosine, "usual_cosine": spike.usual_cosine}
        cause = ("zero_grad_missing" if over >= GROWN else "same_batch_again"), cosines
    elif quiet_loss and spike.norm_sigmas >= 4 and over >= 3 and shape_spread <= ALL_ALIKE:
        cause = "loss_scale", {"factor": over}
    elif quiet_loss and spike.rule in {"step up", "scaled", "lasting"}:
        cause = "grown_alike", {"factor": over}
    elif spike.loss_sigmas >= 3:
        cause = (
            "unusual_batch",
            {
                "loss_sigmas": spike.loss_sigmas,
                "norm_sigmas": spike.norm_sigmas,
                "at_step": spike.onset_step,
            },
        )
    return cause


def _weights(
    weights: WeightState, signals: Signals, otherwise: tuple[str, Evidence]
) -> tuple[str, Evidence]:
    if weights.age > WEIGHTS_RECENT or weights.column < 0:
        return otherwise
    return "weights_jumped", {
        "weight_ratio": weights.ratio,
        "at_step": weights.step,
        "weight": signals.names[weights.column],
    }


def vanishing_finding(
    signals: Signals, i: int, loss: Loss, *, onset_step: int, weights: WeightState
) -> Finding:
    """Finding of tensors that lost their gradient, the one nearest the output first."""
    present = int(signals.present[i].sum())
    whole = len(loss.columns) == present and present > 1
    cause = LOSS_CAUSES[loss.rule]
    evidence: Evidence = {"tensors": len(loss.columns)}
    if whole and loss.rule == "zero":
        cause = "whole_gradient"
    elif loss.rule == "whole":
        cause = "converged"
    elif loss.rule != "depth":
        cause, evidence = _weights(weights, signals, (cause, evidence))
    names = tuple(signals.names[c] for c in reversed(loss.columns))
    return Finding(
        kind="vanishing",
        step=signals.steps[i],
        onset_step=onset_step,
        severity=_loss_severity(loss, whole=whole),
        rank=signals.rank,
        tensors=names,
        first_tensor=names[0],
        observed=loss.observed,
        expected=loss.expected,
        score=1.0 + len(loss.columns) / max(1, present),
        cause=cause,
        evidence=evidence,
    )


def _loss_severity(loss: Loss, *, whole: bool) -> Severity:
    if loss.rule == "whole":
        return "info"
    return "critical" if whole and loss.rule == "zero" else "warning"


def oscillating_finding(signals: Signals, i: int, turning: Turning, *, onset_step: int) -> Finding:
    """Finding of gradients that turn against each other."""
    return Finding(
        kind="oscillating",
        step=signals.steps[i],
        onset_step=onset_step,
        severity="warning" if turning.proven else "info",
        rank=signals.rank,
        observed=turning.cosine,
        expected=turning.usual,
        score=turning.score,
        cause="learning_rate_change" if turning.proven else "unknown",
    )
