"""How complete the numbered deliveries are, without counting again what was counted before."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

from gradwatch_service.store.base import Gap

__all__ = ["Completeness"]

Key = tuple[int, int, int]  # run's row id, attempt, rank
AFTER = "run_id = ? AND attempt = ? AND rank = ? AND sequence > ?"


@dataclass(frozen=True, slots=True)
class _Known:
    """Up to where nothing is missing, and what the steps were by then."""

    contiguous: int = -1
    steps: Mapping[str, int] = field(default_factory=dict)


class Completeness:
    """Answers :meth:`Store.gaps`; what is contiguous stays so, hence is counted once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[Key, _Known] = {}

    def gaps(self, connection: sqlite3.Connection, run_id: int, attempt: int) -> dict[int, Gap]:
        """Gaps of an attempt by rank; ranks that never numbered a delivery are left out."""
        ranks = connection.execute(
            "SELECT DISTINCT rank FROM stream WHERE run_id = ? AND attempt = ?", (run_id, attempt)
        ).fetchall()
        found = {rank: self._gap(connection, (run_id, attempt, rank)) for (rank,) in ranks}
        return {rank: gap for rank, gap in found.items() if gap is not None}

    def forget(self, run_id: int) -> None:
        """Drop what is known of a deleted run."""
        with self._lock:
            for key in [key for key in self._known if key[0] == run_id]:
                del self._known[key]

    def _gap(self, connection: sqlite3.Connection, key: Key) -> Gap | None:
        with self._lock:
            known = self._known.get(key, _Known())
        count, highest = connection.execute(
            f"SELECT count(*), max(sequence) FROM delivery WHERE {AFTER}",  # noqa: S608 - constant text
            (*key, known.contiguous),
        ).fetchone()
        if highest is None:
            if known.contiguous < 0:
                return None
            return Gap(known.contiguous, known.contiguous, known.steps)
        contiguous = highest
        if count != highest - known.contiguous:
            contiguous = _contiguous(connection, key, known.contiguous, highest)
        if contiguous > known.contiguous:
            known = _Known(contiguous, _steps(connection, key, known, contiguous))
            with self._lock:
                self._known[key] = known
        return Gap(known.contiguous, highest, known.steps)


def _contiguous(connection: sqlite3.Connection, key: Key, low: int, high: int) -> int:
    # As many sequences as there are numbers up to a point: nothing is missing before it.
    start = low
    while low < high:
        middle = (low + high + 1) // 2
        (count,) = connection.execute(
            f"SELECT count(*) FROM delivery WHERE {AFTER} AND sequence <= ?",  # noqa: S608 - constant text
            (*key, start, middle),
        ).fetchone()
        low, high = (middle, high) if count == middle - start else (low, middle - 1)
    return low


def _steps(
    connection: sqlite3.Connection, key: Key, known: _Known, contiguous: int
) -> Mapping[str, int]:
    rows = connection.execute(
        "SELECT s.optimizer, max(d.last_step) FROM delivery d JOIN stream s ON s.id = d.stream_id "
        "WHERE d.run_id = ? AND d.attempt = ? AND d.rank = ? AND d.sequence > ? "
        "AND d.sequence <= ? GROUP BY s.optimizer",
        (*key, known.contiguous, contiguous),
    )
    steps = dict(known.steps)
    for optimizer, last in rows:
        if last is not None:
            steps[optimizer] = max(last, steps.get(optimizer, last))
    return steps
