"""The run's incidents, asked for after deliveries, each told once."""

import json
from collections.abc import Callable
from typing import Any

from gradwatch.reporting.sender import Sender

__all__ = ["Incidents"]

SECONDS_BETWEEN = 1.0
# Analysis follows a delivery within about a second, later where the service is busy; and after the
# last delivery of a pause nothing else would make us ask.
ASK_AFTER_SECONDS = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0)
_MOST_KNOWN = 10_000

OnIncident = Callable[[dict[str, Any]], None]


class Incidents:
    """Tells a callback of every incident of this attempt, once per id, in the order they opened.

    Closed ones count too: a spike of one step opens and closes between two questions.

    Args:
        sender: Asks the service.
        tell: Called with the incident as the service spells it.
    """

    def __init__(self, sender: Sender, tell: OnIncident) -> None:
        self._sender = sender
        self._tell = tell
        self._known: set[str] = set()
        self._not_before = 0.0
        self._moments: list[float] = []

    def expect(self, now: float) -> None:
        """Steps were delivered: ask now and a few times more. ``now`` is in monotonic seconds."""
        if len(self._known) < _MOST_KNOWN:
            self._moments = [now + seconds for seconds in ASK_AFTER_SECONDS]

    def due(self) -> float | None:
        """When to ask next, in monotonic seconds; None: not before the next delivery."""
        return max(self._moments[0], self._not_before) if self._moments else None

    def ask(self, now: float) -> None:
        """Ask, and tell what is new. A failure to answer is no news.

        Args:
            now: Monotonic seconds.
        """
        self._not_before = now + SECONDS_BETWEEN
        self._moments = [moment for moment in self._moments if moment > now]
        for incident in reversed(self._newest()):
            key = incident.get("id")
            if isinstance(key, str) and key not in self._known:
                self._known.add(key)
                self._tell(incident)

    def _newest(self) -> list[dict[str, Any]]:
        body = self._sender.fetch("/incidents?limit=20")
        try:
            answer = json.loads(body)
        except (ValueError, RecursionError):
            return []
        items = answer.get("items") if isinstance(answer, dict) else None
        return [item for item in items or [] if isinstance(item, dict) and self._is_ours(item)]

    def _is_ours(self, incident: dict[str, Any]) -> bool:
        """Whether it is of this attempt and still holds."""
        ours = incident.get("attempt", self._sender.attempt) == self._sender.attempt
        return ours and incident.get("status") != "retracted"
