"""Whether the service lives, whether it can take reports, and what it offers."""

from __future__ import annotations

import asyncio

import orjson
from fastapi import APIRouter, Request, Response

from gradwatch_service.access import Reader
from gradwatch_service.problems import ServiceError
from gradwatch_service.schemas import PROBLEMS
from gradwatch_service.wiring import ServiceDep

router = APIRouter()


# Load balancers and uptime checks ask with HEAD.
@router.head("/healthz", include_in_schema=False)
@router.get("/healthz", tags=["health"])
async def get_health() -> dict[str, str]:
    """The process answers. Touches no storage."""
    return {"status": "ok"}


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", responses=PROBLEMS, tags=["health"])
async def get_readiness(service: ServiceDep) -> dict[str, str]:
    """The service takes reports: it is not stopping, and a write would be durable."""
    if service.ingest.draining:
        raise ServiceError(503, "draining", "the service is stopping", headers={"Retry-After": "5"})
    await asyncio.to_thread(service.store.check)
    return {"status": "ready"}


@router.get("/api/v1/openapi.json", include_in_schema=False)
async def get_openapi(request: Request, _: Reader) -> Response:
    """The interface, as OpenAPI."""
    document = dict(request.app.openapi())
    prefix = request.scope.get("root_path")
    if prefix:
        document["servers"] = [{"url": prefix}]
    return Response(orjson.dumps(document), media_type="application/json")
