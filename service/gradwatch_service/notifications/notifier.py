"""Sends a message when an incident opens: queued, limited in rate, tried again."""

import logging
import queue
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Protocol

from gradwatch_service.notifications.apprise_addresses import Sender
from gradwatch_service.notifications.message import LEVELS, Incident, Level, Message, message_of

__all__ = ["Notifier"]

_log = logging.getLogger(__name__)

QUEUE_LENGTH = 100
PER_MINUTE = 10
RETRY_SECONDS = (1.0, 5.0, 25.0)
REMEMBERED = 4096


class Snapshot(Protocol):
    """What the analyser tells after each advance."""

    @property
    def changed(self) -> Sequence[Incident]:
        """What opened, closed or was revised since the last time."""


class Notifier:
    """Tells people about incidents, each once. Never holds up the analyser.

    At most 100 messages wait and at most 10 leave within a minute; what does not fit is dropped
    and counted, since a flood of messages is read by nobody. A message that does not arrive is
    tried again after 1, 5 and 25 s, then given up.

    Args:
        senders: Where messages go.
        level: The least severity that is told: ``critical`` is the highest, ``info`` the lowest.
        count: Called with ``sent``, ``failed`` or ``dropped`` for each message.
        clock: Seconds that never go back.
        wait: Waits so many seconds or until the notifier stops; True when it stops.
    """

    def __init__(
        self,
        senders: Sequence[Sender],
        *,
        level: Level = "critical",
        count: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], bool] | None = None,
    ) -> None:
        self._senders = senders
        self._levels = LEVELS[: LEVELS.index(level) + 1]
        self._count = count
        self._clock = clock
        self._over = threading.Event()
        self._wait = wait or self._over.wait
        self._told: OrderedDict[str, None] = OrderedDict()
        self._recent: deque[float] = deque()
        self._queue: queue.Queue[Message | None] = queue.Queue(QUEUE_LENGTH)
        self._thread = threading.Thread(target=self._run, name="gradwatch-notify", daemon=True)

    def start(self) -> None:
        """Begin sending."""
        self._thread.start()

    def stop(self, timeout: float = 5.0) -> None:
        """Send what waits, without trying again, within the timeout."""
        self._over.set()
        try:
            self._queue.put_nowait(None)
        except queue.Full:
            _log.warning("notifications still wait; they are given up")
            return
        self._thread.join(timeout)

    def analysed(self, run: str, snapshot: Snapshot) -> None:
        """Take note of incidents that opened; a listener of the analyser."""
        for incident in snapshot.changed:
            wanted = incident.status == "open" and incident.severity in self._levels
            if not wanted or incident.id in self._told:
                continue
            self._told[incident.id] = None
            if len(self._told) > REMEMBERED:
                self._told.popitem(last=False)
            if not self._take(message_of(run, incident)):
                self._count("dropped")

    def _take(self, message: Message) -> bool:
        now = self._clock()
        while self._recent and now - self._recent[0] >= 60:
            self._recent.popleft()
        if len(self._recent) >= PER_MINUTE:
            return False
        try:
            self._queue.put_nowait(message)
        except queue.Full:
            return False
        self._recent.append(now)
        return True

    def _run(self) -> None:
        while (message := self._queue.get()) is not None:
            for number, send in enumerate(self._senders, 1):
                arrived = self._deliver(send, message)
                self._count("sent" if arrived else "failed")
                if not arrived:
                    _log.warning("notification %d did not arrive: %s", number, message.title)

    def _deliver(self, send: Sender, message: Message) -> bool:
        for pause in (*RETRY_SECONDS, None):
            try:
                if send(message):
                    return True
            except Exception:  # noqa: BLE001 - a sender may fail in any way; the thread must go on
                _log.exception("sending a notification failed")
            if pause is None or self._wait(pause):
                return False
        return False
