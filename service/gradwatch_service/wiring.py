"""What a running service consists of, and how routes reach it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from gradwatch_service.access import Access
from gradwatch_service.analysis.analyser import Analyser
from gradwatch_service.analysis.announcer import Announcer
from gradwatch_service.analysis.incident_log import IncidentLog
from gradwatch_service.events import EventHub
from gradwatch_service.exposition.page import Exposition, Limits
from gradwatch_service.exposition.tags import TagLabels
from gradwatch_service.ingest import Ingest
from gradwatch_service.instruments import Instruments
from gradwatch_service.live.view import LiveView
from gradwatch_service.notifications import Notifier, senders
from gradwatch_service.queries.remembered import Remembered
from gradwatch_service.settings import Settings
from gradwatch_service.store.base import RunRecord, Store

__all__ = ["Service", "ServiceDep", "build"]


@dataclass(slots=True)
class Service:
    """The parts of one service, put together once by :func:`build`."""

    settings: Settings
    store: Store
    access: Access
    ingest: Ingest
    events: EventHub
    analyser: Analyser
    live: LiveView
    instruments: Instruments
    exposition: Exposition
    remembered: Remembered
    notifier: Notifier | None = None

    def start(self) -> None:
        """Start what runs in the background, with what was known before the last stop."""
        recent = list(_recent(self.store, self.settings.info_ttl_seconds))
        self.live.restore(recent)
        for record in recent:
            log = IncidentLog(self.store.documents(record.run, "incident"))
            self.live.recall(record.run, active=log.active(), total=log.total())
        self.store.start()
        if self.notifier is not None:
            self.notifier.start()
        self.ingest.start()
        self.analyser.start()

    def drain(self) -> None:
        """Take no more reports; open event streams end. Safe to repeat."""
        self.ingest.drain()
        self.events.close()

    def stop(self) -> None:
        """Finish what was accepted, then close the store."""
        self.ingest.stop()
        self.analyser.stop()
        if self.notifier is not None:
            self.notifier.stop()
        self.store.close()


def build(settings: Settings, store: Store) -> Service:
    """Put the parts together. Starts nothing."""
    events = EventHub(settings.max_event_subscribers)
    instruments = Instruments()
    live = LiveView(
        retention_seconds=settings.info_ttl_seconds, silent_seconds=settings.silent_seconds
    )
    ingest = Ingest(settings, store, instruments)
    store.on_commit(events.committed)
    store.on_commit(live.committed)
    remembered = Remembered()
    store.on_commit(remembered.committed)
    analyser = Analyser(store, settings)
    analyser.add_listener(Announcer(events))
    analyser.add_listener(live)
    analyser.add_listener(remembered)
    notifier = _notifier(settings, instruments)
    if notifier is not None:
        analyser.add_listener(notifier)
    analyser.time_ticks(instruments.detection.observe)
    instruments.queue(capacity=ingest.backlog.capacity, length=lambda: ingest.backlog.reports)
    instruments.storage_size(store.size_bytes)
    store.on_write(_written(instruments))
    limits = Limits(settings.max_series, settings.max_series_per_run, settings.value_ttl_seconds)
    return Service(
        settings=settings,
        store=store,
        access=Access(settings),
        ingest=ingest,
        events=events,
        analyser=analyser,
        live=live,
        instruments=instruments,
        exposition=Exposition(live, instruments, limits, TagLabels(settings.metric_tags)),
        remembered=remembered,
        notifier=notifier,
    )


def _notifier(settings: Settings, instruments: Instruments) -> Notifier | None:
    if not settings.notify:
        return None
    return Notifier(
        senders(settings.notify),
        level=settings.notify_level,
        count=lambda outcome: instruments.notifications.labels(outcome).inc(),
    )


def _written(instruments: Instruments) -> Callable[[float, bool], None]:
    def seen(seconds: float, stored: bool) -> None:  # noqa: FBT001 - the signature of on_write
        if stored:
            instruments.storage_write.observe(seconds)
        else:
            instruments.storage_errors.inc()

    return seen


async def get_service(request: Request) -> Service:
    """Return the service that the app was built around."""
    # A coroutine, though it waits for nothing: a plain function would be sent to a thread, on
    # every request.
    service: Service = request.app.state.service
    return service


ServiceDep = Annotated[Service, Depends(get_service)]


def _recent(store: Store, seconds: float) -> Iterator[RunRecord]:
    since = time.time() - seconds
    cursor = None
    while True:
        page = store.runs(limit=1000, cursor=cursor)
        yield from (r for r in page.items if (r.last_report_at or r.created_at) >= since)
        cursor = page.next_cursor
        if cursor is None:
            return
