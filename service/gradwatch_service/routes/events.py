"""What happens to a run, as it happens: server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import orjson
from fastapi import APIRouter
from starlette.responses import StreamingResponse

from gradwatch_service.access import VisibleRun
from gradwatch_service.events import Event, EventHub, Subscription, TooManySubscribersError
from gradwatch_service.instruments import Instruments
from gradwatch_service.problems import ServiceError
from gradwatch_service.schemas import PROBLEMS
from gradwatch_service.wiring import ServiceDep

router = APIRouter()
KEEP_ALIVE_SECONDS = 15.0
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


@router.get(
    "/api/v1/runs/{run}/events",
    response_class=StreamingResponse,
    responses=PROBLEMS | {200: {"content": {"text/event-stream": {}}}},
    tags=["events"],
)
async def stream_events(run: VisibleRun, service: ServiceDep) -> StreamingResponse:
    """Steps, incidents, threshold and state changes of a run, until the service stops."""
    try:
        subscription = service.events.subscribe(run.run)
    except TooManySubscribersError:
        raise ServiceError(
            503,
            "too_many_subscribers",
            "every event stream is taken or the service is stopping; poll GET /runs/{run} instead",
            headers={"Retry-After": "10"},
        ) from None
    return StreamingResponse(
        _stream(service.events, subscription, service.instruments),
        media_type="text/event-stream",
        headers=HEADERS,
    )


async def _stream(
    hub: EventHub, subscription: Subscription, instruments: Instruments
) -> AsyncIterator[bytes]:
    instruments.sse_subscribers.inc()
    try:
        # Something at once: whoever listens knows that the stream stands.
        yield b": listening\n\n"
        while True:
            try:
                event = await asyncio.wait_for(subscription.get(), KEEP_ALIVE_SECONDS)
            except TimeoutError:
                yield b": still here\n\n"
                continue
            if event is None:
                return
            yield _spelled(event)
    finally:
        hub.unsubscribe(subscription)
        instruments.sse_subscribers.dec()


def _spelled(event: Event) -> bytes:
    return b"event: " + event.name.encode() + b"\ndata: " + orjson.dumps(event.data) + b"\n\n"
