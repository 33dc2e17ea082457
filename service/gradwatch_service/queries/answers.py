"""JSON answers, quick to write and cheap to ask for again."""

from __future__ import annotations

import hashlib
from typing import Any

import orjson
from fastapi import Request, Response

from gradwatch_service.queries.remembered import Answer

__all__ = ["answered", "cacheable", "json_answer"]


def json_answer(content: Any, *, status: int = 200) -> Response:
    """Answer JSON without a detour over FastAPI's encoder; NaN becomes null."""
    return Response(orjson.dumps(content), status_code=status, media_type="application/json")


def cacheable(request: Request, content: Any, *, seconds: int = 1) -> Response:
    """Answer JSON with a strong ETag, or 304 when the asker holds exactly this.

    Arrays are written as they are, without a Python object per number; NaN becomes null.

    ``private``: with tokens on, the answer is one caller's; a shared cache must not keep it.
    """
    body = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    return answered(request, Answer(body, tag, f"private, max-age={seconds}"))


def answered(request: Request, answer: Answer) -> Response:
    """Send an answer, or 304 when the asker holds exactly this."""
    headers = {"ETag": answer.tag, "Cache-Control": answer.cache_control}
    if _held(request.headers.get("if-none-match"), answer.tag):
        return Response(status_code=304, headers=headers)
    return Response(answer.body, headers=headers, media_type="application/json")


def _held(header: str | None, tag: str) -> bool:
    """Whether If-None-Match names the tag; the comparison is weak (RFC 9110, section 13.1.2)."""
    if header is None:
        return False
    held = [part.strip().removeprefix("W/") for part in header.split(",")]
    return "*" in held or tag in held
