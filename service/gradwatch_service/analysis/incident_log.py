"""The incidents of one run as others see them: stable ids, revisions, retractions, never a delete."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace

from gradwatch_service.analysis.incidents import Incident

__all__ = ["IncidentLog"]


class IncidentLog:
    """Every incident and notice of a run by id; not safe to share between threads.

    Args:
        stored: Documents of the collection ``incident``, as written by :meth:`take_unsaved`.
    """

    def __init__(self, stored: Mapping[str, bytes]) -> None:
        self._items = {key: Incident.from_json(json.loads(data)) for key, data in stored.items()}
        self._unsaved: set[str] = set()

    def all(self) -> list[Incident]:
        """Return every incident and notice, oldest first."""
        return sorted(self._items.values(), key=lambda item: (item.attempt, item.opened_step))

    def progress(self, incidents: Iterable[Incident]) -> list[Incident]:
        """Take incidents over as analysis moves forward; return those that changed."""
        return self._write(incidents, revise=False)

    def reconcile(
        self, attempt: int, optimizer: str, since: int, found: Mapping[str, Incident]
    ) -> list[Incident]:
        """Replace what was said of the steps above ``since`` by what a replay found there.

        An incident whose content changed gets the next revision; one that was not found again is
        retracted. Returns those that changed.
        """
        gone = [
            replace(item, status="retracted", revision=item.revision + 1)
            for item in self._items.values()
            if (item.attempt, item.optimizer) == (attempt, optimizer)
            and item.opened_step > since
            and item.id not in found
            and item.status != "retracted"
            and item.kind not in ("rank_missing", "reports_dropped")  # these come from the clock
        ]
        return self._write(found.values(), revise=True) + self._write(gone, revise=False)

    def take_unsaved(self) -> dict[str, bytes | None]:
        """Documents that changed since the last call."""
        taken: dict[str, bytes | None] = {
            key: json.dumps(self._items[key].to_json()).encode() for key in sorted(self._unsaved)
        }
        self._unsaved.clear()
        return taken

    def active(self) -> Counter[str]:
        """Open incidents that are more than info, by kind."""
        return Counter(
            item.kind
            for item in self._items.values()
            if item.status == "open" and item.severity != "info" and not item.is_notice
        )

    def total(self) -> Counter[str]:
        """Ids ever given, by kind; never falls, since nothing is deleted."""
        return Counter(item.kind for item in self._items.values() if not item.is_notice)

    def _write(self, incidents: Iterable[Incident], *, revise: bool) -> list[Incident]:
        changed = []
        for incident in incidents:
            known = self._items.get(incident.id)
            revision = known.revision if known else 0
            new = replace(incident, revision=max(revision, incident.revision))
            if new == known:
                continue
            if known and revise and replace(new, provisional=known.provisional) != known:
                new = replace(new, revision=known.revision + 1)
            self._items[new.id] = new
            self._unsaved.add(new.id)
            changed.append(new)
        return changed
