"""What the series of one run are written from, worked out once per page."""

from collections.abc import Mapping
from dataclasses import dataclass

from gradwatch_service.live.counters import Counters
from gradwatch_service.live.counts import Counts, GroupCounts
from gradwatch_service.live.newest import GroupNewest, Newest, combine
from gradwatch_service.live.run import Analysed, LiveRun

__all__ = ["Facts", "facts_of"]

_NOTHING = Newest(attempt=0, step=0)
_NO_GROUP = GroupNewest()


@dataclass(frozen=True, slots=True)
class Facts:
    """One run at one moment.

    Attributes:
        run: The run.
        tags: Labels that the operator had copied from its tags, by label.
        state: Its state, in one word.
        counters: Its counters.
        counts: What adds up in them.
        analysed: What analysis said.
        newest: Values of its newest step.
        peak: Largest norm of the last minute.
        onsets: Kind, severity, first tensor and step of the incidents to show.
        groups: Names of its groups.
        group_counts: What adds up in each.
        group_newest: Newest values of each.
    """

    run: LiveRun
    tags: Mapping[str, str]
    state: str
    counters: Counters
    counts: Counts
    analysed: Analysed
    newest: Newest
    peak: float | None
    onsets: tuple[tuple[str, str, str, int], ...]
    groups: tuple[str, ...]
    group_counts: tuple[GroupCounts, ...]
    group_newest: tuple[GroupNewest, ...]


def facts_of(run: LiveRun, *, now: float, state: str, tags: Mapping[str, str]) -> Facts:
    """The facts of a run now."""
    counters = run.counters
    newest = combine(counters.newest.values()) or _NOTHING
    groups = counters.counts.groups
    values = newest.groups
    return Facts(
        run=run,
        tags=tags,
        state=state,
        counters=counters,
        counts=counters.counts,
        analysed=run.analysed,
        newest=newest,
        peak=run.peak(now),
        onsets=tuple((o.kind, o.severity, o.first_tensor, o.step) for o in run.onsets(now)),
        groups=tuple(groups),
        group_counts=tuple(groups.values()),
        group_newest=tuple([values.get(name, _NO_GROUP) for name in groups]),
    )
