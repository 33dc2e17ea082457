"""Published rules as per-step detectors, to compare with.

Alarms of one class at most ``GRACE`` steps apart form one incident, which names every tensor its
alarms name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from benchmarks.trace_scorer import GRACE, Floats, Incident, Score, Trace, score_split

MAD_TO_SIGMA = 1.4826  # makes the median absolute deviation estimate a normal's sigma
TINY_NORM = 1e-30  # keeps log(norm) finite when a gradient is exactly zero


class Alarm(NamedTuple):
    """What a per-step detector says at one step."""

    step: int
    kind: str  # one of CLASSES
    tensors: tuple[int, ...] = ()  # columns it blames; empty = only the global norm was looked at


def merge_alarms(alarms: Iterable[Alarm], tensors: Sequence[str]) -> list[Incident]:
    """Turn per-step alarms into incidents: one class, gaps of at most GRACE steps."""
    groups: list[list[Alarm]] = []
    newest: dict[str, list[Alarm]] = {}
    for alarm in sorted(alarms):
        group = newest.get(alarm.kind)
        if group is None or alarm.step - group[-1].step > GRACE:
            group = newest[alarm.kind] = []
            groups.append(group)
        group.append(alarm)
    return [_incident(group, tensors) for group in groups]


def _incident(alarms: Sequence[Alarm], tensors: Sequence[str]) -> Incident:
    blamed = frozenset(tensors[column] for alarm in alarms for column in alarm.tensors)
    return Incident(alarms[0].kind, alarms[0].step, alarms[-1].step, blamed)


# Strictly causal: what is said at step t depends on rows up to t only.

Detector = Callable[[Trace], Iterable[Alarm]]


def fixed_norm(trace: Trace, *, limit: float) -> Iterator[Alarm]:
    """Alarm when the global norm is above a fixed limit, or not a number."""
    for step, norm in enumerate(trace.global_norm):
        if not norm <= limit:
            yield Alarm(step, "exploding")


def zclip(
    trace: Trace, *, z_limit: float = 2.5, decay: float = 0.97, warm_up: int = 25
) -> Iterator[Alarm]:
    """Alarm when the norm's z-score against running mean and variance is high.

    Non-finite norms are kept out of the state, which they would destroy in the original.

    Source:
        Kumar et al. 2025, "ZClip: Adaptive Spike Mitigation for LLM Pre-Training",
        https://arxiv.org/abs/2504.02507
    """
    first: list[float] = []
    mean = variance = 0.0
    for step, norm in enumerate(trace.global_norm):
        if not math.isfinite(norm):
            yield Alarm(step, "nonfinite")
            continue
        if len(first) < warm_up:
            first.append(norm)
            mean, variance = float(np.mean(first)), float(np.var(first))
            continue
        deviation = math.sqrt(variance) + 1e-6
        z = (norm - mean) / deviation
        if z > z_limit:
            yield Alarm(step, "exploding")
        # A spike enters the state as its clipped value, which falls as the spike grows.
        clipped = mean + z_limit**2 / z * deviation if z > z_limit else norm
        mean = decay * mean + (1 - decay) * clipped
        variance = decay * variance + (1 - decay) * (clipped - mean) ** 2


def norm_percentile(
    trace: Trace, *, percentile: float, window: int | None = None, warm_up: int = 10
) -> Iterator[Alarm]:
    """Alarm when the norm is above a percentile of the run's past norms.

    Args:
        trace: The trace.
        percentile: 0 to 100.
        window: Number of past norms looked at; None means all of them.
        warm_up: Norms needed before the first alarm.

    Source:
        Seetharaman et al. 2020, "AutoClip: Adaptive Gradient Clipping for Source Separation
        Networks", https://arxiv.org/abs/2007.14469
    """
    past: list[float] = []
    for step, norm in enumerate(trace.global_norm):
        if not math.isfinite(norm):
            continue
        recent = past if window is None else past[-window:]
        if len(past) >= warm_up and norm > np.percentile(recent, percentile):
            yield Alarm(step, "exploding")
        past.append(norm)


def sagemaker_rules(trace: Trace, *, smallest_mean: float = 1e-7) -> Iterator[Alarm]:
    """Alarm per tensor: non-finite elements, or a mean absolute gradient below a fixed limit.

    In the manner of Amazon SageMaker Debugger's built-in rules ExplodingTensor and
    VanishingGradient. The mean comes from the magnitude histogram.
    """
    nonfinite = trace.columns["nonfinite"] > 0
    vanishing = (mean_abs(trace) < smallest_mean) & ~nonfinite
    for kind, blamed in (("nonfinite", nonfinite), ("vanishing", vanishing)):
        for step in np.flatnonzero(blamed.any(axis=1)):
            yield Alarm(int(step), kind, tuple(np.flatnonzero(blamed[step]).tolist()))


def mean_abs(trace: Trace) -> Floats:
    """[S, T] mean absolute gradient, estimated from the histogram's bin centres."""
    counts = trace.columns["hist"].astype(np.float64)  # [S, T, bins]
    centres = 1.5 * 2.0 ** (np.arange(counts.shape[-1]) - 48)
    means: Floats = counts @ centres / trace.columns["sizes"]
    return means


def log_robust_z(
    trace: Trace, *, z_limit: float, window: int = 100, warm_up: int = 25
) -> Iterator[Alarm]:
    """Alarm when log(norm) is far above the median of recent ones, in robust sigmas.

    An alarming value enters the window pulled down to the limit, so that a burst does not raise
    the limit for the steps after it.
    """
    past: list[float] = []
    for step, norm in enumerate(trace.global_norm):
        if not math.isfinite(norm):
            yield Alarm(step, "nonfinite")
            continue
        value = math.log(norm + TINY_NORM)
        if len(past) >= warm_up:
            recent = np.array(past[-window:])
            centre = float(np.median(recent))
            sigma = max(0.05, MAD_TO_SIGMA * float(np.median(np.abs(recent - centre))))
            if value > centre + z_limit * sigma:
                yield Alarm(step, "exploding")
                value = centre + z_limit * sigma
        past.append(value)


def dspot(
    trace: Trace, *, risk: float = 1e-3, window: int = 40, warm_up: int = 60, refit: int = 5
) -> Iterator[Alarm]:
    """Alarm when log(norm), less its running median, passes an extreme-value limit.

    Source:
        Siffer et al. 2017, "Anomaly Detection in Streams with Extreme Value Theory", KDD.
    """
    past: list[float] = []  # log norms that raised no alarm
    residuals: list[float] = []  # the same, less the median of the window before each
    limit: float | None = None
    for step, norm in enumerate(trace.global_norm):
        if not math.isfinite(norm):
            yield Alarm(step, "nonfinite")
            continue
        value = math.log(norm + TINY_NORM)
        if len(past) < 10:
            past.append(value)
            continue
        residual = value - float(np.median(past[-window:]))
        if len(residuals) >= warm_up:
            if limit is None or step % refit == 0:
                limit = extreme_limit(np.array(residuals), risk)
            if residual > limit:
                yield Alarm(step, "exploding")
                continue
        residuals.append(residual)
        past.append(value)


def extreme_limit(values: Floats, risk: float, level: float = 0.90) -> float:
    """Value that a new one exceeds with probability ``risk``, by peaks over a threshold."""
    threshold = float(np.quantile(values, level))
    peaks = values[values > threshold] - threshold
    shape, scale = fit_generalised_pareto(peaks) if len(peaks) > 5 else (0.0, 0.1)
    tail = risk * len(values) / max(1, len(peaks))
    if abs(shape) <= 1e-3:
        return threshold - scale * math.log(tail)
    return threshold + scale * (math.pow(tail, -shape) - 1) / shape


def fit_generalised_pareto(peaks: Floats) -> tuple[float, float]:
    """Shape (held in [-0.5, 0.9]) and scale, by probability-weighted moments.

    Source:
        Hosking and Wallis 1987, "Parameter and Quantile Estimation for the Generalized Pareto
        Distribution", Technometrics 29.
    """
    ordered = np.sort(peaks)
    count = len(ordered)
    moment0 = float(ordered.mean())
    moment1 = float(np.sum((count - 1 - np.arange(count)) / (count - 1) * ordered) / count)
    difference = moment0 - 2 * moment1
    if difference == 0:
        return 0.0, moment0
    shape = min(0.9, max(-0.5, 2 - moment0 / difference))
    return shape, max(1e-9, 2 * moment0 * moment1 / difference)


def page_hinkley(
    trace: Trace, *, limit: float = 3.0, drift: float = 0.1, warm_up: int = 30
) -> Iterator[Alarm]:
    """Alarm when the summed rise of log(norm) above its mean passes a limit; then start anew.

    Source:
        Page 1954, "Continuous Inspection Schemes", Biometrika 41.
    """
    mean = rise = 0.0
    count = 0
    for step, norm in enumerate(trace.global_norm):
        if not math.isfinite(norm):
            continue
        value = math.log(norm + TINY_NORM)
        count += 1
        mean += (value - mean) / count
        rise = max(0.0, rise + value - mean - drift)
        if count >= warm_up and rise > limit:
            yield Alarm(step, "exploding")
            mean = rise = 0.0
            count = 0


def union(trace: Trace, *, detectors: Sequence[Detector]) -> Iterator[Alarm]:
    """Alarm whenever one of the detectors does."""
    for detector in detectors:
        yield from detector(trace)


LOG_ROBUST_Z6 = partial(log_robust_z, z_limit=6.0)

BASELINES: Mapping[str, Detector] = {
    "fixed norm > 1": partial(fixed_norm, limit=1.0),
    "fixed norm > 10": partial(fixed_norm, limit=10.0),
    "ZClip z > 2.5": zclip,
    "AutoClip p10": partial(norm_percentile, percentile=10),
    "QuantileClip p90 / 1000": partial(norm_percentile, percentile=90, window=1000),
    "SageMaker-like": sagemaker_rules,
    "log robust z > 6": LOG_ROBUST_Z6,
    "log robust z > 10": partial(log_robust_z, z_limit=10.0),
    "DSPOT log 1e-3": dspot,
    "Page-Hinkley log": page_hinkley,
    "SageMaker + log robust z > 6": partial(union, detectors=(LOG_ROBUST_Z6, sagemaker_rules)),
    "SageMaker + ZClip": partial(union, detectors=(zclip, sagemaker_rules)),
    "SageMaker + DSPOT": partial(union, detectors=(dspot, sagemaker_rules)),
}


def score_detector(detector: Detector, traces: Sequence[Trace]) -> Score:
    """Run a per-step detector over a split and score its incidents."""
    found = {trace.name: merge_alarms(detector(trace), trace.tensors) for trace in traces}
    return score_split(traces, found)
