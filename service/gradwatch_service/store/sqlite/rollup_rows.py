"""Roll-ups as rows: added per chunk, joined into longer ones so that a long curve is few reads.

A row never changes once it is written, and its id is never given again: what was decoded of it
stays right for as long as the row is there.
"""

from __future__ import annotations

import sqlite3
import time

from gradwatch_service.queries.series import Pieces
from gradwatch_service.store.rollups import cut_out, merge, run_pieces, tensor_pieces
from gradwatch_service.store.sqlite.piece_cache import PieceCache
from gradwatch_service.store.sqlite.reading import Moved
from gradwatch_service.store.sqlite.registering import load_manifest

__all__ = ["RUN", "TENSORS", "add_rollup", "pieces_between", "remove_span"]

RUN, TENSORS = -1, -2
FANOUT, TOP_LEVEL = 8, 6
Place = tuple[int, int]  # row ids of the run and of the stream
Span = tuple[int, int]  # first and last step


def add_rollup(
    connection: sqlite3.Connection, place: Place, kind: int, span: Span, body: bytes
) -> None:
    """Add a chunk's roll-up, then join rows until fewer than :data:`FANOUT` are left per level."""
    _insert(connection, (*place, kind, 1, *span, body))
    if kind != RUN:
        return  # all tensors of a chunk: joined, a row would grow beyond what one write should be
    for level in range(1, TOP_LEVEL):
        rows = connection.execute(
            "SELECT id, first_step, last_step, body FROM rollup WHERE run_id = ? AND stream_id = ? "
            "AND tensor = ? AND level = ? ORDER BY first_step",
            (*place, kind, level),
        ).fetchall()
        if len(rows) < FANOUT:
            return
        joined = merge([row[3] for row in rows])
        connection.executemany("DELETE FROM rollup WHERE id = ?", ((row[0],) for row in rows))
        whole = (rows[0][1], max(row[2] for row in rows))
        _insert(connection, (*place, kind, level + 1, *whole, joined))


def remove_span(connection: sqlite3.Connection, place: Place, span: Span) -> None:
    """Remove a chunk's pieces, whatever row they were joined into: it is made anew."""
    first, last = span
    rows = connection.execute(
        "SELECT id, tensor, level, first_step, last_step, body FROM rollup WHERE run_id = ? "
        "AND stream_id = ? AND first_step <= ? AND last_step >= ?",
        (*place, last, first),
    ).fetchall()
    for row_id, kind, level, low, high, body in rows:
        within = low >= first and high <= last
        if kind == TENSORS and not within:
            continue  # another chunk's: they are not joined
        left = None if within else cut_out(body, first, last)
        if left is not None:
            _insert(connection, (*place, kind, level, low, high, left))
        connection.execute("DELETE FROM rollup WHERE id = ?", (row_id,))


def pieces_between(
    connection: sqlite3.Connection,
    place: Place,
    metric: str,
    tensor: int | None,
    *,
    span: Span,
    cache: PieceCache,
) -> Pieces:
    """Pieces of a metric that touch the span, row by row, the rows in step order."""
    # One row of text: every row that is fetched lets go of the interpreter, and under load
    # getting it back takes milliseconds.
    (listed,) = connection.execute(
        "SELECT group_concat(id) FROM (SELECT id FROM rollup WHERE run_id = ? AND stream_id = ? "
        "AND tensor = ? AND first_step <= ? AND last_step >= ? ORDER BY first_step)",
        (*place, RUN if tensor is None else TENSORS, span[1], span[0]),
    ).fetchone()
    rows = [int(row) for row in listed.split(",")] if listed else []

    def load(row: int) -> Pieces:
        found = connection.execute("SELECT body FROM rollup WHERE id = ?", (row,)).fetchone()
        if found is None:
            raise Moved
        if tensor is None:
            return run_pieces(found[0], metric)
        return tensor_pieces(found[0], metric, tensor, numel)

    numel = 1 if tensor is None else _numel(connection, *place, tensor)
    return cache.pieces((*place, metric, tensor), rows, load)


def _numel(connection: sqlite3.Connection, run_id: int, stream_id: int, tensor: int) -> int:
    (digest,) = connection.execute(
        "SELECT manifest FROM stream WHERE id = ?", (stream_id,)
    ).fetchone()
    manifest = load_manifest(connection, run_id, digest)
    if manifest is None or tensor >= len(manifest.tensors):
        return 1
    return manifest.tensors[tensor].numel


def _insert(
    connection: sqlite3.Connection, row: tuple[int, int, int, int, int, int, bytes]
) -> None:
    # Left to itself SQLite gives the id of the newest row again once that row is deleted.
    connection.execute(
        "INSERT INTO rollup (id, run_id, stream_id, tensor, level, first_step, last_step, body) "
        "VALUES (max(?, (SELECT coalesce(max(id), 0) + 1 FROM rollup)), ?, ?, ?, ?, ?, ?, ?)",
        (time.time_ns(), *row),
    )
