"""What the OpenAPI document says about bodies that routes read themselves."""

from __future__ import annotations

from typing import Any

__all__ = ["JSON_BODY", "PROBLEMS", "REPORT_BODY", "STEPS_BODY"]

_PROBLEM = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "code"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "code": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["at", "why"],
                "properties": {"at": {"type": "string"}, "why": {"type": "string"}},
            },
        },
    },
}
PROBLEMS: dict[int | str, dict[str, Any]] = {
    "default": {
        "description": "What was refused and why (RFC 9457).",
        "content": {"application/problem+json": {"schema": _PROBLEM}},
    }
}


def _body(schema: dict[str, Any], **other: dict[str, Any]) -> dict[str, Any]:
    content = {"application/json": {"schema": schema}, **other}
    return {"requestBody": {"required": True, "content": content}}


_STEP = {
    "type": "object",
    "required": ["step"],
    "properties": {"step": {"type": "integer", "minimum": 0}},
    "additionalProperties": {"type": ["number", "null"]},
}
_REPORT = {
    "type": "object",
    "required": ["manifest", "steps", "tensors"],
    "properties": {
        "attempt": {"type": "integer", "minimum": 0},
        "rank": {"type": "integer", "minimum": 0},
        "optimizer": {"type": "string"},
        "sequence": {"type": "integer", "minimum": 0},
        "manifest": {"type": "string", "pattern": "^[0-9a-f]{16}$"},
        "steps": {"type": "array", "items": {"type": "integer", "minimum": 0}},
        "scalars": {"type": "object"},
        "tensors": {"type": "object"},
        "histograms": {"type": "object"},
        "time": {"type": "array", "items": {"type": ["number", "null"]}},
        "partial": {"type": "object"},
        "dropped": {"type": "object"},
    },
}
JSON_BODY = _body({"type": "object"})
STEPS_BODY = _body({"oneOf": [_STEP, {"type": "array", "items": _STEP}]})
REPORT_BODY = _body(
    _REPORT, **{"application/x-gradwatch": {"schema": {"type": "string", "format": "binary"}}}
)
