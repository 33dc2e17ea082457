"""Deliveries on their way: kept in order until each is acknowledged or given up."""

from collections import Counter, deque
from collections.abc import Mapping

from gradwatch.reporting.delivery import Delivery, empty

__all__ = ["Backlog"]

MAX_BYTES = 32 * 2**20
MAX_DELIVERIES = 4096


class Backlog:
    """A bounded queue in memory.

    When it is full the oldest steps go first, since a monitor is asked about the newest; an empty
    delivery that counts them stands in their place, so that the sequence has no gap.

    Args:
        rank: Whose deliveries these are.
        max_bytes: Bytes of bodies it may hold.
    """

    def __init__(self, rank: int, max_bytes: int = MAX_BYTES) -> None:
        self._rank = rank
        self._max_bytes = max_bytes
        self._waiting: deque[Delivery] = deque()
        self._dropped: deque[Delivery] = deque()
        self._nbytes = 0

    def __len__(self) -> int:
        return len(self._dropped) + len(self._waiting)

    @property
    def steps(self) -> int:
        """Steps that wait."""
        return sum(delivery.steps for delivery in self._waiting)

    @property
    def full(self) -> bool:
        """Whether even without their steps there is no room for more deliveries."""
        return len(self) >= MAX_DELIVERIES

    def append(self, delivery: Delivery) -> Counter[str]:
        """Add the newest delivery; the steps that were dropped for it, by reason."""
        self._waiting.append(delivery)
        self._nbytes += len(delivery.body)
        dropped: Counter[str] = Counter()
        while self._nbytes > self._max_bytes and len(self._waiting) > 1:
            oldest = self._waiting.popleft()
            self._nbytes -= len(oldest.body)
            dropped["buffer_full"] += oldest.steps
            self._dropped.append(emptied(oldest, self._rank, "buffer_full"))
        return dropped

    def head(self) -> Delivery | None:
        """The oldest delivery, to be sent next."""
        if self._dropped:
            return self._dropped[0]
        return self._waiting[0] if self._waiting else None

    def pop(self) -> None:
        """The head was acknowledged, or can never be."""
        if self._dropped:
            self._dropped.popleft()
        else:
            self._nbytes -= len(self._waiting.popleft().body)

    def empty_head(self, reason: str) -> int:
        """Put an empty delivery in the place of the head; how many steps that drops."""
        head = self.head()
        if head is None:
            return 0
        self.pop()
        self._dropped.appendleft(emptied(head, self._rank, reason))
        return head.steps


def emptied(delivery: Delivery, rank: int, reason: str) -> Delivery:
    """The empty delivery that stands for one whose steps were dropped."""
    counts: Mapping[str, int] = Counter(delivery.dropped) + Counter({reason: delivery.steps})
    return empty(delivery, rank, counts)
