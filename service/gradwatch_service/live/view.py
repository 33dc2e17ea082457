"""The live view: every run's newest state in memory, fed by commits and by the analyser."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from threading import Lock
from typing import Any, Protocol

from gradwatch_service.live.counters import Counters
from gradwatch_service.live.run import Analysed, LiveRun, Onset, RunInfo, finite
from gradwatch_service.store.base import Commit, RunRecord

__all__ = ["INCIDENT_KINDS", "LiveView", "Snapshot"]

DEFAULT_RETENTION_SECONDS = 24 * 3600.0
DEFAULT_SILENT_SECONDS = 300.0
INCIDENT_KINDS = ("exploding", "vanishing", "oscillating", "nonfinite")
MAX_ONSETS = 8
# An incident may open and close between two scrapes.
SHOWN_AFTERWARDS_SECONDS = 120.0


class OpenIncident(Protocol):
    """What the view reads of an incident."""

    @property
    def kind(self) -> str:
        """One of the four kinds, or the kind of a notice."""

    @property
    def severity(self) -> str:
        """How much it matters."""

    @property
    def status(self) -> str:
        """``open``, ``closed`` or ``retracted``."""

    @property
    def onset_step(self) -> int:
        """Where it began."""

    @property
    def first_tensor(self) -> str | None:
        """In which tensor, or None."""


class Snapshot(Protocol):
    """What the analyser tells after each advance."""

    @property
    def active(self) -> Mapping[str, int]:
        """Open incidents that are more than information, by kind."""

    @property
    def total(self) -> Mapping[str, int]:
        """Distinct incidents ever, by kind."""

    @property
    def open(self) -> Sequence[OpenIncident]:
        """The open incidents and notices."""

    @property
    def changed(self) -> Sequence[OpenIncident]:
        """What opened, closed or was revised since the last time."""

    @property
    def recommendation(self) -> Mapping[str, Any] | None:
        """The newest recommendation."""


class LiveView:
    """Knows what is going on without asking the store. Safe to use from any thread.

    Runs leave the view a day after their last report: it holds what is live, not what is stored.

    Args:
        clock: Server's Unix seconds.
        retention_seconds: How long a run without reports stays.
        silent_seconds: Silence after which a run's state is ``silent``.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.time,
        retention_seconds: float = DEFAULT_RETENTION_SECONDS,
        silent_seconds: float = DEFAULT_SILENT_SECONDS,
    ) -> None:
        self.clock = clock
        self.silent_seconds = silent_seconds
        self._retention = retention_seconds
        self._runs: dict[str, LiveRun] = {}
        self._revision = 0
        self._lock = Lock()

    @property
    def revision(self) -> int:
        """Grows with every change of any run."""
        return self._revision

    def restore(self, records: Iterable[RunRecord]) -> None:
        """Take over what the store knows: once, before the first request."""
        for record in records:
            self._describe(record)

    def recall(self, run: str, *, active: Mapping[str, int], total: Mapping[str, int]) -> None:
        """Take over a run's incidents as stored, before analysis has had another look.

        Without it, the first page after a start would say 0 and the second 3: three new incidents
        to everybody who counts.
        """
        analysed = Analysed(known=True, active=dict(active), total=dict(total))
        self._update(run, analysed=analysed)

    def committed(self, commits: Sequence[Commit]) -> None:
        """Take over what a transaction changed; a listener of the store."""
        for commit in commits:
            if commit.kind == "deleted":
                self._forget(commit.run)
                continue
            if commit.record is not None:
                self._describe(commit.record)
            if commit.kind == "report":
                if self.run(commit.run) is None:
                    self._introduce(commit)
                self._update(commit.run, counters=commit.counters)

    def analysed(self, run: str, snapshot: Snapshot) -> None:
        """Take over what the analyser found; its listener."""
        recommendation = snapshot.recommendation or {}
        self._update(
            run,
            analysed=Analysed(
                known=True,
                active=dict(snapshot.active),
                critical=Counter(i.kind for i in snapshot.open if i.severity == "critical"),
                total=dict(snapshot.total),
                onsets=self._onsets(run, snapshot),
                threshold=finite(recommendation.get("threshold")),
                status=str(recommendation.get("status", "none")),
            ),
        )

    def _onsets(self, run: str, snapshot: Snapshot) -> tuple[Onset, ...]:
        """The incidents to show: those that are open, and for a while those that were."""
        now = self.clock()
        known = self.run(run)
        before = known.onsets(now) if known else ()
        shown = {(o.kind, o.severity, o.first_tensor): o for o in before if o.until is not None}
        closed = [i for i in snapshot.changed if i.status == "closed"]
        for incidents, until in ((closed, now + SHOWN_AFTERWARDS_SECONDS), (snapshot.open, None)):
            for i in incidents:
                if i.kind in INCIDENT_KINDS:
                    key = (i.kind, i.severity, i.first_tensor or "")
                    shown[key] = Onset(*key, i.onset_step, until)
        newest = sorted(shown.values(), key=lambda o: (o.until is None, o.step))
        return tuple(newest[-MAX_ONSETS:])

    def runs(self, now: float, project: str | None = None) -> list[LiveRun]:
        """Runs of the project, or of all, that reported within the retention; newest report first."""
        with self._lock:
            gone = [k for k, run in self._runs.items() if now - run.active_at > self._retention]
            for key in gone:
                del self._runs[key]
            known = list(self._runs.values())
        chosen = [run for run in known if project is None or run.info.project == project]
        return sorted(chosen, key=lambda run: run.active_at, reverse=True)

    def run(self, run: str) -> LiveRun | None:
        """The run, or None when it is not live."""
        with self._lock:
            return self._runs.get(run)

    def _describe(self, record: RunRecord) -> None:
        info = RunInfo(
            project=record.project,
            name=record.name or record.run,
            policy=str((record.policy or {}).get("kind", "none")),
            world_size=record.world_size,
            tags=record.tags,
            created_at=record.created_at,
        )
        with self._lock:
            self._revision += 1
            known = self._runs.get(record.run)
            if known is None:
                known = LiveRun(record.run, info)
            self._runs[record.run] = replace(
                known,
                info=info,
                status=record.status,
                counters=record.counters,
                revision=self._revision,
            )

    def _introduce(self, commit: Commit) -> None:
        """Take in a run that comes back after it had left the view."""
        created_at = self.clock() if commit.received is None else commit.received
        info = RunInfo(project=commit.project, name=commit.run, created_at=created_at)
        with self._lock:
            self._runs.setdefault(commit.run, LiveRun(commit.run, info))

    def _update(
        self, run: str, *, counters: Counters | None = None, analysed: Analysed | None = None
    ) -> None:
        with self._lock:
            known = self._runs.get(run)
            if known is None:
                return  # deleted meanwhile, or older than the retention
            self._revision += 1
            self._runs[run] = replace(
                known,
                counters=known.counters if counters is None else counters,
                analysed=known.analysed if analysed is None else analysed,
                revision=self._revision,
            )

    def _forget(self, run: str) -> None:
        with self._lock:
            self._revision += 1
            self._runs.pop(run, None)
