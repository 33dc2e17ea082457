"""Analysis of one run: its optimizers and its incidents. Called from one thread only."""

from __future__ import annotations

from typing import Any

from gradwatch_service.analysis.incident_log import IncidentLog
from gradwatch_service.analysis.incidents import Incident
from gradwatch_service.analysis.notices import dropped_notice
from gradwatch_service.analysis.optimizer_progress import OptimizerProgress
from gradwatch_service.detectors.base import RunContext
from gradwatch_service.queries.following import Following
from gradwatch_service.rows import StepRows
from gradwatch_service.store.base import Gap, RunRecord, Store, Stream

__all__ = ["RunAnalysis"]

OptimizerKey = tuple[int, str]  # attempt, optimizer


class RunAnalysis:
    """Everything that analysis holds of one run.

    Args:
        run: Run id.
        store: Where steps are read and documents are kept.
        gap_seconds: How long a missing sequence is waited for.
        snapshot_steps: Steps between snapshots.
    """

    def __init__(self, run: str, store: Store, *, gap_seconds: float, snapshot_steps: int) -> None:
        self.run = run
        self._store = store
        self._gap_seconds = gap_seconds
        self._snapshot_steps = snapshot_steps
        self.log = IncidentLog(store.documents(run, "incident"))
        self.progress: dict[OptimizerKey, OptimizerProgress] = {}
        self.record: RunRecord | None = None  # as the newest tick found it
        self._following = Following(store, run)

    def note(self, rows: StepRows) -> None:
        """Take notice of rows that were committed."""
        progress = self.progress.get((rows.attempt, rows.optimizer))
        if progress is not None:
            progress.note(rows)

    def tick(self, now: float) -> tuple[list[Incident], float | None]:
        """Advance every optimizer as far as its reports reach.

        Returns:
            The incidents that changed, and the clock reading at which to look again: ``now``
            while there is more to do, None when only new reports can change anything.
        """
        changed: list[Incident] = []
        again: list[float] = []
        gaps: dict[int, dict[int, Gap]] = {}
        for key, every in self._streams().items():
            attempt = key[0]
            streams = [stream for stream in every if stream.last_step is not None]
            if not streams:
                continue
            if attempt not in gaps:
                gaps[attempt] = self._store.gaps(self.run, attempt)
            if key not in self.progress:
                self.progress[key] = self._open(streams, gaps[attempt])
            shards = [stream.rank for stream in every if stream.last_step is None]
            found, look_again = self.progress[key].tick(streams, gaps[attempt], now, shards)
            changed += found
            again += [] if look_again is None else [look_again]
        changed += self._dropped_notice()
        return changed, min(again, default=None)

    def save(self) -> None:
        """Write the incidents that changed in one transaction."""
        if unsaved := self.log.take_unsaved():
            self._store.save(self.run, {"incident": unsaved})

    @property
    def newest(self) -> OptimizerProgress | None:
        """The optimizer that speaks for the run: ``default`` or the first of the newest attempt."""
        if not self.progress:
            return None
        attempt = max(key[0] for key in self.progress)
        names = sorted(key[1] for key in self.progress if key[0] == attempt)
        return self.progress[attempt, "default" if "default" in names else names[0]]

    @property
    def complete(self) -> bool:
        """Whether everything that was stored at the last look has been taken in."""
        return all(progress.complete for progress in self.progress.values())

    def recommendation(self, now: float) -> dict[str, Any] | None:
        """Recommendation of the optimizer that speaks for the run; None before its first step."""
        newest = self.newest
        if newest is None or newest.state.position < 0:
            return None
        return self._following.answer(newest.state.recommender, newest.state.context, now)

    def _streams(self) -> dict[OptimizerKey, list[Stream]]:
        found: dict[OptimizerKey, list[Stream]] = {}
        for stream in sorted(self._store.streams(self.run), key=lambda stream: stream.rank):
            found.setdefault((stream.attempt, stream.optimizer), []).append(stream)
        return dict(sorted(found.items()))

    def _open(self, streams: list[Stream], gaps: dict[int, Gap]) -> OptimizerProgress:
        first = streams[0]
        manifest = first.manifest
        context = RunContext(
            run=self.run,
            attempt=first.attempt,
            optimizer=first.optimizer,
            rank=first.rank,
            world_size=manifest.world_size,
            optimizer_class=manifest.optimizer_class,
            policy=manifest.policy,
        )
        return OptimizerProgress(
            self._store,
            context,
            self.log,
            gap_seconds=self._gap_seconds,
            snapshot_steps=self._snapshot_steps,
            # Steps posted without a sequence come in any order at any time: after a restart
            # nothing tells whether some came below the snapshot.
            resume=all(stream.rank in gaps for stream in streams),
        )

    def _dropped_notice(self) -> list[Incident]:
        newest = self.newest
        self.record = self._store.run(self.run)
        dropped = dict(self.record.dropped)
        if newest is None or not sum(dropped.values()):
            return []
        known = [item for item in self.log.all() if item.kind == "reports_dropped"]
        step = max(0, newest.state.position)
        notice = dropped_notice(newest.state.context, dropped, step, known[0] if known else None)
        return self.log.progress([notice]) if notice else []
