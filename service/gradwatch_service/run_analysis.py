"""Analysis of one run: its lanes, its snapshots, its incidents. Called from one thread only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from gradwatch_service.detectors.base import RunContext, UnknownStateVersion
from gradwatch_service.frontier import Frontier, FrontierWatch
from gradwatch_service.incidents import Incident
from gradwatch_service.lane import Lane, LaneState
from gradwatch_service.ledger import Ledger
from gradwatch_service.notices import dropped_notice
from gradwatch_service.recommenders.answer import answer
from gradwatch_service.rows import StepRows
from gradwatch_service.snapshots import SnapshotKey, superfluous
from gradwatch_service.store.base import Store, Stream

__all__ = ["LaneProgress", "RunAnalysis"]

BLOCKS_PER_TICK: Final = 8  # so that one long backlog does not keep other runs waiting
STEPS_REMEMBERED: Final = 8192
MOST_CELLS: Final = 4_000_000  # steps x tensors read at once, about 16 MB per statistic

LaneKey = tuple[int, str]


@dataclass(slots=True)
class _Replay:
    """A replay under way: what it found above ``since`` counts once it reaches ``until``."""

    since: int
    until: int
    found: dict[str, Incident] = field(default_factory=dict)


@dataclass(slots=True)
class LaneProgress:
    """One lane as it advances."""

    state: LaneState
    watch: FrontierWatch
    saved_steps: int
    taken: dict[int, set[int]] = field(default_factory=dict)  # rank to the newest steps taken in
    late: int | None = None  # lowest step that arrived below the position
    replay: _Replay | None = None
    complete: bool = False


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
        self.ledger = Ledger(store.documents(run, "incident"))
        self.lanes: dict[LaneKey, LaneProgress] = {}
        self._unsaved: dict[str, bytes | None] = {}  # snapshots

    def note(self, rows: StepRows) -> None:
        """Take notice of rows that were committed: those below the position force a replay."""
        lane = self.lanes.get((rows.attempt, rows.optimizer))
        if lane is None:
            return
        # A commit may be read before it is told of, so its steps may have been taken in already.
        taken = lane.taken.get(rows.rank, set())
        late = [s for s in rows.steps.tolist() if s <= lane.state.position and s not in taken]
        if late:
            lane.late = late[0] if lane.late is None else min(late[0], lane.late)

    def tick(self, now: float) -> tuple[list[Incident], float | None]:
        """Advance every lane as far as it may go.

        Returns:
            The incidents that changed, and the clock reading at which to look again: ``now``
            itself while there is more to do, None when only new reports can change anything.
        """
        changed: list[Incident] = []
        again: list[float] = []
        gaps: dict[int, Any] = {}
        for key, streams in self._streams().items():
            attempt, optimizer = key
            if attempt not in gaps:
                gaps[attempt] = self._store.gaps(self.run, attempt)
            with_steps = [stream for stream in streams if stream.last_step is not None]
            if not with_steps:
                continue
            lane = self.lanes.get(key)
            if lane is None:
                # Steps posted without a sequence may come in any order at any time: after a
                # restart nothing tells whether some came below the snapshot.
                numbered = all(stream.rank in gaps[attempt] for stream in with_steps)
                lane = self._open(key, with_steps[0], resume=numbered)
            frontier = lane.watch.look(with_steps, gaps[attempt], optimizer, now)
            if lane.late is not None:
                self._rewind(lane)
            found, more = self._advance(lane, with_steps, frontier)
            changed += found
            lane.complete = frontier.complete and not more
            if more:
                again.append(now)
            elif frontier.look_again is not None:
                again.append(frontier.look_again)
        changed += self._dropped_notice()
        return changed, min(again, default=None)

    def save(self) -> None:
        """Write what changed in one transaction."""
        changes = {"incident": self.ledger.take_unsaved(), "snapshot": self._unsaved}
        self._unsaved = {}
        if any(changes.values()):
            self._store.save(self.run, {name: docs for name, docs in changes.items() if docs})

    @property
    def newest(self) -> LaneProgress | None:
        """The lane that speaks for the run: newest attempt, ``default`` or the first optimizer."""
        if not self.lanes:
            return None
        attempt = max(key[0] for key in self.lanes)
        names = sorted(key[1] for key in self.lanes if key[0] == attempt)
        return self.lanes[attempt, "default" if "default" in names else names[0]]

    @property
    def complete(self) -> bool:
        """Whether every lane has taken in everything that was stored when it last looked."""
        return all(lane.complete for lane in self.lanes.values())

    def recommendation(self) -> dict[str, Any] | None:
        """Recommendation of the lane that speaks for the run, or None before its first step."""
        lane = self.newest
        if lane is None or lane.state.position < 0:
            return None
        return answer(lane.state.recommender, lane.state.context)

    def _streams(self) -> dict[LaneKey, list[Stream]]:
        lanes: dict[LaneKey, list[Stream]] = {}
        for stream in self._store.streams(self.run):
            lanes.setdefault((stream.attempt, stream.optimizer), []).append(stream)
        return {key: sorted(lanes[key], key=lambda s: s.rank) for key in sorted(lanes)}

    def _open(self, key: LaneKey, stream: Stream, *, resume: bool) -> LaneProgress:
        """Resume from the newest snapshot below which nothing was missing, else from the start."""
        context = self._context(stream)
        state = (self._load(context, below=None) if resume else None) or Lane.start(context)
        lane = LaneProgress(state, FrontierWatch(self._gap_seconds), state.steps)
        # What was found after the snapshot is found again: it is the same, or it is revised.
        known = [i for i in self.ledger.all() if (i.attempt, i.optimizer) == key]
        until = max((i.opened_step for i in known), default=-1)
        if until > state.position:
            lane.replay = self._replay(state, until)
        self.lanes[key] = lane
        return lane

    def _context(self, stream: Stream) -> RunContext:
        manifest = stream.manifest
        return RunContext(
            run=self.run,
            attempt=stream.attempt,
            optimizer=stream.optimizer,
            rank=stream.rank,
            world_size=manifest.world_size,
            optimizer_class=manifest.optimizer_class,
            policy=manifest.policy,
        )

    def _load(self, context: RunContext, below: int | None) -> LaneState | None:
        """Newest usable snapshot at a position under ``below``; certain ones only if None."""
        documents = self._store.documents(self.run, "snapshot")
        keys = sorted(map(SnapshotKey.parse, documents), key=lambda k: k.position, reverse=True)
        for key in keys:
            if key[:2] != (context.attempt, context.optimizer):
                continue
            if below is not None and key.position >= below:
                continue
            try:
                state = Lane.load(context, documents[key.text()])
            except UnknownStateVersion:
                continue
            if below is not None or state.certain:
                return state
        return None

    def _rewind(self, lane: LaneProgress) -> None:
        context, until = lane.state.context, lane.state.position
        self._write_snapshots()
        state = self._load(context, below=lane.late) or Lane.start(context)
        if lane.replay is not None:
            until = max(until, lane.replay.until)
        lane.state, lane.saved_steps, lane.late = state, state.steps, None
        lane.taken = {}
        lane.replay = self._replay(state, until)

    def _replay(self, state: LaneState, until: int) -> _Replay:
        still_open = {i.id: i for i in state.tracker.incidents()}
        return _Replay(since=state.position, until=until, found=still_open)

    def _write_snapshots(self) -> None:
        if self._unsaved:
            self._store.save(self.run, {"snapshot": self._unsaved})
            self._unsaved = {}

    def _advance(
        self, lane: LaneProgress, streams: list[Stream], frontier: Frontier
    ) -> tuple[list[Incident], bool]:
        """Take rows in; returns the incidents that changed and whether there is more."""
        changed: list[Incident] = []
        for _ in range(BLOCKS_PER_TICK):
            if lane.state.position >= frontier.end:
                break
            rows, end = self._read(lane.state, streams, frontier.end)
            certain = end <= frontier.certain_end
            lane.state, found = Lane.advance(lane.state, rows, end, certain=certain)
            _remember(lane.taken, rows)
            changed += self._publish(lane, found)
            self._snapshot(lane)
        return changed, lane.state.position < frontier.end

    def _read(
        self, state: LaneState, streams: list[Stream], end: int
    ) -> tuple[dict[int, list[StepRows]], int]:
        lead, *others = streams
        start, attempt, optimizer = state.position + 1, lead.attempt, lead.optimizer
        tensors = max(1, len(lead.manifest.tensors)) * len(streams)
        limit = max(1, min(self._snapshot_steps, MOST_CELLS // tensors))
        rows = {
            lead.rank: list(
                self._store.read(
                    self.run,
                    attempt=attempt,
                    optimizer=optimizer,
                    rank=lead.rank,
                    start=start,
                    end=end,
                    limit=limit,
                )
            )
        }
        if sum(map(len, rows[lead.rank])) >= limit:
            end = int(rows[lead.rank][-1].steps[-1])
        for stream in others:
            rows[stream.rank] = list(
                self._store.read(
                    self.run,
                    attempt=attempt,
                    optimizer=optimizer,
                    rank=stream.rank,
                    start=start,
                    end=end,
                )
            )
        return rows, end

    def _publish(self, lane: LaneProgress, found: Iterable[Incident]) -> list[Incident]:
        if lane.replay is None:
            return self.ledger.progress(found)
        lane.replay.found |= {incident.id: incident for incident in found}
        if lane.state.position < lane.replay.until:
            return []
        context, replay = lane.state.context, lane.replay
        lane.replay = None
        return self.ledger.reconcile(context.attempt, context.optimizer, replay.since, replay.found)

    def _snapshot(self, lane: LaneProgress) -> None:
        state = lane.state
        if state.steps - lane.saved_steps < self._snapshot_steps:
            return
        lane.saved_steps = state.steps
        context = state.context
        key = SnapshotKey(context.attempt, context.optimizer, state.position)
        self._write_snapshots()
        kept = [SnapshotKey.parse(text) for text in self._store.documents(self.run, "snapshot")]
        positions = [k.position for k in kept if k[:2] == key[:2]]
        self._unsaved[key.text()] = Lane.dump(state)
        for position in superfluous([*positions, key.position], self._snapshot_steps):
            self._unsaved[key._replace(position=position).text()] = None

    def _dropped_notice(self) -> list[Incident]:
        lane = self.newest
        dropped = dict(self._store.run(self.run).dropped)
        if lane is None or not sum(dropped.values()):
            return []
        known = [item for item in self.ledger.all() if item.kind == "reports_dropped"]
        notice = dropped_notice(
            lane.state.context, dropped, max(0, lane.state.position), known[0] if known else None
        )
        return self.ledger.progress([notice]) if notice else []


def _remember(taken: dict[int, set[int]], rows: Mapping[int, Iterable[StepRows]]) -> None:
    for rank, blocks in rows.items():
        steps = taken.setdefault(rank, set())
        for block in blocks:
            steps.update(block.steps.tolist())
        if len(steps) > 2 * STEPS_REMEMBERED:
            taken[rank] = set(sorted(steps)[-STEPS_REMEMBERED:])
