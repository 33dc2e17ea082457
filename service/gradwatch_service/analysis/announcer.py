"""Tells event streams what analysis found."""

from __future__ import annotations

from gradwatch_service.analysis.analyser import AnalysisSnapshot
from gradwatch_service.events import Event, EventHub

__all__ = ["Announcer"]


class Announcer:
    """Publishes incidents, changes of state and changes of the recommended threshold.

    Args:
        hub: Where events are published; it never blocks.
    """

    def __init__(self, hub: EventHub) -> None:
        self._hub = hub
        self._told: dict[str, tuple[str, object]] = {}  # run to state and threshold last told

    def analysed(self, run: str, snapshot: AnalysisSnapshot) -> None:
        """See :class:`~gradwatch_service.analysis.analyser.AnalysisListener`."""
        for incident in snapshot.changed:
            self._hub.publish(Event("incident", run, incident.to_json()))
        advice = snapshot.recommendation or {}
        state, threshold = self._told.get(run, ("", None))
        if snapshot.state != state:
            self._hub.publish(Event("state", run, {"run": run, "state": snapshot.state}))
        if advice.get("threshold") != threshold:
            self._hub.publish(Event("threshold", run, dict(advice)))
        self._told[run] = (snapshot.state, advice.get("threshold"))
