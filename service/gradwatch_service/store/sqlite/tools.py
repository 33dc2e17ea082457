"""What a person does with a store file: look at it, check it, compact it, copy it."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gradwatch_service.settings import Settings
from gradwatch_service.store.opening import StoreOpenError
from gradwatch_service.store.packing import unpack
from gradwatch_service.store.sqlite.engine import SqliteStore
from gradwatch_service.store.sqlite.file import connect
from gradwatch_service.store.sqlite.schema import APPLICATION_ID

__all__ = ["StoreStats", "backup", "check", "compact", "stats"]

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class StoreStats:
    """What is in a store, in plain numbers; sizes in bytes."""

    schema: int
    runs: int
    deleted_runs: int
    streams: int
    deliveries: int
    steps: int
    hot_deliveries: int
    hot_bytes: int
    chunks: int
    chunk_bytes: int
    chunks_without_detail: int
    rollup_bytes: int
    documents: int
    document_bytes: int
    file_bytes: int
    journal_bytes: int
    free_bytes: int


def stats(path: Path) -> StoreStats:
    """Measure a store; works beside a running service.

    Raises:
        StoreOpenError: There is no such file, or it is no store.
    """
    with contextlib.closing(_open(path)) as connection:

        def one(query: str) -> tuple[int, ...]:
            return tuple(value or 0 for value in connection.execute(query).fetchone())

        (schema,) = one("PRAGMA user_version")
        runs, deleted = one("SELECT count(*), count(deleted_at) FROM run")
        (streams,) = one("SELECT count(*) FROM stream")
        deliveries, steps = one("SELECT count(*), sum(steps) FROM delivery WHERE partial IS NULL")
        hot = one("SELECT count(*), sum(length(payload)) FROM delivery WHERE payload IS NOT NULL")
        chunks = one("SELECT count(*), sum(length(body)), sum(detail = 0) FROM chunk")
        (tensors,) = one("SELECT sum(length(body)) FROM chunk_tensor")
        (rollups,) = one("SELECT sum(length(body)) FROM rollup")
        documents = one("SELECT count(*), sum(length(body)) FROM document")
        free, size = one("PRAGMA freelist_count")[0], one("PRAGMA page_size")[0]
    journal = path.with_name(path.name + "-wal")
    return StoreStats(
        schema=schema,
        runs=runs - deleted,
        deleted_runs=deleted,
        streams=streams,
        deliveries=deliveries,
        steps=steps,
        hot_deliveries=hot[0],
        hot_bytes=hot[1],
        chunks=chunks[0],
        chunk_bytes=chunks[1] + tensors,
        chunks_without_detail=chunks[2],
        rollup_bytes=rollups,
        documents=documents[0],
        document_bytes=documents[1],
        file_bytes=path.stat().st_size,
        journal_bytes=journal.stat().st_size if journal.exists() else 0,
        free_bytes=free * size,
    )


def check(path: Path, progress: Progress) -> list[str]:
    """Check every page, every row and every packed column; return what is wrong, worst first.

    Works beside a running service.

    Raises:
        StoreOpenError: There is no such file, or it is no store.
    """
    with contextlib.closing(_open(path)) as connection:
        try:
            verdicts = connection.execute("PRAGMA integrity_check(100)").fetchall()
            found = [text for (text,) in verdicts if text != "ok"]
            return found or _check_columns(connection, progress)
        except sqlite3.DatabaseError as error:
            return [str(error)]


def compact(path: Path, settings: Settings) -> int:
    """Compact everything, apply retention, give free space back; return the chunks made.

    Raises:
        StoreOpenError: A service is using the store, or it cannot be used.
    """
    _open(path).close()
    store = SqliteStore(path, settings)
    try:
        store.maintenance.take_up()
        made = store.maintenance.compact(quiet=True)
        store.maintenance.retain()
        store.maintenance.shrink()
    finally:
        store.close()
    return made


def backup(path: Path, target: Path, progress: Progress) -> None:
    """Copy a store as it is at one moment; works beside a running service.

    Raises:
        StoreOpenError: There is no such store, the target exists or cannot be written.
    """
    if target.exists():
        raise StoreOpenError(f"{target}: exists already; a backup never overwrites")
    partial = target.with_name(target.name + ".partial")
    with contextlib.closing(_open(path)) as source:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            partial.unlink(missing_ok=True)
            with contextlib.closing(sqlite3.connect(partial)) as copy:
                # In one step the copy is of one moment; in slices it would begin again whenever
                # the service writes, for ever.
                source.backup(copy, pages=-1)
            progress(1, 1)
            # Named last: whoever finds the file finds a whole one.
            partial.replace(target)
        except (OSError, sqlite3.Error) as error:
            partial.unlink(missing_ok=True)
            raise StoreOpenError(f"{target}: {error}") from error


def _open(path: Path) -> sqlite3.Connection:
    if not path.is_file():
        raise StoreOpenError(f"{path}: there is no such store")
    try:
        connection = connect(path, read_only=True)
        (application,) = connection.execute("PRAGMA application_id").fetchone()
    except sqlite3.Error as error:
        raise StoreOpenError(f"{path}: {error}") from error
    if application != APPLICATION_ID:
        connection.close()
        raise StoreOpenError(f"{path}: not a gradwatch store")
    return connection


def _check_columns(connection: sqlite3.Connection, progress: Progress) -> list[str]:
    queries = {
        "delivery": "SELECT id, payload FROM delivery WHERE payload IS NOT NULL",
        "chunk": "SELECT id, body FROM chunk WHERE detail = 1",
        "chunk_tensor": "SELECT chunk_id, body FROM chunk_tensor",
        "rollup": "SELECT id, body FROM rollup",
    }
    found = []
    for done, (table, query) in enumerate(queries.items()):
        progress(done, len(queries))
        for row_id, body in connection.execute(query):
            try:
                unpack(body)
            except ValueError as error:
                found.append(f"{table} {row_id}: {error}")
    progress(len(queries), len(queries))
    return found
