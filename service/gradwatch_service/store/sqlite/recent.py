"""Rows of the newest commits, kept for a few seconds: who reads them soon need not unpack them."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gradwatch_service.rows import StepRows
from gradwatch_service.store.records import Commit

__all__ = ["Recent", "RecentRows"]

LIMIT_BYTES = 64 * 2**20
KEPT_SECONDS = 5.0
ENTRY_BYTES = 8 * 1024  # what a delivery takes beside its numbers
Key = tuple[str, int, int, int]  # run, attempt, rank, sequence
RecentRows = Callable[[int, int, int], StepRows | None]  # by attempt, rank, sequence


@dataclass(frozen=True, slots=True)
class _Entry:
    rows: StepRows
    size: int
    since: float


class Recent:
    """A bounded memory of what was just stored; the store itself remains what is true.

    Rows are found by the identity of their delivery, which never gets other content: nothing here
    can be out of date. They go when they were compacted, or after some seconds; while there is no
    room nothing is added, since the oldest are compacted next. May be used by any thread.

    Args:
        limit: Bytes that are kept at most.
        seconds: How long a delivery is kept at most.
        clock: Seconds that never go back.
    """

    def __init__(
        self,
        limit: int = LIMIT_BYTES,
        seconds: float = KEPT_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit = limit
        self._seconds = seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: OrderedDict[Key, _Entry] = OrderedDict()
        self._bytes = 0

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        return self._bytes

    def committed(self, commits: Sequence[Commit]) -> None:
        """Keep the rows of what was committed; a store's listener."""
        now = self._clock()
        with self._lock:
            self._expire(now)
            for commit in commits:
                rows, sequence = commit.rows, commit.sequence
                if rows is None or sequence is None or not len(rows) or commit.partial:
                    continue
                key = (commit.run, rows.attempt, rows.rank, sequence)
                self._remove(key)
                entry = _Entry(rows, ENTRY_BYTES + rows.nbytes, now)
                if self._bytes + entry.size <= self._limit:
                    self._entries[key] = entry
                    self._bytes += entry.size

    def of(self, run: str) -> RecentRows:
        """Return what looks up rows of one run."""

        def rows(attempt: int, rank: int, sequence: int) -> StepRows | None:
            entry = self._entries.get((run, attempt, rank, sequence))
            return None if entry is None else entry.rows

        return rows

    def drop(self, run: str, attempt: int, rank: int, sequences: Sequence[int]) -> None:
        """Let go of deliveries that were compacted: nobody will ask for them again."""
        with self._lock:
            for sequence in sequences:
                self._remove((run, attempt, rank, sequence))

    def expire(self) -> None:
        """Let go of what is too old."""
        with self._lock:
            self._expire(self._clock())

    def _expire(self, now: float) -> None:
        while self._entries:
            key, entry = next(iter(self._entries.items()))
            if now - entry.since <= self._seconds:
                return
            self._remove(key)

    def _remove(self, key: Key) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._bytes -= entry.size
