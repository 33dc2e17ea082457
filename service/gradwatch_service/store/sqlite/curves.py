"""One quantity over a stream: single steps where they are few or fresh, roll-ups elsewhere."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gradwatch_service.queries.series import Pieces, joined
from gradwatch_service.rows import StepRows
from gradwatch_service.store.rollups import PIECE_STEPS
from gradwatch_service.store.sqlite.reading import Reader, Selection
from gradwatch_service.store.sqlite.rollup_rows import pieces_between

__all__ = ["Curve", "curve"]

FEW_STEPS = 4096


@dataclass(frozen=True, slots=True)
class Curve:
    """What is asked for; see :meth:`Store.curve`."""

    metric: str
    tensor: int | None
    points: int
    selection: Selection


def curve(
    connection: sqlite3.Connection, reader: Reader, run_id: int, stream_id: int, wanted: Curve
) -> Iterator[StepRows | Pieces]:
    """Rows where single steps are to be shown, pieces of up to 64 steps elsewhere, in any order."""
    span = (wanted.selection.start or 0, _or(wanted.selection.end, 2**62))
    listed = reader.list(wanted.selection)
    steps = sum(piece.steps for piece in listed)
    coarse = steps > max(FEW_STEPS, wanted.points * PIECE_STEPS // 4)
    dropped = _dropped(connection, run_id, stream_id, span)
    if not coarse:
        yield from reader.read(wanted.selection)
    if not coarse and not dropped:
        return
    place = (run_id, stream_id)
    pieces = joined(pieces_between(connection, place, wanted.metric, wanted.tensor, span))
    inside = (pieces.start >= span[0]) & (pieces.end <= span[1])
    if coarse:
        hot = [piece for piece in listed if not piece.cold]
        yield _kept(pieces, inside)
        for piece in hot:
            rows = reader.load([piece], wanted.selection)[0]
            cut = reader.within(rows, wanted.selection)
            if cut is not None:
                yield cut
        yield from _edges(reader, wanted.selection, pieces, span)
        return
    gone = np.zeros(len(pieces), dtype=bool)
    for first, last in dropped:
        gone |= (pieces.start >= first) & (pieces.end <= last)
    touching = (pieces.start <= span[1]) & (pieces.end >= span[0])
    yield _kept(pieces, gone & touching)


def _edges(
    reader: Reader, selection: Selection, pieces: Pieces, span: tuple[int, int]
) -> Iterator[StepRows | Pieces]:
    """What the span cuts of a piece at either end: its single steps, or all of it without them."""
    for index in np.flatnonzero(
        ((pieces.start < span[0]) & (pieces.end >= span[0]))
        | ((pieces.end > span[1]) & (pieces.start <= span[1]))
    ).tolist():
        low = max(span[0], int(pieces.start[index]))
        high = min(span[1], int(pieces.end[index]))
        rows = list(reader.read_cold(replace(selection, start=low, end=high)))
        if rows:
            yield from rows
        else:
            chosen = np.zeros(len(pieces), dtype=bool)
            chosen[index] = True
            yield _kept(pieces, chosen)


def _kept(pieces: Pieces, mask: NDArray[np.bool_]) -> Pieces:
    return Pieces(*(getattr(pieces, name)[mask] for name in Pieces.__slots__))


def _dropped(
    connection: sqlite3.Connection, run_id: int, stream_id: int, span: tuple[int, int]
) -> list[tuple[int, int]]:
    return connection.execute(
        "SELECT first_step, last_step FROM chunk WHERE run_id = ? AND stream_id = ? "
        "AND detail = 0 AND first_step <= ? AND last_step >= ?",
        (run_id, stream_id, span[1], span[0]),
    ).fetchall()


def _or(value: int | None, default: int) -> int:
    return default if value is None else value
