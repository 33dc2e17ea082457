"""Reports: one delivery per request, answered once it is durable."""

from __future__ import annotations

import asyncio

import orjson
from fastapi import APIRouter, Request, Response

from gradwatch_service.access import Ingester, check_run_id
from gradwatch_service.schemas import PROBLEMS, REPORT_BODY
from gradwatch_service.store.base import UnknownRunError
from gradwatch_service.wiring import ServiceDep

router = APIRouter()


@router.post(
    "/api/v1/runs/{run}/reports", openapi_extra=REPORT_BODY, responses=PROBLEMS, tags=["ingest"]
)
async def post_report(
    run: str, request: Request, caller: Ingester, service: ServiceDep
) -> Response:
    """Store one delivery of statistics; safe to repeat.

    `stored` is false for a repeat. `recommendation` is the newest known one.
    """
    check_run_id(run)
    if caller.project is not None:
        project = service.ingest.known_project(run)
        if project is None:
            project = await asyncio.to_thread(service.ingest.project, run)
        if not caller.sees(project):
            raise UnknownRunError(run)
    async with service.ingest.body(request) as body:
        delivery, receipt = await service.ingest.report(run, body)
    content = {
        "stored": receipt.stored,
        "sequence": delivery.sequence,
        "steps": len(delivery.rows),
        "recommendation": service.analyser.recommendation(run),
    }
    return Response(orjson.dumps(content), media_type="application/json")
