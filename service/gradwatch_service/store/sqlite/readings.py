"""The reading half of the embedded store: a connection per thread, none of which can write."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence

from gradwatch_service.queries.series import Pieces
from gradwatch_service.rows import StepRows
from gradwatch_service.settings import Settings
from gradwatch_service.store.base import (
    Gap,
    RunPage,
    RunRecord,
    StoreUnavailableError,
    Stream,
    UnknownManifestError,
)
from gradwatch_service.store.sqlite import catalog, documents
from gradwatch_service.store.sqlite.completeness import Completeness
from gradwatch_service.store.sqlite.curves import Curve, curve
from gradwatch_service.store.sqlite.file import Database
from gradwatch_service.store.sqlite.piece_cache import PieceCache
from gradwatch_service.store.sqlite.reading import Moved, Reader, Selection
from gradwatch_service.store.sqlite.recent import Recent
from gradwatch_service.store.sqlite.registering import load_manifest
from gradwatch_wire import Manifest

__all__ = ["Readings"]


class Readings:
    """Every method of :class:`Store` that reads.

    Args:
        database: Gives connections.
        settings: When a run counts as silent.
    """

    def __init__(self, database: Database, settings: Settings) -> None:
        self.database = database
        self.completeness = Completeness()
        self.recent = Recent()
        self._settings = settings
        self._pieces = PieceCache()
        self._local = threading.local()
        self._readers: list[sqlite3.Connection] = []
        self._guard = threading.Lock()
        self._closed = False

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

    def manifest(self, run: str, manifest_hash: str) -> Manifest:
        """See :meth:`Store.manifest`."""
        reader = self._reader()
        found = load_manifest(reader, catalog.run_id(reader, run), manifest_hash)
        if found is None:
            raise UnknownManifestError(run, manifest_hash)
        return found

    def streams(self, run: str) -> list[Stream]:
        """See :meth:`Store.streams`."""
        return catalog.streams(self._reader(), run)

    def gaps(self, run: str, attempt: int) -> dict[int, Gap]:
        """See :meth:`Store.gaps`."""
        reader = self._reader()
        return self.completeness.gaps(reader, catalog.run_id(reader, run), attempt)

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
        reader = Reader(connection, *key, (attempt, optimizer, rank), self.recent.of(run))
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
        reader = Reader(connection, *key, (attempt, optimizer, rank), self.recent.of(run))
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
                return iter(list(curve(connection, reader, key, wanted, self._pieces)))
            except Moved:
                continue  # compaction moved something between two reads: ask again

    def documents(self, run: str, collection: str) -> dict[str, bytes]:
        """See :meth:`Store.documents`."""
        reader = self._reader()
        return documents.of_run(reader, catalog.run_id(reader, run), collection)

    def all_documents(
        self, collection: str, *, project: str | None = None
    ) -> Iterator[tuple[str, str, bytes]]:
        """See :meth:`Store.all_documents`."""
        return documents.of_all(self._reader(), collection, project)

    def size_bytes(self) -> int:
        """See :meth:`Store.size_bytes`."""
        return self.database.size_bytes()

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

    def end_reading(self) -> bool:
        """Open no connection any more; False when that was so before."""
        with self._guard:
            before, self._closed = self._closed, True
        return not before

    def close_readers(self) -> None:
        """Close every thread's connection."""
        with self._guard:
            for reader in self._readers:
                reader.close()


def _first(blocks: Iterator[StepRows], limit: int) -> Iterator[StepRows]:
    left = limit
    while left > 0:
        rows = next(blocks, None)
        if rows is None:
            return
        yield rows if len(rows) <= left else rows.cut(0, left)
        left -= len(rows)
