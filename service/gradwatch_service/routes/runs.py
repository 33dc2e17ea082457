"""Runs as their jobs and their people change them: register, finish, rename, delete."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Annotated, Any, Literal

import orjson
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from gradwatch_service.access import Admin, Caller, Ingester, VisibleRun, check_run_id
from gradwatch_service.ingest import Body
from gradwatch_service.ingest.bodies import decompress, parse_json
from gradwatch_service.ingest.validation import check_manifest
from gradwatch_service.problems import ServiceError, invalid
from gradwatch_service.schemas import JSON_BODY, PROBLEMS
from gradwatch_service.store.base import Registered
from gradwatch_service.wiring import Service, ServiceDep
from gradwatch_wire import Manifest

router = APIRouter()

Label = Annotated[str, StringConstraints(min_length=1, max_length=128)]
STATUSES = ("completed", "failed", "interrupted")


class RunEdit(BaseModel):
    """What a person says about a run. What is left out stays; an empty text clears."""

    model_config = ConfigDict(extra="forbid")

    name: str | None = Field(None, max_length=128, description="Display name.")
    note: str | None = Field(None, max_length=4096, description="Free text.")
    tags: dict[Label, str] | None = Field(
        None, max_length=64, description="All tags: those left out are removed."
    )


@router.put(
    "/api/v1/runs/{run}",
    openapi_extra=JSON_BODY,
    responses=PROBLEMS,
    tags=["runs"],
)
async def register_run(
    run: str, request: Request, caller: Ingester, service: ServiceDep
) -> Response:
    """Register, resume or extend a run; the body is a manifest.

    201 when the run is new, 200 when it is known. A known session resumes its attempt, a new one
    opens the next.
    """
    check_run_id(run)
    async with service.ingest.body(request) as body:
        answer = await asyncio.to_thread(_register, service, caller, run, body)
    content = {
        "run": run,
        "attempt": answer.attempt,
        "manifest": answer.manifest,
        "created": answer.created,
    }
    return _json(content, 201 if answer.new_run else 200)


def _register(service: Service, caller: Caller, run: str, body: Body) -> Registered:
    if body.kind != "application/json":
        raise ServiceError(
            415,
            "unsupported_media_type",
            f"Content-Type {body.kind!r} given; a manifest is application/json",
        )
    raw = decompress(body.data, body.encoding, service.settings.max_decompressed_bytes)
    content = parse_json(raw)
    manifest = Manifest.from_json(content)
    if caller.project is not None:
        given = isinstance(content, dict) and content.get("project") is not None
        manifest = _in_project(manifest, caller, given=given)
        caller.check(service.store, run)
    check_manifest(manifest, service.settings)
    return service.store.register(run, manifest, now=time.time())


def _in_project(manifest: Manifest, caller: Caller, *, given: bool) -> Manifest:
    if given and manifest.project != caller.project:
        raise ServiceError(
            403,
            "forbidden_project",
            f"token {caller.name!r} belongs to project {caller.project!r}; "
            f"the manifest names {manifest.project!r}",
        )
    return replace(manifest, project=caller.project or manifest.project)


@router.post(
    "/api/v1/runs/{run}/finish", openapi_extra=JSON_BODY, responses=PROBLEMS, tags=["runs"]
)
async def finish_run(run: str, request: Request, caller: Ingester, service: ServiceDep) -> Response:
    """Note how the run ended, and wait a while for its analysis.

    200 when everything reported is analysed, 202 when analysis goes on. Safe to repeat; late
    deliveries are still accepted.
    """
    check_run_id(run)
    async with service.ingest.body(request) as body:
        raw = decompress(body.data, body.encoding, service.settings.max_decompressed_bytes)
        status = _status(parse_json(raw) if raw else {})
        await asyncio.to_thread(caller.check, service.store, run)
    await asyncio.to_thread(service.store.finish, run, status, now=time.time())
    position = await asyncio.to_thread(service.analyser.wait, run, service.settings.finish_seconds)
    content = {
        "status": status,
        "analysed": position.analysed,
        "analysed_step": position.analysed_step,
    }
    return _json(content, 200 if position.analysed else 202)


def _status(content: Any) -> Literal["completed", "failed", "interrupted"]:
    if not isinstance(content, dict):
        raise invalid("body", f"{type(content).__name__} given; a JSON object is expected")
    status = content.get("status", "completed")
    if status not in STATUSES:
        raise invalid("status", f"{status!r:.60} given; allowed: {', '.join(STATUSES)}")
    return status  # type: ignore[no-any-return]  # one of the three, as was just checked


@router.patch("/api/v1/runs/{run}", responses=PROBLEMS, tags=["runs"])
def edit_run(run: VisibleRun, edit: RunEdit, service: ServiceDep, _: Admin) -> dict[str, Any]:
    """Rename, tag or annotate a run."""
    for at, text in _texts(edit):
        if not text.isprintable() and at != "note":
            raise invalid(at, f"{text!r:.60} given; allowed: printable characters")
        if at.startswith("tags") and len(text) > 128:
            raise invalid(at, f"{len(text)} characters given; allowed: at most 128")
    record = service.store.edit(run.run, name=edit.name, note=edit.note, tags=edit.tags)
    return {
        "run": record.run,
        "name": record.name,
        "note": record.note,
        "tags": dict(record.tags),
    }


def _texts(edit: RunEdit) -> list[tuple[str, str]]:
    texts = [("name", edit.name or ""), ("note", edit.note or "")]
    for key, value in (edit.tags or {}).items():
        texts += [("tags", key), (f"tags.{key:.40}", value)]
    return texts


@router.delete("/api/v1/runs/{run}", status_code=204, responses=PROBLEMS, tags=["runs"])
def delete_run(run: VisibleRun, service: ServiceDep, _: Admin) -> Response:
    """Delete everything of a run. Its id stays known: later calls are answered 410."""
    service.store.delete(run.run)
    return Response(status_code=204)


def _json(content: dict[str, Any], status: int) -> Response:
    return Response(orjson.dumps(content), status, media_type="application/json")
