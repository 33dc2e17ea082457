"""Bodies in, durable deliveries out: bounded, decoded off the event loop, answered after the commit."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from fastapi import Request
from numpy.typing import NDArray

from gradwatch_service.access.gate import JSON_TYPE, media_type
from gradwatch_service.ingest.backlog import Backlog
from gradwatch_service.ingest.bodies import decompress, parse_json
from gradwatch_service.ingest.validation import numel_of, rows_of
from gradwatch_service.instruments import Instruments
from gradwatch_service.problems import ServiceError
from gradwatch_service.settings import Settings
from gradwatch_service.store.base import Commit, Delivery, Receipt, Store
from gradwatch_service.store.delivering import deliver
from gradwatch_wire import CONTENT_TYPE, Manifest, Report, decode, report_from_json

__all__ = ["Body", "Ingest"]

DECODERS = 2
KNOWN_MANIFESTS = 512


@dataclass(frozen=True, slots=True)
class Body:
    """A body as it came, with what says how to read it."""

    data: bytes
    kind: str
    encoding: str
    received: float


@dataclass(frozen=True, slots=True)
class Known:
    """A registered manifest with what validation needs of it."""

    manifest: Manifest
    numel: NDArray[np.uint64]


class Ingest:
    """Takes reports in.

    Args:
        settings: Limits.
        store: Where deliveries go.
        instruments: Counts what is stored.
    """

    def __init__(self, settings: Settings, store: Store, instruments: Instruments) -> None:
        self.backlog = Backlog(settings.max_queue_bytes)
        self._settings = settings
        self._store = store
        self._instruments = instruments
        self._pool: ThreadPoolExecutor | None = None
        self._draining = False
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[str, str], Known] = OrderedDict()
        self._projects: OrderedDict[str, str] = OrderedDict()
        self._opened: OrderedDict[str, None] = OrderedDict()
        store.on_commit(self._committed)

    @property
    def draining(self) -> bool:
        """Whether no more reports are taken."""
        return self._draining

    def start(self) -> None:
        """Start the decoding threads."""
        self._pool = ThreadPoolExecutor(DECODERS, thread_name_prefix="gradwatch-decode")

    def drain(self) -> None:
        """Refuse whatever comes from now on; what was let in is finished. Safe to repeat."""
        self._draining = True

    def stop(self) -> None:
        """Finish decoding what was let in."""
        if self._pool is not None:
            self._pool.shutdown(wait=True)

    @contextlib.asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[Body]:
        """Read a request's body; its bytes count against the queue until the block ends.

        Raises:
            ServiceError: 503 while draining, 429 when the queue is full.
        """
        if self._draining:
            raise ServiceError(
                503,
                "draining",
                "the service is stopping; send this again",
                headers={"Retry-After": "5"},
            )
        declared = request.headers.get("content-length", "")
        size = int(declared) if declared.isdecimal() else 0
        self.backlog.enter(size)
        try:
            data = await request.body()
            # A body without a length is only known now; it is bounded by the gate all the same.
            self.backlog.grow(len(data) - size)
            size = len(data)
            headers = request.headers
            yield Body(
                data,
                media_type(headers.get("content-type")),
                headers.get("content-encoding", ""),
                time.time(),
            )
        finally:
            self.backlog.leave(size)

    async def report(self, run: str, body: Body) -> tuple[Delivery, Receipt]:
        """Store one report; returns once it is durable.

        Raises:
            ServiceError, WireError: The body is refused; nothing of it was stored.
            SequenceConflictError, UnknownRunError, UnknownAttemptError, UnknownManifestError,
            StoreUnavailableError: As :meth:`Store.append`.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[tuple[Delivery, Receipt]] = loop.create_future()
        self._decoders.submit(self._deliver, run, body, loop, answer)
        delivery, receipt = await answer
        self._counted(body, len(delivery.rows.manifest.tensors), receipt)
        return delivery, receipt

    async def steps(self, deliveries: Sequence[Delivery], body: Body) -> list[Receipt]:
        """Store steps posted the short way: all or none; returns once they are durable."""
        receipts = await asyncio.wrap_future(self._store.append_steps(deliveries))
        self._counted(body, 0, Receipt(stored=any(receipt.stored for receipt in receipts)))
        return receipts

    def _counted(self, body: Body, tensors: int, receipt: Receipt) -> None:
        if receipt.stored:
            seconds = max(0.0, time.time() - body.received)
            self._instruments.reports(tensors=tensors, size=len(body.data), seconds=seconds)
        else:
            self._instruments.duplicate()

    async def offload(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Run ``work`` in a decoding thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._decoders, work, *arguments)

    @property
    def _decoders(self) -> ThreadPoolExecutor:
        if self._pool is None:
            raise RuntimeError("the service has not started")
        return self._pool

    def project(self, run: str) -> str:
        """Project of a run, usually without asking the store.

        Raises:
            UnknownRunError, DeletedRunError: There is no such run.
        """
        with self._lock:
            known = self._projects.get(run)
        if known is None:
            known = self._store.run(run).project
            with self._lock:
                _remember(self._projects, run, known)
        return known

    def known_project(self, run: str) -> str | None:
        """Project of a run if it is in memory. Never waits."""
        return self._projects.get(run)

    def takes_steps(self, run: str) -> bool:
        """Whether the run is known to take steps the short way. Never waits."""
        return run in self._opened

    def took_steps(self, run: str) -> None:
        """Note that the run takes steps the short way."""
        with self._lock:
            _remember(self._opened, run, None)

    def _deliver(
        self,
        run: str,
        body: Body,
        loop: asyncio.AbstractEventLoop,
        answer: asyncio.Future[tuple[Delivery, Receipt]],
    ) -> None:
        """Decode in this thread and hand to the writer; the loop hears of the commit alone."""

        def settle(result: tuple[Delivery, Receipt] | None, error: BaseException | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(_settle, answer, result, error)

        def committed(done: Future[Receipt]) -> None:
            error = done.exception()
            settle(None if error else (delivery, done.result()), error)

        try:
            delivery = self._prepare(run, body)
            waiting = self._store.append(delivery)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is the answer
            settle(None, error)
        else:
            waiting.add_done_callback(committed)

    def _prepare(self, run: str, body: Body) -> Delivery:
        report = self._decode(body)
        known = self._manifest(run, report.manifest)
        rows = rows_of(report, known.manifest, known.numel, self._settings)
        return deliver(
            run,
            rows,
            sequence=report.sequence,
            manifest=report.manifest,
            received=body.received,
            dropped=report.dropped,
            partial=report.partial,
        )

    def _decode(self, body: Body) -> Report:
        data = decompress(body.data, body.encoding, self._settings.max_decompressed_bytes)
        if body.kind == CONTENT_TYPE:
            return decode(data)
        if body.kind != JSON_TYPE:
            raise ServiceError(
                415,
                "unsupported_media_type",
                f"Content-Type {body.kind!r} given; allowed: {JSON_TYPE}, {CONTENT_TYPE}",
            )
        return report_from_json(parse_json(data))

    def _manifest(self, run: str, manifest_hash: str) -> Known:
        key = (run, manifest_hash)
        with self._lock:
            known = self._known.get(key)
        if known is None:
            manifest = self._store.manifest(run, manifest_hash)
            known = self._shared(manifest_hash, Known(manifest, numel_of(manifest)))
            with self._lock:
                _remember(self._known, key, known)
        return known

    def _shared(self, manifest_hash: str, new: Known) -> Known:
        """The same, with the tensors of an earlier manifest where they are equal.

        Runs of one job differ in the rest of their manifests. One list of tensors saves memory,
        and comparing it with itself takes no time.
        """
        with self._lock:
            twins = [known for key, known in self._known.items() if key[1] == manifest_hash]
        for twin in twins:
            if twin.manifest.tensors == new.manifest.tensors:
                return Known(replace(new.manifest, tensors=twin.manifest.tensors), twin.numel)
        return new

    def _committed(self, commits: Sequence[Commit]) -> None:
        for commit in commits:
            if commit.kind == "deleted":
                with self._lock:
                    self._projects.pop(commit.run, None)
                    self._opened.pop(commit.run, None)
                    for key in [key for key in self._known if key[0] == commit.run]:
                        del self._known[key]


def _settle(answer: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if answer.done():
        return  # whoever asked has gone
    if error is None:
        answer.set_result(result)
    else:
        answer.set_exception(error)


def _remember(cache: OrderedDict[Any, Any], key: Any, value: Any) -> None:
    cache[key] = value
    while len(cache) > KNOWN_MANIFESTS:
        cache.popitem(last=False)
