"""Deleting a run: gone at once for everybody, its rows a slice at a time."""

from __future__ import annotations

import sqlite3

__all__ = ["forget_run", "purge_slice", "unpurged"]

# What is asked for by name goes at once; what may be gigabytes goes in slices.
SMALL = ("attempt", "manifest", "stream", "registration", "document")
LARGE = ("delivery", "chunk_tensor", "chunk", "rollup")
SLICE_ROWS = 500
PURGED = "purged"


def forget_run(connection: sqlite3.Connection, run_id: int, now: float) -> None:
    """Make a run unknown; part of the writer's transaction. Its id stays known as deleted."""
    for table in SMALL:
        connection.execute(f"DELETE FROM {table} WHERE run_id = ?", (run_id,))  # noqa: S608 - our names
    connection.execute(
        "UPDATE run SET deleted_at = ?, name = NULL, note = NULL, tags = '{}', policy = NULL, "
        "counters = NULL, dropped = '{}', revision = revision + 1 WHERE id = ?",
        (now, run_id),
    )


def unpurged(connection: sqlite3.Connection) -> list[int]:
    """Row ids of deleted runs that may still have rows."""
    rows = connection.execute(
        "SELECT id FROM run WHERE deleted_at IS NOT NULL AND state != ?", (PURGED,)
    )
    return [run_id for (run_id,) in rows]


def purge_slice(connection: sqlite3.Connection, run_id: int) -> bool:
    """Delete some of a deleted run's rows, in one transaction; say whether any may be left."""
    for table in LARGE:
        cursor = connection.execute(
            f"DELETE FROM {table} WHERE rowid IN "  # noqa: S608 - our names
            f"(SELECT rowid FROM {table} WHERE run_id = ? LIMIT {SLICE_ROWS})",
            (run_id,),
        )
        if cursor.rowcount:
            return True
    connection.execute("UPDATE run SET state = ? WHERE id = ?", (PURGED, run_id))
    return False
