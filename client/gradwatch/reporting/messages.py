"""What the background thread is told beside samples."""

import threading
from dataclasses import dataclass, field

from gradwatch.reporting.delivery import Layout

__all__ = ["Introduction", "Request"]


@dataclass(frozen=True, slots=True)
class Introduction:
    """Says what an optimizer's samples look like from now on."""

    optimizer: str
    layout: Layout


@dataclass(slots=True)
class Request:
    """Asks the background thread to deliver everything, and perhaps to end.

    Attributes:
        status: How the run ended; None when it goes on.
        deadline: Monotonic seconds.
        done: Set when it is done or the deadline has passed.
        delivered: Whether everything was acknowledged.
    """

    status: str | None
    deadline: float
    done: threading.Event = field(default_factory=threading.Event)
    delivered: bool = False
