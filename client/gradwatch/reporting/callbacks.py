"""Other people's code, called from the background thread without trusting it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from gradwatch.console import LogOnce
from gradwatch.reporting.sample import Sample

__all__ = ["Callbacks"]


@dataclass(slots=True)
class Callbacks:
    """Whom to tell.

    Attributes:
        on_read: Of every sample and its host copy [columns, T].
        on_reported: Of every sample that will be reported, its host copy and all its scalars.
        on_start: Once, whether the service was reached, and why not.
        on_answer: Of every answer to a delivery.
    """

    on_read: Callable[[Sample, Tensor], None] | None = None
    on_reported: Callable[[Sample, Tensor, Mapping[str, float]], None] | None = None
    on_start: Callable[[bool, str], None] | None = None
    on_answer: Callable[[Mapping[str, Any]], None] | None = None
    _started: bool = False
    _log_once: LogOnce = field(default_factory=LogOnce)

    def read(self, sample: Sample, packed: Tensor) -> None:
        """Tell of a sample."""
        self.call(self.on_read, sample, packed)

    def reported(self, sample: Sample, packed: Tensor, scalars: Mapping[str, float]) -> None:
        """Tell of a sample that nothing is added to any more."""
        self.call(self.on_reported, sample, packed, scalars)

    def start(self, *, reached: bool, why: str) -> None:
        """Tell, the first time, whether the service was reached."""
        if not self._started:
            self._started = True
            self.call(self.on_start, reached, why)

    def answer(self, answer: Mapping[str, Any]) -> None:
        """Tell of an answer."""
        self.call(self.on_answer, answer)

    def call(self, callback: Callable[..., None] | None, *arguments: object) -> None:
        """Call one: what it raises is logged once, and costs nothing here."""
        if callback is None:
            return
        try:
            callback(*arguments)
        except Exception as error:  # noqa: BLE001 - whatever a callback raises, delivering goes on
            name = f"{type(error).__name__}: {error}"
            self._log_once(name, f"a callback failed, reporting goes on: {name}", error=error)
