"""Runs as rows: one run, pages of runs, streams, gaps. Reads only, on any connection."""

from __future__ import annotations

import base64
import binascii
import json
import sqlite3
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gradwatch_service import live
from gradwatch_service.store.base import (
    DeletedRunError,
    RunPage,
    RunRecord,
    Stream,
    UnknownRunError,
)
from gradwatch_service.store.sqlite.registering import load_manifest
from gradwatch_wire import Manifest

__all__ = ["find_run", "page", "run_id", "stream_key", "streams"]

# What a run's state is by its row alone; detectors' findings are in the column.
STATE = """CASE
    WHEN status = 'completed' THEN 'finished' WHEN status IS NOT NULL THEN status
    WHEN last_report_at < :now - :silent THEN 'silent' ELSE state END"""
COLUMNS = f"""
    id, run, project, name, note, tags, status, {STATE} AS state_now, attempt, world_size, policy,
    dropped, counters, created_at, last_report_at, finished_at, revision,
    (SELECT sum(s) FROM (SELECT max(steps) AS s FROM stream WHERE run_id = run.id GROUP BY attempt)),
    (SELECT min(first_step) FROM stream WHERE run_id = run.id),
    (SELECT max(last_step) FROM stream WHERE run_id = run.id AND attempt = (
        SELECT max(attempt) FROM stream WHERE run_id = run.id AND last_step IS NOT NULL))"""  # noqa: S608 - constant text


def run_id(connection: sqlite3.Connection, run: str) -> int:
    """The run's row id.

    Raises:
        UnknownRunError, DeletedRunError: There is no such run.
    """
    row = connection.execute("SELECT id, deleted_at FROM run WHERE run = ?", (run,)).fetchone()
    if row is None:
        raise UnknownRunError(run)
    if row[1] is not None:
        raise DeletedRunError(run)
    return int(row[0])


def stream_key(
    connection: sqlite3.Connection, run: str, identity: tuple[int, str, int]
) -> tuple[int, int] | None:
    """Row ids of a run and of its (attempt, optimizer, rank); None when that never registered."""
    found = run_id(connection, run)
    row = connection.execute(
        "SELECT id FROM stream WHERE run_id = ? AND attempt = ? AND optimizer = ? AND rank = ?",
        (found, *identity),
    ).fetchone()
    return None if row is None else (found, int(row[0]))


def find_run(
    connection: sqlite3.Connection, run: str, *, now: float, silent_seconds: float
) -> RunRecord:
    """The run; see :meth:`Store.run`."""
    found = run_id(connection, run)
    row = connection.execute(
        f"SELECT {COLUMNS} FROM run WHERE id = :id",  # noqa: S608 - constant text
        {"id": found, "now": now, "silent": silent_seconds},
    ).fetchone()
    return _record(row)


def page(
    connection: sqlite3.Connection,
    *,
    project: str | None,
    state: str | None,
    q: str | None,
    limit: int,
    cursor: str | None,
    now: float,
    silent_seconds: float,
) -> RunPage:
    """A page of runs; see :meth:`Store.runs`."""
    wanted = {
        "now": now,
        "silent": silent_seconds,
        "project": project,
        "state": state,
        "q": q,
        "before": _position(cursor),
        "limit": limit + 1,
    }
    conditions = ["deleted_at IS NULL"]
    if project is not None:
        conditions.append("project = :project")
    if cursor is not None:
        conditions.append("id < :before")
    if state is not None:
        conditions.append(f"{STATE} = :state")
    if q:
        # instr, not LIKE: what people type is text, not a pattern.
        conditions.append(
            "instr(lower(run || char(10) || coalesce(name, '') || char(10) || tags), lower(:q)) > 0"
        )
    rows = connection.execute(
        f"SELECT {COLUMNS} FROM run WHERE {' AND '.join(conditions)} ORDER BY id DESC LIMIT :limit",  # noqa: S608 - constant text
        wanted,
    ).fetchall()
    more = len(rows) > limit
    rows = rows[:limit]
    return RunPage(tuple(_record(row) for row in rows), _cursor(rows[-1][0]) if more else None)


def streams(connection: sqlite3.Connection, run: str) -> list[Stream]:
    """Streams of a run; see :meth:`Store.streams`."""
    found = run_id(connection, run)
    rows = connection.execute(
        "SELECT attempt, optimizer, rank, manifest, registration, first_step, last_step, steps "
        "FROM stream WHERE run_id = ? ORDER BY attempt, optimizer, rank",
        (found,),
    ).fetchall()
    begins: dict[str, dict[int, int]] = {}
    for attempt, optimizer, _, _, _, first, _, _ in rows:
        if first is not None:
            of_optimizer = begins.setdefault(optimizer, {})
            of_optimizer[attempt] = min(first, of_optimizer.get(attempt, first))
    manifests: dict[str, Manifest] = {}
    answer = []
    for attempt, optimizer, rank, digest, registration, first, last, steps in rows:
        if digest not in manifests:
            manifests[digest] = load_manifest(connection, found, digest) or Manifest(tensors=())
        newer = [b for a, b in begins.get(optimizer, {}).items() if a > attempt]
        answer.append(
            Stream(
                attempt=attempt,
                optimizer=optimizer,
                rank=rank,
                manifest=_described(manifests[digest], json.loads(registration)),
                first_step=first,
                last_step=last,
                steps=steps,
                valid_to=min(newer) - 1 if newer else None,
            )
        )
    return answer


def _record(row: tuple[Any, ...]) -> RunRecord:
    (_, run, project, name, note, tags, status, state, attempt, world_size, policy, dropped) = row[
        :12
    ]
    counters, created, last_report, finished, revision, steps, first, last = row[12:]
    return RunRecord(
        run=run,
        project=project,
        name=name,
        note=note,
        tags=json.loads(tags),
        status=status,
        state=state,
        attempt=attempt,
        steps=steps or 0,
        first_step=first,
        last_step=last,
        world_size=world_size,
        policy=None if policy is None else json.loads(policy),
        dropped=json.loads(dropped),
        counters=live.load(counters) if counters else live.EMPTY,
        created_at=created,
        last_report_at=last_report,
        finished_at=finished,
        revision=revision,
    )


def _described(manifest: Manifest, registration: Mapping[str, Any]) -> Manifest:
    known = (
        "world_size",
        "rank",
        "optimizer_class",
        "policy",
        "project",
        "name",
        "session",
        "tags",
    )
    return replace(manifest, **{name: registration[name] for name in known if name in registration})


def _cursor(position: int) -> str:
    return base64.urlsafe_b64encode(f"r{position}".encode()).decode().rstrip("=")


def _position(cursor: str | None) -> int:
    if cursor is None:
        return 0
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
        if text[:1] == "r" and text[1:].isascii() and text[1:].isdecimal() and len(text) < 20:
            return int(text[1:])
    except (binascii.Error, UnicodeDecodeError, ValueError):
        pass
    raise ValueError(f"cursor {cursor[:60]!r} is not one that this service gave")
