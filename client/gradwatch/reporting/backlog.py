"""Deliveries on their way: kept in order until each is acknowledged or given up."""

from collections import Counter, deque

from gradwatch.reporting.delivery import Delivery, emptied
from gradwatch.reporting.spool import Spool
from gradwatch_wire import Manifest

__all__ = ["Backlog"]

MAX_BYTES = 32 * 2**20
MAX_DELIVERIES = 4096


class Backlog:
    """A bounded queue: in memory while the service answers, in the spool while it does not.

    When there is no room the oldest steps go first, since a monitor is asked about the newest; an
    empty delivery that counts them stands in their place.

    Args:
        rank: Whose deliveries these are.
        spool: Where they lie while the service is away; None: in memory too.
        max_bytes: Bytes of bodies that memory may hold.
    """

    def __init__(self, rank: int, spool: Spool | None = None, max_bytes: int = MAX_BYTES) -> None:
        self._rank = rank
        self._max_bytes = max_bytes
        self._front: Delivery | None = None  # stands in the place of the head
        self._memory: deque[Delivery] = deque()
        self._emptied: deque[Delivery] = deque()  # older than everything in memory
        self._nbytes = 0
        self._retreated = False
        self.spool = spool

    def __len__(self) -> int:
        return self.spooled + len(self._emptied) + len(self._memory)

    @property
    def steps(self) -> int:
        """Steps that wait."""
        spooled = 0 if self.spool is None else self.spool.steps
        return spooled + sum(delivery.steps for delivery in self._memory)

    @property
    def full(self) -> bool:
        """Whether there is no room even for deliveries without steps."""
        return len(self._emptied) + len(self._memory) >= MAX_DELIVERIES

    @property
    def spooled(self) -> int:
        """Deliveries in the spool."""
        return 0 if self.spool is None else len(self.spool)

    def introduce(self, manifest: Manifest) -> None:
        """Take a manifest that deliveries will name."""
        if self.spool is not None:
            self.spool.introduce(manifest)

    def append(self, delivery: Delivery) -> Counter[str]:
        """Add the newest delivery; the steps that were dropped for it, by reason."""
        if self._retreated and self.spool is not None:
            dropped = self.spool.append(delivery)
            if dropped is not None:
                return dropped
        self._memory.append(delivery)
        self._nbytes += len(delivery.body)
        return self._keep_within_memory()

    def retreat(self) -> Counter[str]:
        """The service is away: put everything into the spool; the steps dropped for it."""
        dropped: Counter[str] = Counter()
        if self._retreated or self.spool is None:
            return dropped
        self._retreated = True
        waiting = [*self._emptied, *self._memory]
        self._emptied.clear()
        self._memory.clear()
        self._nbytes = 0
        for delivery in waiting:
            dropped += self.append(delivery)
        return dropped

    def head(self) -> Delivery | None:
        """The oldest delivery, to be sent next."""
        if self._front is not None:
            return self._front
        if self.spool is not None and (spooled := self.spool.head()) is not None:
            return spooled
        if self._emptied:
            return self._emptied[0]
        return self._memory[0] if self._memory else None

    def pop(self) -> None:
        """The head was acknowledged, or can never be."""
        self._front = None
        if self.spool is not None and len(self.spool):
            self.spool.pop()
            self._retreated = len(self.spool) > 0
        elif self._emptied:
            self._emptied.popleft()
        else:
            self._nbytes -= len(self._memory.popleft().body)

    def empty_head(self, reason: str) -> int:
        """Put an empty delivery in the place of the head; how many steps that drops."""
        head = self.head()
        if head is None:
            return 0
        self._front = emptied(head, self._rank, reason)
        return head.steps

    def _keep_within_memory(self) -> Counter[str]:
        dropped: Counter[str] = Counter()
        while self._nbytes > self._max_bytes and len(self._memory) > 1:
            oldest = self._memory.popleft()
            self._nbytes -= len(oldest.body)
            dropped["buffer_full"] += oldest.steps
            self._emptied.append(emptied(oldest, self._rank, "buffer_full"))
        return dropped
