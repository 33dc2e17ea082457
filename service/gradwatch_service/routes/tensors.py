"""Routes of tensors: every statistic of every tensor at one step."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Request, Response

from gradwatch_service.access import VisibleRun
from gradwatch_service.problems import ServiceError
from gradwatch_service.queries.answers import cacheable
from gradwatch_service.queries.quantities import tensor_quantity
from gradwatch_service.queries.reading import Selection, blocks, select
from gradwatch_service.routes.remembering import RememberingRoute
from gradwatch_service.rows import StepRows
from gradwatch_service.schemas import PROBLEMS
from gradwatch_service.store.base import Store
from gradwatch_service.wiring import ServiceDep

router = APIRouter(tags=["steps"], route_class=RememberingRoute)

DERIVED = {"rms": "norm", "clip_fraction": "clipped_count", "zero_fraction": "zero_count"}


@router.get("/api/v1/runs/{run}/tensors", responses=PROBLEMS)
def get_tensors(
    *,
    request: Request,
    service: ServiceDep,
    record: VisibleRun,
    step: Annotated[int | None, Query(ge=0, le=2**62)] = None,
    attempt: Annotated[int | None, Query(ge=0)] = None,
    optimizer: Annotated[str | None, Query(max_length=512)] = None,
    rank: Annotated[int | None, Query(ge=0)] = None,
) -> Response:
    """One row per tensor with all its statistics, at the step or at the newest one.

    Null means not measured. Of several optimizers each tensor says which is its own.
    """
    found = _selections(service.store, record.run, attempt, optimizer, rank)
    if step is None:
        step = max((s.last_step for s in found if s.last_step is not None), default=None)
    items: list[dict[str, Any]] = []
    reported = False
    if step is not None:
        for selection in found:
            # A later attempt's rows come last and win.
            rows = [r for r in blocks(service.store, selection, start=step, end=step) if len(r)]
            reported = reported or bool(rows)
            if rows:
                items.extend(_items(rows[-1], selection))
        if not reported:
            span = [(s.first_step, s.last_step) for s in found if s.last_step is not None]
            raise ServiceError(
                404,
                "unknown_step",
                f"run {record.run!r} has no step {step}; reported: "
                + (", ".join(f"{a} to {b}" for a, b in span) or "none yet"),
            )
    newest = found[0].attempt if found else record.attempt
    return cacheable(request, {"run": record.run, "attempt": newest, "step": step, "items": items})


def _selections(
    store: Store, run: str, attempt: int | None, optimizer: str | None, rank: int | None
) -> list[Selection]:
    """What the question is about: one selection per optimizer."""
    first = select(store, run, attempt=attempt, optimizer=optimizer, rank=rank)
    if optimizer is not None or first.optimizer is None:
        return [first]
    names = {s.optimizer for s in store.streams(run) if attempt in {None, s.attempt}}
    others = sorted(names - {first.optimizer})
    return [first, *(select(store, run, attempt=attempt, optimizer=o, rank=rank) for o in others)]


def _items(rows: StepRows, selection: Selection) -> list[dict[str, Any]]:
    at = len(rows) - 1
    measured = {name: values[at] for name, values in rows.tensors.items()}
    derived = [name for name, source in DERIVED.items() if source in measured]
    items = []
    for index, tensor in enumerate(rows.manifest.tensors):
        item: dict[str, Any] = {
            "name": tensor.name,
            "group": tensor.group,
            "optimizer": selection.optimizer,
            "shape": list(tensor.shape),
            "dtype": tensor.dtype,
            "numel": tensor.numel,
        }
        for name, values in measured.items():
            item[name] = values[index].item()
        for name in derived:
            item[name] = float(tensor_quantity(rows, name, index)[at])
        items.append({k: None if _is_nan(v) else v for k, v in item.items()})
    return items


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and bool(np.isnan(value))
