"""From the training thread to the background thread: bounded, without a lock or a wait."""

import queue
from contextlib import suppress
from typing import Any

from torch import Tensor

from gradwatch.reporting.sample import Sample
from gradwatch.reporting.slots import HostSlots

__all__ = ["Outbox"]

MAX_SAMPLES = 2048
MAX_BYTES = 32 * 2**20


class Outbox:
    """A queue with room for a fixed number of samples and bytes; what finds no room is counted.

    Each counter has one writer, so that none needs a lock.
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._slots: dict[tuple[Any, ...], HostSlots] = {}
        self._put_bytes = 0
        self._taken_bytes = 0
        self._overflow = 0
        self._overflow_told = 0

    @property
    def overflow(self) -> int:
        """Samples that found no room, ever."""
        return self._overflow

    @property
    def waiting(self) -> int:
        """Items that wait."""
        return self._queue.qsize()

    def put(self, sample: Sample) -> None:
        """Take a sample, and start its copy to the host. Constant time; for the training thread."""
        full = self._queue.qsize() >= MAX_SAMPLES or self._put_bytes - self._taken_bytes > MAX_BYTES
        if full or (sample.stats.buffer.device.type == "cuda" and not self._copy(sample)):
            self._overflow += 1
            return
        self._put_bytes += _nbytes(sample)
        self._queue.put(sample)

    def ask(self, item: object) -> None:
        """Put something that is no sample, in its order among them."""
        self._queue.put(item)

    def take(self, timeout: float | None) -> list[Any]:
        """What was put, oldest first; waits up to ``timeout`` seconds for the first of it."""
        items: list[Any] = []
        with suppress(queue.Empty):
            wait = timeout is None or timeout > 0
            items.append(self._queue.get(block=wait, timeout=timeout if wait else None))
            while len(items) < MAX_SAMPLES:
                items.append(self._queue.get_nowait())
        return items

    def read(self, sample: Sample) -> Tensor:
        """The sample's buffer on the host, once it has arrived."""
        self._taken_bytes += _nbytes(sample)
        if sample.slot is None:
            return sample.stats.buffer.detach().cpu()
        # Waits without the GIL; everything the step computed before is there afterwards.
        sample.arrival.synchronize()
        slots, slot = sample.slot
        host: Tensor = slots.memory(slot).clone()
        slots.give_back(slot)
        return host

    def new_overflow(self) -> int:
        """Samples that found no room since the last call; for the background thread."""
        seen, told = self._overflow, self._overflow_told
        self._overflow_told = seen
        return seen - told

    def _copy(self, sample: Sample) -> bool:
        buffer = sample.stats.buffer
        key = (buffer.device, buffer.shape, buffer.dtype)
        slots = self._slots.get(key)
        if slots is None:
            slots = self._slots[key] = HostSlots(buffer)
        taken = slots.take(buffer)
        if taken is None:
            return False
        slot, sample.arrival = taken
        sample.slot = (slots, slot)
        return True


def _nbytes(sample: Sample) -> int:
    histogram = sample.stats.histogram
    return sample.stats.buffer.nbytes + (0 if histogram is None else histogram.nbytes)
