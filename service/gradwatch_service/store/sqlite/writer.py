"""The one thread that writes: takes what is waiting, commits it together, then answers."""

from __future__ import annotations

import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from gradwatch_service.store.base import Commit, StoreUnavailableError

__all__ = ["Job", "Writer"]

GROUP_JOBS = 128
GROUP_BYTES = 16 * 2**20
T = TypeVar("T")
log = logging.getLogger("gradwatch.store")


@dataclass(slots=True)
class Job:
    """One write: what to do inside the transaction, and who waits for it."""

    work: Callable[[], Any]
    future: Future[Any]
    size: int
    settled: bool


class Writer:
    """Runs jobs in one thread, many to a transaction.

    An answer is given only after the transaction that holds the work is on disk. A job that raises
    takes back what it wrote and leaves the others of its group alone.

    Args:
        connection: Used by this thread alone from now on.
        settle: Writes back what is remembered of the transaction so far.
        flush: Called last in every transaction, after ``settle``; says what was committed.
        forget: Called when a transaction is lost: whatever is cached of it must be dropped.
        told: Called with what was committed, after every commit.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        *,
        settle: Callable[[], None],
        flush: Callable[[], Sequence[Commit]],
        forget: Callable[[], None],
        told: Callable[[Sequence[Commit]], None],
    ) -> None:
        self.connection = connection
        self._settle = settle
        self._flush = flush
        self._forget = forget
        self._told = told
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self.failing = False
        self.seen: Callable[[float, bool], None] = _unseen
        self._thread = threading.Thread(target=self._run, name="gradwatch-writer", daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[], T], size: int = 0, *, settled: bool = True) -> Future[T]:
        """Queue a write.

        Args:
            work: What to do inside the transaction; an exception takes all of it back.
            size: Bytes it writes: bounds how much shares a transaction.
            settled: Whether rows must be up to date before; False only for work that changes what
                is remembered after nothing can fail any more.
        """
        future: Future[T] = Future()
        with self._lock:
            if self._closed:
                future.set_exception(StoreUnavailableError("the store is closed"))
                return future
            self._queue.put(Job(work, future, size, settled))
        return future

    def call(self, work: Callable[[], T]) -> T:
        """Write and wait for the commit."""
        return self.submit(work).result()

    def close(self) -> None:
        """Finish what is queued, then end the thread. Safe to repeat."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        going = True
        while going:
            group, going = self._take()
            if group:
                self._commit(group)

    def _take(self) -> tuple[list[Job], bool]:
        group: list[Job] = []
        size = 0
        wait = True
        while len(group) < GROUP_JOBS and size < GROUP_BYTES:
            try:
                job = self._queue.get(block=wait)
            except queue.Empty:
                break
            if job is None:
                return group, False
            wait = False
            group.append(job)
            size += job.size
        return group, True

    def _commit(self, group: Sequence[Job]) -> None:
        done: list[tuple[Job, Any]] = []
        started = time.perf_counter()
        try:
            self.connection.execute("BEGIN IMMEDIATE")
            for job in group:
                self._do(job, done)
            self._settle()
            commits = self._flush()
            self.connection.execute("COMMIT")
        except BaseException as error:  # noqa: BLE001 - whatever it is, nobody may wait for ever
            self._lose(group, error)
            self.seen(time.perf_counter() - started, False)  # noqa: FBT003 - a callback's argument
            return
        self.failing = False
        self.seen(time.perf_counter() - started, True)  # noqa: FBT003 - a callback's argument
        # Told before anybody is answered: who asks after an acknowledgement meets no older answer.
        if commits:
            self._told(commits)
        for job, result in done:
            if not job.future.cancelled():
                job.future.set_result(result)

    def _do(self, job: Job, done: list[tuple[Job, Any]]) -> None:
        if not job.future.set_running_or_notify_cancel():
            return
        if job.settled:
            # Outside the savepoint: what earlier jobs did stays when this one is taken back.
            self._settle()
        try:
            self.connection.execute("SAVEPOINT job")
            result = job.work()
        except sqlite3.Error:
            raise  # the file's fault, not the job's: the whole group is answered with it
        except Exception as error:  # noqa: BLE001 - belongs to whoever waits for this job
            self.connection.execute("ROLLBACK TO job")
            self.connection.execute("RELEASE job")
            job.future.set_exception(error)
        else:
            self.connection.execute("RELEASE job")
            done.append((job, result))

    def _lose(self, group: Sequence[Job], error: BaseException) -> None:
        self.failing = True
        log.error("nothing of %d writes was stored: %s", len(group), error)
        self._forget()
        if self.connection.in_transaction:
            self.connection.execute("ROLLBACK")
        reason = StoreUnavailableError(f"the store cannot write: {error}; nothing was stored")
        for job in group:
            if not job.future.done():
                job.future.set_exception(reason)


def _unseen(_: float, stored: bool) -> None:  # noqa: FBT001 - the signature of on_write
    del stored
