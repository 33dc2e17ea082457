"""What the background thread does: read, gather, deliver, until it is asked to end."""

import math
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from gradwatch.console import LogOnce
from gradwatch.reporting.backlog import Backlog
from gradwatch.reporting.batching import Batching
from gradwatch.reporting.callbacks import Callbacks
from gradwatch.reporting.delivery import Delivery
from gradwatch.reporting.incidents import Incidents
from gradwatch.reporting.messages import Introduction, Request
from gradwatch.reporting.outbox import Outbox
from gradwatch.reporting.pause import Pause
from gradwatch.reporting.sample import Sample
from gradwatch.reporting.sender import Sender
from gradwatch.reporting.verdict import Action, Verdict

__all__ = ["Background"]

_FINISH_SECONDS = 2.0
_MOST_FAULTS = 100
_MOST_PAUSE_SECONDS = 300.0
_MOST_EVERY = 10_000


class SupersededError(BaseException):
    """What this thread was about to do was done by another one: it must touch nothing any more."""


class Background:
    """The work behind a reporter's queue.

    Args:
        rank: Whose samples these are.
        outbox: Where they come from.
        backlog: Where deliveries wait.
        sender: Brings them to the service; None when they are only kept.

    Attributes:
        callbacks: Whom to tell.
        incidents: Asked about after deliveries, when somebody wants to know.
        sent: Deliveries and steps that were acknowledged.
        dropped: Steps that were dropped, by reason.
        recommendation: The newest one that came with an answer.
        ended: Whether the work is over.
        pending_steps: Steps that are not acknowledged yet.
        fault: The last fault of our own.
    """

    def __init__(self, rank: int, outbox: Outbox, backlog: Backlog, sender: Sender | None) -> None:
        self._rank = rank
        self._outbox = outbox
        self._sender = sender
        if sender is not None:
            sender.asking = self.asking
        self._flushes: list[Request] = []
        self._faults = 0
        self._quiet_until = -math.inf
        self._every = 1
        self._log_once = LogOnce()
        self._pause = Pause()
        self.backlog = backlog
        self.callbacks = Callbacks()
        self.batching = Batching(rank, self.callbacks.read, self.callbacks.reported)
        self.incidents: Incidents | None = None
        self.sent: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.recommendation: Mapping[str, Any] | None = None
        self.ended = False
        self.pending_steps = 0
        # Held while something is worked on, released while the service is asked: so that close()
        # can put everything away itself when a request never ends, as one for a name can.
        self._working = threading.Lock()
        self.fault: str | None = None

    def run(self) -> None:
        """Work until asked to end. Never raises: a fault of ours is counted and logged once."""
        while not self.ended:
            items = self._outbox.take(self._idle_seconds())
            with self._working:
                if self.ended:
                    break
                try:
                    self._turn(items)
                except SupersededError:
                    break
                except Exception as error:  # noqa: BLE001 - the one place that must survive everything
                    self._note_fault(error)
        for request in self._flushes:
            request.done.set()

    @contextmanager
    def asking(self) -> Iterator[None]:
        """While the service is asked, let others work.

        Raises:
            SupersededError: Somebody else has put everything away meanwhile.
        """
        self._working.release()
        try:
            yield
        finally:
            self._working.acquire()
        if self.ended:
            raise SupersededError

    def rescue(self, status: str, patience: float) -> bool:
        """Put everything away in the place of a thread that hangs in a request; whether it did.

        Args:
            status: How the run ended.
            patience: Seconds to wait for the thread to be in a request, and not amid its work.
        """
        if not self._working.acquire(timeout=patience):
            return False
        try:
            if not self.ended:
                for item in self._outbox.take(0.0):
                    self._accept(item)
                self._collect(everything=True)
                self._keep_rest(status)
        finally:
            self.ended = True
            self._working.release()
        return True

    def _turn(self, items: Sequence[object]) -> None:
        for item in items:
            self._accept(item)
            if isinstance(item, Request) and item.status is not None:
                self._finish(item)
                return
            self._pause()
        self._collect()
        self._send_one()
        self._ask_for_incidents()
        self._pause()
        self._answer_flushes()
        self.pending_steps = self.batching.steps + self.backlog.steps

    def _accept(self, item: object) -> None:
        if isinstance(item, Sample):
            self._read(item)
        elif isinstance(item, Introduction):
            self._introduce(item)
        elif isinstance(item, Request) and item.status is None:
            self._collect(everything=True)
            self._flushes.append(item)
            if self._sender is not None:
                self._sender.hurry()

    def _idle_seconds(self) -> float | None:
        """How long nothing is to be done unless something comes; None: for ever."""
        now = time.monotonic()
        moments = [self.batching.due() - now]
        if self._sender is not None and (self._owes() or self.backlog.head() is not None):
            moments.append(self._sender.ready_in())
        asking = None if self.incidents is None else self.incidents.due()
        if asking is not None:
            moments.append(asking - now)
        moments += [request.deadline - now for request in self._flushes]
        soonest = min(moments)
        return None if soonest == math.inf else max(0.0, soonest)

    def _owes(self) -> bool:
        return self._sender is not None and not self._sender.announced

    def _introduce(self, item: Introduction) -> None:
        self.batching.introduce(item.optimizer, item.layout)
        self.backlog.introduce(item.layout.manifest)
        if self._sender is not None:
            self._sender.introduce(item.layout.manifest)
        else:
            self.callbacks.start(reached=False, why="offline")

    def _read(self, sample: Sample) -> None:
        now = time.monotonic()
        wanted = now >= self._quiet_until and sample.step % self._every == 0
        try:
            if not self.batching.read(sample, self._outbox.read(sample), now, wanted=wanted):
                self._drop("paused", 1)
        except Exception as error:  # noqa: BLE001 - one bad sample must not take the others along
            self._note_fault(error)
            self._drop("internal", 1)

    def _collect(self, *, everything: bool = False) -> None:
        overflow = self._outbox.new_overflow()
        if overflow:
            self._drop("queue_full", overflow)
        if self.backlog.full:
            self.dropped["buffer_full"] += self.batching.discard("buffer_full")
            return
        for delivery in self.batching.deliveries(time.monotonic(), everything=everything):
            self.dropped.update(self.backlog.append(delivery))
            self._pause()

    def _drop(self, reason: str, steps: int) -> None:
        """Count steps that are in no delivery; the next one tells of them."""
        self.batching.dropped[reason] += steps
        self.dropped[reason] += steps

    def _send_one(self) -> None:
        sender = self._sender
        if sender is None or sender.ready_in() > 0:
            return
        head = self.backlog.head()
        if head is not None:
            self._settle(head, sender.deliver(head))
        elif not sender.announced:
            sender.announce()
        self._note_contact(sender)

    def _note_contact(self, sender: Sender) -> None:
        """Act on how the last request went."""
        if sender.stopped is not None:
            self._log_once("stopped", f"nothing more is sent: {sender.stopped}")
        if not sender.reached:
            self.dropped.update(self.backlog.retreat())
        self.callbacks.start(reached=sender.reached, why=sender.last_error or "")

    def _settle(self, delivery: Delivery, verdict: Verdict) -> None:
        if verdict.action is Action.DONE:
            self.backlog.pop()
            self.sent.update(deliveries=1, steps=delivery.steps)
            self._heed(verdict.answer)
        elif verdict.action is Action.DROP:
            self._log_once(verdict.reason, f"a delivery was dropped: {verdict.why}")
            if delivery.steps:
                self.dropped[verdict.reason] += self.backlog.empty_head(verdict.reason)
            else:
                self.backlog.pop()

    def _heed(self, answer: Mapping[str, Any]) -> None:
        """Follow what the service may ask: to be quieter, never louder."""
        recommendation = answer.get("recommendation")
        if isinstance(recommendation, dict):
            self.recommendation = recommendation
        pause, every = answer.get("pause"), answer.get("every")
        if isinstance(pause, int | float) and pause > 0:
            self._quiet_until = time.monotonic() + float(min(pause, _MOST_PAUSE_SECONDS))
        if isinstance(every, int) and every >= 1:
            self._every = min(every, _MOST_EVERY)
        self.callbacks.answer(answer)
        if self.incidents is not None:
            self.incidents.expect(time.monotonic())

    def _ask_for_incidents(self) -> None:
        if self.incidents is None:
            return
        now, due = time.monotonic(), self.incidents.due()
        if due is not None and now >= due:
            self.callbacks.call(self.incidents.ask, now)

    def _answer_flushes(self) -> None:
        if not self._flushes:
            return
        settled = self.backlog.head() is None or self._sender is None
        hopeless = self._sender is not None and self._sender.stopped is not None
        now = time.monotonic()
        for request in list(self._flushes):
            if settled or hopeless or now >= request.deadline:
                request.delivered = settled
                request.done.set()
                self._flushes.remove(request)

    def _finish(self, request: Request) -> None:
        """Deliver what is left before the deadline, say how the run ended, end."""
        status = request.status or "completed"
        try:
            self._collect(everything=True)
            # The other ranks may still be at work: only the first speaks for the run.
            told = self._rank > 0
            if self._sender is not None:
                self._last_sending(self._sender, request.deadline)
                request.delivered = self.backlog.head() is None
                last = min(request.deadline, time.monotonic() + _FINISH_SECONDS)
                told = told or self._sender.finish(status, until=last)
                if self.incidents is not None and self._sender.reached:
                    self.callbacks.call(self.incidents.ask, math.inf)
            self._keep_rest(None if told else status)
        except SupersededError:
            return
        finally:
            self.ended = True
            request.done.set()

    def _keep_rest(self, status: str | None) -> None:
        """Put what is left, and how the run ended unless that was told, where it lasts."""
        self.dropped.update(self.backlog.retreat())
        if self.backlog.spool is not None:
            if status is not None:
                self.backlog.spool.finish(status)
            self.backlog.spool.close()
        if self._sender is not None:
            self._sender.close()
        self.pending_steps = self.backlog.steps

    def _last_sending(self, sender: Sender, deadline: float) -> None:
        sender.limit(deadline)
        sender.hurry()
        failures = 0
        # The second failure in a row is the service's, not a connection's that had gone stale.
        while failures < 2 and sender.stopped is None and time.monotonic() < deadline:
            head = self.backlog.head()
            if head is None:
                return
            verdict = sender.deliver(head)
            self._settle(head, verdict)
            failures = failures + 1 if verdict.action is Action.RETRY else 0
        self._note_contact(sender)

    def _note_fault(self, error: Exception) -> None:
        self._faults += 1
        self.fault = f"{type(error).__name__}: {error}"
        self._log_once(
            self.fault, f"a fault in the reporter, training goes on: {self.fault}", error=error
        )
        if self._faults >= _MOST_FAULTS:
            self.ended = True
