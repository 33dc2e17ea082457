"""What the hook hands over for one reported step."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gradwatch.reporting.slots import HostSlots
from gradwatch.statistics import GradStats

__all__ = ["Sample"]


@dataclass(slots=True, eq=False)
class Sample:
    """The statistics of one step of one optimizer, still on their device.

    Attributes:
        optimizer: Its name.
        step: Attempts of this optimizer before this one.
        stats: What was measured. Nobody writes to it after it was handed over.
        scalars: Numbers or one-element tensors by name, beside those in ``stats``. May grow until
            ``packed``.
        time: Unix seconds.
        packed: Set by the background thread: what is added to ``scalars`` now comes too late.
        arrival: Recorded after the copy to the host; None where nothing was copied.
        slot: The host memory that ``stats.buffer`` was copied to, to be given back.
    """

    optimizer: str
    step: int
    stats: GradStats
    scalars: dict[str, float | Tensor]
    time: float
    packed: bool = False
    arrival: Any = None
    slot: tuple[HostSlots, int] | None = None
