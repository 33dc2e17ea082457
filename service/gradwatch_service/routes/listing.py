"""Routes that list runs and sum one up."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from gradwatch_service.access import Reader, VisibleRun
from gradwatch_service.problems import invalid
from gradwatch_service.queries.answers import cacheable
from gradwatch_service.routes.remembering import RememberingRoute
from gradwatch_service.schemas import PROBLEMS
from gradwatch_service.store.base import RunRecord
from gradwatch_service.wiring import Service, ServiceDep

router = APIRouter(tags=["runs"], route_class=RememberingRoute)


@router.get("/api/v1/runs", responses=PROBLEMS)
def list_runs(
    *,
    request: Request,
    service: ServiceDep,
    caller: Reader,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    cursor: Annotated[str | None, Query(max_length=512)] = None,
    project: Annotated[str | None, Query(max_length=512)] = None,
    state: Annotated[str | None, Query(max_length=64)] = None,
    q: Annotated[str | None, Query(max_length=512)] = None,
) -> Response:
    """Runs, newest first; ``q`` is looked for in id, name and tags.

    ``next_cursor`` is the ``cursor`` of the next page, or null on the last one.
    """
    if project is not None and not caller.sees(project):
        # As if the project did not exist: whether it does is nobody else's business.
        return cacheable(request, {"items": [], "next_cursor": None})
    try:
        page = service.store.runs(
            project=caller.project or project, state=state, q=q, limit=limit, cursor=cursor
        )
    except ValueError as error:
        raise invalid("cursor", f"{error}; take next_cursor of the page before.") from error
    items = [_line(service, record) for record in page.items]
    return cacheable(request, {"items": items, "next_cursor": page.next_cursor})


@router.get("/api/v1/runs/{run}", responses=PROBLEMS)
def get_run(request: Request, service: ServiceDep, record: VisibleRun) -> Response:
    """What is known of one run."""
    streams = service.store.streams(record.run)
    newest = max((s.attempt for s in streams), default=record.attempt)
    manifests = [
        {
            "optimizer": s.optimizer,
            "rank": s.rank,
            "manifest": s.manifest.hash,
            "optimizer_class": s.manifest.optimizer_class,
            "tensors": len(s.manifest.tensors),
            "elements": sum(t.numel for t in s.manifest.tensors),
        }
        for s in streams
        if s.attempt == newest
    ]
    return cacheable(request, _line(service, record) | {"manifests": manifests})


def _line(service: Service, record: RunRecord) -> dict[str, Any]:
    analysed = service.analyser.newest(record.run)
    return {
        "run": record.run,
        "name": record.name or record.run,
        "project": record.project,
        "state": record.state,
        "status": record.status,
        "attempt": record.attempt,
        "steps": record.steps,
        "first_step": record.first_step,
        "last_step": record.last_step,
        "analysed_step": analysed.analysed_step if analysed else None,
        "open_incidents": len(service.analyser.open_incidents(record.run)),
        "world_size": record.world_size,
        "policy": record.policy,
        "tags": dict(record.tags),
        "note": record.note,
        "dropped": dict(record.dropped),
        "created_at": record.created_at,
        "last_report_at": record.last_report_at,
        "finished_at": record.finished_at,
        "revision": record.revision,
    }
