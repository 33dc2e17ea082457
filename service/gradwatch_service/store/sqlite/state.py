"""What the writer remembers of the runs it writes to, so that a delivery costs one insert."""

from __future__ import annotations

import json
import sqlite3
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gradwatch_service import live
from gradwatch_service.store.base import DeletedRunError, UnknownRunError

__all__ = ["Memory", "RunState", "StreamState"]

REMEMBERED_RUNS = 2048


@dataclass(slots=True)
class StreamState:
    """One stream's row, and the hashes that its reports may name."""

    id: int
    manifest: str
    hashes: set[str]
    first_step: int | None
    last_step: int | None
    steps: int
    dirty: bool = False


@dataclass(slots=True)
class RunState:
    """One run's row as the next commit will write it."""

    id: int
    run: str
    project: str
    status: str | None
    counters: live.Counters
    dropped: dict[str, int]
    last_report_at: float | None
    attempts: set[int]
    streams: dict[tuple[int, str, int], StreamState] = field(default_factory=dict)


class Memory:
    """Rows read once and written back once per transaction. Used by the writer thread alone."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._runs: OrderedDict[str, RunState] = OrderedDict()
        self._dirty: set[str] = set()

    def run(self, run: str) -> RunState:
        """The run's state.

        Raises:
            UnknownRunError, DeletedRunError: There is no such run.
        """
        state = self._runs.get(run)
        if state is None:
            state = self._load(run)
            self._runs[run] = state
        self._runs.move_to_end(run)
        return state

    def forget(self) -> None:
        """Drop everything: the transaction that it belonged to is lost."""
        self._runs.clear()
        self._dirty.clear()

    def release(self, run: str) -> None:
        """Drop what is remembered of a run, whose rows are up to date: they are about to change."""
        self._runs.pop(run, None)

    def flush(self) -> None:
        """Write back what changed; part of every transaction."""
        for run in self._dirty:
            state = self._runs.get(run)
            if state is not None:
                self._write(state)
        self._dirty.clear()
        while len(self._runs) > REMEMBERED_RUNS:
            self._runs.popitem(last=False)

    def changed(self, state: RunState) -> None:
        """Note that the state must be written back."""
        self._dirty.add(state.run)

    def _load(self, run: str) -> RunState:
        row = self._connection.execute(
            "SELECT id, project, status, counters, dropped, last_report_at, deleted_at "
            "FROM run WHERE run = ?",
            (run,),
        ).fetchone()
        if row is None:
            raise UnknownRunError(run)
        run_id, project, status, counters, dropped, last_report_at, deleted_at = row
        if deleted_at is not None:
            raise DeletedRunError(run)
        attempts = self._connection.execute(
            "SELECT attempt FROM attempt WHERE run_id = ?", (run_id,)
        )
        state = RunState(
            id=run_id,
            run=run,
            project=project,
            status=status,
            counters=live.load(counters) if counters else live.EMPTY,
            dropped=json.loads(dropped),
            last_report_at=last_report_at,
            attempts={attempt for (attempt,) in attempts},
        )
        for stream in self._connection.execute(
            "SELECT attempt, optimizer, rank, id, manifest, first_step, last_step, steps "
            "FROM stream WHERE run_id = ?",
            (run_id,),
        ).fetchall():
            attempt, optimizer, rank, stream_id, manifest, first, last, steps = stream
            hashes = self._connection.execute(
                "SELECT hash FROM registration WHERE run_id = ? AND stream_id = ?",
                (run_id, stream_id),
            )
            state.streams[attempt, optimizer, rank] = StreamState(
                stream_id, manifest, {h for (h,) in hashes}, first, last, steps
            )
        return state

    def _write(self, state: RunState) -> None:
        self._connection.execute(
            "UPDATE run SET counters = ?, dropped = ?, last_report_at = ?, revision = revision + 1 "
            "WHERE id = ?",
            (
                live.dump(state.counters),
                _text(state.dropped),
                state.last_report_at,
                state.id,
            ),
        )
        for stream in state.streams.values():
            if stream.dirty:
                self._connection.execute(
                    "UPDATE stream SET first_step = ?, last_step = ?, steps = ? WHERE id = ?",
                    (stream.first_step, stream.last_step, stream.steps, stream.id),
                )
                stream.dirty = False


def _text(values: Mapping[str, Any]) -> str:
    return json.dumps(values, separators=(",", ":"))
