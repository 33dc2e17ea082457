"""Answers that stay right until the run changes, kept for those who ask again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

__all__ = ["Memo"]

Value = TypeVar("Value")


class Memo(Generic[Value]):
    """The newest answers by key; bounded, safe to share between threads.

    Args:
        limit: Answers kept; the one asked for longest ago goes first.
    """

    def __init__(self, limit: int = 256) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._held: OrderedDict[Hashable, tuple[int, Value]] = OrderedDict()

    def get(self, key: Hashable, revision: int, make: Callable[[], Value]) -> Value:
        """The answer for this revision; ``make`` is called when it is not held."""
        with self._lock:
            held = self._held.get(key)
            if held is not None and held[0] == revision:
                self._held.move_to_end(key)
                return held[1]
        value = make()
        with self._lock:
            self._held[key] = (revision, value)
            self._held.move_to_end(key)
            while len(self._held) > self._limit:
                self._held.popitem(last=False)
        return value
