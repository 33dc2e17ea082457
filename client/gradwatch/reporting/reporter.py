"""The reporter: what a Watch hands its samples to, and never waits for."""

import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from gradwatch.identity import Identity
from gradwatch.reporting.background import Background
from gradwatch.reporting.backlog import Backlog
from gradwatch.reporting.backoff import Backoff
from gradwatch.reporting.delivery import Layout
from gradwatch.reporting.incidents import Incidents
from gradwatch.reporting.messages import Introduction, Request
from gradwatch.reporting.outbox import Outbox
from gradwatch.reporting.packing import Packer
from gradwatch.reporting.sample import Sample
from gradwatch.reporting.sender import Sender
from gradwatch.reporting.spool import Spool
from gradwatch.reporting.transport import HttpTransport, Transport
from gradwatch.settings import Settings
from gradwatch_wire import Manifest

__all__ = ["Health", "Reporter"]

# What close() keeps back of its time for putting away what could not be delivered.
_RESERVE_SECONDS = 0.5

_living: "weakref.WeakSet[Reporter]" = weakref.WeakSet()


@dataclass(frozen=True, slots=True)
class Health:
    """How reporting is doing, without waiting.

    Attributes:
        state: ``starting``, ``online``, ``away`` (the last request failed), ``offline`` (by
            choice), ``refused`` (nothing more is sent) or ``closed``.
        sent_deliveries: Deliveries that the service acknowledged.
        sent_steps: Steps in them.
        pending_steps: Steps on their way.
        spooled_deliveries: Deliveries that lie in the spool.
        dropped: Steps that were dropped, by reason.
        last_error: What went wrong last.
        spool: Where undelivered reports lie.
    """

    state: str = "starting"
    sent_deliveries: int = 0
    sent_steps: int = 0
    pending_steps: int = 0
    spooled_deliveries: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    last_error: str | None = None
    spool: Path | None = None


class Reporter:
    """Delivers the samples of one rank of one run from a single daemon thread.

    The training thread only hands over: :meth:`put` does no I/O, takes no lock and never waits. All
    else, reading from the device included, happens on the thread, which starts with the first
    :meth:`register`. After a fork the child's copy takes samples no more: a DataLoader worker must
    not report.

    Args:
        settings: Address, token, mode, limits.
        identity: Run, session and rank.
        backoff: How long to leave a failing service alone.
        transport: What asks the service, made on the thread; None: HTTP.
    """

    def __init__(
        self,
        settings: Settings,
        identity: Identity,
        *,
        backoff: Backoff | None = None,
        transport: Callable[[], Transport] | None = None,
    ) -> None:
        self._settings = settings
        self._outbox = Outbox()
        self._sender = None
        if settings.mode == "online":
            self._sender = Sender(transport or self._http, identity, backoff or Backoff())
        spool = Spool(settings.directory, identity) if settings.spool else None
        backlog = Backlog(identity.rank, spool)
        if self._sender is None:
            backlog.retreat()
        self._background = Background(identity.rank, self._outbox, backlog, self._sender)
        self._thread: threading.Thread | None = None
        self._deaf = False
        _living.add(self)

    def register(self, optimizer: str, manifest: Manifest, columns: Sequence[str]) -> None:
        """Announce an optimizer's tensors; samples put from now on look like this.

        Args:
            optimizer: Its name.
            manifest: Its tensors.
            columns: Names of the rows of its statistics.
        """
        layout = Layout(manifest, manifest.hash, Packer(columns, manifest))
        self._outbox.ask(Introduction(optimizer, layout))
        if self._thread is None and not self._deaf:
            thread = threading.Thread(target=self._background.run, name="gradwatch", daemon=True)
            with suppress(RuntimeError):  # the interpreter is shutting down: no more threads
                thread.start()
                self._thread = thread

    def put(self, sample: Sample) -> None:
        """Hand a sample over, or drop and count it where there is no room. Never waits."""
        if not (self._deaf or self._background.ended):
            self._outbox.put(sample)

    def flush(self, timeout: float) -> bool:
        """Wait until everything put so far is acknowledged (in mode offline: is in the spool).

        Args:
            timeout: Seconds to wait at most.

        Returns:
            Whether it is.
        """
        if self._deaf or not self._alive:
            return self._background.backlog.head() is None
        request = Request(None, time.monotonic() + timeout)
        self._outbox.ask(request)
        request.done.wait(timeout)
        return request.delivered

    def close(self, status: str, timeout: float) -> bool:
        """Deliver what is left, finish the run, end the thread. Again: does nothing.

        Args:
            status: ``completed``, ``failed`` or ``interrupted``.
            timeout: Seconds to wait at most; what is not delivered by then lies in the spool.

        Returns:
            Whether everything was acknowledged.
        """
        deaf, self._deaf = self._deaf, True
        if deaf or not self._alive:
            return self._background.backlog.head() is None
        reserve = min(_RESERVE_SECONDS, timeout / 2)
        request = Request(status, time.monotonic() + timeout - reserve)
        self._outbox.ask(request)
        if not request.done.wait(timeout - reserve):
            if self._sender is not None:
                self._sender.abort()
            if not request.done.wait(reserve / 2):
                self._background.rescue(status, reserve / 2)
        return request.delivered

    def health(self) -> Health:
        """How reporting is doing; reads what the background thread last wrote."""
        work = self._background
        return Health(
            state=self._state(),
            sent_deliveries=work.sent["deliveries"],
            sent_steps=work.sent["steps"],
            pending_steps=work.pending_steps,
            spooled_deliveries=work.backlog.spooled,
            dropped={**work.dropped, **_some("queue_full", self._outbox.overflow)},
            last_error=(self._sender and self._sender.last_error) or work.fault,
            spool=None if work.backlog.spool is None else work.backlog.spool.folder,
        )

    @property
    def recommendation(self) -> Mapping[str, Any] | None:
        """The newest recommendation the service sent along, as it came.

        None before the first, and while the service is away: whoever follows it then stays put.
        """
        if self._sender is None or not self._sender.reached:
            return None
        return self._background.recommendation

    def on_read(self, callback: Callable[[Sample, Tensor], None]) -> None:
        """Call back, on the background thread, with every sample and its host copy [columns, T]."""
        self._background.callbacks.on_read = callback

    def on_reported(self, callback: Callable[[Sample, Tensor, Mapping[str, float]], None]) -> None:
        """Call back with every sample that is reported, its host copy and all its scalars."""
        self._background.callbacks.on_reported = callback

    def on_start(self, callback: Callable[[bool, str], None]) -> None:
        """Call back once with whether the service was reached, and why not."""
        self._background.callbacks.on_start = callback

    def on_answer(self, callback: Callable[[Mapping[str, Any]], None]) -> None:
        """Call back with every answer to a delivery."""
        self._background.callbacks.on_answer = callback

    def on_incident(self, callback: Callable[[dict[str, Any]], None]) -> None:
        """Call back once for every incident the service opens, soon after it did."""
        if self._sender is not None:
            self._background.incidents = Incidents(self._sender, callback)

    @property
    def _alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _state(self) -> str:
        if self._deaf or self._background.ended:
            return "closed"
        return "offline" if self._sender is None else self._sender.state

    def _http(self) -> Transport:
        settings = self._settings
        return HttpTransport(
            settings.url, token=settings.token, timeout=settings.timeout, insecure=settings.insecure
        )

    def _silence(self) -> None:
        """In the child of a fork: the thread is not here, and its locks may be held for ever."""
        self._deaf = True
        self._thread = None


def _some(reason: str, steps: int) -> dict[str, int]:
    return {reason: steps} if steps else {}


def _silence_all() -> None:
    for reporter in list(_living):
        reporter._silence()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_silence_all)
