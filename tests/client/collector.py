"""A sink that keeps what the hook hands over, so that tests can read it."""

from collections.abc import Iterable

import gradwatch
from gradwatch import scalars
from gradwatch.reporting.sample import Sample
from gradwatch.watching.tracked import Tracked


class Collector:
    """Takes the place of the reporter's queue."""

    def __init__(self, watched: Iterable[Tracked]) -> None:
        self.samples: list[Sample] = []
        self.announced: list[list[str]] = []
        for tracked in watched:
            tracked.outlet = self
            self.announce(tracked)

    def announce(self, tracked: Tracked) -> None:
        self.announced.append([tensor.name for tensor in tracked.layout.tensors])

    def put(self, sample: Sample) -> None:
        self.samples.append(sample)

    def rows(self, column: str) -> list[list[float]]:
        """One list of numbers per sample."""
        return [sample.stats[column].tolist() for sample in self.samples]

    def scalars(self, name: str) -> list[float | None]:
        """One number per sample, as it would be sent."""
        return [self.sent(sample).get(name) for sample in self.samples]

    @staticmethod
    def sent(sample: Sample) -> dict[str, float]:
        stats = sample.stats
        known = dict(zip(stats.scalar_names, stats.scalars.unbind(), strict=True))
        return scalars.read({**known, **sample.scalars})


def collect(watch: gradwatch.Watch) -> Collector:
    """Let a Watch in mode ``disabled`` hand its samples to a collector."""
    return Collector(watch.tracked)
