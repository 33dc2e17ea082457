"""Finds earlier runs that may speak for a new one: same project, same model, ended well."""

from __future__ import annotations

import json

import numpy as np
from numpy.typing import NDArray

from gradwatch_service.measures import global_norm, nonfinite_count
from gradwatch_service.queries.reading import Selection, blocks, select
from gradwatch_service.recommenders.prior import PRIOR_NORMS
from gradwatch_service.store.base import RunRecord, Store

__all__ = ["earlier_norms"]

MOST_RUNS = 8
LOOKED_AT = 100
FIRST_STEPS = 4 * PRIOR_NORMS  # enough for 32 finite ones unless the start was a flood


def earlier_norms(store: Store, record: RunRecord) -> list[tuple[str, NDArray[np.float64]]]:
    """First norms of up to 8 earlier runs of the same model in the same project, newest first.

    The same model: the same tensors by name, shape and dtype, and the same class of optimizer. A
    run counts only if it was completed and nothing in it exploded or was not finite.
    """
    found = select(store, record.run)
    wanted = _signature(found)
    if not wanted:
        return []
    page = store.runs(project=record.project, state="finished", limit=LOOKED_AT)
    earlier: list[tuple[str, NDArray[np.float64]]] = []
    for other in page.items:
        if other.run == record.run or other.status != "completed" or len(earlier) >= MOST_RUNS:
            continue
        candidate = select(store, other.run)
        if _signature(candidate) != wanted or _diverged(store, other.run):
            continue
        earlier.append((other.run, _first_norms(store, candidate)))
    return earlier


def _signature(found: Selection) -> tuple[object, ...]:
    if not found.streams or not found.tensors:
        return ()
    tensors = sorted((t.name, t.shape, t.dtype) for t in found.tensors.values())
    return (found.streams[-1].manifest.optimizer_class, *tensors)


def _diverged(store: Store, run: str) -> bool:
    incidents = (json.loads(data) for data in store.documents(run, "incident").values())
    return any(
        i["kind"] in {"exploding", "nonfinite"} and i["status"] != "retracted" for i in incidents
    )


def _first_norms(store: Store, found: Selection) -> NDArray[np.float64]:
    first = found.first_step or 0
    norms = []
    columns = ("norm", "nonfinite_count")
    for rows in blocks(store, found, end=first + FIRST_STEPS - 1, columns=columns):
        values = global_norm(rows)
        norms.append(values[(nonfinite_count(rows) == 0) & (values > 0)])
    return np.concatenate(norms)[:PRIOR_NORMS] if norms else np.empty(0)
