"""What every request passes first: host, content type and length, checked before anything is read."""

from __future__ import annotations

import functools
import ipaddress

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gradwatch_service.instruments import Instruments
from gradwatch_service.problems import ServiceError, problem
from gradwatch_service.settings import Settings
from gradwatch_wire import CONTENT_TYPE

__all__ = ["JSON_TYPE", "Gate", "host_of", "is_loopback", "media_type"]

JSON_TYPE = "application/json"
WRITES = frozenset({"POST", "PUT", "PATCH"})
REJECTIONS = {
    400: "invalid",
    401: "unauthorized",
    403: "unauthorized",
    404: "invalid",
    409: "conflict",
    410: "conflict",
    413: "too_large",
    415: "invalid",
    422: "invalid",
    429: "overload",
}


class Gate:
    """ASGI middleware that refuses what no route may see.

    A page elsewhere can make a browser send requests to a service on loopback. It can do so
    neither with our content types (a browser asks first, and nothing here answers) nor under
    another host name than its own (DNS rebinding), so both are demanded.
    """

    def __init__(self, app: ASGIApp, settings: Settings, instruments: Instruments) -> None:
        self._app = app
        self._instruments = instruments
        self._limit = settings.max_body_bytes
        self._any_host = "*" in settings.allowed_hosts
        self._hosts = {host.lower().strip("[]") for host in settings.allowed_hosts}
        if settings.host not in {"0.0.0.0", "::", ""}:  # noqa: S104  compared with, not bound to
            self._hosts.add(settings.host.lower())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with a problem."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] == "POST" and scope["path"].endswith(("/reports", "/steps")):
            send = self._noted(send)
        headers = Headers(scope=scope)
        try:
            self._check(scope["method"], headers)
        except ServiceError as error:
            answer = problem(error.status, error.code, error.detail, headers=error.headers)
            await answer(scope, receive, send)
            return
        if scope["method"] in WRITES:
            receive = _counted(receive, self._limit)
        await self._app(scope, receive, send)

    def _noted(self, send: Send) -> Send:
        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                reason = REJECTIONS.get(message["status"])
                if reason is not None:
                    self._instruments.rejected(reason)
            await send(message)

        return noted

    def _check(self, method: str, headers: Headers) -> None:
        host = host_of(headers.get("host", ""))
        if not (self._any_host or is_loopback(host) or host in self._hosts):
            raise ServiceError(
                403,
                "forbidden_host",
                f"Host {host[:200]!r} is neither loopback nor allowed; "
                "start the service with --allowed-hosts to serve it",
            )
        if method not in WRITES:
            return
        kind = media_type(headers.get("content-type"))
        if kind not in {JSON_TYPE, CONTENT_TYPE}:
            raise ServiceError(
                415,
                "unsupported_media_type",
                f"Content-Type {kind[:100]!r} given; allowed: {JSON_TYPE}, {CONTENT_TYPE}",
            )
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._limit:
            # The body is not read: the connection cannot carry another request.
            raise ServiceError(
                413,
                "too_large",
                f"body of {length[:20]} bytes given; allowed: at most {self._limit}",
                headers={"Connection": "close"},
            )


def host_of(header: str) -> str:
    """The host of a Host header, lower case, without port and brackets."""
    header = header.strip().lower()
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0]


@functools.lru_cache(maxsize=256)
def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's loopback."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def media_type(header: str | None) -> str:
    """The media type of a Content-Type header, lower case, without parameters."""
    return (header or "").partition(";")[0].strip().lower()


def _counted(receive: Receive, limit: int) -> Receive:
    total = 0

    async def counted() -> Message:
        nonlocal total
        message = await receive()
        if message["type"] == "http.request":
            total += len(message.get("body", b""))
            if total > limit:
                raise HTTPException(413, f"body larger than {limit} bytes")
        return message

    return counted
