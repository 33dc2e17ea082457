"""Answers as they were sent, for whoever asks the same again before the run has changed."""

from __future__ import annotations

import itertools
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from gradwatch_service.store.base import Commit, RunRecord

__all__ = ["Answer", "Remembered"]

# What an answer says may also change by the clock alone: a report turns stale, detail is let go.
SECONDS = 10.0
MOST_BYTES = 8 * 2**20
LARGEST_BYTES = 2**20
MOST_RECORDS = 512


@dataclass(frozen=True, slots=True)
class Answer:
    """What a question was answered: bytes and the headers that describe them."""

    body: bytes
    tag: str
    cache_control: str


class Remembered:
    """The newest answers about runs, until their run changes. Safe to share between threads.

    Listens to commits and to the analyser: every change of a run gives it another version, and an
    answer is given again only at the version that it was made from. Read the version first, then
    answer, then :meth:`keep`: what changes meanwhile is never missed.

    Args:
        clock: Seconds that never go back.
        most_bytes: Bodies kept; the one asked for longest ago goes first.
    """

    def __init__(
        self, *, clock: Callable[[], float] = time.monotonic, most_bytes: int = MOST_BYTES
    ) -> None:
        self._clock = clock
        self._most_bytes = most_bytes
        self._numbers = itertools.count(1)
        self._versions: dict[str, int] = {}
        self._lock = threading.Lock()
        self._bytes = 0
        self._held: OrderedDict[Hashable, tuple[int, float, Answer]] = OrderedDict()
        self._records: OrderedDict[str, tuple[int, float, RunRecord]] = OrderedDict()

    def version(self, run: str) -> int:
        """A number that no other state of the run has or will have."""
        return self._versions.get(run, 0)

    def find(self, key: Hashable, version: int) -> Answer | None:
        """The answer kept under the key at this version, if it is not too old."""
        with self._lock:
            held = self._held.get(key)
            if held is None or held[0] != version or self._clock() >= held[1]:
                return None
            self._held.move_to_end(key)
            return held[2]

    def keep(self, key: Hashable, version: int, answer: Answer) -> None:
        """Keep an answer that was made after the version was read."""
        if len(answer.body) > LARGEST_BYTES:
            return
        with self._lock:
            before = self._held.pop(key, None)
            if before is not None:
                self._bytes -= len(before[2].body)
            self._held[key] = (version, self._clock() + SECONDS, answer)
            self._bytes += len(answer.body)
            while self._bytes > self._most_bytes:
                _, (_, _, gone) = self._held.popitem(last=False)
                self._bytes -= len(gone.body)

    def find_record(self, run: str, version: int) -> RunRecord | None:
        """The run as it was read at this version, if that is not too long ago."""
        held = self._records.get(run)
        if held is None or held[0] != version or self._clock() >= held[1]:
            return None
        return held[2]

    def keep_record(self, record: RunRecord, version: int) -> None:
        """Keep a run that was read after the version was."""
        with self._lock:
            self._records[record.run] = (version, self._clock() + SECONDS, record)
            self._records.move_to_end(record.run)
            if len(self._records) > MOST_RECORDS:
                self._records.popitem(last=False)

    def committed(self, commits: Sequence[Commit]) -> None:
        """Note what was stored."""
        for commit in commits:
            self._versions[commit.run] = next(self._numbers)

    def analysed(self, run: str, snapshot: Any) -> None:  # noqa: ARG002 - a listener's signature
        """Note that analysis says something new of a run."""
        self._versions[run] = next(self._numbers)
