"""The run's open incidents, asked for now and then, each told once."""

import json
from collections.abc import Callable
from typing import Any

from gradwatch.reporting.sender import Sender

__all__ = ["Incidents"]

SECONDS_BETWEEN = 1.0
_MOST_KNOWN = 10_000

OnIncident = Callable[[dict[str, Any]], None]


class Incidents:
    """Tells a callback of every incident the service opens, once per id.

    Args:
        sender: Asks the service.
        tell: Called with the incident as the service spells it.
    """

    def __init__(self, sender: Sender, tell: OnIncident) -> None:
        self._sender = sender
        self._tell = tell
        self._known: set[str] = set()
        self._not_before = 0.0

    def ask(self, now: float) -> None:
        """Ask unless that was done within the last second. A failure to answer is no news.

        Args:
            now: Monotonic seconds.
        """
        if now < self._not_before or len(self._known) >= _MOST_KNOWN:
            return
        self._not_before = now + SECONDS_BETWEEN
        for incident in self._open():
            key = incident.get("id")
            if isinstance(key, str) and key not in self._known:
                self._known.add(key)
                self._tell(incident)

    def _open(self) -> list[dict[str, Any]]:
        body = self._sender.fetch("/incidents?status=open&limit=20")
        try:
            answer = json.loads(body)
        except (ValueError, RecursionError):
            return []
        items = answer.get("items") if isinstance(answer, dict) else None
        return [item for item in items or [] if isinstance(item, dict)]
