"""What happens, told to those who listen: bounded queues between commits and event streams."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gradwatch_service.store.base import Commit

__all__ = ["Event", "EventHub", "Subscription", "TooManySubscribersError"]

QUEUE_LENGTH = 256


class TooManySubscribersError(RuntimeError):
    """Every place for a listener is taken."""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened to a run.

    Attributes:
        name: ``steps``, ``incident``, ``threshold``, ``state`` or ``finished``.
        run: Run id.
        data: What to tell, as JSON can say it.
    """

    name: str
    run: str
    data: Any


class Subscription:
    """One listener's queue. A listener that is too slow loses the oldest events, counted."""

    def __init__(self, run: str, loop: asyncio.AbstractEventLoop) -> None:
        self.run = run
        self.dropped = 0
        self._loop = loop
        self._queue: asyncio.Queue[Event | None] = asyncio.Queue(QUEUE_LENGTH)

    def put(self, event: Event | None) -> None:
        """Hand over an event, or None for the end, from any thread."""
        try:
            self._loop.call_soon_threadsafe(self._put, event)
        except RuntimeError:
            self.dropped += 1  # the loop is closed: nobody listens any more

    def _put(self, event: Event | None) -> None:
        while self._queue.full():
            self._queue.get_nowait()
            self.dropped += 1
        self._queue.put_nowait(event)

    async def get(self) -> Event | None:
        """Wait for the next event; None is the end."""
        return await self._queue.get()


class EventHub:
    """Passes events from threads to event streams. Never blocks who publishes.

    Args:
        limit: Listeners at a time.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._open: dict[int, Subscription] = {}
        self._closed = False

    def __len__(self) -> int:
        """Return the number of listeners."""
        return len(self._open)

    def subscribe(self, run: str) -> Subscription:
        """Listen to a run, on the running event loop.

        Raises:
            TooManySubscribersError: Every place is taken, or the service is stopping.
        """
        subscription = Subscription(run, asyncio.get_running_loop())
        with self._lock:
            if self._closed or len(self._open) >= self._limit:
                raise TooManySubscribersError
            self._open[id(subscription)] = subscription
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """Stop listening. Safe to repeat."""
        with self._lock:
            self._open.pop(id(subscription), None)

    def publish(self, event: Event) -> None:
        """Tell every listener of the event's run, from any thread."""
        if not self._open:
            return
        with self._lock:
            listeners = [s for s in self._open.values() if s.run == event.run]
        for subscription in listeners:
            subscription.put(event)

    def committed(self, commits: Sequence[Commit]) -> None:
        """Publish what a transaction stored."""
        if not self._open:
            return
        for commit in commits:
            event = _event(commit)
            if event is not None:
                self.publish(event)

    def close(self) -> None:
        """End every stream; nobody can listen afterwards."""
        with self._lock:
            self._closed = True
            listeners = list(self._open.values())
        for subscription in listeners:
            subscription.put(None)


def _event(commit: Commit) -> Event | None:
    if commit.kind == "finished":
        return Event("finished", commit.run, {"status": commit.status})
    if commit.rows is None or not len(commit.rows):
        return None
    steps = commit.rows.steps
    data = {
        "attempt": commit.attempt,
        "optimizer": commit.optimizer,
        "rank": commit.rank,
        "first_step": int(steps[0]),
        "last_step": int(steps[-1]),
        "steps": len(steps),
    }
    return Event("steps", commit.run, data)
