"""The ring of host memory that a GPU's statistics are copied to. Needs a GPU."""

import pytest
import torch
from tests.client.reporting import samples

from gradwatch.reporting.outbox import Outbox
from gradwatch.reporting.slots import HostSlots
from gradwatch.statistics import GradStats

pytestmark = pytest.mark.gpu


def on_gpu(step: int, value: float) -> samples.Sample:
    made = samples.sample(step, value=value)
    buffer = made.stats.buffer.cuda()
    count = made.stats.packed.numel()
    made.stats = GradStats(
        packed=buffer[:count].view(made.stats.packed.shape),
        scalars=buffer[count:],
        buffer=buffer,
        scalar_names=made.stats.scalar_names,
    )
    return made


def test_what_is_copied_is_what_was_measured() -> None:
    outbox = Outbox()
    for step in range(40):
        outbox.put(on_gpu(step, float(step)))
    for step, sample in enumerate(outbox.take(None)):
        assert outbox.read(sample).tolist()[0] == float(step)
    assert outbox.overflow == 0


def test_handing_over_never_waits_for_the_device() -> None:
    outbox = Outbox()
    outbox.put(on_gpu(0, 0.0))  # allocates the ring, which may wait
    waiting = on_gpu(1, 1.0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        outbox.put(waiting)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_full_ring_drops_and_counts_instead_of_waiting() -> None:
    outbox = Outbox()
    count = len(HostSlots(on_gpu(0, 0.0).stats.buffer)._free)
    for step in range(count + 3):
        outbox.put(on_gpu(step, 1.0))
    assert outbox.overflow == 3
    for sample in outbox.take(None):
        outbox.read(sample)
    outbox.put(on_gpu(99, 1.0))
    assert outbox.overflow == 3
