"""How much is waiting to be stored, and when nothing more is let in."""

from __future__ import annotations

from gradwatch_service.problems import ServiceError

__all__ = ["Backlog"]

TYPICAL_BYTES = 256 * 1024  # what a client puts into one delivery


class Backlog:
    """Bytes that were let in and are not committed yet. Touched on the event loop alone.

    Args:
        limit: Bytes beyond which nothing more is let in.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes = 0
        self.reports = 0
        self.capacity = max(1, limit // TYPICAL_BYTES)

    def enter(self, size: int) -> None:
        """Let ``size`` bytes in.

        Raises:
            ServiceError: 429, the limit is reached.
        """
        # One body of any allowed size always fits into an empty queue.
        if self.reports and self.bytes + size > self.limit:
            raise ServiceError(
                429,
                "overload",
                f"{self.bytes} bytes in {self.reports} reports are waiting to be stored; "
                f"allowed: {self.limit}. Nothing of this report was stored; send it again later.",
                headers={"Retry-After": "1"},
            )
        self.bytes += size
        self.reports += 1

    def grow(self, size: int) -> None:
        """Count further bytes of what was let in."""
        self.bytes += size

    def leave(self, size: int) -> None:
        """Let go of what was counted for one body."""
        self.bytes -= size
        self.reports -= 1
