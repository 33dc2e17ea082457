"""Runs, attempts and manifests: what ``PUT`` changes. Runs inside the writer's transaction."""

from __future__ import annotations

import functools
import json
import sqlite3
from dataclasses import replace

import orjson
import zstandard

from gradwatch_service.store.base import (
    DeletedRunError,
    LimitReachedError,
    ManifestConflictError,
    Registered,
)
from gradwatch_service.store.sqlite.state import Memory, RunState, StreamState
from gradwatch_wire import Manifest, TensorInfo

__all__ = ["load_manifest", "register"]

PARSED_MANIFESTS = 64


def register(
    connection: sqlite3.Connection,
    memory: Memory,
    run: str,
    manifest: Manifest,
    now: float,
    *,
    max_runs: int,
    max_attempts: int,
) -> Registered:
    """Register, resume or extend; see :meth:`Store.register`."""
    memory.release(run)
    new_run = _make_run(connection, run, manifest, now, max_runs)
    state = memory.run(run)
    if state.project != manifest.project:
        raise ManifestConflictError(
            f"run {run!r} belongs to another project than {manifest.project!r}; "
            "name that project or choose another run id"
        )
    attempt, new_attempt = _attempt(connection, state, manifest.session, now, max_attempts)
    digest = manifest.hash
    key = (attempt, manifest.optimizer, manifest.rank)
    stream = state.streams.get(key)
    known = stream is not None and digest in stream.hashes
    if stream is not None and not known:
        _check_extension(connection, state, stream, manifest, digest)
    if not known:
        _add_manifest(connection, state, stream, attempt, manifest)
    _describe(connection, state, manifest, attempt)
    memory.release(run)
    return Registered(run, attempt, digest, new_run or new_attempt or not known, new_run)


def load_manifest(connection: sqlite3.Connection, run_id: int, digest: str) -> Manifest | None:
    """A stored manifest with what the columns stand for; None when there is none."""
    row = connection.execute(
        "SELECT body FROM manifest WHERE run_id = ? AND hash = ?", (run_id, digest)
    ).fetchone()
    return None if row is None else _parsed(row[0])


# By content: runs of one job share one list of tensors, which is compared and read at every turn.
@functools.lru_cache(maxsize=PARSED_MANIFESTS)
def _parsed(body: bytes) -> Manifest:
    content = orjson.loads(zstandard.decompress(body))
    tensors = tuple(
        TensorInfo(name, tuple(shape), dtype, group)
        for name, shape, dtype, group in content["tensors"]
    )
    return Manifest(tensors=tensors, optimizer=content["optimizer"])


def _make_run(
    connection: sqlite3.Connection, run: str, manifest: Manifest, now: float, max_runs: int
) -> bool:
    row = connection.execute("SELECT deleted_at FROM run WHERE run = ?", (run,)).fetchone()
    if row is not None:
        if row[0] is not None:
            raise DeletedRunError(run)
        return False
    (runs,) = connection.execute("SELECT count(*) FROM run WHERE deleted_at IS NULL").fetchone()
    if runs >= max_runs:
        raise LimitReachedError(
            f"{runs} runs are stored; allowed: {max_runs}. Delete some or raise max_runs."
        )
    connection.execute(
        "INSERT INTO run (run, project, created_at) VALUES (?, ?, ?)", (run, manifest.project, now)
    )
    return True


def _attempt(
    connection: sqlite3.Connection,
    state: RunState,
    session: str | None,
    now: float,
    max_attempts: int,
) -> tuple[int, bool]:
    if session is None:
        if 0 in state.attempts:
            return 0, False
        attempt = 0
    else:
        row = connection.execute(
            "SELECT attempt FROM attempt WHERE run_id = ? AND session = ?", (state.id, session)
        ).fetchone()
        if row is not None:
            return int(row[0]), False
        attempt = max(state.attempts, default=-1) + 1
    if attempt >= max_attempts:
        raise LimitReachedError(
            f"run {state.run!r} has {attempt} attempts; allowed: {max_attempts}. "
            "Start a new run instead."
        )
    connection.execute(
        "INSERT INTO attempt (run_id, attempt, session, created_at) VALUES (?, ?, ?, ?)",
        (state.id, attempt, session, now),
    )
    # A new start means that the run goes on, whatever the earlier one ended with.
    connection.execute("UPDATE run SET status = NULL, finished_at = NULL WHERE id = ?", (state.id,))
    return attempt, True


def _check_extension(
    connection: sqlite3.Connection,
    state: RunState,
    stream: StreamState,
    manifest: Manifest,
    digest: str,
) -> None:
    if manifest.extends is None:
        raise ManifestConflictError(
            f"other tensors are registered for optimizer {manifest.optimizer!r}, rank "
            f"{manifest.rank} of this attempt (manifest {stream.manifest}, yours {digest}); "
            f'to add tensors send "extends": "{stream.manifest}" with the full list, old ones first'
        )
    before = load_manifest(connection, state.id, manifest.extends)
    if manifest.extends not in stream.hashes or before is None:
        raise ManifestConflictError(
            f"extends {manifest.extends!r}: no such manifest here; newest: {stream.manifest}"
        )
    newest = load_manifest(connection, state.id, stream.manifest)
    for old in (before, newest):
        if old is not None:
            _check_prefix(old, manifest)


def _check_prefix(old: Manifest, new: Manifest) -> None:
    for index, tensor in enumerate(old.tensors):
        given = new.tensors[index] if index < len(new.tensors) else None
        if given is None or (given.name, given.shape, given.dtype) != (
            tensor.name,
            tensor.shape,
            tensor.dtype,
        ):
            shown = (
                "nothing" if given is None else f"{given.name} {list(given.shape)} {given.dtype}"
            )
            raise ManifestConflictError(
                f"tensors[{index}]: {shown} given; it is {tensor.name} {list(tensor.shape)} "
                f"{tensor.dtype}. An extension keeps the known tensors first and unchanged."
            )


def _add_manifest(
    connection: sqlite3.Connection,
    state: RunState,
    stream: StreamState | None,
    attempt: int,
    manifest: Manifest,
) -> None:
    digest = manifest.hash
    key = (attempt, manifest.optimizer, manifest.rank)
    content = {
        "optimizer": manifest.optimizer,
        "tensors": [[t.name, list(t.shape), t.dtype, t.group] for t in manifest.tensors],
    }
    connection.execute(
        "INSERT OR IGNORE INTO manifest (run_id, hash, body) VALUES (?, ?, ?)",
        (state.id, digest, zstandard.compress(orjson.dumps(content))),
    )
    if stream is None:
        cursor = connection.execute(
            "INSERT INTO stream (run_id, attempt, optimizer, rank, manifest) VALUES (?, ?, ?, ?, ?)",
            (state.id, *key, digest),
        )
        stream_id = cursor.lastrowid
    else:
        stream_id = stream.id
        connection.execute("UPDATE stream SET manifest = ? WHERE id = ?", (digest, stream_id))
    connection.execute(
        "INSERT INTO registration (run_id, stream_id, hash) VALUES (?, ?, ?)",
        (state.id, stream_id, digest),
    )


def _describe(
    connection: sqlite3.Connection, state: RunState, manifest: Manifest, attempt: int
) -> None:
    details = replace(manifest, tensors=()).to_json()
    connection.execute(
        "UPDATE stream SET registration = ? "
        "WHERE run_id = ? AND attempt = ? AND optimizer = ? AND rank = ?",
        (json.dumps(details), state.id, attempt, manifest.optimizer, manifest.rank),
    )
    # Tags and a name set by PATCH stay: people's words win over the job's.
    connection.execute(
        "UPDATE run SET name = coalesce(name, ?), tags = json_patch(?, tags), "
        "attempt = max(attempt, ?), world_size = ?, policy = ?, revision = revision + 1 "
        "WHERE id = ?",
        (
            manifest.name,
            json.dumps(dict(manifest.tags)),
            attempt,
            manifest.world_size,
            None if manifest.policy is None else json.dumps(dict(manifest.policy)),
            state.id,
        ),
    )
