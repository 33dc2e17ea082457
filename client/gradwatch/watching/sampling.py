"""What goes beside the statistics of a reported step: rates, times, counts since the last report."""

import time
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from gradwatch.reporting.sample import Sample
from gradwatch.scalars import Scalar
from gradwatch.statistics import GradStats

__all__ = ["Sampling", "rate_of"]


class Sampling:
    """Makes the samples of one optimizer; every step goes through, every ``every``-th comes out.

    Args:
        name: Name of the optimizer in reports.
        optimizer: Read for its learning rate.
        every: Steps per report.
    """

    def __init__(self, name: str, optimizer: Optimizer, every: int) -> None:
        self._name = name
        self._optimizer = optimizer
        self.every = every
        self._previous: float | None = None
        self._steps_since = 0
        self._nonfinite_since: Tensor | None = None
        self._clipped_since: Tensor | None = None

    def take(
        self, step: int, stats: GradStats, extra: dict[str, Scalar], begun: float
    ) -> Sample | None:
        """Count a step; return its sample when it is one to report.

        Args:
            step: Number of the step.
            stats: Its statistics, on the device.
            extra: Scalars that the caller knows.
            begun: ``time.perf_counter()`` when the hook was entered.
        """
        previous, self._previous = self._previous, begun
        if self.every > 1:
            self._count(stats)
        if step % self.every:
            return None
        scalars = self._since()
        scalars.update(extra)
        if (rate := rate_of(self._optimizer)) is not None:
            scalars["learning_rate"] = rate.clone() if isinstance(rate, Tensor) else rate
        if previous is not None:
            scalars["duration_seconds"] = begun - previous
        scalars["overhead_seconds"] = time.perf_counter() - begun
        return Sample(self._name, step, stats, scalars, time.time())

    def _count(self, stats: GradStats) -> None:
        """Accumulate on the device, so that a NaN between two reports is never missed."""
        nonfinite = (stats.nonfinite_count.sum() > 0).to(stats.buffer)
        clipped = (stats.clipped_count.sum() > 0).to(stats.buffer)
        if self._nonfinite_since is not None and self._clipped_since is not None:
            nonfinite, clipped = nonfinite + self._nonfinite_since, clipped + self._clipped_since
        self._nonfinite_since, self._clipped_since = nonfinite, clipped
        self._steps_since += 1

    def _since(self) -> dict[str, Scalar]:
        """Return the counts, the reported step included, and start anew."""
        nonfinite, clipped = self._nonfinite_since, self._clipped_since
        if nonfinite is None or clipped is None:
            return {}
        steps, self._steps_since = self._steps_since, 0
        self._nonfinite_since = self._clipped_since = None
        return {
            "steps_since": float(steps),
            "nonfinite_steps_since": nonfinite,
            "clipped_steps_since": clipped,
        }


def rate_of(optimizer: Optimizer) -> Scalar | None:
    """Return the rate of the first group, the one that schedules and papers speak of.

    A tensor is the optimizer's own, which a schedule changes in place.
    """
    groups = optimizer.param_groups
    rate: Any = groups[0].get("lr") if groups else None
    if isinstance(rate, Tensor):
        return rate.detach()
    return float(rate) if isinstance(rate, float | int) else None
