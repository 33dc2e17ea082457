"""Steps gathered into deliveries: what travels, is repeated and is acknowledged as one."""

import math
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from gradwatch.reporting.packing import Packer
from gradwatch_wire import Column, Histograms, Manifest, Report, decode, encode

__all__ = ["Batch", "Delivery", "Layout", "emptied", "read_delivery", "readdressed"]

MAX_SECONDS = 1.0
MAX_BYTES = 256 * 1024
MAX_STEPS = 2048
MAX_SCALARS = 64
# The histogram's layout: 256 bins over the 64 octaves from 2^-48.
BINS_PER_OCTAVE = 4
LOWEST_EXPONENT = -48


@dataclass(frozen=True, slots=True)
class Delivery:
    """One report in its compact form.

    Attributes:
        sequence: Its number within run, attempt and rank.
        optimizer: Whose steps.
        manifest: Hash of the manifest it was made with.
        steps: How many steps it carries.
        dropped: Steps whose drop it reports, by reason.
        body: The compact form, addressed to attempt 0.
    """

    sequence: int
    optimizer: str
    manifest: str
    steps: int
    dropped: Mapping[str, int]
    body: bytes


@dataclass(frozen=True, slots=True)
class Layout:
    """What one optimizer's samples look like: its manifest and how to pack them."""

    manifest: Manifest
    hash: str
    packer: Packer


@dataclass(slots=True)
class Batch:
    """Steps of one layout on their way into one delivery.

    Attributes:
        layout: What they look like.
        opened: When the first step came, in monotonic seconds.
        nbytes: Bytes of their columns.
        urgent: Whether to deliver at once.
    """

    layout: Layout
    opened: float
    nbytes: int = 0
    urgent: bool = False
    _steps: list[int] = field(default_factory=list)
    _times: list[float] = field(default_factory=list)
    _columns: list[dict[str, bytes]] = field(default_factory=list)
    _scalars: list[dict[str, float]] = field(default_factory=list)
    _histograms: list[tuple[int, bytes]] = field(default_factory=list)
    _sampled: float = 1.0

    def __len__(self) -> int:
        return len(self._steps)

    def takes(self, layout: Layout, step: int, *, sampled: float | None) -> bool:
        """Whether a step fits in: same layout, later than the others, alike in its histogram."""
        if layout is not self.layout or len(self) >= MAX_STEPS:
            return False
        if sampled is not None and self._histograms and sampled != self._sampled:
            return False
        return not self._steps or step > self._steps[-1]

    def add(
        self,
        step: int,
        time: float,
        columns: dict[str, bytes],
        scalars: dict[str, float],
        histogram: tuple[bytes, float] | None = None,
    ) -> None:
        """Add one step: a row of bytes per column, and its scalars."""
        self._steps.append(step)
        self._times.append(time)
        self._columns.append(columns)
        self._scalars.append(scalars)
        self.nbytes += sum(map(len, columns.values())) + 8 * len(scalars)
        if histogram is not None:
            counts, self._sampled = histogram
            self._histograms.append((step, counts))
            self.nbytes += len(counts)

    def due(self) -> float:
        """When it is to be delivered, in monotonic seconds; at once when urgent or full."""
        return -math.inf if self.urgent or self.full else self.opened + MAX_SECONDS

    @property
    def full(self) -> bool:
        """Whether nothing more is to be added."""
        return self.nbytes >= MAX_BYTES or len(self) >= MAX_STEPS

    def deliver(self, rank: int, sequence: int, dropped: Mapping[str, int]) -> Delivery:
        """The delivery of these steps."""
        layout = self.layout
        rows, tensors = len(self._steps), layout.packer.tensors
        report = Report(
            attempt=0,
            rank=rank,
            optimizer=layout.manifest.optimizer,
            sequence=sequence,
            manifest=layout.hash,
            steps=_integers(self._steps),
            scalars={name: self._scalar(name) for name in self._scalar_names()},
            tensors={
                name: Column(
                    layout.packer.dtypes[name],
                    (rows, tensors),
                    b"".join(row[name] for row in self._columns),
                )
                for name in layout.packer.names
            },
            histograms=self._packed_histograms(tensors),
            time=_floats(self._times),
            dropped=dict(dropped),
        )
        return _delivery(report, rows)

    def _scalar_names(self) -> list[str]:
        names: dict[str, None] = {}
        for scalars in self._scalars:
            names.update(dict.fromkeys(scalars))
        return list(names)[:MAX_SCALARS]

    def _scalar(self, name: str) -> Column:
        return _floats([scalars.get(name, math.nan) for scalars in self._scalars])

    def _packed_histograms(self, tensors: int) -> Histograms | None:
        if not self._histograms:
            return None
        steps = [step for step, _ in self._histograms]
        data = b"".join(counts for _, counts in self._histograms)
        bins = 64 * BINS_PER_OCTAVE
        wide = len(data) == 8 * len(steps) * tensors * bins
        counts = Column("u8" if wide else "u4", (len(steps), tensors, bins), data)
        return Histograms(_integers(steps), BINS_PER_OCTAVE, LOWEST_EXPONENT, self._sampled, counts)


def emptied(delivery: Delivery, rank: int, reason: str) -> Delivery:
    """The empty delivery that takes the place of one whose steps are dropped, and counts them.

    So a drop never looks like a gap in the sequence.
    """
    counts = Counter(delivery.dropped)
    if delivery.steps:
        counts[reason] += delivery.steps
    report = Report(
        attempt=0,
        rank=rank,
        optimizer=delivery.optimizer,
        sequence=delivery.sequence,
        manifest=delivery.manifest,
        steps=_integers([]),
        dropped=dict(counts),
    )
    return _delivery(report, 0)


def read_delivery(body: bytes) -> Delivery:
    """The delivery that a compact body holds.

    Raises:
        WireError: It is none.
    """
    report = decode(body)
    return Delivery(
        sequence=report.sequence,
        optimizer=report.optimizer,
        manifest=report.manifest,
        steps=report.steps.items,
        dropped=report.dropped,
        body=body,
    )


def readdressed(delivery: Delivery, attempt: int, sequence: int) -> bytes:
    """The body, addressed to an attempt that was only learnt later."""
    if attempt == 0 and sequence == delivery.sequence:
        return delivery.body
    return encode(replace(decode(delivery.body), attempt=attempt, sequence=sequence))


def _delivery(report: Report, steps: int) -> Delivery:
    return Delivery(
        sequence=report.sequence,
        optimizer=report.optimizer,
        manifest=report.manifest,
        steps=steps,
        dropped=report.dropped,
        body=encode(report),
    )


def _integers(values: Sequence[int]) -> Column:
    return Column("i8", (len(values),), array("q", values).tobytes())


def _floats(values: Sequence[float]) -> Column:
    return Column("f8", (len(values),), array("d", values).tobytes())
