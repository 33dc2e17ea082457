"""Rows, counters and live runs for the tests of the live view and of /metrics."""

import numpy as np

from gradwatch_service import live
from gradwatch_service.live.run import LiveRun, RunInfo
from gradwatch_service.live.view import LiveView
from gradwatch_service.rows import StepRows
from gradwatch_service.store.base import Commit, RunRecord
from gradwatch_wire import Manifest, TensorInfo

NOW = 1_795_341_600.0


def manifest(groups=("encoder", "decoder"), *, tensors_per_group=2, numel=100):
    """A manifest of equal tensors."""
    return Manifest(
        tensors=tuple(
            TensorInfo(f"{group}.{i}", (numel,), "float32", group)
            for group in groups
            for i in range(tensors_per_group)
        )
    )


def rows(tensors=None, *, steps=(0,), norm=0.5, rank=0, attempt=0, scalars=None, **columns):
    """Rows in which every tensor has the same norm; other columns as [steps, tensors] lists."""
    tensors = tensors or manifest()
    shape = (len(steps), len(tensors.tensors))
    given = {name: np.broadcast_to(np.asarray(v), shape) for name, v in columns.items()}
    return StepRows(
        attempt=attempt,
        optimizer="default",
        rank=rank,
        steps=np.asarray(steps, np.int64),
        time=np.full(len(steps), np.nan),
        scalars={
            k: np.broadcast_to(np.asarray(v, float), len(steps)) for k, v in (scalars or {}).items()
        },
        tensors={"norm": np.broadcast_to(np.float32(norm), shape), **given},
        manifest=tensors,
    )


def count(*deliveries, at=NOW, dropped=None):
    """Counters after these deliveries, in this order."""
    counters = live.EMPTY
    for delivery in deliveries:
        # Not the wire's hash, which refuses what only a broken validation would let through.
        key = str(hash(delivery.manifest.tensors))
        summary = live.summarise(delivery, manifest=key, dropped=dropped)
        counters = live.add(counters, summary, at=at)
    return counters


def record(run="r", *, counters=live.EMPTY, project="default", status=None, **changes):
    """A run as the store tells it."""
    fields = {
        "run": run,
        "project": project,
        "name": None,
        "note": None,
        "tags": {},
        "status": status,
        "state": "warming_up",
        "attempt": 0,
        "steps": counters.counts.steps,
        "first_step": None,
        "last_step": counters.last_step,
        "world_size": 1,
        "policy": None,
        "dropped": counters.dropped,
        "counters": counters,
        "created_at": NOW,
        "last_report_at": counters.last_report_at,
        "finished_at": None,
        "revision": 1,
        **changes,
    }
    return RunRecord(**fields)


def view(*records, now=NOW):
    """A live view that has heard of these runs."""
    known = LiveView(clock=lambda: now)
    known.restore(records)
    return known


def commit(run="r", *, kind="report", counters=live.EMPTY, **fields):
    """A commit as the store tells it."""
    return Commit(kind=kind, run=run, project="default", counters=counters, **fields)


__all__ = ["NOW", "LiveRun", "RunInfo", "commit", "count", "manifest", "record", "rows", "view"]
