"""One optimizer's analysis as it advances through the store: reads, replays, snapshots."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from gradwatch_service.analysis.fresh import Fresh
from gradwatch_service.analysis.gaps import GapWatch, Reach
from gradwatch_service.analysis.incident_log import IncidentLog
from gradwatch_service.analysis.incidents import Incident
from gradwatch_service.analysis.notices import missing_rank_notice
from gradwatch_service.analysis.optimizer_analysis import OptimizerAnalysis, OptimizerState
from gradwatch_service.analysis.snapshots import SnapshotKey, superfluous
from gradwatch_service.detectors.base import RunContext, UnknownStateVersion
from gradwatch_service.detectors.clipping import NARROW
from gradwatch_service.detectors.registry import columns_read
from gradwatch_service.rows import StepRows
from gradwatch_service.store.base import Gap, Store, Stream

__all__ = ["OptimizerProgress"]

BLOCKS_PER_TICK: Final = 8  # so that one long backlog does not keep other runs waiting
STEPS_REMEMBERED: Final = 2048  # per rank; more would cost memory in every live run
MOST_CELLS: Final = 4_000_000  # steps x tensors read at once, about 16 MB per statistic


@dataclass(slots=True)
class _Replay:
    """A replay under way: what it found above ``since`` counts once it reaches ``until``."""

    since: int
    until: int
    found: dict[str, Incident] = field(default_factory=dict)

    def take_over(self, interrupted: _Replay) -> None:
        """Keep what an interrupted replay owes: all it found up to where this one begins."""
        early = {k: i for k, i in interrupted.found.items() if i.opened_step <= self.since}
        self.found = {**early, **self.found}
        self.since = min(self.since, interrupted.since)
        self.until = max(self.until, interrupted.until)


class OptimizerProgress:
    """Advances the analysis of one (run, attempt, optimizer). Called from one thread only.

    Args:
        store: Where steps are read and snapshots are kept.
        context: The stream, as its lowest rank registered it.
        log: The run's incidents.
        gap_seconds: How long a missing sequence is waited for.
        snapshot_steps: Steps between snapshots.
        resume: Whether a snapshot of an earlier process may be built upon.
    """

    def __init__(
        self,
        store: Store,
        context: RunContext,
        log: IncidentLog,
        *,
        gap_seconds: float,
        snapshot_steps: int,
        resume: bool,
    ) -> None:
        self._store = store
        self._log = log
        self._watch = GapWatch(gap_seconds)
        self._snapshot_steps = snapshot_steps
        self._taken: dict[int, set[int]] = {}  # rank to the newest steps taken in
        self._fresh: defaultdict[int, Fresh] = defaultdict(Fresh)  # by rank
        self._late: int | None = None  # lowest step that arrived below the position
        self._context = context
        self._certain_end = -1  # newest step below which nothing was missing at the last look
        self.complete = False
        self.state = (self._load() if resume else None) or OptimizerAnalysis.start(context)
        self._drop_snapshots(above=self.state.position)
        self._saved_steps = self.state.steps
        # What was found after the snapshot will be found again: the same, or revised.
        until = max((item.opened_step for item in self._known()), default=-1)
        self._replay = self._replay_until(until) if until > self.state.position else None

    def note(self, rows: StepRows) -> None:
        """Take notice of rows that were committed: those below the position force a replay.

        Rows without their numbers are read from the store when their turn comes.
        """
        # A commit may be read before it is told of, so its steps may have been taken in already.
        taken = self._taken.get(rows.rank, set())
        position = self.state.position
        late = [step for step in rows.steps.tolist() if step <= position and step not in taken]
        if late:
            self._late = late[0] if self._late is None else min(late[0], self._late)
        if rows.tensors or rows.scalars:
            self._fresh[rows.rank].add(rows, position)

    def tick(
        self,
        streams: Sequence[Stream],
        gaps: Mapping[int, Gap],
        now: float,
        shards: Sequence[int] = (),
    ) -> tuple[list[Incident], float | None]:
        """Advance as far as the reports reach.

        Args:
            streams: The streams that have steps, one per rank, lowest rank first.
            gaps: Completeness of the deliveries of each rank.
            now: Clock reading.
            shards: Ranks that only send their part of sharded tensors.

        Returns:
            The incidents that changed, and the clock reading at which to look again: ``now``
            while there is more to do, None when only new reports can change anything.
        """
        reach = self._watch.look(streams, gaps, self._context.optimizer, now)
        if self._late is not None:
            self._rewind(self._late)
        self._certain_end = reach.certain_end
        changed: list[Incident] = []
        for _ in range(BLOCKS_PER_TICK):
            if self.state.position >= reach.end:
                break
            rows, end = self._read(streams, reach.end)
            changed += self._take_in(rows, end, reach)
        for stream in streams:
            self._fresh[stream.rank].settle(stream, self.state.position)
        more = self.state.position < reach.end
        self.complete = reach.complete and not more
        self._watch.look_at_shards(shards, gaps, self._context.optimizer, now)
        gone, overdue = self._watch.missing(now)
        changed += self._missing_ranks(gone)
        waits = [due for due in (reach.look_again, overdue) if due is not None]
        return changed, now if more else min(waits, default=None)

    def _missing_ranks(self, gone: tuple[int, ...]) -> list[Incident]:
        """Open, extend or close the notice of ranks that fell silent."""
        known = [i for i in self._known() if i.kind == "rank_missing" and i.status == "open"]
        if not gone:
            step = self.state.position
            closed = [replace(i, status="closed", closed_step=step) for i in known]
            return self._log.progress(closed)
        if known and known[0].ranks == gone:
            return []
        since = known[0].opened_step if known else max(0, self.state.position)
        notice = missing_rank_notice(self._context, gone, since)
        return self._log.progress([notice.moved_to(self.state.position)])

    def _take_in(
        self, rows: Mapping[int, list[StepRows]], end: int, reach: Reach
    ) -> list[Incident]:
        self.state, found = OptimizerAnalysis.advance(
            self.state, rows, end, certain=end <= reach.certain_end
        )
        self._remember(rows)
        changed = self._publish(found)
        if self.state.steps - self._saved_steps >= self._snapshot_steps:
            self._save_snapshot()
        return changed

    def _remember(self, rows: Mapping[int, list[StepRows]]) -> None:
        for rank, blocks in rows.items():
            steps = self._taken.setdefault(rank, set())
            for block in blocks:
                steps.update(block.steps.tolist())
            if len(steps) > 2 * STEPS_REMEMBERED:
                self._taken[rank] = set(sorted(steps)[-STEPS_REMEMBERED:])

    def _publish(self, found: Iterable[Incident]) -> list[Incident]:
        if self._replay is None:
            return self._log.progress(found)
        self._replay.found |= {incident.id: incident for incident in found}
        if self.state.position < self._replay.until:
            return []
        replay, self._replay = self._replay, None
        c = self._context
        return self._log.reconcile(c.attempt, c.optimizer, replay.since, replay.found)

    def _known(self) -> list[Incident]:
        key = (self._context.attempt, self._context.optimizer)
        return [item for item in self._log.all() if (item.attempt, item.optimizer) == key]

    def _replay_until(self, until: int) -> _Replay:
        still_open = {item.id: item for item in self.state.tracker.incidents()}
        return _Replay(since=self.state.position, until=until, found=still_open)

    def _rewind(self, late: int) -> None:
        interrupted, until = self._replay, self.state.position
        state = self._load(below=late) or OptimizerAnalysis.start(self._context)
        # What was missing when the snapshot was taken may be there by now.
        self.state = replace(state, certain=state.position <= self._certain_end)
        # Those at later positions have not seen the late steps.
        self._drop_snapshots(above=self.state.position)
        self._saved_steps, self._late = self.state.steps, None
        self._fresh.clear()
        self._replay = self._replay_until(until)
        if interrupted is not None:
            self._replay.take_over(interrupted)

    def _drop_snapshots(self, *, above: int) -> None:
        c = self._context
        keys = map(SnapshotKey.parse, self._store.documents(c.run, "snapshot"))
        mine = (key for key in keys if key[:2] == (c.attempt, c.optimizer))
        if gone := {key.text(): None for key in mine if key.position > above}:
            self._store.save(c.run, {"snapshot": gone})

    def _load(self, below: int | None = None) -> OptimizerState | None:
        """Newest usable snapshot at a position under ``below``; a certain one if that is None."""
        documents = self._store.documents(self._context.run, "snapshot")
        keys = sorted(map(SnapshotKey.parse, documents), key=lambda k: k.position, reverse=True)
        for key in keys:
            if key[:2] != (self._context.attempt, self._context.optimizer):
                continue
            if below is not None and key.position >= below:
                continue
            try:
                state = OptimizerAnalysis.load(self._context, documents[key.text()])
            except UnknownStateVersion:
                continue
            if below is not None or state.certain:
                return state
        return None

    def _save_snapshot(self) -> None:
        state, c = self.state, self._context
        self._saved_steps = state.steps
        key = SnapshotKey(c.attempt, c.optimizer, state.position)
        kept = map(SnapshotKey.parse, self._store.documents(c.run, "snapshot"))
        positions = {k.position for k in kept if k[:2] == key[:2]} | {key.position}
        changes: dict[str, bytes | None] = {
            key._replace(position=position).text(): None
            for position in superfluous(positions, self._snapshot_steps)
        }
        # What a replay finds is told at its end: a process that resumed in its middle would not.
        told = replace(state, certain=state.certain and self._replay is None)
        changes[key.text()] = OptimizerAnalysis.dump(told)
        self._store.save(c.run, {"snapshot": changes})

    def _read(self, streams: Sequence[Stream], end: int) -> tuple[dict[int, list[StepRows]], int]:
        """Rows of every rank above the position, as many as fit in memory, and their last step."""
        lead, *others = streams
        cells = max(1, len(lead.manifest.tensors)) * len(streams)
        limit = max(1, min(self._snapshot_steps, MOST_CELLS // cells))
        rows = {lead.rank: self._read_rank(lead, end, limit)}
        if sum(map(len, rows[lead.rank])) >= limit:
            end = int(rows[lead.rank][-1].steps[-1])
        for stream in others:
            rows[stream.rank] = self._read_rank(stream, end, None)
        return rows, end

    def _read_rank(self, stream: Stream, end: int, limit: int | None) -> list[StepRows]:
        columns = columns_read()
        histograms = any(tensor.dtype in NARROW for tensor in stream.manifest.tensors)
        fresh = self._fresh[stream.rank]
        if fresh.is_all(stream, self.state.position):
            return fresh.take(end, limit, columns, histograms=histograms)
        fresh.forget()
        blocks = self._store.read(
            self._context.run,
            attempt=stream.attempt,
            optimizer=stream.optimizer,
            rank=stream.rank,
            start=self.state.position + 1,
            end=end,
            limit=limit,
            columns=columns,
            histograms=histograms,
        )
        return [block for block in blocks if len(block)]
