"""Rows of one stream as they were committed: taken in without being read, where they are all there is."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace

from gradwatch_service.rows import StepRows
from gradwatch_service.store.base import Stream
from gradwatch_service.store.layout import join

__all__ = ["Fresh"]


class Fresh:
    """What was committed of a stream since the last tick.

    Whether that is everything above the position is told by counting: a stream's steps are those
    taken in and those here, or else something is stored that is not here. Then the store is read,
    as after a restart, until all is taken in again.
    """

    def __init__(self) -> None:
        self._parts: list[StepRows] = []
        self._taken: int | None = None  # steps of the stream up to the position; None: not known

    def add(self, rows: StepRows, position: int) -> None:
        """Keep rows that follow what is here; what does not is missed, and read from the store."""
        last = int(self._parts[-1].steps[-1]) if self._parts else position
        if int(rows.steps[0]) > last:
            self._parts.append(rows)

    def is_all(self, stream: Stream, position: int) -> bool:
        """Whether the stream has no other step above the position than those here."""
        if self._taken is None or not self._parts or int(self._parts[0].steps[0]) <= position:
            return False
        return stream.steps == self._taken + sum(map(len, self._parts))

    def take(
        self, end: int, limit: int | None, columns: Collection[str] | None, *, histograms: bool
    ) -> list[StepRows]:
        """Hand over rows up to ``end``, at most ``limit``, as :meth:`Store.read` would."""
        taken = [
            replace(
                rows,
                tensors={n: v for n, v in rows.tensors.items() if columns is None or n in columns},
                histograms=rows.histograms if histograms else (),
            )
            for rows in self._up_to(end, 2**62 if limit is None else limit)
        ]
        if self._taken is not None:
            self._taken += sum(map(len, taken))
        return list(_joined(taken))

    def forget(self) -> None:
        """Let go of everything: the store is read instead, or the position went back."""
        self._parts, self._taken = [], None

    def settle(self, stream: Stream, position: int) -> None:
        """End a tick: what is left waits in the store; what was taken in is counted anew if need be."""
        if self._parts:
            self.forget()
        elif self._taken is None and stream.last_step is not None and position >= stream.last_step:
            self._taken = stream.steps

    def _up_to(self, end: int, left: int) -> Iterator[StepRows]:
        while self._parts and left > 0:
            rows = self._parts.pop(0)
            number = min(left, int(rows.steps.searchsorted(end, side="right")))
            if number < len(rows):
                self._parts.insert(0, rows.cut(number, len(rows)))
                left = 0
            if number:
                yield rows.cut(0, number)
            left -= number


def _joined(parts: list[StepRows]) -> Iterator[StepRows]:
    """Neighbours of the same columns as one: many small blocks cost more than a large one."""
    alike: list[StepRows] = []
    for rows in parts:
        if alike and (
            rows.manifest is not alike[0].manifest or rows.tensors.keys() != alike[0].tensors.keys()
        ):
            yield join(alike)
            alike = []
        alike.append(rows)
    if alike:
        yield join(alike)
