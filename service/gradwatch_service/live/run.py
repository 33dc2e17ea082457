"""One run as the live view knows it: immutable, replaced whole at every change."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from gradwatch_service.analysis.run_state import run_state
from gradwatch_service.live.counters import EMPTY, PEAK_SECONDS, PEAK_SPAN_SECONDS, Counters

__all__ = ["Analysed", "LiveRun", "Onset", "RunInfo", "finite"]


@dataclass(frozen=True, slots=True)
class RunInfo:
    """What describes a run and seldom changes.

    Attributes:
        project: Project it belongs to.
        name: Display name; the run id where it has none.
        policy: Kind of the clipping policy, or ``none``.
        world_size: Ranks of the job.
        tags: Tags.
        created_at: Server's Unix seconds of its registration.
    """

    project: str
    name: str
    policy: str = "none"
    world_size: int = 1
    tags: Mapping[str, str] = field(default_factory=dict)
    created_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Onset:
    """Where and when an incident began.

    Attributes:
        kind: One of the four kinds.
        severity: How much it matters.
        first_tensor: Where it began; empty when that cannot be told.
        step: The step at which, looking back, it began.
        until: Server's Unix seconds to which it is shown; None while it is open.
    """

    kind: str
    severity: str
    first_tensor: str
    step: int
    until: float | None = None


@dataclass(frozen=True, slots=True)
class Analysed:
    """What analysis last said about a run.

    Attributes:
        known: Whether it has said anything yet.
        active: Open incidents that are more than information, by kind; they make the state.
        critical: Open critical ones by kind: these page.
        total: Incidents ever opened by kind; an incident counts once, revised or not.
        onsets: Incidents going on or just over.
        threshold: Recommended norm threshold, None while there is none.
        status: How firm the recommendation is.
    """

    known: bool = False
    active: Mapping[str, int] = field(default_factory=dict)
    critical: Mapping[str, int] = field(default_factory=dict)
    total: Mapping[str, int] = field(default_factory=dict)
    onsets: tuple[Onset, ...] = ()
    threshold: float | None = None
    status: str = "none"


@dataclass(frozen=True, slots=True)
class LiveRun:
    """One run right now.

    Attributes:
        run: Run id.
        info: What describes it.
        counters: Its counters and newest values, as committed.
        analysed: What analysis last said.
        status: What ``finish`` said, or None while it goes on.
        revision: Grows with every change of the live view.
    """

    run: str
    info: RunInfo
    counters: Counters = EMPTY
    analysed: Analysed = field(default_factory=Analysed)
    status: str | None = None
    revision: int = 0

    @property
    def active_at(self) -> float:
        """Server's Unix seconds of the newest report, or of the registration before any."""
        reported = self.counters.last_report_at
        return self.info.created_at if reported is None else reported

    def state(self, now: float, silent_seconds: float) -> str:
        """How the run is doing, in one word: :data:`gradwatch_service.analysis.run_state.RUN_STATES`."""
        return run_state(
            status=self.status,
            active=self.analysed.active,
            steps=self.counters.counts.steps if self.analysed.known else 0,
            quiet_seconds=now - self.active_at,
            limit=silent_seconds,
        )

    def peak(self, now: float) -> float | None:
        """Largest norm that arrived in the last minute (to within five seconds), or None."""
        oldest = (now - PEAK_SPAN_SECONDS) // PEAK_SECONDS
        return max((peak for slot, peak in self.counters.peaks if slot > oldest), default=None)

    def onsets(self, now: float) -> tuple[Onset, ...]:
        """Incidents going on, or over for so short a time that a scrape may have missed them."""
        return tuple(o for o in self.analysed.onsets if o.until is None or o.until > now)


def finite(value: object) -> float | None:
    """The value as a float, or None when it is no finite number."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and math.isfinite(value) else None  # type: ignore[arg-type]  # a number, as just checked
