"""Routes that give what is stored, as it was reported: for export, and for other tools."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Query, Request, Response

from gradwatch_service.access import VisibleRun
from gradwatch_service.problems import invalid
from gradwatch_service.queries.answers import cacheable
from gradwatch_service.queries.stored import stored_report
from gradwatch_service.schemas import PROBLEMS
from gradwatch_service.store.base import Stream
from gradwatch_service.wiring import ServiceDep
from gradwatch_wire import CONTENT_TYPE, encode, report_to_json

router = APIRouter(tags=["steps"])

MOST_STEPS = 4096


@router.get("/api/v1/runs/{run}/manifests", responses=PROBLEMS)
def get_manifests(request: Request, service: ServiceDep, record: VisibleRun) -> Response:
    """Who reported what: every attempt, optimizer and rank with its tensors and steps."""
    items = [_stream(stream) for stream in service.store.streams(record.run)]
    return cacheable(request, {"run": record.run, "items": items})


@router.get(
    "/api/v1/runs/{run}/steps",
    responses=PROBLEMS
    | {200: {"content": {CONTENT_TYPE: {"schema": {"type": "string", "format": "binary"}}}}},
)
def get_steps(
    *,
    request: Request,
    service: ServiceDep,
    record: VisibleRun,
    start: Annotated[int, Query(ge=0, le=2**62)] = 0,
    limit: Annotated[int, Query(ge=1, le=MOST_STEPS)] = MOST_STEPS,
    attempt: Annotated[int | None, Query(ge=0)] = None,
    optimizer: Annotated[str | None, Query(max_length=512)] = None,
    rank: Annotated[int | None, Query(ge=0)] = None,
) -> Response:
    """Stored steps of one attempt, optimizer and rank from ``start`` on, every number of them.

    A report as clients send it, as JSON or, for those that accept ``application/x-gradwatch``, in
    the compact form. Ask again from the last step + 1 until ``steps`` is empty. Without a choice:
    the newest attempt, its first optimizer by name, its lowest rank.
    """
    stream = _chosen(service.store.streams(record.run), attempt, optimizer, rank)
    if stream is None:
        raise invalid(
            "attempt",
            f"run {record.run!r} has no report of attempt {_any(attempt)}, optimizer "
            f"{_any(optimizer)}, rank {_any(rank)}; GET /runs/{record.run}/manifests lists them.",
        )
    report = stored_report(service.store, record.run, stream, start, limit)
    if CONTENT_TYPE in request.headers.get("accept", ""):
        return Response(encode(report), media_type=CONTENT_TYPE)
    return Response(orjson.dumps(report_to_json(report)), media_type="application/json")


def _chosen(
    streams: list[Stream], attempt: int | None, optimizer: str | None, rank: int | None
) -> Stream | None:
    fitting = [
        stream
        for stream in streams
        if attempt in {None, stream.attempt}
        and optimizer in {None, stream.optimizer}
        and rank in {None, stream.rank}
    ]
    newest = max((stream.attempt for stream in fitting), default=0)
    return next((stream for stream in fitting if stream.attempt == newest), None)


def _any(given: int | str | None) -> str:
    return "any" if given is None else repr(given)


def _stream(stream: Stream) -> dict[str, Any]:
    return {
        "attempt": stream.attempt,
        "optimizer": stream.optimizer,
        "rank": stream.rank,
        "steps": stream.steps,
        "first_step": stream.first_step,
        "last_step": stream.last_step,
        "valid_to": stream.valid_to,
        # Without the session: who knows it may go on with the attempt.
        "manifest": replace(stream.manifest, session=None).to_json(),
    }
