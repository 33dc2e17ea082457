"""When to try again after a failure. Pure: time and chance are arguments."""

from collections.abc import Callable
from dataclasses import dataclass, replace

__all__ = ["Backoff"]

MAX_RETRY_AFTER_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to leave a failing service alone.

    Full jitter, so that a thousand jobs do not come back in the same second; after a few failures in
    a row the circuit is open and the service is only probed now and then.

    Source:
        Brooker 2015, "Exponential Backoff And Jitter", AWS Architecture Blog.

    Attributes:
        first: Longest wait after the first failure, in seconds; doubles with each further one.
        most: Longest wait of all while the circuit is closed, in seconds.
        patience: Failures in a row that open the circuit.
        probe: Shortest and longest wait between probes while it is open, in seconds.
        failures: Failures in a row so far.
    """

    first: float = 0.5
    most: float = 60.0
    patience: int = 5
    probe: tuple[float, float] = (30.0, 120.0)
    failures: int = 0

    @property
    def open(self) -> bool:
        """Whether the circuit is open."""
        return self.failures >= self.patience

    def succeeded(self) -> "Backoff":
        """After an answer."""
        return self if self.failures == 0 else replace(self, failures=0)

    def failed(
        self, chance: Callable[[], float], retry_after: float = 0.0
    ) -> tuple["Backoff", float]:
        """After a failure: the new backoff, and how many seconds to wait.

        Args:
            chance: Gives a number in [0, 1).
            retry_after: What the service asked for, in seconds: a minimum, itself bounded, so that
                no answer can silence a client for good.
        """
        backoff = replace(self, failures=self.failures + 1)
        if backoff.open:
            low, high = self.probe
            wait = low + (high - low) * chance()
        else:
            wait = min(self.most, self.first * 2**self.failures) * chance()
        return backoff, max(wait, min(retry_after, MAX_RETRY_AFTER_SECONDS))
