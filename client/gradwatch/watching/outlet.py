"""Between the optimizers of a Watch and its reporter: manifests out, figures and lines back."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakMethod

from torch import Tensor

from gradwatch.console import Ending, closing_lines, say
from gradwatch.identity import Identity
from gradwatch.reporting.reporter import Reporter
from gradwatch.reporting.sample import Sample
from gradwatch.settings import Settings
from gradwatch.sinks.figures import Figures
from gradwatch.sinks.mirror import Mirror, Sink
from gradwatch.watching.summary import Latest, Summary
from gradwatch.watching.tracked import Tracked
from gradwatch_wire import Manifest

__all__ = ["Outlet"]


@dataclass(slots=True, eq=False)
class Outlet:
    """The reporting half of a Watch; takes samples for the reporter and keeps its figures.

    Args:
        settings: The Watch's settings.
        identity: Who reports.
        policy: The clipping policy as the manifest tells it; None without one.
        reporter: Delivers in the background.
        on_read: Called on the background thread with each optimizer's figures after a step is read.
    """

    settings: Settings
    identity: Identity
    policy: Mapping[str, Any] | None
    reporter: Reporter
    on_read: "WeakMethod[Callable[[Summary], None]] | None" = None
    summaries: dict[str, Summary] = field(default_factory=dict)
    mirrors: list[Mirror] = field(default_factory=list)
    _manifests: dict[str, Manifest] = field(default_factory=dict)
    _started: bool = False
    _closed: bool = False
    _steps: int = 0
    _reached: bool = True

    def __post_init__(self) -> None:
        self.reporter.on_start(self._on_start)
        self.reporter.on_read(self._on_read)
        self.reporter.on_reported(self._on_reported)

    def announce(self, tracked: Tracked) -> None:
        """Register an optimizer's tensors, or the tensors and statistics that came since."""
        tensors = tuple(tracked.layout.tensors)
        self.summaries.setdefault(tracked.name, Summary(tracked.name)).extend(tensors)
        known = self._manifests.get(tracked.name)
        if known is None or len(known.tensors) < len(tensors):
            known = self._manifests[tracked.name] = Manifest(
                tensors=tensors,
                optimizer=tracked.name,
                optimizer_class=type(tracked.optimizer).__name__,
                policy=self.policy,
                project=self.identity.project,
                name=self.identity.name,
                session=self.identity.session,
                world_size=self.identity.world_size,
                rank=self.identity.rank,
                tags=self.identity.tags,
                extends=None if known is None else known.hash,
            )
        self.reporter.register(tracked.name, known, tracked.columns)

    def put(self, sample: Sample) -> None:
        """Hand a step's numbers to the background thread."""
        self._steps = max(self._steps, sample.step + 1)
        self.reporter.put(sample)

    def add_sink(self, sink: Sink) -> None:
        """Write to it too, from a thread of its own."""
        self.mirrors.append(Mirror(sink))

    def latest(self, optimizer: str) -> Latest | None:
        """Return the newest statistics on the host."""
        summary = self.summaries.get(optimizer)
        return None if summary is None else summary.latest()

    def close(self, status: str, timeout: float, steps: int | None = None) -> None:
        """Deliver what is left within ``timeout`` seconds, finish the run, print the closing lines."""
        if self._closed:
            return
        self._closed = True
        self._steps = self._steps if steps is None else steps
        self._reached = self.reporter.health().state in {"online", "starting"}
        deadline = time.monotonic() + timeout
        self.reporter.close(status, timeout)
        for mirror in self.mirrors:
            mirror.close(max(0.1, deadline - time.monotonic()))
        for line in closing_lines(self._ending()):
            self._say(line)

    @property
    def address(self) -> str:
        """Where a person can look: the run's page, or the spool."""
        if self.settings.mode == "online" and self._reached:
            return f"{self.settings.url}/#/runs/{self.identity.run}"
        spool = self.reporter.health().spool
        if spool is None:
            return "memory only, it has no spool"
        return f"{spool} (gradwatch sync {spool} sends it)"

    def _say(self, line: str) -> None:
        # One terminal is shared by all ranks: rank 0 speaks.
        say(line, quiet=self.settings.quiet or self.identity.rank > 0)

    def _on_start(self, reached: bool, reason: str) -> None:  # noqa: FBT001 - the reporter's callback
        if self._started:
            return
        self._started = True
        self._reached = reached
        if reached:
            self._say(f"run {self.identity.run}, see {self.address}")
        elif self.settings.mode == "offline":
            self._say(f"run {self.identity.run} is kept in {self.address}")
        else:
            self._say(
                f"no service at {self.settings.url} ({reason}); run {self.identity.run} is kept in {self.address}"
            )

    def _on_read(self, sample: Sample, packed: Tensor) -> None:
        summary = self.summaries[sample.optimizer]
        summary.add(sample.step, packed, sample.stats.columns)
        told = None if self.on_read is None else self.on_read()
        if told is not None:
            told(summary)

    def _on_reported(self, sample: Sample, packed: Tensor, scalars: Mapping[str, float]) -> None:
        if not self.mirrors:
            return
        names, columns = self.summaries[sample.optimizer].names, sample.stats.columns
        figures = Figures(
            sample.optimizer, sample.step, sample.time, scalars, columns, names, packed
        )
        for mirror in self.mirrors:
            mirror.put(figures)

    def _ending(self) -> Ending:
        summaries = list(self.summaries.values())
        largest = max(summaries, key=lambda s: s.largest_norm or 0.0, default=None)
        elements = sum(s.elements for s in summaries)
        clipped = sum(s.clipped for s in summaries) / elements if elements else 0.0
        return Ending(
            steps=self._steps,
            nonfinite_steps=sum(s.nonfinite_steps for s in summaries),
            first_nonfinite=next((s.first_nonfinite for s in summaries if s.first_nonfinite), None),
            largest_norm=largest.largest_norm if largest else None,
            largest_step=largest.largest_step if largest else None,
            largest_tensor=largest.largest_tensor if largest else None,
            clipped_share=None if self.policy is None else clipped,
            dropped=dict(self.reporter.health().dropped),
            address=self.address,
        )
