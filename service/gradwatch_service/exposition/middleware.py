"""Counts every request by route template, status and duration."""

import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gradwatch_service.instruments import Instruments

__all__ = ["RequestMetrics"]

_METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})


class RequestMetrics:
    """ASGI middleware; install it outermost, so that refused requests are counted too.

    The route is the template (``/api/v1/runs/{run}``), never the path: what clients make up must
    not become series.

    Args:
        app: What answers.
        instruments: Where to count.
    """

    def __init__(self, app: ASGIApp, instruments: Instruments) -> None:
        self._app = app
        self._instruments = instruments

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request and count it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = time.perf_counter()
        # What a crash before the first byte amounts to: the server answers 500.
        status = 500

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._instruments.http_in_progress.inc()
        try:
            await self._app(scope, receive, note)
        finally:
            self._instruments.http_in_progress.dec()
            self._count(scope, status, time.perf_counter() - begun)

    def _count(self, scope: Scope, status: int, seconds: float) -> None:
        method = scope["method"] if scope["method"] in _METHODS else "other"
        route = getattr(scope.get("route"), "path", None) or "unmatched"
        self._instruments.http_requests.labels(method, route, str(status)).inc()
        self._instruments.http_duration.labels(method, route).observe(seconds)
