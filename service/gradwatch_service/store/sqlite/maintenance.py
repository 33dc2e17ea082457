"""The thread that tidies up: chunks, roll-ups, retention, and the journal's size."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from gradwatch_service.settings import Settings
from gradwatch_service.store.base import Commit
from gradwatch_service.store.sqlite.compacting import (
    StreamKey,
    chunk_steps,
    plan,
    read_slice,
    write_slice,
)
from gradwatch_service.store.sqlite.file import Database
from gradwatch_service.store.sqlite.keeping import Candidate, candidates, drop_detail, used_bytes
from gradwatch_service.store.sqlite.reading import Moved, Piece, Reader
from gradwatch_service.store.sqlite.recent import Recent
from gradwatch_service.store.sqlite.registering import load_manifest
from gradwatch_service.store.sqlite.removing import purge_slice, unpurged
from gradwatch_service.store.sqlite.writer import Writer

__all__ = ["Maintenance"]

ROUND_SECONDS = 1.0
RETENTION_SECONDS = 10.0
VACUUM_PAGES = 2000
NICE = 10
log = logging.getLogger("gradwatch.store")


@dataclass(slots=True)
class _Hot:
    """Steps of a stream that are in no chunk yet, and when the last of them came."""

    steps: int
    since: float
    enough: int = 64

    @property
    def due(self) -> bool:
        """Whether a chunk is full, and a quarter more: what comes out of order is there by then."""
        return self.steps * 4 >= self.enough * 5


class Maintenance:
    """Compacts what is hot and lets old detail go, in the background, a slice at a time.

    Reading and encoding happen here; every write is a short job of the one writer.

    Args:
        database: Gives connections.
        writer: Writes.
        settings: Times and sizes.
        recent: Rows that need not be read.
    """

    def __init__(
        self, database: Database, writer: Writer, settings: Settings, recent: Recent
    ) -> None:
        self._database = database
        self._writer = writer
        self._settings = settings
        self._recent = recent
        self._lock = threading.Lock()
        self._hot: dict[tuple[str, int, str, int], _Hot] = {}
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._next_retention = 0.0
        self._quiet_since_checkpoint = False
        self._thread = threading.Thread(target=self._run, name="gradwatch-maintenance", daemon=True)

    def start(self) -> None:
        """Start the thread; what an earlier process left uncompacted is taken up."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the slice it is at. Safe to repeat."""
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    def committed(self, commits: Sequence[Commit]) -> None:
        """Note what came in."""
        now = time.monotonic()
        with self._lock:
            for commit in commits:
                if commit.rows is None or not len(commit.rows) or commit.partial:
                    continue
                rows = commit.rows
                key = (commit.run, rows.attempt, rows.optimizer, rows.rank)
                hot = self._hot.setdefault(key, _Hot(0, now))
                hot.steps += len(rows)
                hot.since = now
                hot.enough = chunk_steps(len(rows.manifest.tensors), len(rows.tensors))
                if hot.due:
                    self._wake.set()  # while its steps are still in memory
            self._quiet_since_checkpoint = False

    def compact(self, *, quiet: bool) -> int:
        """Compact what is due in the calling thread, or everything with ``quiet``; return slices."""
        due = self._due(quiet=quiet)
        if not due:
            return 0
        with contextlib.closing(self._database.reader()) as connection:
            return sum(self._compact_stream(connection, key, quiet=quiet) for key in due)

    def retain(self) -> int:
        """Let detail go that is older or more than is to be kept; return how many chunks."""
        with contextlib.closing(self._database.reader()) as connection:
            now = time.time()
            dropped = 0
            old = candidates(connection, now - self._settings.retention_full_seconds)
            excess = used_bytes(connection) - self._settings.retention_bytes
            for candidate in old:
                self._drop(candidate)
                dropped += 1
                excess -= candidate.bytes
            if excess > 0:
                for candidate in candidates(connection, now):
                    if excess <= 0:
                        break
                    self._drop(candidate)
                    dropped += 1
                    excess -= candidate.bytes
        return dropped

    def _drop(self, candidate: Candidate) -> None:
        work = functools.partial(drop_detail, self._writer.connection, candidate)
        self._writer.call(work)

    def purge(self) -> int:
        """Delete what deleted runs left, a slice at a time; return how many slices."""
        with contextlib.closing(self._database.reader()) as connection:
            runs = unpurged(connection)
        slices = 0
        for run_id in runs:
            work = functools.partial(purge_slice, self._writer.connection, run_id)
            while not self._stop.is_set() and self._writer.call(work):
                slices += 1
        return slices

    def shrink(self) -> None:
        """Give free pages back to the disk and write the journal into the file."""
        with contextlib.closing(self._database.reader()) as connection:
            (free,) = connection.execute("PRAGMA freelist_count").fetchone()
        for _ in range(0, free, VACUUM_PAGES):
            if self._stop.is_set():
                return
            self._database.give_back(VACUUM_PAGES)
        self._database.checkpoint()

    def _run(self) -> None:
        with contextlib.suppress(OSError, AttributeError):
            # Threads have their own priority on Linux: training data comes first.
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        try:
            self.take_up()
        except (sqlite3.Error, RuntimeError) as error:
            log.warning("uncompacted steps were not taken up: %s", error)
        while not self._stop.is_set():
            self._wake.wait(ROUND_SECONDS)
            self._wake.clear()
            if self._stop.is_set():
                return
            try:
                self._round()
            except Exception:
                # Tidying up must never end the service; what failed is tried again next round.
                log.exception("a round of maintenance failed")

    def _round(self) -> None:
        self._recent.expire()
        done = self.compact(quiet=False)
        if time.monotonic() >= self._next_retention:
            self._next_retention = time.monotonic() + RETENTION_SECONDS
            done += self.retain() + self.purge()
        if not done and not self._hot and not self._quiet_since_checkpoint:
            self._quiet_since_checkpoint = True
            self.shrink()

    def take_up(self) -> None:
        """Find what an earlier process left uncompacted."""
        with contextlib.closing(self._database.reader()) as connection:
            rows = connection.execute(
                "SELECT run.run, s.attempt, s.optimizer, s.rank, sum(d.steps) FROM delivery d "
                "JOIN stream s ON s.id = d.stream_id JOIN run ON run.id = d.run_id "
                "WHERE d.payload IS NOT NULL AND d.partial IS NULL GROUP BY s.id"
            ).fetchall()
        now = time.monotonic()
        with self._lock:
            for run, attempt, optimizer, rank, steps in rows:
                self._hot.setdefault((run, attempt, optimizer, rank), _Hot(steps, now))

    def _due(self, *, quiet: bool) -> list[tuple[str, int, str, int]]:
        now = time.monotonic()
        with self._lock:
            return [
                key
                for key, hot in self._hot.items()
                if quiet or hot.due or now - hot.since >= self._settings.compact_quiet_seconds
            ]

    def _compact_stream(
        self, connection: sqlite3.Connection, key: tuple[str, int, str, int], *, quiet: bool
    ) -> int:
        found = connection.execute(
            "SELECT run.id, s.id, s.manifest FROM stream s JOIN run ON run.id = s.run_id "
            "WHERE run.run = ? AND s.attempt = ? AND s.optimizer = ? AND s.rank = ?",
            key,
        ).fetchone()
        with self._lock:
            hot = self._hot.get(key)
        if found is None or hot is None:
            with self._lock:
                self._hot.pop(key, None)
            return 0
        run_id, stream_id, digest = found
        stream = StreamKey(run_id, stream_id, key[1:])
        reader = Reader(connection, run_id, stream_id, stream.identity, self._recent.of(key[0]))
        quiet = quiet or time.monotonic() - hot.since >= self._settings.compact_quiet_seconds
        slices = 0
        while not self._stop.is_set():
            pieces = plan(
                reader, lambda piece: self._enough(connection, run_id, piece), quiet=quiet
            )
            if not pieces:
                break
            widest = self._widest(connection, run_id, pieces) or digest
            try:
                made = read_slice(reader, stream, pieces, widest)
            except Moved:
                break
            work = functools.partial(write_slice, self._writer.connection, made)
            self._writer.submit(work, made.chunk.size).result()
            hot_ones = [piece.sequence for piece in pieces if not piece.cold]
            self._recent.drop(key[0], key[1], key[3], hot_ones)
            slices += 1
        self._settle(connection, key, stream_id)
        return slices

    def _enough(self, connection: sqlite3.Connection, run_id: int, piece: Piece) -> int:
        manifest = load_manifest(connection, run_id, piece.manifest)
        return chunk_steps(0 if manifest is None else len(manifest.tensors), 10)

    def _widest(
        self, connection: sqlite3.Connection, run_id: int, pieces: Sequence[Piece]
    ) -> str | None:
        known = {piece.manifest for piece in pieces}
        if len(known) == 1:
            return known.pop()
        widths = {}
        for digest in known:
            manifest = load_manifest(connection, run_id, digest)
            widths[digest] = 0 if manifest is None else len(manifest.tensors)
        return max(widths, key=lambda digest: widths[digest])

    def _settle(
        self, connection: sqlite3.Connection, key: tuple[str, int, str, int], stream_id: int
    ) -> None:
        (left,) = connection.execute(
            "SELECT coalesce(sum(steps), 0) FROM delivery WHERE stream_id = ? "
            "AND payload IS NOT NULL AND partial IS NULL",
            (stream_id,),
        ).fetchone()
        with self._lock:
            hot = self._hot.get(key)
            if hot is not None and not left:
                del self._hot[key]
            elif hot is not None:
                hot.steps = left
