"""Samples become deliveries: read to the host, held for late scalars, gathered, numbered."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from gradwatch import scalars
from gradwatch.reporting.delivery import Batch, Delivery, Layout
from gradwatch.reporting.sample import Sample

__all__ = ["Batching"]

# log() comes after the step whose hook has handed over the sample: the newest one is kept back for
# a moment so that its loss still travels with it.
HOLD_SECONDS = 0.25

OnRead = Callable[[Sample, Tensor], None]
OnReported = Callable[[Sample, Tensor, Mapping[str, float]], None]


@dataclass(slots=True)
class _Held:
    sample: Sample
    layout: Layout
    packed: Tensor
    columns: dict[str, bytes]
    scalars: dict[str, float]
    histogram: tuple[bytes, float] | None
    since: float
    urgent: bool


class Batching:
    """Everything between the queue and the backlog. Belongs to the background thread; no clock.

    Args:
        rank: Whose deliveries these are.
        on_read: Called with every sample and its host copy [columns, T].
        on_reported: Called with those that are reported, once their scalars are complete.

    Attributes:
        dropped: Steps dropped since the last delivery, by reason; they travel with the next one.
    """

    def __init__(self, rank: int, on_read: OnRead, on_reported: OnReported) -> None:
        self._rank = rank
        self._on_read = on_read
        self._on_reported = on_reported
        self._layouts: dict[str, Layout] = {}
        self._held: dict[str, _Held] = {}
        self._batches: dict[str, Batch] = {}
        self._ready: list[Batch] = []
        self._sequence = 0
        self.dropped: Counter[str] = Counter()

    @property
    def steps(self) -> int:
        """Steps that are in no delivery yet."""
        batches = [*self._batches.values(), *self._ready]
        return len(self._held) + sum(map(len, batches))

    def introduce(self, optimizer: str, layout: Layout) -> None:
        """From now on this optimizer's samples look like this."""
        self._release(optimizer)
        self._layouts[optimizer] = layout

    def read(self, sample: Sample, buffer: Tensor, now: float, *, wanted: bool = True) -> bool:
        """Take a sample in.

        Args:
            sample: What the hook handed over.
            buffer: Its ``stats.buffer`` on the host. Nobody writes to it afterwards.
            now: Monotonic seconds.
            wanted: Whether it is to be reported even when it is like any other.

        Returns:
            Whether it will be.
        """
        stats, layout = sample.stats, self._layouts[sample.optimizer]
        packed = buffer[: stats.packed.numel()].view(stats.packed.shape)
        columns = layout.packer.pack(packed)
        values = buffer[stats.packed.numel() :].tolist()
        held = _Held(
            sample=sample,
            layout=layout,
            packed=packed,
            columns=columns,
            scalars=scalars.read(dict(zip(stats.scalar_names, values, strict=True))),
            histogram=_histogram(sample, layout),
            since=now,
            # Zero bytes are zero counts, whatever the width.
            urgent=bool(columns.get("nonfinite_count", b"").strip(b"\0")),
        )
        self._on_read(sample, packed)
        if not (wanted or held.urgent):
            sample.packed = True
            return False
        self._release(sample.optimizer)
        self._held[sample.optimizer] = held
        return True

    def due(self) -> float:
        """When :meth:`deliveries` has something to do, in monotonic seconds."""
        if self._ready:
            return -math.inf
        held = [each.since + HOLD_SECONDS for each in self._held.values()]
        return min([*held, *(batch.due() for batch in self._batches.values())], default=math.inf)

    def deliveries(self, now: float, *, everything: bool = False) -> Iterator[Delivery]:
        """What is to be sent by now, numbered in order; each is made when it is asked for.

        Args:
            now: Monotonic seconds.
            everything: Whether to hold nothing back.
        """
        for optimizer in list(self._held):
            if everything or now >= self._held[optimizer].since + HOLD_SECONDS:
                self._release(optimizer)
        for optimizer in list(self._batches):
            if everything or now >= self._batches[optimizer].due():
                self._ready.append(self._batches.pop(optimizer))
        ready, self._ready = self._ready, []
        if everything and self.dropped and not ready and self._layouts:
            # Nothing else travels that could tell of the drops.
            ready.append(Batch(next(iter(self._layouts.values())), now))
        for batch in ready:
            yield self._number(batch)

    def discard(self, reason: str) -> int:
        """Drop what is gathered instead of numbering it; how many steps that were."""
        batches = [*self._ready, *self._batches.values()]
        steps = sum(map(len, batches))
        self._ready.clear()
        self._batches.clear()
        if steps:
            self.dropped[reason] += steps
        return steps

    def _number(self, batch: Batch) -> Delivery:
        delivery = batch.deliver(self._rank, self._sequence, self.dropped)
        self._sequence += 1
        self.dropped = Counter()
        return delivery

    def _release(self, optimizer: str) -> None:
        """Put the held sample, with the scalars it has by now, into its batch."""
        held = self._held.pop(optimizer, None)
        if held is None:
            return
        sample = held.sample
        sample.packed = True
        given = {**held.scalars, **scalars.read(dict(sample.scalars))}
        self._on_reported(sample, held.packed, given)
        batch = self._batches.get(optimizer)
        sampled = None if held.histogram is None else held.histogram[1]
        if batch is None or not batch.takes(held.layout, sample.step, sampled=sampled):
            if batch is not None:
                self._ready.append(batch)
            batch = self._batches[optimizer] = Batch(held.layout, held.since)
        batch.add(sample.step, sample.time, held.columns, given, held.histogram)
        batch.urgent = batch.urgent or held.urgent
        if batch.full:
            self._ready.append(self._batches.pop(optimizer))


def _histogram(sample: Sample, layout: Layout) -> tuple[bytes, float] | None:
    histogram, sampled = sample.stats.histogram, float(sample.stats.histogram_sampled)
    # A histogram of nothing says nothing, and would make the whole delivery one that is refused.
    if histogram is None or not 0.0 < sampled <= 1.0:
        return None
    return layout.packer.pack_histogram(histogram.detach().cpu()), sampled
