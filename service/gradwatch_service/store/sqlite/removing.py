"""Deleting a run: everything goes but its id, so that it is never taken for a new one."""

from __future__ import annotations

import sqlite3

__all__ = ["delete_run"]

TABLES = (
    "attempt",
    "manifest",
    "stream",
    "registration",
    "delivery",
    "chunk",
    "chunk_tensor",
    "rollup",
    "document",
)


def delete_run(connection: sqlite3.Connection, run_id: int, now: float) -> None:
    """Delete a run's rows; part of the writer's transaction."""
    for table in TABLES:
        connection.execute(f"DELETE FROM {table} WHERE run_id = ?", (run_id,))  # noqa: S608 - our names
    connection.execute(
        "UPDATE run SET deleted_at = ?, name = NULL, note = NULL, tags = '{}', policy = NULL, "
        "counters = NULL, dropped = '{}', revision = revision + 1 WHERE id = ?",
        (now, run_id),
    )
