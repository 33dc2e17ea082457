"""One quantity over a stream: single steps where they are few or fresh, roll-ups elsewhere."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from gradwatch_service.queries.series import Pieces
from gradwatch_service.rows import StepRows
from gradwatch_service.store.rollups import PIECE_STEPS
from gradwatch_service.store.sqlite.piece_cache import PieceCache
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
    connection: sqlite3.Connection,
    reader: Reader,
    place: tuple[int, int],
    wanted: Curve,
    cache: PieceCache,
) -> Iterator[StepRows | Pieces]:
    """Rows where single steps are to be shown, pieces of up to 64 steps elsewhere, in any order."""
    span = (wanted.selection.start or 0, _or(wanted.selection.end, 2**62))
    between = partial(pieces_between, connection, place, wanted.metric, wanted.tensor)
    steps = _steps(connection, place, span)
    if steps > max(FEW_STEPS, wanted.points * PIECE_STEPS // 4):
        # Deliveries before roll-ups, as in Reader.list.
        hot = reader.hot(wanted.selection)
        pieces = between(span=span, cache=cache)
        yield _kept(pieces, (pieces.start >= span[0]) & (pieces.end <= span[1]))
        yield from reader.read_pieces(hot, wanted.selection)
        yield from _edges(reader, wanted.selection, pieces, span)
        return
    dropped = _dropped(connection, place, span)
    yield from reader.read(wanted.selection)
    if not dropped:
        return
    pieces = between(span=span, cache=cache)
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
    if mask.all():
        return pieces
    return Pieces(*(getattr(pieces, name)[mask] for name in Pieces.__slots__))


def _steps(connection: sqlite3.Connection, place: tuple[int, int], span: tuple[int, int]) -> int:
    """Single steps that are kept in the span; whole chunks and deliveries are counted."""
    where = "run_id = ? AND stream_id = ? AND first_step <= ? AND last_step >= ?"
    bounds = (*place, span[1], span[0])
    (steps,) = connection.execute(
        "SELECT (SELECT coalesce(sum(steps), 0) FROM delivery "  # noqa: S608 - constant text
        f"WHERE payload IS NOT NULL AND partial IS NULL AND {where}) "
        f"+ (SELECT coalesce(sum(steps), 0) FROM chunk WHERE detail = 1 AND {where})",
        bounds * 2,
    ).fetchone()
    return int(steps)


def _dropped(
    connection: sqlite3.Connection, place: tuple[int, int], span: tuple[int, int]
) -> list[tuple[int, int]]:
    return connection.execute(
        "SELECT first_step, last_step FROM chunk WHERE run_id = ? AND stream_id = ? "
        "AND detail = 0 AND first_step <= ? AND last_step >= ?",
        (*place, span[1], span[0]),
    ).fetchall()


def _or(value: int | None, default: int) -> int:
    return default if value is None else value
