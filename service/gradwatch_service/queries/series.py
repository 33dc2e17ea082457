"""Series as min / mean / max per bucket, so that a spike is never averaged away."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Pieces", "bucketed", "joined", "rolled"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Pieces:
    """n consecutive pieces of a series; a single step is a piece of length one.

    Attributes:
        start: [n] first step of each, increasing.
        end: [n] last step of each.
        low: [n] least value of the steps that count; +inf where none does.
        total: [n] their sum.
        high: [n] greatest value; -inf where none does.
        count: [n] how many count: finite steps where it was measured.
        nonfinite: [n] gradient elements that were not finite, over all steps of the piece.
    """

    start: Integers
    end: Integers
    low: Floats
    total: Floats
    high: Floats
    count: Integers
    nonfinite: Floats

    def __len__(self) -> int:
        """Return the number of pieces."""
        return len(self.start)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(column.nbytes for column in _columns(self))

    def cut(self, begin: int, end: int) -> Pieces:
        """The pieces from ``begin`` up to ``end``, by place."""
        if begin == 0 and end == len(self):
            return self
        return Pieces(*(column[begin:end] for column in _columns(self)))

    @classmethod
    def of_steps(
        cls, steps: Integers, values: Floats, nonfinite: Floats, *, every_step: bool
    ) -> Pieces:
        """One piece per step.

        Args:
            steps: [n] steps.
            values: [n] values, NaN where not measured.
            nonfinite: [n] non-finite gradient elements.
            every_step: Whether a non-finite step counts like any other.
        """
        counts = np.isfinite(values)
        if not every_step:
            counts &= nonfinite == 0
        return cls(
            start=steps,
            end=steps,
            low=np.where(counts, values, np.inf),
            total=np.where(counts, values, 0.0),
            high=np.where(counts, values, -np.inf),
            count=counts.astype(np.int64),
            nonfinite=nonfinite,
        )


def joined(parts: Iterable[Pieces], *, ordered: bool = False) -> Pieces:
    """The pieces of all parts, by their first step; as they come with ``ordered``."""
    parts = [part for part in parts if len(part)]
    if not parts:
        whole, none = np.empty(0, np.int64), np.empty(0)
        return Pieces(whole, whole, none, none, none, whole, none)
    one = parts[0]
    if len(parts) > 1:
        columns = zip(*(_columns(part) for part in parts), strict=True)
        one = Pieces(*(np.concatenate(column) for column in columns))
    if ordered or bool((one.start[1:] > one.start[:-1]).all()):
        return one
    order = np.argsort(one.start, kind="stable")
    return Pieces(*(column[order] for column in _columns(one)))


def bucketed(pieces: Pieces, points: int) -> dict[str, NDArray[Any]]:
    """At most ``points`` buckets, with the fields of the REST answer; NaN is what becomes null.

    As many pieces as points or fewer: one bucket each. More: buckets of equally many step numbers,
    so that a stretch without steps stays visible as buckets with count 0.
    """
    if len(pieces) > points:
        pieces = _merged(pieces, points)
    counted = pieces.count > 0
    mean = np.divide(pieces.total, pieces.count, out=np.full(len(pieces), np.nan), where=counted)
    # Rounding of the sum must not push a mean out of its bucket.
    mean = np.clip(mean, pieces.low, pieces.high, out=mean, where=counted)
    return {
        "start_step": pieces.start,
        "end_step": pieces.end,
        "min": np.where(counted, pieces.low, np.nan),
        "mean": mean,
        "max": np.where(counted, pieces.high, np.nan),
        "count": pieces.count,
        "nonfinite_count": pieces.nonfinite.astype(np.int64),
    }


def rolled(pieces: Pieces, level: int) -> Pieces:
    """The pieces merged into ranges of ``level`` steps that begin at multiples of it.

    A range without a piece is left out. Rolling up in one go or in several gives the same.
    """
    if not len(pieces):
        return pieces
    return _grouped(pieces, pieces.start // level)


def _grouped(pieces: Pieces, group: Integers) -> Pieces:
    """One piece per run of equal group numbers, which increase."""
    at = np.flatnonzero(np.concatenate([[True], group[1:] != group[:-1]]))
    last = np.concatenate([at[1:], [len(group)]]) - 1
    return Pieces(
        start=pieces.start[at],
        end=pieces.end[last],
        low=np.minimum.reduceat(pieces.low, at),
        total=np.add.reduceat(pieces.total, at),
        high=np.maximum.reduceat(pieces.high, at),
        count=np.add.reduceat(pieces.count, at),
        nonfinite=np.add.reduceat(pieces.nonfinite, at),
    )


def _merged(pieces: Pieces, points: int) -> Pieces:
    """At most ``points`` buckets of about equal width in step numbers, empty ones included.

    Together they cover every step number from the first to the last; none cuts a piece in two.
    """
    first, last = int(pieces.start[0]), int(pieces.end[-1])
    longest = int((pieces.end - pieces.start).max()) + 1
    width = max(longest, -(-(last - first + 1) // points))
    bucket = (pieces.start - first) // width
    number = int(bucket[-1]) + 1
    full = _grouped(pieces, bucket)
    used = (full.start - first) // width
    starts = first + width * np.arange(number)
    starts[used] = full.start  # a piece belongs to one bucket, which therefore begins with it
    reached = _spread(full.end, used, number, -1.0).astype(np.int64)
    starts[1:] = np.maximum(starts[1:], np.maximum.accumulate(reached)[:-1] + 1)
    return Pieces(
        start=starts,
        end=np.append(starts[1:] - 1, last),
        low=_spread(full.low, used, number, np.inf),
        total=_spread(full.total, used, number, 0.0),
        high=_spread(full.high, used, number, -np.inf),
        count=_spread(full.count, used, number, 0).astype(np.int64),
        nonfinite=_spread(full.nonfinite, used, number, 0.0),
    )


def _spread(values: NDArray[Any], used: Integers, number: int, empty: float) -> Floats:
    placed = np.full(number, empty, np.float64)
    placed[used] = values
    return placed


def _columns(pieces: Pieces) -> tuple[NDArray[Any], ...]:
    return tuple(getattr(pieces, name) for name in Pieces.__slots__)
