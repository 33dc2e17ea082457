"""What is kept of old steps: everything for a while, then roll-ups, full detail around incidents."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Candidate", "candidates", "drop_detail", "used_bytes"]

AROUND_INCIDENT_STEPS = 512


@dataclass(frozen=True, slots=True)
class Candidate:
    """A chunk whose single steps may go."""

    run_id: int
    chunk_id: int
    bytes: int


def used_bytes(connection: sqlite3.Connection) -> int:
    """Bytes of the file that hold something."""
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    (free,) = connection.execute("PRAGMA freelist_count").fetchone()
    (size,) = connection.execute("PRAGMA page_size").fetchone()
    return int((pages - free) * size)


def candidates(connection: sqlite3.Connection, made_before: float) -> Iterator[Candidate]:
    """Chunks made before a moment, oldest first, but those around an incident."""
    rows = connection.execute(
        "SELECT c.run_id, c.id, c.first_step, c.last_step, s.attempt FROM chunk c "
        "JOIN stream s ON s.id = c.stream_id WHERE c.detail = 1 AND c.made_at < ? "
        "ORDER BY c.made_at LIMIT 1000",
        (made_before,),
    ).fetchall()
    incidents: dict[int, list[tuple[int, int, int]]] = {}
    for run_id, chunk_id, first, last, attempt in rows:
        if run_id not in incidents:
            incidents[run_id] = _incidents(connection, run_id)
        if any(
            a == attempt and low <= last and high >= first for a, low, high in incidents[run_id]
        ):
            continue
        (size,) = connection.execute(
            "SELECT coalesce(sum(length(body)), 0) FROM chunk_tensor "
            "WHERE run_id = ? AND chunk_id = ?",
            (run_id, chunk_id),
        ).fetchone()
        yield Candidate(run_id, chunk_id, size)


def drop_detail(connection: sqlite3.Connection, candidate: Candidate) -> None:
    """Drop a chunk's single steps; its roll-ups stay. Part of the writer's transaction."""
    connection.execute(
        "DELETE FROM chunk_tensor WHERE run_id = ? AND chunk_id = ?",
        (candidate.run_id, candidate.chunk_id),
    )
    connection.execute(
        "UPDATE chunk SET detail = 0, body = x'' WHERE id = ?", (candidate.chunk_id,)
    )


def _incidents(connection: sqlite3.Connection, run_id: int) -> list[tuple[int, int, int]]:
    rows = connection.execute(
        "SELECT body FROM document WHERE run_id = ? AND collection = 'incident'", (run_id,)
    )
    spans = []
    for (body,) in rows:
        incident = json.loads(body)
        if incident.get("status") == "retracted":
            continue
        first = incident.get("onset_step", incident["opened_step"])
        last = incident.get("last_step") or incident["opened_step"]
        spans.append(
            (
                incident.get("attempt", 0),
                min(first, incident["opened_step"]) - AROUND_INCIDENT_STEPS,
                last + AROUND_INCIDENT_STEPS,
            )
        )
    return spans
