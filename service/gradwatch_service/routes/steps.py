"""The short way for scripts: a step's numbers in one small object, no manifest, no sequence."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import orjson
from fastapi import APIRouter, Request, Response

from gradwatch_service.access import Ingester, check_run_id
from gradwatch_service.ingest import Body
from gradwatch_service.ingest.bodies import decompress, parse_json
from gradwatch_service.ingest.short_way import MANIFEST, rows_of_steps
from gradwatch_service.problems import ServiceError
from gradwatch_service.schemas import PROBLEMS, STEPS_BODY
from gradwatch_service.store.base import Delivery
from gradwatch_service.store.delivering import deliver
from gradwatch_service.wiring import Service, ServiceDep

router = APIRouter()


@router.post(
    "/api/v1/runs/{run}/steps", openapi_extra=STEPS_BODY, responses=PROBLEMS, tags=["ingest"]
)
async def post_steps(run: str, request: Request, caller: Ingester, service: ServiceDep) -> Response:
    """Store numbers of one step or of a list of steps; makes the run if it is new.

    A step is stored once; the same numbers again change nothing, other numbers are a conflict.
    """
    check_run_id(run)
    async with service.ingest.body(request) as body:
        deliveries = await service.ingest.offload(_deliveries, service, run, body)
        project = caller.project or "default"
        await asyncio.to_thread(caller.check, service.store, run)
        if not service.ingest.takes_steps(run):
            await asyncio.to_thread(_open, service, run, project)
        receipts = await service.ingest.steps(deliveries, body)
    content = {
        "stored": any(receipt.stored for receipt in receipts),
        "steps": sum(receipt.stored for receipt in receipts),
        "recommendation": service.analyser.recommendation(run),
    }
    return Response(orjson.dumps(content), media_type="application/json")


def _open(service: Service, run: str, project: str) -> None:
    try:
        known = service.store.run(run).project
    except LookupError:
        known = project
    service.store.register(run, replace(MANIFEST, project=known), now=time.time())
    service.ingest.took_steps(run)


def _deliveries(service: Service, run: str, body: Body) -> list[Delivery]:
    if body.kind != "application/json":
        raise ServiceError(
            415,
            "unsupported_media_type",
            f"Content-Type {body.kind!r} given; steps are application/json",
        )
    raw = decompress(body.data, body.encoding, service.settings.max_decompressed_bytes)
    steps = rows_of_steps(parse_json(raw), service.settings)
    return [
        deliver(
            run,
            rows,
            sequence=-1 - int(rows.steps[0]),
            manifest=MANIFEST.hash,
            received=body.received,
        )
        for rows in steps
    ]
