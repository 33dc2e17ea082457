"""Routes of incidents and notices: list, acknowledge, annotate."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from gradwatch_service.access import Admin, Reader, VisibleRun
from gradwatch_service.analysis.incidents import NOTICE_KINDS
from gradwatch_service.problems import ServiceError
from gradwatch_service.wiring import ServiceDep

router = APIRouter()

IncidentKind = Literal["exploding", "vanishing", "oscillating", "nonfinite"]
NoticeKind = Literal[
    "replicas_apart", "rank_missing", "overclipping", "underflow", "reports_dropped"
]
Status = Annotated[
    Literal["open", "closed", "retracted"] | None, Query(description="Only those of this status.")
]
Severity = Annotated[
    Literal["critical", "warning", "info"] | None, Query(description="Only those of this severity.")
]
KindOfIncident = Annotated[IncidentKind | None, Query(description="Only incidents of this kind.")]
KindOfNotice = Annotated[NoticeKind | None, Query(description="Only notices of this kind.")]
Limit = Annotated[int, Query(ge=1, le=1000, description="Most items in one answer.")]
Cursor = Annotated[
    str | None, Query(max_length=512, description="`next_cursor` of the answer before.")
]


class Acknowledgement(BaseModel):
    """What a person says about an incident."""

    model_config = ConfigDict(extra="forbid")

    by: str | None = Field(None, max_length=128, description="Who looked at it.")
    note: str | None = Field(None, max_length=4096, description="What they found.")


@router.get("/api/v1/runs/{run}/incidents")
def list_run_incidents(
    *,
    record: VisibleRun,
    service: ServiceDep,
    status: Status = None,
    kind: KindOfIncident = None,
    severity: Severity = None,
    limit: Limit = 1000,
    cursor: Cursor = None,
) -> dict[str, Any]:
    """Incidents of a run, newest first."""
    items = _of_run(service, record.run, notices=False)
    return _page(_filtered(items, status, kind, severity), limit, cursor)


@router.get("/api/v1/runs/{run}/notices")
def list_run_notices(
    *,
    record: VisibleRun,
    service: ServiceDep,
    status: Status = None,
    kind: KindOfNotice = None,
    severity: Severity = None,
    limit: Limit = 1000,
    cursor: Cursor = None,
) -> dict[str, Any]:
    """Notices of a run, newest first: worth knowing, but no gradient faults."""
    items = _of_run(service, record.run, notices=True)
    return _page(_filtered(items, status, kind, severity), limit, cursor)


@router.get("/api/v1/incidents")
def list_incidents(
    *,
    caller: Reader,
    service: ServiceDep,
    status: Status = None,
    kind: KindOfIncident = None,
    severity: Severity = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> dict[str, Any]:
    """Incidents of every run that the caller sees, newest run first."""
    marks = {
        (run, key): data
        for run, key, data in service.store.all_documents("mark", project=caller.project)
    }
    items = (
        _with_mark(json.loads(data), marks.get((run, key)))
        for run, key, data in service.store.all_documents("incident", project=caller.project)
    )
    wanted = (item for item in items if item["kind"] not in NOTICE_KINDS)
    return _page(_filtered(wanted, status, kind, severity), limit, cursor)


@router.post("/api/v1/runs/{run}/incidents/{incident}/acknowledge")
def acknowledge_incident(
    *,
    record: VisibleRun,
    incident: str,
    body: Acknowledgement,
    _: Admin,
    service: ServiceDep,
) -> dict[str, Any]:
    """Note that somebody looked at an incident or notice. Repeats replace who and note."""
    known = service.store.documents(record.run, "incident").get(incident)
    if known is None:
        raise ServiceError(
            404, "unknown_incident", f"run {record.run!r} has no incident {incident!r}"
        )
    mark = {"acknowledged_at": time.time(), "acknowledged_by": body.by, "note": body.note}
    data = json.dumps(mark).encode()
    service.store.save(record.run, {"mark": {incident: data}})
    return _with_mark(json.loads(known), data)


def _of_run(service: ServiceDep, run: str, *, notices: bool) -> Iterator[dict[str, Any]]:
    marks = service.store.documents(run, "mark")
    for key, data in service.store.documents(run, "incident").items():
        item = _with_mark(json.loads(data), marks.get(key))
        if (item["kind"] in NOTICE_KINDS) == notices:
            yield item


def _with_mark(item: dict[str, Any], mark: bytes | None) -> dict[str, Any]:
    unmarked = {"acknowledged_at": None, "acknowledged_by": None, "note": None}
    return {**item, **(json.loads(mark) if mark else unmarked)}


def _filtered(
    items: Iterable[dict[str, Any]], status: str | None, kind: str | None, severity: str | None
) -> list[dict[str, Any]]:
    wanted = {"status": status, "kind": kind, "severity": severity}
    given = {name: value for name, value in wanted.items() if value is not None}
    return [item for item in items if all(item[name] == value for name, value in given.items())]


def _place(item: dict[str, Any]) -> str:
    return f"{item['attempt']:06d}/{item['opened_step']:015d}/{item['run']}/{item['id']}"


def _page(items: list[dict[str, Any]], limit: int, cursor: str | None) -> dict[str, Any]:
    """Newest step first; the cursor names the last item given, so new ones do not shift the pages."""
    ordered = sorted(items, key=_place, reverse=True)
    if cursor is not None:
        ordered = [item for item in ordered if _place(item) < cursor]
    page = ordered[:limit]
    more = len(ordered) > limit
    return {"items": page, "next_cursor": _place(page[-1]) if more else None}
