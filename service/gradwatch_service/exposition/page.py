"""The page that Prometheus scrapes: written from the live view, one run's block at a time."""

import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import Lock

from gradwatch_service.analysis.run_state import RUN_STATES
from gradwatch_service.exposition.block import Block, write_block
from gradwatch_service.exposition.facts import facts_of
from gradwatch_service.exposition.tags import TagLabels
from gradwatch_service.exposition.template import ALL_SERIES, Templates
from gradwatch_service.exposition.text import header, labels, registry_text
from gradwatch_service.instruments import Instruments
from gradwatch_service.live.run import LiveRun
from gradwatch_service.live.view import LiveView

__all__ = ["Exposition", "Limits", "Page"]

_GZIP = 16 + zlib.MAX_WBITS
# Writing holds the interpreter; every so many runs the others get a turn (a request to /healthz
# waits for less than a millisecond of writing instead of for the whole page).
_RUNS_PER_TURN = 4
_HEADERS = tuple(header(s.family.name, s.family.kind, s.family.text).encode() for s in ALL_SERIES)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a page may hold. The defaults carry 500 live runs of 32 groups with everything shown.

    Attributes:
        series: Series of runs on one page.
        series_per_run: Series of one run.
        value_seconds: How long values stay after the last report; information and state stay as
            long as the live view keeps the run.
    """

    series: int = 500_000
    series_per_run: int = 1000
    value_seconds: float = 300.0


@dataclass(frozen=True, slots=True)
class Page:
    """The runs' part of a page.

    Attributes:
        parts: Its text, UTF-8, in order.
        series: Series on it.
        dropped: Series left out, by the limit that left them out.
    """

    parts: Sequence[bytes]
    series: int
    dropped: Mapping[str, int]


@dataclass(slots=True)
class _Kept:
    """A block and the moment it holds for."""

    moment: tuple[object, ...]
    block: Block


class Exposition:
    """Writes pages. Safe to use from any thread; only one page is written at a time.

    Args:
        live: What to write.
        instruments: The service's own health, appended to the page.
        limits: What a page may hold.
        tags: Tags of runs that become labels of ``gradwatch_run_info``.
    """

    def __init__(
        self,
        live: LiveView,
        instruments: Instruments,
        limits: Limits | None = None,
        tags: TagLabels | None = None,
    ) -> None:
        self._live = live
        self._instruments = instruments
        self._limits = limits or Limits()
        self._tags = tags or TagLabels(())
        self._kept: dict[str, _Kept] = {}
        self._templates = Templates()
        self._lock = Lock()
        instruments.series_limit.set(self._limits.series)

    def body(self, *, project: str | None = None, compressed: bool = False) -> bytes:
        """The page as it stands now.

        Args:
            project: Show this project's runs alone, and nothing of the service as a whole.
            compressed: Whether the scraper reads gzip.
        """
        with self._lock:
            begun = time.perf_counter()
            page = self._write(project)
            parts = page.parts
            if project is None:
                self._count(page)
                parts = [*parts, registry_text(self._instruments.registry).encode()]
            body = _zipped(parts) if compressed else b"".join(parts)
            self._instruments.exposition_duration.set(time.perf_counter() - begun)
            return body

    def _count(self, page: Page) -> None:
        self._instruments.series_exposed.set(page.series)
        for scope, number in page.dropped.items():
            self._instruments.series_dropped.labels(scope).inc(number)

    def _write(self, project: str | None) -> Page:
        now = self._live.clock()
        runs = self._live.runs(now, project)
        states = dict.fromkeys(RUN_STATES, 0)
        shown: list[tuple[bytes, ...]] = []
        series, left_out, over_run = 0, 0, 0
        for turn, run in enumerate(runs):
            if turn % _RUNS_PER_TURN == 0:
                time.sleep(0)
            state = run.state(now, self._live.silent_seconds)
            states[state] += 1
            block = self._block(run, now, state)
            over_run += block.dropped
            # Newest report first: what is left out is what has been quiet for longest.
            room = self._limits.series - series
            if block.series <= room:
                shown.append(block.families)
                series += block.series
            elif block.core_series <= room:
                shown.append(block.core)
                series += block.core_series
                left_out += block.series - block.core_series
            else:
                left_out += block.series
        self._forget_all_but(runs, project)
        dropped = {"run": over_run, "scrape": left_out}
        return Page([*_parts(shown), _runs_by_state(states)], series, dropped)

    def _block(self, run: LiveRun, now: float, state: str) -> Block:
        fresh = now - run.active_at <= self._limits.value_seconds
        # What changes with time alone, besides what a commit changes.
        moment = (run.revision, fresh, state, run.peak(now), len(run.onsets(now)))
        kept = self._kept.get(run.run)
        if kept and kept.moment == moment:
            return kept.block
        facts = facts_of(run, now=now, state=state, tags=self._tags.of(run.info.tags))
        block = write_block(
            facts,
            self._templates,
            fresh=fresh,
            max_series=self._limits.series_per_run,
            last=kept.block.template if kept else None,
        )
        self._kept[run.run] = _Kept(moment, block)
        return block

    def _forget_all_but(self, runs: Sequence[LiveRun], project: str | None) -> None:
        if project is None and len(self._kept) > len(runs):
            live = {run.run for run in runs}
            self._kept = {key: kept for key, kept in self._kept.items() if key in live}


def _parts(runs: Sequence[tuple[bytes, ...]]) -> list[bytes]:
    """One part per family that any run has, all of its lines together as the format demands."""
    parts: list[bytes] = []
    for head, lines in zip(_HEADERS, zip(*runs, strict=True), strict=False):
        text = b"".join(lines)
        if text:
            parts += [head, text]
        time.sleep(0)
    return parts


def _zipped(parts: Sequence[bytes]) -> bytes:
    # Level 1: level 9 costs ten times the time for a sixth less.
    squeeze = zlib.compressobj(1, zlib.DEFLATED, _GZIP)
    chunks = [squeeze.compress(part) for part in parts]
    return b"".join([*chunks, squeeze.flush()])


def _runs_by_state(states: Mapping[str, int]) -> bytes:
    name = "gradwatch_runs"
    lines = [f"{name}{{{labels([('state', state)])}}} {n}\n" for state, n in states.items()]
    text = "Runs that reported within the last day, by state."
    return "".join([header(name, "gauge", text), *lines]).encode()
