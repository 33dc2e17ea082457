"""Where snapshots of an analysis are kept in the store, and which of them are kept."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

__all__ = ["SnapshotKey", "superfluous"]

NEWEST_KEPT: Final = 8


class SnapshotKey(NamedTuple):
    """Names one snapshot: the state after ``position``. As text it sorts by attempt and position."""

    attempt: int
    optimizer: str
    position: int

    def text(self) -> str:
        """Key of the document."""
        return f"{self.attempt:06d}/{self.position:015d}/{self.optimizer}"

    @classmethod
    def parse(cls, text: str) -> SnapshotKey:
        """Read what :meth:`text` wrote; the optimizer's name may hold any character."""
        attempt, position, optimizer = text.split("/", 2)
        return cls(int(attempt), optimizer, int(position))


def superfluous(positions: Iterable[int], every: int) -> list[int]:
    """Return the positions that can go: all but the newest 8 and one per octave of age.

    So a run of a million steps keeps about twenty snapshots, and late data of any age replays at
    most about as many steps as it is old.
    """
    ordered = sorted(positions, reverse=True)
    kept_octaves: set[int] = set()
    gone = []
    for position in ordered[NEWEST_KEPT:]:
        octave = ((ordered[0] - position) // every).bit_length()
        if octave in kept_octaves:
            gone.append(position)
        kept_octaves.add(octave)
    return gone
