"""A thread of its own for each sink: another tracker may be slow, hang or fail as it likes."""

import queue
import threading
from collections.abc import Callable
from typing import Protocol

from gradwatch.console import LogOnce
from gradwatch.sinks.figures import Figures

__all__ = ["Mirror", "Sink"]

MOST_WAITING = 1024


class Sink(Protocol):
    """Where statistics are written beside the service. Called from one thread, never the training's."""

    def write(self, figures: Figures) -> None:
        """Write one step."""

    def close(self) -> None:
        """Nothing more comes."""


class Mirror:
    """Writes to one sink. What finds no room, or fails, is left out and said once.

    Args:
        sink: Where to.
    """

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._log_once = LogOnce()
        self._queue: queue.SimpleQueue[Figures | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="gradwatch-sink", daemon=True)
        self._thread.start()

    def put(self, figures: Figures) -> None:
        """Hand a step over; never waits."""
        if self._queue.qsize() < MOST_WAITING:
            self._queue.put(figures)
        else:
            self._log_once("full", f"{self._name} is too slow: steps are left out there.")

    def close(self, timeout: float) -> None:
        """Write what waits and close the sink, for ``timeout`` seconds at most."""
        # In the child of a fork the thread is not there, and the sink is its parent's.
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join(timeout)

    @property
    def _name(self) -> str:
        return f"sink {type(self._sink).__name__}"

    def _run(self) -> None:
        while (figures := self._queue.get()) is not None:
            self._call(self._sink.write, figures)
        self._call(self._sink.close)

    def _call(self, function: Callable[..., None], *arguments: Figures) -> None:
        try:
            function(*arguments)
        except Exception as error:  # noqa: BLE001 - whatever a tracker raises, training and reports go on
            told = f"{type(error).__name__}: {error}"
            self._log_once(told, f"{self._name} failed: {told}", error=error)
