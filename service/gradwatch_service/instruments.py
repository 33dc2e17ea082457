"""The service's own health: instruments that the parts of the service count into.

They live in a registry of their own, so that two services in one process (tests, notebooks) share
nothing. Values of runs are not here: those come from the live view.
"""

import asyncio
import math
import platform
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

__all__ = ["REJECTION_REASONS", "Instruments"]

REJECTION_REASONS = ("invalid", "overload", "too_large", "unauthorized", "conflict")

# From a cached answer to the patience of a scraper: what a route may take and still be of use.
_LATENCY = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_LAG_INTERVAL = 0.5


class Instruments:
    """Every instrument of one service, all at 0 from the start. Safe to use from any thread.

    Args:
        clock: Monotonic seconds, for the lag of the event loop.

    Attributes:
        registry: What ``/metrics`` writes after the runs.
        http_requests: Requests answered, by ``method, route, code``.
        http_duration: Seconds from the first byte of a request to the last of its answer.
        http_in_progress: Requests being answered now.
        sse_subscribers: Open event streams.
        storage_write: Seconds of one group commit.
        storage_errors: Commits that failed.
        detection: Seconds of one advance of the detectors.
        recommendation: Seconds of one computed recommendation.
        runs_evicted: Runs removed by retention.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        build = Gauge(
            "gradwatch_build_info",
            "Version of the service; always 1.",
            ["version", "python"],
            registry=self.registry,
        )
        build.labels(version("gradwatch"), platform.python_version()).set(1)
        self._add_http()
        self._add_ingest()
        self._add_storage()
        self._add_exposition()
        self.detection = self._histogram(
            "gradwatch_detection_duration_seconds", "Duration of one advance of the detectors."
        )
        self.recommendation = self._histogram(
            "gradwatch_recommendation_duration_seconds", "Duration of computing one recommendation."
        )
        self.event_loop_lag = self._gauge(
            "gradwatch_event_loop_lag_seconds",
            "How late the event loop woke up at its last check: time it was kept from answering.",
        )
        self.runs_evicted = self._counter(
            "gradwatch_runs_evicted_total", "Runs removed by retention."
        )
        self.notifications = self._counter(
            "gradwatch_notifications_total",
            "Notifications about incidents, by what became of them.",
            ["outcome"],
        )
        for outcome in ("sent", "failed", "dropped"):
            self.notifications.labels(outcome)

    def _add_http(self) -> None:
        self.http_requests = self._counter(
            "gradwatch_http_requests_total", "Requests answered.", ["method", "route", "code"]
        )
        self.http_duration = Histogram(
            "gradwatch_http_request_duration_seconds",
            "Time from the start of a request to the end of its answer.",
            ["method", "route"],
            buckets=_LATENCY,
            registry=self.registry,
        )
        self.http_in_progress = self._gauge(
            "gradwatch_http_requests_in_progress", "Requests being answered."
        )
        self.sse_subscribers = self._gauge("gradwatch_sse_subscribers", "Open event streams.")

    def _add_ingest(self) -> None:
        self._reports = self._counter("gradwatch_ingest_reports_total", "Deliveries stored.")
        self._duplicates = self._counter(
            "gradwatch_ingest_duplicate_reports_total",
            "Deliveries that were stored before and counted once.",
        )
        self._tensors = self._counter(
            "gradwatch_ingest_tensors_total", "Tensors times steps in stored deliveries."
        )
        self._bytes = self._counter(
            "gradwatch_ingest_bytes_total", "Bytes of stored deliveries as received."
        )
        self._rejected = self._counter(
            "gradwatch_ingest_rejected_reports_total",
            "Deliveries refused; nothing of them was stored.",
            ["reason"],
        )
        for reason in REJECTION_REASONS:
            self._rejected.labels(reason)
        self._delay = self._histogram(
            "gradwatch_ingest_delay_seconds", "Time from receiving a delivery to its commit."
        )
        self._queue_length = self._gauge(
            "gradwatch_ingest_queue_reports", "Deliveries waiting for the writer."
        )
        self._queue_capacity = self._gauge(
            "gradwatch_ingest_queue_capacity_reports", "Deliveries that may wait for the writer."
        )

    def _add_storage(self) -> None:
        self.storage_write = self._histogram(
            "gradwatch_storage_write_duration_seconds", "Duration of one group commit."
        )
        self.storage_errors = self._counter(
            "gradwatch_storage_errors_total", "Commits that failed."
        )
        self._storage_bytes = self._gauge(
            "gradwatch_storage_bytes", "Size of the store, write-ahead log included."
        )

    def _add_exposition(self) -> None:
        self.series_exposed = self._gauge(
            "gradwatch_series_exposed", "Series of runs on the last page."
        )
        self.series_limit = self._gauge(
            "gradwatch_series_limit", "Series of runs that a page may hold."
        )
        self.series_dropped = self._counter(
            "gradwatch_series_dropped_total",
            "Series left out of a page, by the limit that left them out; counted on every scrape.",
            ["scope"],
        )
        for scope in ("run", "scrape"):
            self.series_dropped.labels(scope)
        self.exposition_duration = self._gauge(
            "gradwatch_exposition_duration_seconds", "Duration of writing the last page."
        )

    def routes(self, known: Iterable[tuple[str, str]]) -> None:
        """Create the request counters of these (method, route) at 0, so that a first is seen."""
        for method, route in known:
            self.http_requests.labels(method, route, "200")
            self.http_duration.labels(method, route)

    def reports(self, *, tensors: int, size: int, seconds: float) -> None:
        """Count one delivery as stored.

        Args:
            tensors: Tensors times steps in it.
            size: Bytes of its body as received.
            seconds: From its receipt to its commit.
        """
        self._reports.inc()
        self._tensors.inc(tensors)
        self._bytes.inc(size)
        self._delay.observe(seconds)

    def duplicate(self) -> None:
        """Count a delivery that had been stored before."""
        self._duplicates.inc()

    def rejected(self, reason: str) -> None:
        """Count a refused delivery.

        Args:
            reason: One of :data:`REJECTION_REASONS`.

        Raises:
            ValueError: Another reason: it would open a series nobody has documented.
        """
        if reason not in REJECTION_REASONS:
            raise ValueError(f"reason {reason!r} given; allowed: {', '.join(REJECTION_REASONS)}")
        self._rejected.labels(reason).inc()

    def queue(self, *, capacity: int, length: Callable[[], int]) -> None:
        """Show the writer's queue: how much may wait, and what is waiting at each scrape."""
        self._queue_capacity.set(capacity)
        self._queue_length.set_function(_measured(length))

    def storage_size(self, measure: Callable[[], int]) -> None:
        """Show the store's size in bytes; ``measure`` is called in a thread at each scrape."""
        self._storage_bytes.set_function(_measured(measure))

    async def watch_loop(self) -> None:
        """Measure the event loop's lag until cancelled."""
        while True:
            before = self._clock()
            await asyncio.sleep(_LAG_INTERVAL)
            self.event_loop_lag.set(max(0.0, self._clock() - before - _LAG_INTERVAL))

    def _counter(self, name: str, text: str, labels: list[str] | None = None) -> Counter:
        return Counter(name, text, labels or [], registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, registry=self.registry)

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(name, text, buckets=_LATENCY, registry=self.registry)


def _measured(measure: Callable[[], int]) -> Callable[[], float]:
    def value() -> float:
        try:
            return measure()
        except Exception:  # noqa: BLE001 - a store that cannot be measured must not cost the page
            return math.nan  # left out of the page

    return value
