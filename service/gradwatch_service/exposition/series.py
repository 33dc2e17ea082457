"""The series of one run: for each family its labels and, in the same order, its values."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from gradwatch_service.analysis.run_state import RUN_STATES
from gradwatch_service.exposition.catalogue import Family, Kind, family
from gradwatch_service.exposition.facts import Facts
from gradwatch_service.exposition.text import labels
from gradwatch_service.live.counts import NORM_BOUNDS
from gradwatch_service.live.view import INCIDENT_KINDS
from gradwatch_wire import DROP_REASONS

__all__ = [
    "INCIDENT_KINDS",
    "RECOMMENDATION_STATUSES",
    "RUN_SERIES",
    "Series",
    "Value",
    "bucket_labels",
    "histogram",
]

Value = float | int | None

RECOMMENDATION_STATUSES = ("none", "provisional", "estimated", "validated")


@dataclass(frozen=True, slots=True)
class Series:
    """One family of a run.

    Attributes:
        family: Its name, type, help and labels.
        labels: For each series, what follows the name (``_bucket``) and the labels after
            ``project`` and ``run``; the same for every page until the run's shape changes.
        values: For each series its value, None where there is none now.
    """

    family: Family
    labels: Callable[[Facts], Sequence[tuple[str, str]]]
    values: Callable[[Facts], Sequence[Value]]


def _one(
    name: str,
    kind: Kind,
    text: str,
    value: Callable[[Facts], Value],
    *,
    lasting: bool = False,
) -> Series:
    """A family of one series."""
    described = family(name, kind, text, lasting=lasting)
    return Series(described, lambda _: (("", ""),), lambda facts: (value(facts),))


def _each(
    name: str,
    kind: Kind,
    text: str,
    label: str,
    names: Sequence[str],
    *,
    values: Callable[[Facts], Sequence[Value]],
    lasting: bool = False,
) -> Series:
    """A family with one series per name of a fixed list."""
    described = family(name, kind, text, label, lasting=lasting)
    fixed = [("", labels([(label, each)])) for each in names]
    return Series(described, lambda _: fixed, values)


def bucket_labels(bounds: Sequence[float]) -> list[tuple[str, str]]:
    """Suffix and ``le`` label of each series of a histogram, ``_sum`` and ``_count`` last."""
    # Floats in full, as Prometheus 3 writes them: `le="1"` and `le="1.0"` are two series elsewhere.
    edges = [*map(repr, bounds), "+Inf"]
    return [*(("_bucket", labels([("le", edge)])) for edge in edges), ("_sum", ""), ("_count", "")]


def histogram(buckets: Iterable[int], total: float) -> list[Value]:
    """Values in the order of :func:`bucket_labels`, from buckets that each count for themselves."""
    cumulative = list(accumulate(buckets))
    return [*cumulative, total, cumulative[-1]]


def _info_labels(facts: Facts) -> Sequence[tuple[str, str]]:
    info = facts.run.info
    pairs = {
        "name": info.name,
        "model": info.tags.get("model", ""),
        "policy": info.policy,
        "framework": info.tags.get("framework", ""),
        "client_version": info.tags.get("client_version", ""),
        "world_size": str(info.world_size),
        **facts.tags,
    }
    return (("", labels(pairs.items())),)


def _drop_reasons(facts: Facts) -> list[str]:
    return [*DROP_REASONS, *(r for r in facts.counters.dropped if r not in DROP_REASONS)]


def _by_kind(counted: Callable[[Facts], Mapping[str, int]]) -> Callable[[Facts], Sequence[Value]]:
    def values(facts: Facts) -> Sequence[Value]:
        numbers = counted(facts)
        return [numbers.get(kind, 0) for kind in INCIDENT_KINDS]

    return values


_NORM_LABELS = bucket_labels(NORM_BOUNDS)
_INFO = family(
    "gradwatch_run_info",
    "gauge",
    "What the run is; always 1. Tags chosen with --metric-tags are further labels.",
    *("name", "model", "policy", "framework", "client_version", "world_size"),
    lasting=True,
)
_DROPPED = family(
    "gradwatch_client_dropped_reports_total",
    "counter",
    "Reported steps that the client dropped on purpose, by reason.",
    "reason",
)
_ONSETS = family(
    "gradwatch_run_incident_onset_step",
    "gauge",
    "Step at which an incident began, while it is open and two minutes after; at most 8 per run.",
    *("kind", "severity", "first_tensor"),
)
_NORMS = family(
    "gradwatch_run_gradient_norm_per_step",
    "histogram",
    "Finite steps by global L2 norm before clipping: spikes between scrapes are in here.",
)

RUN_SERIES: tuple[Series, ...] = (
    Series(_INFO, _info_labels, lambda _: (1,)),
    _each(
        "gradwatch_run_state",
        "gauge",
        "State of the run: exactly one is 1.",
        "state",
        RUN_STATES,
        values=lambda f: [int(state == f.state) for state in RUN_STATES],
        lasting=True,
    ),
    _one(
        "gradwatch_run_start_timestamp_seconds",
        "gauge",
        "When the service first heard of the run, by its own clock.",
        lambda f: f.run.info.created_at,
        lasting=True,
    ),
    _one(
        "gradwatch_run_last_report_timestamp_seconds",
        "gauge",
        "When the newest report arrived, by the service's clock.",
        lambda f: f.counters.last_report_at,
        lasting=True,
    ),
    _one(
        "gradwatch_run_last_step",
        "gauge",
        "Training step reported last.",
        lambda f: f.counters.last_step,
    ),
    _one(
        "gradwatch_run_steps_total",
        "counter",
        "Optimizer steps observed, those between reports included.",
        lambda f: f.counts.steps,
    ),
    _one(
        "gradwatch_run_gradient_norm",
        "gauge",
        "Global L2 norm before clipping at the last step; absent while it is not finite.",
        lambda f: f.newest.norm,
    ),
    _one(
        "gradwatch_run_clipped_gradient_norm",
        "gauge",
        "Global L2 norm after clipping at the last step; absent while it is not finite.",
        lambda f: f.newest.norm_after,
    ),
    _one(
        "gradwatch_run_gradient_norm_window_max",
        "gauge",
        "Largest global L2 norm of the steps that arrived in the last 60 s.",
        lambda f: f.peak,
    ),
    Series(
        _NORMS,
        lambda _: _NORM_LABELS,
        lambda f: histogram(f.counts.norm_buckets, f.counts.norm_sum),
    ),
    _one(
        "gradwatch_run_gradient_max_abs",
        "gauge",
        "Largest magnitude of a gradient element before clipping at the last step.",
        lambda f: f.newest.max_abs,
    ),
    _one(
        "gradwatch_run_elements_total",
        "counter",
        "Gradient elements in reported steps.",
        lambda f: f.counts.elements,
    ),
    _one(
        "gradwatch_run_clipped_elements_total",
        "counter",
        "Gradient elements that clipping changed.",
        lambda f: f.counts.clipped_elements,
    ),
    _one(
        "gradwatch_run_nonfinite_elements_total",
        "counter",
        "Gradient elements that were NaN or infinite.",
        lambda f: f.counts.nonfinite_elements,
    ),
    _one(
        "gradwatch_run_clipped_steps_total",
        "counter",
        "Steps at which clipping changed anything.",
        lambda f: f.counts.clipped_steps,
    ),
    _one(
        "gradwatch_run_nonfinite_steps_total",
        "counter",
        "Steps with a NaN or infinite gradient element.",
        lambda f: f.counts.nonfinite_steps,
    ),
    _one(
        "gradwatch_run_skipped_steps_total",
        "counter",
        "Optimizer steps that changed no weight.",
        lambda f: f.counts.skipped_steps,
    ),
    _one(
        "gradwatch_run_clip_threshold",
        "gauge",
        "Clipping threshold in force.",
        lambda f: f.newest.threshold,
    ),
    _one(
        "gradwatch_run_recommended_clip_threshold",
        "gauge",
        "Recommended norm threshold; absent while there is too little evidence.",
        lambda f: f.analysed.threshold,
    ),
    _each(
        "gradwatch_run_recommendation_status",
        "gauge",
        "How firm the recommendation is: exactly one is 1.",
        "status",
        RECOMMENDATION_STATUSES,
        values=lambda f: [int(status == f.analysed.status) for status in RECOMMENDATION_STATUSES],
    ),
    _one(
        "gradwatch_run_threshold_changes_total",
        "counter",
        "Times the threshold in force moved by more than 5 %.",
        lambda f: f.counters.threshold_changes,
    ),
    _each(
        "gradwatch_run_incidents_total",
        "counter",
        "Incidents opened; revising one does not count it again.",
        "kind",
        INCIDENT_KINDS,
        values=_by_kind(lambda f: f.analysed.total),
    ),
    _each(
        "gradwatch_run_incidents_active",
        "gauge",
        "Open incidents.",
        "kind",
        INCIDENT_KINDS,
        values=_by_kind(lambda f: f.analysed.active),
    ),
    _each(
        "gradwatch_run_critical_incidents_active",
        "gauge",
        "Open incidents of severity critical.",
        "kind",
        INCIDENT_KINDS,
        values=_by_kind(lambda f: f.analysed.critical),
    ),
    Series(
        _ONSETS,
        lambda f: [
            ("", labels(zip(("kind", "severity", "first_tensor"), o[:3], strict=True)))
            for o in f.onsets
        ],
        lambda f: [o[3] for o in f.onsets],
    ),
    _one(
        "gradwatch_run_training_seconds_total",
        "counter",
        "Time that reported steps took.",
        lambda f: f.counts.training_seconds,
    ),
    _one(
        "gradwatch_client_overhead_seconds_total",
        "counter",
        "Time that the client spent inside reported steps.",
        lambda f: f.counts.overhead_seconds,
    ),
    Series(
        _DROPPED,
        lambda f: [("", labels([("reason", reason)])) for reason in _drop_reasons(f)],
        lambda f: [f.counters.dropped.get(reason, 0) for reason in _drop_reasons(f)],
    ),
    _one("gradwatch_run_loss", "gauge", "Loss as logged last.", lambda f: f.newest.loss),
    _one(
        "gradwatch_run_learning_rate",
        "gauge",
        "Learning rate at the last step.",
        lambda f: f.newest.learning_rate,
    ),
)
