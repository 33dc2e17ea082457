"""The counters of one run: kept with its steps in the same commit, so that they survive a crash."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from gradwatch_service.live.counts import Counts, add_counts
from gradwatch_service.live.newest import Newest
from gradwatch_service.live.summary import Summary

__all__ = ["EMPTY", "PEAK_SECONDS", "PEAK_SPAN_SECONDS", "Counters", "add"]

PEAK_SECONDS = 5
PEAK_SPAN_SECONDS = 60
MAX_DROP_REASONS = 16
MAX_SOURCES = 64
# A threshold that follows the norms moves a little at every step; that is not what people mean by
# a change.
_CHANGE = 0.05


@dataclass(frozen=True, slots=True)
class Counters:
    """What a run has added up to, and its newest values.

    Attributes:
        counts: What adds up over the run.
        threshold_changes: Times the threshold moved by more than 5 % from where it last counted.
        dropped: What clients dropped, by reason.
        newest: Newest values by source.
        peaks: Largest norm by five-second slot of arrival (number of the slot), the last minute.
        thresholds: By optimizer, the threshold at its last counted change.
        manifests: By optimizer, the manifest of rank 0, to tell replicas from other tensors.
        attempt: Newest attempt that reported.
        last_step: Step reported last in it.
        first_report_at: Server's Unix seconds of the first delivery.
        last_report_at: The same of the newest.
        folded: Groups that are shown as ``other``.
    """

    counts: Counts = field(default_factory=Counts)
    threshold_changes: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    newest: Mapping[str, Newest] = field(default_factory=dict)
    peaks: tuple[tuple[int, float], ...] = ()
    thresholds: Mapping[str, float] = field(default_factory=dict)
    manifests: Mapping[str, str] = field(default_factory=dict)
    attempt: int = 0
    last_step: int | None = None
    first_report_at: float | None = None
    last_report_at: float | None = None
    folded: int = 0


EMPTY = Counters()


def add(counters: Counters, summary: Summary, *, at: float) -> Counters:
    """The counters after one new delivery. Pure: call it once for every delivery stored.

    Args:
        counters: As they were.
        summary: The delivery, added up.
        at: Server's Unix seconds at its receipt.
    """
    first = counters.first_report_at
    counters = replace(
        counters,
        dropped=_add_dropped(counters.dropped, summary.dropped),
        first_report_at=at if first is None else first,
        last_report_at=max(at, counters.last_report_at or at),
    )
    if summary.rank == 0 and not summary.partial:
        manifests = {**counters.manifests, summary.optimizer: summary.manifest}
        counters = replace(counters, manifests=manifests)
    if summary.newest is None or _is_replica(counters, summary):
        return counters
    # Ranks with tensors of their own take the same steps as rank 0: their elements count, their
    # steps do not.
    added = summary.counts if summary.rank == 0 else _elements_only(summary.counts)
    changes, threshold = _changes(counters.thresholds.get(summary.optimizer), summary.thresholds)
    thresholds = counters.thresholds
    if threshold is not None and summary.rank == 0:
        thresholds = {**thresholds, summary.optimizer: threshold}
    newest = _take_newest(counters.newest, summary)
    attempt = max(counters.attempt, summary.attempt)
    counts = add_counts(counters.counts, added)
    folded = summary.folded + len(added.groups.keys() - counts.groups.keys())
    return replace(
        counters,
        counts=counts,
        threshold_changes=counters.threshold_changes + (changes if summary.rank == 0 else 0),
        newest=newest,
        peaks=_add_peak(counters.peaks, summary.peak if summary.rank == 0 else None, at),
        thresholds=thresholds,
        attempt=attempt,
        last_step=max((s.step for s in newest.values() if s.attempt == attempt), default=None),
        folded=max(counters.folded, folded),
    )


def _is_replica(counters: Counters, summary: Summary) -> bool:
    """Whether rank 0 tells the same: data parallel ranks hold the same gradients."""
    if summary.rank == 0:
        return False
    return counters.manifests.get(summary.optimizer, summary.manifest) == summary.manifest


def _elements_only(counts: Counts) -> Counts:
    return Counts(
        elements=counts.elements,
        clipped_elements=counts.clipped_elements,
        nonfinite_elements=counts.nonfinite_elements,
        groups=counts.groups,
    )


def _add_dropped(known: Mapping[str, int], added: Mapping[str, int]) -> Mapping[str, int]:
    if not added:
        return known
    sums = dict(known)
    for reason, number in added.items():
        name = reason if reason in sums or len(sums) < MAX_DROP_REASONS else "other"
        sums[name] = sums.get(name, 0) + number
    return sums


def _changes(last: float | None, values: tuple[float, ...]) -> tuple[int, float | None]:
    changes = 0
    for value in values:
        if last is None:
            last = value
        elif abs(value - last) > _CHANGE * abs(last):
            changes += 1
            last = value
    return changes, last


def _take_newest(known: Mapping[str, Newest], summary: Summary) -> Mapping[str, Newest]:
    newest = summary.newest
    if newest is None:
        return known
    key = summary.optimizer if summary.rank == 0 else f"{summary.optimizer}/{summary.rank}"
    before = known.get(key)
    if before and (newest.attempt, newest.step) < (before.attempt, before.step):
        return known
    # What only an older attempt reported is gone with that attempt.
    kept = {k: n for k, n in known.items() if n.attempt >= newest.attempt or k == key}
    if key not in kept and len(kept) >= MAX_SOURCES:
        return kept
    return {**kept, key: newest}


def _add_peak(
    peaks: tuple[tuple[int, float], ...], peak: float | None, at: float
) -> tuple[tuple[int, float], ...]:
    if peak is None:
        return peaks
    slot = int(at // PEAK_SECONDS)
    oldest = slot - PEAK_SPAN_SECONDS // PEAK_SECONDS
    slots = {s: p for s, p in peaks if s > oldest}
    slots[slot] = max(peak, slots.get(slot, 0.0))
    return tuple(sorted(slots.items()))
