"""Ranks that change a threshold on the same step, or not at all, without a collective."""

import json
from dataclasses import dataclass
from typing import Any

from gradwatch.advice import Advice
from gradwatch.console import LogOnce
from gradwatch.identity import RankStore

__all__ = ["Agreement"]


@dataclass(slots=True)
class Agreement:
    """Carries rank 0's decisions to every rank through the process group's key-value store.

    Replicas that clip with different thresholds drift apart for ever, and a collective in the hook
    hangs as soon as one rank leaves a step out. So a decision takes two boundaries: rank 0 writes
    it at boundary n, every rank reads and acknowledges it at n + 1, every rank counts the
    acknowledgements at n + 2 and applies it only if all are there. Data-parallel ranks are never a
    whole step apart, so by then the count is final and the same for all. When anything is
    missing, every rank sees that at the same boundary and keeps its threshold from then on.
    Nothing here waits for another rank.

    Args:
        store: The default process group's store.
        prefix: Keys of this job start and optimizer begin with it.
        rank: This rank.
        world_size: Number of ranks.
        log: Tells trouble once.
    """

    store: RankStore
    prefix: str
    rank: int
    world_size: int
    log: LogOnce
    frozen: bool = False
    _first: int | None = None
    _pending: tuple[int, Advice | None] | None = None
    _leaving: str | None = None

    def exchange(self, boundary: int, decision: Advice | None) -> Advice | None:
        """Take part in one boundary; every rank calls this with the same ``boundary``.

        Args:
            boundary: Number of the boundary, counting up by one.
            decision: What rank 0 wants from boundary + 2 on; None leaves things as they are.

        Returns:
            What all ranks apply now, or None.
        """
        if self.frozen:
            return None
        self._first = boundary if self._first is None else self._first
        pending, self._pending = self._pending, None
        if pending is not None and not self._all_have(pending[0]):
            self._freeze(boundary, self._leaving or "not every rank acknowledged the last change")
            return None
        if self._leaving is not None:
            self._freeze(boundary, self._leaving)
        else:
            self._take_part(boundary, decision)
        return None if pending is None else pending[1]

    def _take_part(self, boundary: int, decision: Advice | None) -> None:
        try:
            if boundary > self._first_boundary:
                self._acknowledge(boundary - 1)
            if self.rank == 0:
                self._write(boundary, decision)
        except Exception as error:  # noqa: BLE001 - a lost store must not reach the training loop
            # What is acknowledged already is still settled, by count, at the next boundary.
            self._leaving = repr(error)

    @property
    def _first_boundary(self) -> int:
        return 0 if self._first is None else self._first

    def _write(self, boundary: int, decision: Advice | None) -> None:
        content: dict[str, Any] | None = None
        if decision is not None:
            content = {"threshold": decision.threshold, "version": decision.version}
        self.store.set(self._key(boundary), json.dumps(content))
        for old in (self._key(boundary - 4), self._key(boundary - 4) + "/read"):
            self.store.delete_key(old)

    def _acknowledge(self, boundary: int) -> None:
        key = self._key(boundary)
        if not self.store.check([key]):  # get() would wait
            raise LookupError(f"rank 0 has not written the decision of boundary {boundary}")
        content = json.loads(self.store.get(key))
        advice = None if content is None else Advice(content["threshold"], content["version"])
        self._pending = (boundary, advice)
        self.store.add(f"{key}/read", 1)

    def _all_have(self, boundary: int) -> bool:
        try:
            return self.store.add(f"{self._key(boundary)}/read", 0) == self.world_size
        except Exception as error:  # noqa: BLE001 - a lost store must not reach the training loop
            # The others can count; with one fault at a time they have all acknowledged.
            self._leaving = repr(error)
            return True

    def _key(self, boundary: int) -> str:
        return f"{self.prefix}/{boundary}"

    def _freeze(self, boundary: int, reason: str) -> None:
        self.frozen = True
        self.log(
            f"frozen {self.prefix}",
            f"recommended threshold: frozen on every rank from boundary {boundary} on: {reason}. The "
            "one in force stays.",
        )
