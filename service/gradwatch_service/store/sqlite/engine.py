"""The embedded store's face: every method of :class:`Store`, each a few lines."""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path

from gradwatch_service.queries.series import Pieces
from gradwatch_service.rows import StepRows
from gradwatch_service.settings import Settings
from gradwatch_service.store.base import (
    Commit,
    Delivery,
    Gap,
    Receipt,
    Registered,
    RunPage,
    RunRecord,
    StoreUnavailableError,
    Stream,
    UnknownManifestError,
)
from gradwatch_service.store.sqlite import catalog, documents
from gradwatch_service.store.sqlite.appending import append, settle_parts
from gradwatch_service.store.sqlite.combining import Combiner, Outcome
from gradwatch_service.store.sqlite.completeness import Completeness
from gradwatch_service.store.sqlite.curves import Curve, curve
from gradwatch_service.store.sqlite.file import Database, lock, open_database
from gradwatch_service.store.sqlite.maintenance import Maintenance
from gradwatch_service.store.sqlite.reading import Moved, Reader, Selection
from gradwatch_service.store.sqlite.registering import load_manifest, register
from gradwatch_service.store.sqlite.removing import forget_run
from gradwatch_service.store.sqlite.schema import APPLICATION_ID
from gradwatch_service.store.sqlite.state import Memory
from gradwatch_service.store.sqlite.writer import Writer
from gradwatch_wire import Manifest

__all__ = ["SqliteStore"]

log = logging.getLogger("gradwatch.store")


class SqliteStore:
    """Keeps everything in one SQLite file; see :class:`gradwatch_service.store.base.Store`.

    Args:
        path: The file; made when it is not there.
        settings: Limits.

    Raises:
        StoreOpenError: The file cannot be used; one line says why.
    """

    def __init__(self, path: Path, settings: Settings) -> None:
        self.database = Database(path)
        self._settings = settings
        self._lock_file = lock(path)
        try:
            self._connection = open_database(path)
        except BaseException:
            self._lock_file.close()
            raise
        self._memory = Memory(self._connection)
        self._listeners: list[Callable[[Sequence[Commit]], None]] = []
        self._pending: list[Commit] = []
        self._completeness = Completeness()
        self._local = threading.local()
        self._readers: list[sqlite3.Connection] = []
        self._guard = threading.Lock()
        self._closed = False
        self.writer = Writer(
            self._connection,
            settle=self._memory.flush,
            flush=self._flush,
            forget=self._forget,
            told=self._tell,
        )
        self.maintenance = Maintenance(self.database, self.writer, settings)
        self.combiner = Combiner(self.database, self.writer, settings, self._settle_parts)
        self.on_commit(self.maintenance.committed)
        self.on_commit(self.combiner.committed)

    def on_commit(self, listener: Callable[[Sequence[Commit]], None]) -> None:
        """See :meth:`Store.on_commit`."""
        self._listeners.append(listener)

    def on_write(self, seen: Callable[[float, bool], None]) -> None:
        """See :meth:`Store.on_write`."""
        self.writer.seen = seen

    def start(self) -> None:
        """See :meth:`Store.start`."""
        self.maintenance.start()
        self.combiner.start()

    def close(self) -> None:
        """See :meth:`Store.close`."""
        with self._guard:
            if self._closed:
                return
            self._closed = True
            readers = list(self._readers)
        self.maintenance.stop()
        self.combiner.stop()
        self.writer.close()
        for reader in readers:
            reader.close()
        self._connection.close()
        self._lock_file.close()

    # Runs

    def register(self, run: str, manifest: Manifest, *, now: float) -> Registered:
        """See :meth:`Store.register`."""

        def work() -> Registered:
            answer = register(
                self._connection,
                self._memory,
                run,
                manifest,
                now,
                max_runs=self._settings.max_runs,
                max_attempts=self._settings.max_attempts,
            )
            self._changed("registered", run)
            return answer

        return self.writer.call(work)

    def run(self, run: str) -> RunRecord:
        """See :meth:`Store.run`."""
        return catalog.find_run(
            self._reader(), run, now=time.time(), silent_seconds=self._settings.silent_seconds
        )

    def runs(
        self,
        *,
        project: str | None = None,
        state: str | None = None,
        q: str | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> RunPage:
        """See :meth:`Store.runs`."""
        return catalog.page(
            self._reader(),
            project=project,
            state=state,
            q=q,
            limit=limit,
            cursor=cursor,
            now=time.time(),
            silent_seconds=self._settings.silent_seconds,
        )

    def edit(
        self,
        run: str,
        *,
        name: str | None = None,
        note: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> RunRecord:
        """See :meth:`Store.edit`."""

        def work() -> None:
            values: dict[str, str | None] = {}
            if name is not None:
                values["name"] = name or None
            if note is not None:
                values["note"] = note or None
            if tags is not None:
                values["tags"] = json.dumps(dict(tags))
            self._update(run, **values)
            self._changed("edited", run)

        self.writer.call(work)
        return self.run(run)

    def finish(self, run: str, status: str, *, now: float) -> RunRecord:
        """See :meth:`Store.finish`."""

        def work() -> None:
            self._update(run, status=status, finished_at=now)
            self._changed("finished", run, status=status)

        self.writer.call(work)
        return self.run(run)

    def set_state(self, run: str, state: str) -> None:
        """See :meth:`Store.set_state`."""
        self.writer.call(lambda: self._update(run, state=state))

    def delete(self, run: str) -> None:
        """See :meth:`Store.delete`."""

        def work() -> None:
            state = self._memory.run(run)
            self._memory.release(run)
            forget_run(self._connection, state.id, time.time())
            self._completeness.forget(state.id)
            self._pending.append(Commit(kind="deleted", run=run, project=state.project))

        self.writer.call(work)

    # Steps

    def manifest(self, run: str, manifest_hash: str) -> Manifest:
        """See :meth:`Store.manifest`."""
        reader = self._reader()
        found = load_manifest(reader, catalog.run_id(reader, run), manifest_hash)
        if found is None:
            raise UnknownManifestError(run, manifest_hash)
        return found

    def append(self, delivery: Delivery) -> Future[Receipt]:
        """See :meth:`Store.append`."""
        return self.writer.submit(
            lambda: self._append(delivery), len(delivery.packed), settled=False
        )

    def append_steps(self, deliveries: Sequence[Delivery]) -> Future[list[Receipt]]:
        """See :meth:`Store.append_steps`."""

        def work() -> list[Receipt]:
            # A conflict further down takes back what was written; so must what is remembered.
            before = len(self._pending)
            try:
                return [self._append(delivery) for delivery in deliveries]
            except Exception:
                del self._pending[before:]
                for run in {delivery.run for delivery in deliveries}:
                    self._memory.release(run)
                raise

        return self.writer.submit(work, sum(len(d.packed) for d in deliveries))

    def streams(self, run: str) -> list[Stream]:
        """See :meth:`Store.streams`."""
        return catalog.streams(self._reader(), run)

    def gaps(self, run: str, attempt: int) -> dict[int, Gap]:
        """See :meth:`Store.gaps`."""
        reader = self._reader()
        return self._completeness.gaps(reader, catalog.run_id(reader, run), attempt)

    def read(
        self,
        run: str,
        *,
        attempt: int,
        optimizer: str,
        rank: int,
        start: int | None = None,
        end: int | None = None,
        limit: int | None = None,
        tensors: Sequence[int] | None = None,
        columns: Sequence[str] | None = None,
        histograms: bool = True,
    ) -> Iterator[StepRows]:
        """See :meth:`Store.read`."""
        connection = self._reader()
        key = catalog.stream_key(connection, run, (attempt, optimizer, rank))
        if key is None:
            return iter(())
        reader = Reader(connection, *key, (attempt, optimizer, rank))
        wanted = None if columns is None else frozenset(columns)
        blocks = reader.read(Selection(start, end, tensors, wanted, histograms))
        return blocks if limit is None else _first(blocks, limit)

    def curve(
        self,
        run: str,
        *,
        attempt: int,
        optimizer: str,
        rank: int,
        metric: str,
        tensor: int | None = None,
        columns: Sequence[str] | None = None,
        start: int | None = None,
        end: int | None = None,
        points: int = 1000,
    ) -> Iterator[StepRows | Pieces]:
        """See :meth:`Store.curve`."""
        connection = self._reader()
        key = catalog.stream_key(connection, run, (attempt, optimizer, rank))
        if key is None:
            return iter(())
        reader = Reader(connection, *key, (attempt, optimizer, rank))
        selection = Selection(
            start=start,
            end=end,
            tensors=None if tensor is None else [tensor],
            columns=None if columns is None else frozenset(columns),
            histograms=False,
        )
        wanted = Curve(metric, tensor, points, selection)
        while True:
            try:
                return iter(list(curve(connection, reader, *key, wanted)))
            except Moved:
                continue  # compaction moved something between two reads: ask again

    # What analysis keeps

    def save(self, run: str, changes: Mapping[str, Mapping[str, bytes | None]]) -> None:
        """See :meth:`Store.save`."""

        def work() -> None:
            documents.save(self._connection, self._memory.run(run).id, changes)

        self.writer.call(work)

    def documents(self, run: str, collection: str) -> dict[str, bytes]:
        """See :meth:`Store.documents`."""
        reader = self._reader()
        return documents.of_run(reader, catalog.run_id(reader, run), collection)

    def all_documents(
        self, collection: str, *, project: str | None = None
    ) -> Iterator[tuple[str, str, bytes]]:
        """See :meth:`Store.all_documents`."""
        return documents.of_all(self._reader(), collection, project)

    # The store itself

    def check(self) -> None:
        """See :meth:`Store.check`."""
        # After a failure only a real write tells whether there is room again.
        self.writer.submit(self._probe if self.writer.failing else _nothing).result(timeout=5)

    def size_bytes(self) -> int:
        """See :meth:`Store.size_bytes`."""
        return self.database.size_bytes()

    def _probe(self) -> None:
        self._connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")

    def _append(self, delivery: Delivery) -> Receipt:
        receipt, commit = append(self._connection, self._memory, delivery)
        if commit is not None:
            self._pending.append(commit)
        return receipt

    def _settle_parts(self, outcome: Outcome) -> None:
        commit = settle_parts(self._connection, self._memory, outcome)
        if commit is not None:
            self._pending.append(commit)

    def _update(self, run: str, **values: str | float | None) -> None:
        state = self._memory.run(run)
        self._memory.release(run)
        columns = "".join(f", {name} = ?" for name in values)
        self._connection.execute(
            f"UPDATE run SET revision = revision + 1{columns} WHERE id = ?",  # noqa: S608 - our names
            (*values.values(), state.id),
        )

    def _changed(self, kind: str, run: str, status: str | None = None) -> None:
        record = catalog.find_run(
            self._connection, run, now=time.time(), silent_seconds=self._settings.silent_seconds
        )
        self._pending.append(
            Commit(
                kind=kind,  # type: ignore[arg-type]  # our own literals
                run=run,
                project=record.project,
                counters=record.counters,
                status=status,
                record=record,
            )
        )

    def _flush(self) -> Sequence[Commit]:
        commits, self._pending = self._pending, []
        return commits

    def _forget(self) -> None:
        self._memory.forget()
        self._pending = []

    def _tell(self, commits: Sequence[Commit]) -> None:
        for listener in self._listeners:
            try:
                listener(commits)
            except Exception:
                # One listener's fault must not keep the others from hearing, nor stop the writer.
                log.exception("a listener failed")

    def _reader(self) -> sqlite3.Connection:
        reader: sqlite3.Connection | None = getattr(self._local, "reader", None)
        if reader is None:
            with self._guard:
                if self._closed:
                    raise StoreUnavailableError("the store is closed")
                reader = self.database.reader()
                self._readers.append(reader)
            self._local.reader = reader
        return reader


def _nothing() -> None:
    pass


def _first(blocks: Iterator[StepRows], limit: int) -> Iterator[StepRows]:
    left = limit
    while left > 0:
        rows = next(blocks, None)
        if rows is None:
            return
        yield rows if len(rows) <= left else rows.cut(0, left)
        left -= len(rows)
