"""Decoded roll-ups, kept for the next question: decoding them is most of what a long curve costs."""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from gradwatch_service.queries.series import Pieces, joined

__all__ = ["CurveKey", "PieceCache"]

MOST_BYTES = 16 * 2**20
ROW_BYTES = 200  # what remembering one row takes beside its pieces
CurveKey = tuple[int, int, str, int | None]  # run, stream, metric, tensor
Bounds = dict[int, tuple[int, int]]  # row id to where its pieces begin and end


@dataclass(frozen=True, slots=True)
class _Held:
    """Pieces of some roll-up rows, one row after the other."""

    pieces: Pieces
    bounds: Bounds
    size: int


class PieceCache:
    """Pieces of roll-up rows by curve; the curves used longest ago go first.

    A row never changes and its id is never given again (:mod:`.rollup_rows`), so nothing kept here
    can be out of date. Safe to share between threads.

    Args:
        most_bytes: Bytes of arrays kept; one curve takes half of them at most.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self._bytes = 0
        self._held: OrderedDict[CurveKey, _Held] = OrderedDict()

    def pieces(self, key: CurveKey, rows: Sequence[int], load: Callable[[int], Pieces]) -> Pieces:
        """The pieces of the rows, in their order; ``load`` decodes a row that is not held."""
        with self._lock:
            held = self._held.get(key)
            if held is not None:
                self._held.move_to_end(key)
        bounds: Bounds = held.bounds if held is not None else {}
        parts, lengths = [], []
        for known, group in itertools.groupby(rows, bounds.__contains__):
            if known and held is not None:
                spans = [bounds[row] for row in group]
                parts += [held.pieces.cut(*span) for span in _runs(spans)]
                lengths += [end - begin for begin, end in spans]
            else:
                loaded = [load(row) for row in group]
                parts += loaded
                lengths += map(len, loaded)
        whole = joined(parts, ordered=True)
        if not bounds.keys() >= set(rows):
            ends = itertools.accumulate(lengths, initial=0)
            self._keep(key, whole, dict(zip(rows, itertools.pairwise(ends), strict=True)))
        return whole

    def _keep(self, key: CurveKey, whole: Pieces, bounds: Bounds) -> None:
        size = whole.nbytes + ROW_BYTES * len(bounds)
        if size > self._most_bytes // 2:
            return
        with self._lock:
            before = self._held.pop(key, None)
            self._bytes += size - (before.size if before is not None else 0)
            self._held[key] = _Held(whole, bounds, size)
            while self._bytes > self._most_bytes:
                _, gone = self._held.popitem(last=False)
                self._bytes -= gone.size


def _runs(spans: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The spans with those that touch made one: mostly all of them are."""
    begin, end = spans[0]
    for low, high in spans[1:]:
        if low != end:
            yield begin, end
            begin = low
        end = high
    yield begin, end
