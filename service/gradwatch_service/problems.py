"""Errors in one form: RFC 9457 ``application/problem+json``, whatever went wrong and wherever."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from gradwatch_service.store.base import (
    DeletedRunError,
    LimitReachedError,
    ManifestConflictError,
    SequenceConflictError,
    StoreUnavailableError,
    UnknownAttemptError,
    UnknownManifestError,
    UnknownRunError,
)
from gradwatch_wire import Problem, UnknownVersionError, WireError

__all__ = ["MEDIA_TYPE", "ServiceError", "install", "invalid", "problem"]

MEDIA_TYPE = "application/problem+json"
MAX_ERRORS = 50
log = logging.getLogger("gradwatch.service")

# What a status means when nothing more is known; the code is part of the public interface.
CODES = {
    400: "malformed",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    406: "not_acceptable",
    409: "conflict",
    410: "deleted",
    411: "length_required",
    413: "too_large",
    415: "unsupported_media_type",
    422: "invalid",
    429: "overload",
    500: "internal",
    503: "unavailable",
}


class ServiceError(Exception):
    """A refusal that a caller is to read.

    Args:
        status: HTTP status.
        code: Short stable name, the last part of ``type``.
        detail: What was sent, what is allowed, what to do.
        errors: Single fields that are wrong.
        headers: Further headers, such as ``Retry-After``.
    """

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        errors: Sequence[Problem] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.errors = tuple(errors)
        self.headers = dict(headers or {})


def invalid(at: str, why: str, *, code: str = "invalid") -> ServiceError:
    """A 422 about one field or parameter."""
    return ServiceError(422, code, f"{at}: {why}", errors=[Problem(at, why)])


def problem(
    status: int,
    code: str,
    detail: str,
    *,
    errors: Sequence[Problem] = (),
    headers: Mapping[str, str] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Response:
    """The answer itself; never echoes a value that was sent, only what is said about it."""
    body: dict[str, Any] = {
        "type": f"/problems/{code}",
        "title": _title(status),
        "status": status,
        "detail": detail,
        "code": code,
    }
    if errors:
        body["errors"] = [{"at": e.at, "why": e.why} for e in errors[:MAX_ERRORS]]
    body.update(extra or {})
    return Response(
        orjson.dumps(body), status_code=status, headers=dict(headers or {}), media_type=MEDIA_TYPE
    )


def install(app: FastAPI) -> None:
    """Answer every error of ``app`` as a problem."""
    app.add_exception_handler(ServiceError, _service_error)
    app.add_exception_handler(WireError, _wire_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    for kind in STORE_ERRORS:
        app.add_exception_handler(kind, _store_error)
    app.add_exception_handler(Exception, _internal_error)


STORE_ERRORS: dict[type[Exception], tuple[int, str]] = {
    UnknownRunError: (404, "unknown_run"),
    UnknownAttemptError: (404, "unknown_attempt"),
    DeletedRunError: (410, "deleted"),
    UnknownManifestError: (409, "manifest_unknown"),
    ManifestConflictError: (409, "manifest_conflict"),
    SequenceConflictError: (409, "sequence_conflict"),
    LimitReachedError: (409, "limit_reached"),
    StoreUnavailableError: (503, "store_unavailable"),
}


async def _service_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)  # noqa: S101  what it is registered for
    return problem(
        error.status, error.code, error.detail, errors=error.errors, headers=error.headers
    )


async def _wire_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, WireError)  # noqa: S101  what it is registered for
    if isinstance(error, UnknownVersionError):
        supported = {"supported": list(error.supported)}
        return problem(415, "unsupported_version", str(error), extra=supported)
    return problem(422, "invalid", str(error)[:2000], errors=error.problems)


async def _store_error(_: Request, error: Exception) -> Response:
    status, code = next(v for k, v in STORE_ERRORS.items() if isinstance(error, k))
    headers = {"Retry-After": "5"} if status == 503 else None
    return problem(status, code, str(error), headers=headers)


async def _validation_error(_: Request, error: Exception) -> Response:
    # FastAPI's own handler echoes the input; a NaN in it cannot be written as JSON: 500.
    assert isinstance(error, RequestValidationError)  # noqa: S101  what it is registered for
    found = error.errors()
    if any(e["type"] == "json_invalid" for e in found):
        return problem(400, "malformed", "The body is not valid JSON.")
    problems = [Problem(_path(e["loc"]), str(e["msg"])) for e in found[:MAX_ERRORS]]
    detail = "; ".join(f"{p.at}: {p.why}" for p in problems)
    return problem(422, "invalid", detail[:2000], errors=problems)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101  what it is registered for
    status = error.status_code
    headers = dict(error.headers or {})
    if status == 413:
        headers["Connection"] = "close"
    detail = f"{error.detail}: {request.method} {request.url.path}"
    return problem(status, CODES.get(status, "error"), detail, headers=headers)


async def _internal_error(request: Request, error: Exception) -> Response:
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return problem(500, "internal", "The service failed on this request; its log says why.")


def _path(location: Sequence[Any]) -> str:
    kept = [part for part in location if part not in {"body", "query", "path", "header"}]
    text = ""
    for part in kept:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.lstrip(".") or "body"


def _title(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"
