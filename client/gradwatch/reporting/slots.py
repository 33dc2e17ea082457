"""Fixed host memory that statistics are copied into without the training thread waiting."""

from collections import deque
from typing import Any

import torch
from torch import Tensor

__all__ = ["HostSlots"]

MAX_BYTES = 16 * 2**20
MAX_SLOTS = 256
MIN_SLOTS = 8


class HostSlots:
    """A ring of pinned buffers, allocated once: allocating pinned memory makes the device wait.

    A copy into pageable memory would make the training thread wait for the device, or return before
    the numbers are there (pytorch/pytorch#137878).

    Args:
        like: Statistics of the shape, dtype and device to be copied.
    """

    def __init__(self, like: Tensor) -> None:
        count = max(MIN_SLOTS, min(MAX_SLOTS, MAX_BYTES // max(1, like.nbytes)))
        self._memory = torch.empty((count, *like.shape), dtype=like.dtype, pin_memory=True)
        self._free = deque(range(count))
        self._shape, self._dtype = like.shape, like.dtype

    def fits(self, stats: Tensor) -> bool:
        """Whether such statistics can be copied here."""
        return stats.shape == self._shape and stats.dtype == self._dtype

    def take(self, stats: Tensor) -> tuple[int, Any] | None:
        """Start the copy on the current stream; the slot and the event that ends it.

        None when every slot is taken: the caller drops the sample, it never waits.
        """
        try:
            slot = self._free.popleft()
        except IndexError:
            return None
        self._memory[slot].copy_(stats, non_blocking=True)
        arrival: Any = torch.cuda.Event()  # type: ignore[no-untyped-call] # torch leaves it untyped
        # The copy ran on this stream, whichever device and stream the caller stands on.
        arrival.record(torch.cuda.current_stream(stats.device))
        return slot, arrival

    def memory(self, slot: int) -> Tensor:
        """What was copied into a slot; to be read after its event."""
        return self._memory[slot]

    def give_back(self, slot: int) -> None:
        """Let the slot be used again."""
        self._free.append(slot)
