"""Rows of a stream in step order, from deliveries and chunks, each step once."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gradwatch_service.rows import HistogramRows, StepRows
from gradwatch_service.store.layout import cut_tensors, join, pick, unpack_rows
from gradwatch_service.store.sqlite.chunks import read_chunk
from gradwatch_service.store.sqlite.recent import RecentRows
from gradwatch_service.store.sqlite.registering import load_manifest
from gradwatch_wire import Manifest

__all__ = ["Moved", "Piece", "Reader", "Selection"]

BLOCK_STEPS = 1024
CLUSTER_STEPS = 8192
CHUNK = "first_step, last_step, steps, id, 1, -1, manifest"
SPAN = "run_id = ? AND stream_id = ? AND first_step <= ? AND last_step >= ?"


@dataclass(frozen=True, slots=True)
class Selection:
    """What to read; see :meth:`Store.read`."""

    start: int | None = None
    end: int | None = None
    tensors: Sequence[int] | None = None
    columns: Collection[str] | None = None
    histograms: bool = True


@dataclass(frozen=True, slots=True)
class Piece:
    """A delivery or a chunk that is there, not read yet."""

    first: int
    last: int
    steps: int
    id: int
    cold: bool
    sequence: int
    manifest: str


class Moved(Exception):  # noqa: N818 - no error: compaction moved a piece between two reads
    """A piece went elsewhere since it was listed."""


class Reader:
    """Reads one stream on one connection."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        run_id: int,
        stream_id: int,
        identity: tuple[int, str, int],
        recent: RecentRows | None = None,
    ) -> None:
        self._connection = connection
        self._run_id = run_id
        self._stream_id = stream_id
        self._attempt, self._optimizer, self._rank = identity
        self._recent = recent
        self._manifests: dict[str, Manifest] = {}

    def read(self, selection: Selection) -> Iterator[StepRows]:
        """Blocks in step order, each step once, the highest sequence where two hold it."""
        start = selection.start
        while True:
            try:
                wanted = replace(selection, start=start)
                for rows in self.read_pieces(self.list(wanted), wanted):
                    start = int(rows.steps[-1]) + 1
                    yield rows
            except Moved:
                continue  # list again, from the first step that was not answered yet
            return

    def read_pieces(self, pieces: Sequence[Piece], selection: Selection) -> Iterator[StepRows]:
        """Blocks of what was listed.

        Raises:
            Moved: Some of it is not there any more.
        """
        waiting: list[StepRows] = []
        for cluster, window in _windows(pieces, selection):
            rows = _within(self.load(cluster, selection)[0], window)
            if rows is None:
                continue
            # A join of many small deliveries is cheaper to work on than each of them.
            if waiting and (
                rows.manifest is not waiting[0].manifest
                or sum(map(len, waiting)) + len(rows) > BLOCK_STEPS
                or rows.tensors.keys() != waiting[0].tensors.keys()
            ):
                yield join(waiting)
                waiting = []
            waiting.append(rows)
        if waiting:
            yield join(waiting)

    def read_cold(self, selection: Selection) -> Iterator[StepRows]:
        """The steps of chunks alone."""
        for piece in self.cold(selection):
            rows = _within(self.load([piece], selection)[0], selection)
            if rows is not None:
                yield rows

    def hot(self, selection: Selection) -> list[Piece]:
        """The deliveries alone."""
        rows = self._connection.execute(
            "SELECT first_step, last_step, steps, id, 0, sequence, manifest FROM delivery "  # noqa: S608 - constant text
            f"WHERE payload IS NOT NULL AND partial IS NULL AND {SPAN}",
            self._bounds(selection),
        ).fetchall()
        return _ordered([Piece(*row) for row in rows])

    def cold(self, selection: Selection) -> list[Piece]:
        """The chunks alone."""
        rows = self._connection.execute(
            f"SELECT {CHUNK} FROM chunk WHERE detail = 1 AND {SPAN}",  # noqa: S608 - constant text
            self._bounds(selection),
        ).fetchall()
        return _ordered([Piece(*row) for row in rows])

    def list(self, selection: Selection) -> list[Piece]:
        """Every delivery and chunk with steps in the selection, by first step."""
        # Deliveries first: what moves to a chunk between the two statements is then listed twice,
        # which is noticed when it is read, and not missed.
        hot = self.hot(selection)
        return _ordered([*hot, *self.cold(selection)])

    def chunk_before(self, step: int) -> Piece | None:
        """The chunk right before a step; None when its single steps are gone, or there is none."""
        row = self._connection.execute(
            f"SELECT {CHUNK}, detail FROM chunk WHERE run_id = ? AND stream_id = ? "  # noqa: S608 - constant text
            "AND first_step < ? ORDER BY first_step DESC LIMIT 1",
            (self._run_id, self._stream_id, step),
        ).fetchone()
        if row is None or not row[-1] or row[1] >= step:
            return None
        return Piece(*row[:-1])

    def _bounds(self, selection: Selection) -> tuple[int, int, int, int]:
        low = 0 if selection.start is None else selection.start
        high = 2**62 if selection.end is None else selection.end
        return self._run_id, self._stream_id, high, low

    def load(self, pieces: Sequence[Piece], selection: Selection) -> tuple[StepRows, Any]:
        """All steps of the pieces, each once, and the sequence that each came in.

        Raises:
            Moved: One of them is not there any more.
        """
        parts = [self._load(piece, selection) for piece in pieces]
        if len(parts) == 1:
            return parts[0]
        return _appended(parts) or _merged(parts)

    def _load(self, piece: Piece, selection: Selection) -> tuple[StepRows, Any]:
        manifest = self._manifest(piece.manifest)
        if piece.cold:
            return self._load_chunk(piece, manifest, selection)
        rows = self._remembered(piece, manifest, selection) or self._unpacked(
            piece, manifest, selection
        )
        if selection.tensors is not None:
            rows = cut_tensors(rows, self._cut(manifest, selection.tensors), selection.tensors)
        return rows, np.full(len(rows), piece.sequence)

    def _remembered(
        self, piece: Piece, manifest: Manifest, selection: Selection
    ) -> StepRows | None:
        """A delivery's rows from memory, if they are there."""
        if self._recent is None:
            return None
        rows = self._recent(self._attempt, self._rank, piece.sequence)
        if rows is None:
            return None
        # In memory it outlives its move into a chunk: then the chunk may be listed as well.
        found = self._connection.execute(
            "SELECT payload IS NOT NULL FROM delivery WHERE id = ?", (piece.id,)
        ).fetchone()
        if found is None or not found[0]:
            raise Moved
        columns = selection.columns
        tensors = rows.tensors
        if columns is not None:
            tensors = {name: values for name, values in tensors.items() if name in columns}
        histograms = rows.histograms if selection.histograms else ()
        return replace(rows, manifest=manifest, tensors=tensors, histograms=histograms)

    def _unpacked(self, piece: Piece, manifest: Manifest, selection: Selection) -> StepRows:
        row = self._connection.execute(
            "SELECT payload FROM delivery WHERE id = ?", (piece.id,)
        ).fetchone()
        if row is None or row[0] is None:
            raise Moved
        return unpack_rows(
            row[0],
            attempt=self._attempt,
            optimizer=self._optimizer,
            rank=self._rank,
            manifest=manifest,
            columns=selection.columns,
            histograms=selection.histograms,
        )

    def _load_chunk(
        self, piece: Piece, manifest: Manifest, selection: Selection
    ) -> tuple[StepRows, Any]:
        found = read_chunk(
            self._connection,
            self._run_id,
            piece.id,
            manifest,
            tensors=selection.tensors,
            columns=selection.columns,
            histograms=selection.histograms,
        )
        if found is None:
            raise Moved
        rows, order = found
        rows = replace(rows, attempt=self._attempt, optimizer=self._optimizer, rank=self._rank)
        if selection.tensors is not None:
            rows = replace(rows, manifest=self._cut(manifest, selection.tensors))
        return rows, order

    def _manifest(self, digest: str) -> Manifest:
        if digest not in self._manifests:
            found = load_manifest(self._connection, self._run_id, digest)
            self._manifests[digest] = found or Manifest(tensors=())
        return self._manifests[digest]

    def _cut(self, manifest: Manifest, tensors: Sequence[int]) -> Manifest:
        key = f"{id(manifest)} {tuple(tensors)}"
        if key not in self._manifests:
            kept = tuple(manifest.tensors[i] for i in tensors if i < len(manifest.tensors))
            self._manifests[key] = replace(manifest, tensors=kept)
        return self._manifests[key]


def _ordered(pieces: list[Piece]) -> list[Piece]:
    return sorted(pieces, key=lambda piece: (piece.first, piece.last))


def _windows(
    pieces: Sequence[Piece], selection: Selection
) -> Iterator[tuple[list[Piece], Selection]]:
    """Pieces that overlap belong together; what is too much to hold at once is cut by steps."""
    for cluster in _clusters(pieces):
        if len(cluster) == 1 or sum(piece.steps for piece in cluster) <= CLUSTER_STEPS:
            yield cluster, selection
            continue
        bounds = _bounds(cluster)
        for low, high in zip(bounds, [*bounds[1:], 2**62], strict=True):
            start = low if selection.start is None else max(low, selection.start)
            end = high - 1 if selection.end is None else min(high - 1, selection.end)
            inside = [p for p in cluster if p.first <= end and p.last >= start]
            if inside:
                yield inside, replace(selection, start=start, end=end)


def _bounds(cluster: Sequence[Piece]) -> list[int]:
    """First steps that cut a cluster into windows of at most about :data:`CLUSTER_STEPS` steps."""
    bounds = [cluster[0].first]
    steps = 0
    for piece in cluster:
        if steps + piece.steps > CLUSTER_STEPS and piece.first > bounds[-1]:
            bounds.append(piece.first)
            steps = 0
        steps += piece.steps
    return bounds


def _clusters(pieces: Sequence[Piece]) -> Iterator[list[Piece]]:
    cluster: list[Piece] = []
    end = -1
    for piece in pieces:
        if cluster and piece.first > end:
            yield cluster
            cluster = []
            end = -1
        cluster.append(piece)
        end = max(end, piece.last)
    if cluster:
        yield cluster


def _appended(parts: Sequence[tuple[StepRows, Any]]) -> tuple[StepRows, Any] | None:
    """Parts that follow one another, as nearly all do: nothing to sort, nothing to choose."""
    rows = [part for part, _ in parts]
    if any(int(a.steps[-1]) >= int(b.steps[0]) for a, b in itertools.pairwise(rows)):
        return None
    widest = max((part.manifest for part in rows), key=lambda m: len(m.tensors))
    return join(rows, manifest=widest), np.concatenate([order for _, order in parts])


def _merged(parts: Sequence[tuple[StepRows, Any]]) -> tuple[StepRows, Any]:
    # Of several rows of a step the highest sequence is kept, in whatever order they arrived.
    widest = max((rows.manifest for rows, _ in parts), key=lambda m: len(m.tensors))
    rows = join([rows for rows, _ in parts], manifest=widest)
    order = np.concatenate([sequence for _, sequence in parts])
    by_step = np.lexsort((order, rows.steps))
    steps = rows.steps[by_step]
    newest = np.append(steps[1:] != steps[:-1], True)
    chosen = by_step[newest]
    return replace(pick(rows, chosen), histograms=_histograms(parts)), order[chosen]


def _histograms(parts: Sequence[tuple[StepRows, Any]]) -> tuple[HistogramRows, ...]:
    seen: set[int] = set()
    kept = []
    by_sequence = sorted(parts, key=lambda part: int(part[1].max(initial=-1)), reverse=True)
    for histogram in (h for rows, _ in by_sequence for h in rows.histograms):
        new = np.array([step not in seen for step in histogram.steps.tolist()], dtype=bool)
        seen.update(histogram.steps.tolist())
        if new.any():
            kept.append(
                replace(histogram, steps=histogram.steps[new], counts=histogram.counts[new])
            )
    return tuple(sorted(kept, key=lambda h: int(h.steps[0])))


def _within(rows: StepRows, selection: Selection) -> StepRows | None:
    low = 0 if selection.start is None else int(np.searchsorted(rows.steps, selection.start))
    high = len(rows)
    if selection.end is not None:
        high = int(np.searchsorted(rows.steps, selection.end, side="right"))
    if low >= high:
        return None
    return rows if (low, high) == (0, len(rows)) else rows.cut(low, high)
