"""How far an optimizer may be analysed: what is there, what is missing, how long that has been so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from gradwatch_service.store.base import Gap, Stream

__all__ = ["GapWatch", "Reach"]

RANK_WAIT_SECONDS: Final = 1.0  # a rank behind the others; more would break "seen within 3 s"
RANK_MISSING_SECONDS: Final = 45.0  # told within 60 s


@dataclass(frozen=True, slots=True)
class Reach:
    """Up to where rows may be taken in now.

    Attributes:
        end: Newest step to take in; -1 for none.
        certain_end: Newest step below which nothing can be missing.
        complete: Everything stored lies at or below ``end`` and nothing is missing.
        look_again: Clock reading at which waiting ends, or None when there is nothing to wait for.
    """

    end: int
    certain_end: int
    complete: bool
    look_again: float | None


@dataclass(slots=True)
class GapWatch:
    """Remembers since when something has been missing from one optimizer.

    Args:
        gap_seconds: How long a missing sequence is waited for.
    """

    gap_seconds: float
    _gap_since: dict[int, tuple[int, float]] = field(default_factory=dict)
    _behind_since: dict[int, tuple[int, float]] = field(default_factory=dict)

    def look(
        self, streams: Sequence[Stream], gaps: Mapping[int, Gap], optimizer: str, now: float
    ) -> Reach:
        """Return how far the analysis may go at ``now`` (any clock that does not go back).

        Args:
            streams: The streams that have steps, one per rank.
            gaps: Completeness of the deliveries of each rank.
            optimizer: The optimizer whose steps these are.
            now: Clock reading, seconds.
        """
        newest = max((s.last_step for s in streams if s.last_step is not None), default=-1)
        ends, sure, deadlines, whole = [], [], [], True
        for stream in streams:
            last = -1 if stream.last_step is None else stream.last_step
            certain, missing = _certain_end(gaps.get(stream.rank), optimizer, last)
            whole = whole and missing is None
            gap_over = self._over(self._gap_since, stream.rank, missing, self.gap_seconds, now)
            end = certain if gap_over is not None and gap_over > now else last
            behind = end if _overdue(stream, end, newest) else None
            wait = self._over(self._behind_since, stream.rank, behind, RANK_WAIT_SECONDS, now)
            deadlines += [due for due in (gap_over, wait) if due is not None and due > now]
            in_gap_wait = gap_over is not None and gap_over > now
            waits = in_gap_wait or (wait is not None and wait > now)
            # A rank that reports now and then has nothing to say up to its next report.
            ends.append(end if waits else newest)
            between = missing is None and not _overdue(stream, last, newest)
            sure.append(newest if between else certain)
        end = min(ends, default=-1)
        return Reach(
            end=end,
            certain_end=min(sure, default=-1),
            complete=end >= newest and whole,
            look_again=min(deadlines, default=None),
        )

    def look_at_shards(
        self, shards: Sequence[int], gaps: Mapping[int, Gap], optimizer: str, now: float
    ) -> None:
        """Watch ranks that only send their part of sharded tensors.

        Their steps count once combined, so a shard that stops shows in its deliveries alone.

        Args:
            shards: Ranks without steps of their own.
            gaps: Completeness of the deliveries of each rank.
            optimizer: The optimizer whose steps these are.
            now: Clock reading, seconds.
        """
        ends = {rank: gaps[rank].steps.get(optimizer, -1) for rank in shards if rank in gaps}
        newest = max((gap.steps.get(optimizer, -1) for gap in gaps.values()), default=-1)
        for rank, end in ends.items():
            behind = end if end < newest else None
            self._over(self._behind_since, rank, behind, RANK_MISSING_SECONDS, now)

    def missing(self, now: float) -> tuple[tuple[int, ...], float | None]:
        """Ranks that stopped while others went on, and when to look again.

        Call it after :meth:`look`.
        """
        ages = {rank: now - since for rank, (_, since) in self._behind_since.items()}
        gone = tuple(sorted(r for r, age in ages.items() if age >= RANK_MISSING_SECONDS))
        young = [age for age in ages.values() if age < RANK_MISSING_SECONDS]
        return gone, now + RANK_MISSING_SECONDS - max(young) if young else None

    @staticmethod
    def _over(
        since: dict[int, tuple[int, float]],
        rank: int,
        what: int | None,
        patience: float,
        now: float,
    ) -> float | None:
        """When the wait of a rank for ``what`` ends; None when it waits for nothing."""
        if what is None:
            since.pop(rank, None)
            return None
        if rank not in since or since[rank][0] != what:
            since[rank] = (what, now)
        return since[rank][1] + patience


def _overdue(stream: Stream, end: int, newest: int) -> bool:
    """Whether a rank has not reported what it usually would have by now.

    Ranks of replicated training report every few steps only; each is judged by its own stride.
    """
    if end >= newest:
        return False
    if stream.steps < 2 or stream.first_step is None or stream.last_step is None:
        return True
    stride = (stream.last_step - stream.first_step) / (stream.steps - 1)
    return end + stride <= newest


def _certain_end(gap: Gap | None, optimizer: str, last: int) -> tuple[int, int | None]:
    """Last step before any missing sequence, and that sequence; None when nothing is missing."""
    if gap is None or gap.highest <= gap.contiguous:
        return last, None
    return gap.steps.get(optimizer, -1), gap.contiguous + 1
