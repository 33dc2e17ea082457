"""Deliveries: what ``POST .../reports`` and ``.../steps`` change, inside the writer's transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from gradwatch_service import live
from gradwatch_service.rows import Steps
from gradwatch_service.store.base import (
    Commit,
    Delivery,
    Receipt,
    SequenceConflictError,
    UnknownAttemptError,
    UnknownManifestError,
)
from gradwatch_service.store.packing import pack, unpack
from gradwatch_service.store.sqlite.combining import COMBINED, Outcome
from gradwatch_service.store.sqlite.state import Memory, RunState, StreamState

__all__ = ["append", "let_go", "settle_parts"]

KEPT = (
    "run_id, attempt, rank, sequence, stream_id, manifest, digest, received, first_step, "
    "last_step, steps, partial"
)
INSERT = f"INSERT INTO delivery ({KEPT}, payload) VALUES (?{', ?' * 12})"  # noqa: S608 - constant text


def append(
    connection: sqlite3.Connection, memory: Memory, delivery: Delivery
) -> tuple[Receipt, Commit | None]:
    """Store a delivery once; see :meth:`Store.append`."""
    state = memory.run(delivery.run)
    rows = delivery.rows
    repeat = _known(connection, state, delivery)
    if repeat:
        return Receipt(stored=False), None
    stream = _stream(state, delivery)
    first, last = (int(rows.steps[0]), int(rows.steps[-1])) if len(rows) else (None, None)
    new_steps = _new_steps(connection, state, stream, rows.steps)
    payload = delivery.packed if len(rows) else None
    connection.execute(
        INSERT,
        (
            state.id,
            rows.attempt,
            rows.rank,
            delivery.sequence,
            stream.id,
            delivery.manifest,
            delivery.digest,
            delivery.received,
            first,
            last,
            len(rows),
            _partial(delivery),
            payload,
        ),
    )
    # Nothing fails from here on: what is remembered changes together with what is written.
    if first is not None and last is not None and delivery.partial is None:
        stream.first_step = first if stream.first_step is None else min(stream.first_step, first)
        stream.last_step = last if stream.last_step is None else max(stream.last_step, last)
        stream.steps += new_steps
        stream.dirty = True
    state.counters = live.add(state.counters, delivery.counts, at=delivery.received)
    for reason, count in delivery.dropped.items():
        state.dropped[reason] = state.dropped.get(reason, 0) + count
    # The clock may be set back: what was newest stays newest.
    state.last_report_at = max(state.last_report_at or 0.0, delivery.received)
    memory.changed(state)
    return Receipt(stored=True), _commit(state, delivery)


def let_go(connection: sqlite3.Connection, deliveries: Sequence[int]) -> None:
    """Drop the payloads of deliveries whose steps are kept elsewhere; what tells a repeat stays."""
    # Not an UPDATE: a row that shrinks keeps its page to itself, 4 kB for a hundred bytes. Where
    # rows are deleted SQLite joins pages.
    rows = [
        connection.execute(f"SELECT id, {KEPT} FROM delivery WHERE id = ?", (one,)).fetchone()  # noqa: S608 - constant text
        for one in deliveries
    ]
    connection.executemany("DELETE FROM delivery WHERE id = ?", ((one,) for one in deliveries))
    connection.executemany(
        f"INSERT INTO delivery (id, {KEPT}) VALUES (?{', ?' * 12})",  # noqa: S608 - constant text
        (row for row in rows if row is not None),
    )


def settle_parts(connection: sqlite3.Connection, memory: Memory, outcome: Outcome) -> Commit | None:
    """Store whole steps, let go of the parts that are used up, count what was given up."""
    state = memory.run(outcome.run)
    let_go(connection, outcome.done)
    if outcome.given_up:
        given_up = state.dropped.get("incomplete_shards", 0) + outcome.given_up
        state.dropped["incomplete_shards"] = given_up
        memory.changed(state)
    if outcome.whole is None:
        return None
    rows = outcome.whole.rows
    (lowest,) = connection.execute(
        "SELECT min(sequence) FROM delivery WHERE run_id = ? AND attempt = ? AND rank = ?",
        (state.id, rows.attempt, rows.rank),
    ).fetchone()
    sequence = min(COMBINED, lowest or 0) - 1
    return append(connection, memory, replace(outcome.whole, sequence=sequence))[1]


def _commit(state: RunState, delivery: Delivery) -> Commit:
    return Commit(
        kind="report",
        run=state.run,
        project=state.project,
        counters=state.counters,
        attempt=delivery.rows.attempt,
        optimizer=delivery.rows.optimizer,
        rank=delivery.rows.rank,
        sequence=delivery.sequence,
        rows=delivery.rows,
        received=delivery.received,
        dropped=delivery.dropped,
        partial=delivery.partial is not None,
    )


def _known(connection: sqlite3.Connection, state: RunState, delivery: Delivery) -> bool:
    row = connection.execute(
        "SELECT digest FROM delivery WHERE run_id = ? AND attempt = ? AND rank = ? AND sequence = ?",
        (state.id, delivery.rows.attempt, delivery.rows.rank, delivery.sequence),
    ).fetchone()
    if row is None:
        return False
    if bytes(row[0]) == delivery.digest:
        return True
    if delivery.sequence < 0:
        raise SequenceConflictError(
            f"step {-1 - delivery.sequence} of run {delivery.run!r} is stored with other values; "
            "a step is posted once, or repeated unchanged"
        )
    raise SequenceConflictError(
        f"sequence {delivery.sequence} of run {delivery.run!r}, attempt {delivery.rows.attempt}, "
        f"rank {delivery.rows.rank} is stored with other content; a new job start registers "
        "with a new session, which opens a new attempt"
    )


def _stream(state: RunState, delivery: Delivery) -> StreamState:
    rows = delivery.rows
    if rows.attempt not in state.attempts:
        raise UnknownAttemptError(delivery.run, rows.attempt)
    stream = state.streams.get((rows.attempt, rows.optimizer, rows.rank))
    if stream is None or delivery.manifest not in stream.hashes:
        raise UnknownManifestError(delivery.run, delivery.manifest)
    return stream


def _new_steps(
    connection: sqlite3.Connection, state: RunState, stream: StreamState, steps: Steps
) -> int:
    if not len(steps) or stream.last_step is None or int(steps[0]) > stream.last_step:
        return len(steps)
    new = set(steps.tolist())
    for payload in _overlapping(connection, state.id, stream.id, int(steps[0]), int(steps[-1])):
        new.difference_update(unpack(payload, lambda name: name == "n")["n"].tolist())
    return len(new)


def _overlapping(
    connection: sqlite3.Connection, run_id: int, stream_id: int, first: int, last: int
) -> list[bytes]:
    where = "run_id = ? AND stream_id = ? AND first_step <= ? AND last_step >= ?"
    bounds = (run_id, stream_id, last, first)
    hot = connection.execute(
        f"SELECT payload FROM delivery WHERE payload IS NOT NULL AND partial IS NULL AND {where}",  # noqa: S608 - constant text
        bounds,
    )
    cold = connection.execute(f"SELECT body FROM chunk WHERE {where}", bounds)  # noqa: S608 - constant text
    return [row[0] for row in (*hot, *cold)]


def _partial(delivery: Delivery) -> bytes | None:
    if delivery.partial is None:
        return None
    return pack(
        {
            "ranks": np.array(delivery.partial.ranks, dtype="<i8"),
            "weights": np.frombuffer(delivery.partial.weights.data, "<f8"),
            "local_numel": np.frombuffer(delivery.partial.local_numel.data, "<u8"),
        }
    )
