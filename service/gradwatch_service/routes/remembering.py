"""A route about a run that gives the same answer again while the run stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from gradwatch_service.queries.answers import answered
from gradwatch_service.queries.remembered import Answer
from gradwatch_service.wiring import Service

__all__ = ["RememberingRoute"]

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class RememberingRoute(APIRoute):
    """Answers a repeated GET from memory: no thread, no store, nothing computed.

    Pollers ask the same every few seconds, many of them at once. Who may read is checked every
    time, and a caller of one project never meets an answer made for another's.
    """

    def get_route_handler(self) -> Handler:
        """Wrap the route's own handler."""
        answer = super().get_route_handler()

        async def remembered(request: Request) -> Response:
            run = request.path_params.get("run")
            asked = request.scope["query_string"]
            if run is None or request.method != "GET" or b"prior" in asked:
                return await answer(request)  # a prior also depends on other runs
            service: Service = request.app.state.service
            caller = service.access.caller(request.headers.get("authorization"), "read")
            key = (caller.project, request.scope["path"], asked)
            version = service.remembered.version(run)
            held = service.remembered.find(key, version)
            if held is not None:
                return answered(request, held)
            response = await answer(request)
            tag = response.headers.get("etag")
            if response.status_code == 200 and tag is not None:
                kept = Answer(bytes(response.body), tag, response.headers["cache-control"])
                service.remembered.keep(key, version, kept)
            return response

        return remembered
