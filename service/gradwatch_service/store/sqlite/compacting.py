"""From many deliveries to a chunk: read and encoded here, written by the one writer in a slice."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gradwatch_service.rows import StepRows
from gradwatch_service.store.rollups import PIECE_STEPS, run_rollup, tensor_rollup
from gradwatch_service.store.sqlite.appending import let_go
from gradwatch_service.store.sqlite.chunks import PackedChunk, pack_chunk
from gradwatch_service.store.sqlite.reading import Piece, Reader, Selection
from gradwatch_service.store.sqlite.rollup_rows import RUN, TENSORS, add_rollup, remove_span

__all__ = ["Slice", "StreamKey", "chunk_steps", "plan", "read_slice", "write_slice"]

# About 2.5 MB to a transaction: an acknowledgement that has to wait for one waits a few ms.
CHUNK_SAMPLES = 2**20
MIN_STEPS, MAX_STEPS = PIECE_STEPS, 4096
MAX_OVERLAP = 8
ALL = Selection()


@dataclass(frozen=True, slots=True)
class StreamKey:
    """A stream by the store's own numbers, and what its rows are called by."""

    run_id: int
    stream_id: int
    identity: tuple[int, str, int]


@dataclass(frozen=True, slots=True)
class Slice:
    """What one transaction is to put in the place of some pieces."""

    key: StreamKey
    pieces: tuple[Piece, ...]
    manifest: str
    chunk: PackedChunk
    run_rollup: bytes
    tensor_rollup: bytes | None


def chunk_steps(tensors: int, columns: int) -> int:
    """Steps to a chunk: a power of two that keeps it near :data:`CHUNK_SAMPLES`."""
    wanted = CHUNK_SAMPLES // max(1, tensors * columns)
    return min(MAX_STEPS, max(MIN_STEPS, 1 << max(0, wanted.bit_length() - 1)))


def plan(reader: Reader, limit: Callable[[Piece], int], *, quiet: bool) -> list[Piece]:
    """The pieces that the next chunk is to replace; none when there is nothing to do yet.

    Deliveries in step order until a chunk is full, with every chunk that they overlap and, when
    that one is small, the chunk right before them.
    """
    hot = reader.hot(ALL)
    if not hot:
        return []
    enough = limit(hot[0])
    cold = reader.cold(Selection(start=hot[0].first, end=max(piece.last for piece in hot)))
    taken: list[Piece] = []
    steps = 0
    for piece in hot:
        if steps >= enough:
            break
        if sum(p.steps for p in _overlapped([piece], cold)) > MAX_OVERLAP * enough:
            continue  # steps strewn over a whole run: merging it with all of that is not worth it
        taken.append(piece)
        steps += piece.steps
    if not taken or (steps < enough and not quiet):
        return []
    before = reader.chunk_before(taken[0].first)
    if before is not None and before.steps + steps <= enough:
        taken.append(before)
    return sorted(_with_overlaps(taken, cold), key=lambda piece: (piece.first, piece.last))


def read_slice(reader: Reader, key: StreamKey, pieces: Sequence[Piece], manifest: str) -> Slice:
    """Read and pack; the costly part, and it holds no lock.

    Raises:
        Moved: A piece is not there any more.
    """
    rows, order = reader.load(pieces, ALL)
    return Slice(
        key=key,
        pieces=tuple(pieces),
        manifest=manifest,
        chunk=pack_chunk(rows, order),
        run_rollup=run_rollup(rows),
        tensor_rollup=_tensor_rollup(rows),
    )


def write_slice(connection: sqlite3.Connection, made: Slice) -> bool:
    """Put the chunk in the pieces' place; part of the writer's transaction.

    Returns:
        Whether it was done; False when a piece is not as it was read.
    """
    run_id, stream_id = made.key.run_id, made.key.stream_id
    hot = [piece.id for piece in made.pieces if not piece.cold]
    cold = [piece for piece in made.pieces if piece.cold]
    if not _still_there(connection, hot, [piece.id for piece in cold]):
        return False
    for piece in cold:
        connection.execute("DELETE FROM chunk WHERE id = ?", (piece.id,))
        connection.execute(
            "DELETE FROM chunk_tensor WHERE run_id = ? AND chunk_id = ?", (run_id, piece.id)
        )
        # Piece by piece: between two of them may lie one whose roll-ups are all that is left of it.
        remove_span(connection, (run_id, stream_id), (piece.first, piece.last))
    chunk = made.chunk
    cursor = connection.execute(
        "INSERT INTO chunk (run_id, stream_id, first_step, last_step, steps, manifest, made_at, "
        "body) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            run_id,
            stream_id,
            chunk.first_step,
            chunk.last_step,
            chunk.steps,
            made.manifest,
            time.time(),
            chunk.body,
        ),
    )
    connection.executemany(
        "INSERT INTO chunk_tensor (run_id, chunk_id, tensor, body) VALUES (?, ?, ?, ?)",
        ((run_id, cursor.lastrowid, tensor, body) for tensor, body in enumerate(chunk.tensors)),
    )
    let_go(connection, hot)
    span = (chunk.first_step, chunk.last_step)
    add_rollup(connection, (run_id, stream_id), RUN, span, made.run_rollup)
    if made.tensor_rollup is not None:
        add_rollup(connection, (run_id, stream_id), TENSORS, span, made.tensor_rollup)
    return True


def _with_overlaps(taken: Sequence[Piece], cold: Sequence[Piece]) -> list[Piece]:
    kept = list(dict.fromkeys(taken))
    grown = True
    while grown:
        more = [piece for piece in _overlapped(kept, cold) if piece not in kept]
        kept += more
        grown = bool(more)
    return kept


def _overlapped(pieces: Sequence[Piece], cold: Sequence[Piece]) -> list[Piece]:
    first, last = min(p.first for p in pieces), max(p.last for p in pieces)
    return [p for p in cold if p.first <= last and p.last >= first]


def _tensor_rollup(rows: StepRows) -> bytes | None:
    return tensor_rollup(rows) if rows.manifest.tensors and rows.tensors else None


def _still_there(connection: sqlite3.Connection, hot: Sequence[int], cold: Sequence[int]) -> bool:
    found = all(
        connection.execute(
            "SELECT 1 FROM delivery WHERE id = ? AND payload IS NOT NULL", (piece_id,)
        ).fetchone()
        for piece_id in hot
    )
    return found and all(
        connection.execute(
            "SELECT 1 FROM chunk WHERE id = ? AND detail = 1", (chunk_id,)
        ).fetchone()
        for chunk_id in cold
    )
