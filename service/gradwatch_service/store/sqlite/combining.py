"""The thread that puts shards together: parts wait here until every rank has sent its own."""

from __future__ import annotations

import contextlib
import functools
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradwatch_service.ingest.shards import Part, combine, complete_steps
from gradwatch_service.settings import Settings
from gradwatch_service.store.base import Commit, Delivery
from gradwatch_service.store.delivering import deliver
from gradwatch_service.store.layout import unpack_rows
from gradwatch_service.store.packing import unpack
from gradwatch_service.store.sqlite.file import Database
from gradwatch_service.store.sqlite.reading import Reader, Selection
from gradwatch_service.store.sqlite.registering import load_manifest
from gradwatch_service.store.sqlite.writer import Writer

__all__ = ["COMBINED", "Combiner", "Outcome"]

# Sequences of combined deliveries: below every step posted the short way, and counted downwards.
COMBINED = -(2**60)
ROUND_SECONDS = 0.2
log = logging.getLogger("gradwatch.store")
Key = tuple[str, int, str]


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What became of some parts.

    Attributes:
        run: Run id.
        whole: The whole steps, or None when none became whole; its sequence is given when stored.
        done: Row ids of parts that are used up.
        given_up: Steps that stay incomplete, because a rank did not deliver in time.
    """

    run: str
    whole: Delivery | None
    done: tuple[int, ...]
    given_up: int


class Combiner:
    """Looks at parts that wait, combines what is whole, gives up what waited too long.

    Args:
        database: Gives connections.
        writer: Writes.
        settings: How long parts wait for each other.
        store: Stores an outcome; part of the writer's transaction.
    """

    def __init__(
        self,
        database: Database,
        writer: Writer,
        settings: Settings,
        store: Callable[[Outcome], None],
    ) -> None:
        self._database = database
        self._writer = writer
        self._settings = settings
        self._store = store
        self._lock = threading.Lock()
        self._waiting: set[Key] = set()
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gradwatch-combiner", daemon=True)

    def start(self) -> None:
        """Start the thread; parts that an earlier process left are taken up."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread. Safe to repeat."""
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    def committed(self, commits: Sequence[Commit]) -> None:
        """Note which parts came in."""
        found = {
            (c.run, c.rows.attempt, c.rows.optimizer)
            for c in commits
            if c.partial and c.rows is not None and len(c.rows)
        }
        if found:
            with self._lock:
                self._waiting |= found
            self._wake.set()

    def work(self) -> int:
        """Combine what is whole, in the calling thread; return how many outcomes there were."""
        with self._lock:
            keys = sorted(self._waiting)
        with contextlib.closing(self._database.reader()) as connection:
            return sum(self._work(connection, key) for key in keys)

    def take_up(self) -> None:
        """Find the parts that an earlier process left."""
        with contextlib.closing(self._database.reader()) as connection:
            rows = connection.execute(
                "SELECT DISTINCT run.run, s.attempt, s.optimizer FROM delivery d "
                "JOIN stream s ON s.id = d.stream_id JOIN run ON run.id = d.run_id "
                "WHERE d.payload IS NOT NULL AND d.partial IS NOT NULL"
            ).fetchall()
        with self._lock:
            self._waiting.update((run, attempt, optimizer) for run, attempt, optimizer in rows)

    def _run(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            self.take_up()
        while not self._stop.is_set():
            # With nothing waiting, only a commit wakes this thread.
            self._wake.wait(ROUND_SECONDS if self._waiting else None)
            self._wake.clear()
            if self._stop.wait(0.05):  # the other ranks' parts are usually on their way
                return
            try:
                self.work()
            except Exception:
                # Parts stay where they are: the next round tries again.
                log.exception("shards were not combined")

    def _work(self, connection: sqlite3.Connection, key: Key) -> int:
        run, attempt, optimizer = key
        rows = connection.execute(
            "SELECT d.id, d.run_id, s.rank, d.manifest, d.partial, d.payload, d.received "
            "FROM delivery d JOIN stream s ON s.id = d.stream_id JOIN run ON run.id = d.run_id "
            "WHERE run.run = ? AND s.attempt = ? AND s.optimizer = ? "
            "AND d.payload IS NOT NULL AND d.partial IS NOT NULL ORDER BY d.sequence",
            key,
        ).fetchall()
        if not rows:
            with self._lock:
                self._waiting.discard(key)
            return 0
        late = time.time() - self._settings.partial_seconds
        ranks = len(unpack(rows[-1][4], "ranks".__eq__)["ranks"])
        if len({row[2] for row in rows}) < ranks and all(row[6] > late for row in rows):
            return 0  # not worth unpacking: some rank has nothing here yet
        parts = {row[0]: self._part(connection, row, attempt, optimizer) for row in rows}
        digest = rows[-1][3]
        same = {row[0]: parts[row[0]] for row in rows if row[3] == digest}
        whole = complete_steps(list(same.values()))
        seen = self._combined(connection, rows[0][1], key, list(same.values()))
        new = [step for step in whole if step not in seen]
        combined = None
        if new:
            made = combine(list(same.values()), new)
            combined = deliver(run, made, sequence=COMBINED, manifest=digest, received=time.time())
        have = seen | set(new)
        done, given_up = [], set()
        for row in rows:
            left = set(parts[row[0]].rows.steps.tolist()) - have
            if not left or row[6] <= late:
                done.append(row[0])
                given_up |= left
        if combined is None and not done:
            return 0
        outcome = Outcome(run, combined, tuple(done), len(given_up))
        self._writer.call(functools.partial(self._store, outcome))
        return 1

    def _part(
        self,
        connection: sqlite3.Connection,
        row: tuple[Any, ...],
        attempt: int,
        optimizer: str,
    ) -> Part:
        _, run_id, rank, digest, partial, payload, _ = row
        manifest = load_manifest(connection, run_id, digest)
        if manifest is None:
            raise ValueError(f"manifest {digest} of a part is gone")
        told = unpack(partial)
        return Part(
            rows=unpack_rows(
                payload, attempt=attempt, optimizer=optimizer, rank=rank, manifest=manifest
            ),
            ranks=tuple(told["ranks"].tolist()),
            weights=told["weights"],
            local_numel=told["local_numel"].astype(np.float64),
        )

    def _combined(
        self,
        connection: sqlite3.Connection,
        run_id: int,
        key: Key,
        parts: Sequence[Part],
    ) -> set[int]:
        steps = [step for part in parts for step in part.rows.steps.tolist()]
        rank = min(parts[0].ranks)
        row = connection.execute(
            "SELECT id FROM stream WHERE run_id = ? AND attempt = ? AND optimizer = ? AND rank = ?",
            (run_id, *key[1:], rank),
        ).fetchone()
        if row is None:
            return set()
        reader = Reader(connection, run_id, row[0], (key[1], key[2], rank))
        span = Selection(min(steps), max(steps), columns=frozenset(), histograms=False)
        return {step for rows in reader.read(span) for step in rows.steps.tolist()}
