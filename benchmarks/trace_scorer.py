"""Score gradient-fault detectors on recorded traces with labelled faults.

A detector is judged by its *incidents*: a class and an interval of steps with evidence.

What counts (docs/diagnosis.md explains the fields of a fault):

* **Window.** A fault can be found on the steps from ``start`` until ``end + GRACE``, at most
  ``LONGEST_WINDOW`` steps.
* **Hit.** ``first_step`` and ``last_step`` are the two steps an incident is known to report. It
  hits a fault when one of them lies in the window. So an incident that was open before the fault
  counts only if its last evidence falls in the window, and one that spans the whole window does
  not count: a detector that is always on detects nothing.
* **Delay.** From ``start`` to the first reported step in the window. That is ``first_step``, or
  ``last_step`` for an incident that was open before: the only step known to lie in the window.
* **Right class.** A hit whose ``kind`` is the fault's ``class``; for an oscillation that raises
  the norm, ``exploding`` is right as well.
* **Visible, masked.** Recall is over faults that show in the gradients (``visible``). A fault that
  starts inside the aftermath of an earlier one is masked: neither found nor missed.
* **False incident.** ``first_step`` lies outside every fault's ``[start, aftermath_end + GRACE)``,
  even if the incident lives long enough to hit a fault. All other incidents are true.
* **Localisation.** Jaccard overlap of the named and the affected tensors, for the earliest hit of
  the right class on vanishing and non-finite faults.
* **Incidents per fault.** For a fault that was found: incidents that hit it, or that start before
  its aftermath (plus ``GRACE``) is over and the next fault begins. One is right.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

GRACE = 10  # steps: slack after a fault, and the gap that separates two incidents
LONGEST_WINDOW = 60  # steps after a fault's start in which finding it still counts
CLASSES = ("exploding", "vanishing", "oscillating", "nonfinite")
LOCALISED_CLASSES = ("vanishing", "nonfinite")
EASY_KINDS = ("nan_tensor", "fp16_overflow")  # a counter of non-finite elements finds these

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Fault:
    """One injected fault and how it showed. Steps are half-open: ``[start, end)``."""

    kind: str  # the cause, such as "lr_spike"
    fault_class: str  # one of CLASSES
    start: int
    end: int
    aftermath_end: int  # first step at which loss and norm are back to normal
    tensors: frozenset[str]  # names of the tensors really affected
    visible: frozenset[str]  # ways it shows in the gradients; empty = it does not

    @property
    def window_end(self) -> int:
        """First step at which finding the fault no longer counts."""
        return min(self.end + GRACE, self.start + LONGEST_WINDOW)

    @property
    def right_classes(self) -> frozenset[str]:
        """Classes that describe the fault correctly."""
        if self.fault_class == "oscillating" and "norm_up" in self.visible:
            return frozenset({self.fault_class, "exploding"})
        return frozenset({self.fault_class})


@dataclass(frozen=True, slots=True)
class Trace:
    """One recorded run of S steps and T tensors."""

    name: str  # "<job>.<run>"
    job: str
    steps: int  # S
    tensors: tuple[str, ...]  # T names, in the order of the columns
    faults: tuple[Fault, ...]  # by start
    columns: Mapping[str, NDArray[Any]]  # docs/diagnosis.md lists names and shapes
    about: Mapping[str, Any] = field(default_factory=dict)  # what else its description says

    @property
    def global_norm(self) -> Floats:
        """[S] global L2 norm; NaN where any gradient element is not finite."""
        return self.columns["gnorm"].astype(np.float64)


def load_split(directory: Path) -> list[Trace]:
    """Read every trace of a split, ordered by name."""
    traces = [load_trace(path) for path in sorted(directory.glob("*.json"))]
    if not traces:
        raise FileNotFoundError(f"{directory}: no traces here, expected <job>.<run>.json and .npz")
    return traces


def load_trace(description: Path) -> Trace:
    """Read one trace from ``<job>.<run>.json`` and the ``.npz`` beside it."""
    meta = json.loads(description.read_text())
    with np.load(description.with_suffix(".npz")) as columns:
        return Trace(
            name=f"{meta['job']}.{meta['run']}",
            job=meta["job"],
            steps=meta["steps"],
            tensors=tuple(meta["names"]),
            faults=tuple(sorted(map(read_fault, meta["faults"]), key=lambda fault: fault.start)),
            columns={name: columns[name] for name in columns.files},
            about=meta,
        )


def read_fault(label: Mapping[str, Any]) -> Fault:
    """Translate one entry of a trace's ``faults``."""
    return Fault(
        kind=label["kind"],
        fault_class=label["class"],
        start=label["start"],
        end=label["end"],
        aftermath_end=label["aftermath_end"],
        tensors=frozenset(label["tensors"]),
        visible=frozenset(label["visible"]),
    )


@dataclass(frozen=True, slots=True)
class Incident:
    """Evidence for one class from ``first_step`` to ``last_step``, both included."""

    kind: str  # one of CLASSES
    first_step: int
    last_step: int
    tensors: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.kind not in CLASSES:
            raise ValueError(f"kind={self.kind!r}: allowed are {', '.join(CLASSES)}")
        if not 0 <= self.first_step <= self.last_step:
            raise ValueError(
                f"first_step={self.first_step}, last_step={self.last_step}: "
                "steps count from 0 and an incident cannot end before it starts"
            )

    def reported_step(self, start: int, end: int) -> int | None:
        """First step in ``[start, end)`` that the incident is known to report, if any."""
        return next((s for s in (self.first_step, self.last_step) if start <= s < end), None)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a detector did on one fault that was not masked."""

    trace: str
    fault: Fault
    hit: bool  # an incident of any class reports a step in the window
    right_class: bool  # one of the right class does
    delay: int | None  # steps from start to the first such report of any class; None = missed
    overlap: float | None  # Jaccard, 0 to 1; None = not found, or nothing to locate
    incidents: int  # incidents this fault caused; see the module docstring


@dataclass(slots=True)
class Score:
    """Everything counted over a split, and the figures that follow from it."""

    outcomes: list[Outcome] = field(default_factory=list)
    false_incidents: list[tuple[str, Incident]] = field(default_factory=list)  # (trace name, it)
    true_incidents: int = 0
    healthy_steps: int = 0  # steps outside every fault's [start, aftermath_end + GRACE)

    @property
    def visible(self) -> list[Outcome]:
        """Outcomes of the faults that show in the gradients: recall is over these."""
        return [outcome for outcome in self.outcomes if outcome.fault.visible]

    @property
    def hard(self) -> list[Outcome]:
        """Visible outcomes without the kinds that counting non-finite elements finds."""
        return [outcome for outcome in self.visible if outcome.fault.kind not in EASY_KINDS]

    @property
    def precision(self) -> float | None:
        """Share of incidents that are not false; None when there was no incident."""
        total = self.true_incidents + len(self.false_incidents)
        return self.true_incidents / total if total else None

    def figures(self) -> dict[str, Any]:
        """Return all figures as plain JSON values; None where there is nothing to average."""
        invisible = [outcome for outcome in self.outcomes if not outcome.fault.visible]
        delays = [outcome.delay for outcome in self.visible if outcome.delay is not None]
        overlaps = [outcome.overlap for outcome in self.outcomes if outcome.overlap is not None]
        per_1000 = 1000 / max(1, self.healthy_steps)
        interval = poisson_interval(len(self.false_incidents))
        return {
            "visible_faults": len(self.visible),
            "healthy_steps": self.healthy_steps,
            "recall": share(outcome.hit for outcome in self.visible),
            "recall_invisible": share(outcome.hit for outcome in invisible),
            "right_class": share(outcome.right_class for outcome in self.visible),
            "right_class_hard": share(outcome.right_class for outcome in self.hard),
            "precision": self.precision,
            "false_incidents": len(self.false_incidents),
            "false_per_1000": len(self.false_incidents) * per_1000,
            "false_per_1000_interval": [bound * per_1000 for bound in interval],
            "delay_median": float(np.median(delays)) if delays else None,
            "delay_p90": float(np.percentile(delays, 90)) if delays else None,
            "localisation": share(overlaps),
            "incidents_per_fault": share(o.incidents for o in self.visible if o.hit),
            "by_kind": self.by_kind(),
            "false_by_job": dict(self._false_by_job()),
        }

    def by_kind(self) -> dict[str, dict[str, int]]:
        """Count visible faults, hits and hits of the right class for each fault kind."""
        table = {outcome.fault.kind: Counter[str]() for outcome in self.visible}
        for outcome in self.visible:
            table[outcome.fault.kind]["faults"] += 1
            table[outcome.fault.kind]["hit"] += outcome.hit
            table[outcome.fault.kind]["right_class"] += outcome.right_class
        return {kind: dict(table[kind]) for kind in sorted(table)}

    def _false_by_job(self) -> Counter[str]:
        return Counter(f"{name.split('.')[0]}: {it.kind}" for name, it in self.false_incidents)


def score_split(traces: Iterable[Trace], incidents: Mapping[str, Sequence[Incident]]) -> Score:
    """Score the incidents of every trace, given by trace name."""
    score = Score()
    for trace in traces:
        found = incidents[trace.name]
        healthy = healthy_steps(trace)
        false = [it for it in found if healthy[it.first_step]]
        score.outcomes += judge_faults(trace, found)
        score.false_incidents += [(trace.name, it) for it in false]
        score.true_incidents += len(found) - len(false)
        score.healthy_steps += int(healthy.sum())
    return score


def healthy_steps(trace: Trace) -> NDArray[np.bool_]:
    """[S] True where no fault is active and none has left an aftermath."""
    healthy = np.ones(trace.steps, dtype=np.bool_)
    for fault in trace.faults:
        healthy[fault.start : fault.aftermath_end + GRACE] = False
    return healthy


def judge_faults(trace: Trace, incidents: Sequence[Incident]) -> Iterator[Outcome]:
    """Judge every fault of a trace that does not start in an earlier one's aftermath."""
    starts = [fault.start for fault in trace.faults]
    quiet_from = 0  # first step after all aftermaths so far
    for fault, next_start in zip(trace.faults, [*starts[1:], trace.steps], strict=False):
        if fault.start >= quiet_from:
            span_end = min(fault.aftermath_end + GRACE, next_start)
            yield judge_fault(trace.name, fault, span_end, incidents)
        quiet_from = max(quiet_from, fault.aftermath_end)


def judge_fault(trace: str, fault: Fault, span_end: int, incidents: Sequence[Incident]) -> Outcome:
    """Judge one fault.

    Args:
        trace: Name of the trace, carried into the outcome.
        fault: The fault.
        span_end: First step at which a new incident is no longer this fault's doing.
        incidents: All incidents of the trace.
    """
    reports = [(it.reported_step(fault.start, fault.window_end), it) for it in incidents]
    hits = sorted(
        ((step, it) for step, it in reports if step is not None), key=lambda report: report[0]
    )
    right = [it for _, it in hits if it.kind in fault.right_classes]
    caused = {it for it in incidents if fault.start <= it.first_step < span_end}
    return Outcome(
        trace=trace,
        fault=fault,
        hit=bool(hits),
        right_class=bool(right),
        delay=hits[0][0] - fault.start if hits else None,
        overlap=localisation(fault, right[0]) if right else None,
        incidents=len(caused | {it for _, it in hits}),
    )


def localisation(fault: Fault, incident: Incident) -> float | None:
    """Jaccard overlap of blamed and affected tensors; None where there is nothing to locate."""
    if fault.fault_class not in LOCALISED_CLASSES or not fault.tensors:
        return None
    return len(fault.tensors & incident.tensors) / len(fault.tensors | incident.tensors)


def share(values: Iterable[float]) -> float | None:
    """Mean of the values, or None if there are none."""
    numbers = list(values)
    return float(np.mean(numbers)) if numbers else None


def poisson_interval(count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Exact interval for the mean of a Poisson variable seen once.

    Source:
        Garwood 1936, "Fiducial limits for the Poisson distribution", Biometrika 28.
    """
    tail = (1 - confidence) / 2
    lower = _poisson_mean(count - 1, 1 - tail) if count else 0.0
    return lower, _poisson_mean(count, tail)


def _poisson_mean(count: int, probability: float) -> float:
    """Mean at which ``count`` or fewer events have the given probability, by bisection."""
    low, high = 0.0, 20.0 + 3.0 * (count + 1)
    for _ in range(60):
        middle = (low + high) / 2
        if poisson_cdf(count, middle) > probability:
            low = middle
        else:
            high = middle
    return low


def poisson_cdf(count: int, mean: float) -> float:
    """Probability of ``count`` or fewer events."""
    logs = (i * math.log(mean) - mean - math.lgamma(i + 1) for i in range(count + 1))
    return sum(math.exp(log) for log in logs)
