"""What analysis keeps: small documents by run, collection and key."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping

__all__ = ["of_all", "of_run", "save"]


def save(
    connection: sqlite3.Connection, run_id: int, changes: Mapping[str, Mapping[str, bytes | None]]
) -> None:
    """Write or, for None, delete; part of the writer's transaction."""
    for collection, documents in changes.items():
        for key, body in documents.items():
            if body is None:
                connection.execute(
                    "DELETE FROM document WHERE run_id = ? AND collection = ? AND key = ?",
                    (run_id, collection, key),
                )
            else:
                connection.execute(
                    "INSERT INTO document (run_id, collection, key, body) VALUES (?, ?, ?, ?) "
                    "ON CONFLICT (run_id, collection, key) DO UPDATE SET body = excluded.body",
                    (run_id, collection, key, body),
                )


def of_run(connection: sqlite3.Connection, run_id: int, collection: str) -> dict[str, bytes]:
    """Every document of a collection, by key."""
    rows = connection.execute(
        "SELECT key, body FROM document WHERE run_id = ? AND collection = ? ORDER BY key",
        (run_id, collection),
    )
    return dict(rows.fetchall())


def of_all(
    connection: sqlite3.Connection, collection: str, project: str | None
) -> Iterator[tuple[str, str, bytes]]:
    """Every (run, key, document) of a collection, newest run first."""
    rows = connection.execute(
        "SELECT run.run, document.key, document.body FROM document "
        "JOIN run ON run.id = document.run_id "
        "WHERE collection = :collection AND (:project IS NULL OR project = :project) "
        "ORDER BY run.id DESC, key",
        {"collection": collection, "project": project},
    )
    return iter(rows.fetchall())
