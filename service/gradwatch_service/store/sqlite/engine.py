"""The embedded store's face: every method of :class:`Store`, each a few lines."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path

from gradwatch_service.settings import Settings
from gradwatch_service.store.base import (
    Commit,
    Delivery,
    Receipt,
    Registered,
    RunRecord,
)
from gradwatch_service.store.sqlite import catalog, documents
from gradwatch_service.store.sqlite.appending import append, settle_parts
from gradwatch_service.store.sqlite.combining import Combiner, Outcome
from gradwatch_service.store.sqlite.file import Database, lock, open_database
from gradwatch_service.store.sqlite.maintenance import Maintenance
from gradwatch_service.store.sqlite.readings import Readings
from gradwatch_service.store.sqlite.registering import register
from gradwatch_service.store.sqlite.removing import forget_run
from gradwatch_service.store.sqlite.schema import APPLICATION_ID
from gradwatch_service.store.sqlite.state import Memory
from gradwatch_service.store.sqlite.writer import Writer
from gradwatch_wire import Manifest

__all__ = ["SqliteStore"]

log = logging.getLogger("gradwatch.store")


class SqliteStore(Readings):
    """Keeps everything in one SQLite file; see :class:`gradwatch_service.store.base.Store`.

    Args:
        path: The file; made when it is not there.
        settings: Limits.

    Raises:
        StoreOpenError: The file cannot be used; one line says why.
    """

    def __init__(self, path: Path, settings: Settings) -> None:
        super().__init__(Database(path), settings)
        self._lock_file = lock(path)
        try:
            self._connection = open_database(path)
        except BaseException:
            self._lock_file.close()
            raise
        self._memory = Memory(self._connection)
        self._listeners: list[Callable[[Sequence[Commit]], None]] = []
        self._pending: list[Commit] = []
        self.writer = Writer(
            self._connection,
            settle=self._memory.flush,
            flush=self._flush,
            forget=self._forget,
            told=self._tell,
        )
        self.maintenance = Maintenance(self.database, self.writer, settings, self.recent)
        self.combiner = Combiner(self.database, self.writer, settings, self._settle_parts)
        self.on_commit(self.recent.committed)
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
        if not self.end_reading():
            return
        self.maintenance.stop()
        self.combiner.stop()
        self.writer.close()
        self.close_readers()
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
            self.completeness.forget(state.id)
            self._pending.append(Commit(kind="deleted", run=run, project=state.project))

        self.writer.call(work)

    # Steps

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

    # What analysis keeps

    def save(self, run: str, changes: Mapping[str, Mapping[str, bytes | None]]) -> None:
        """See :meth:`Store.save`."""

        def work() -> None:
            documents.save(self._connection, self._memory.run(run).id, changes)

        self.writer.call(work)

    # The store itself

    def check(self) -> None:
        """See :meth:`Store.check`."""
        # After a failure only a real write tells whether there is room again.
        self.writer.submit(self._probe if self.writer.failing else _nothing).result(timeout=5)

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


def _nothing() -> None:
    pass
