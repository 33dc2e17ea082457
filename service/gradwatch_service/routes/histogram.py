"""Routes of histograms: how large the elements were, merged over steps."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Request, Response

from gradwatch_service.access import VisibleRun
from gradwatch_service.problems import invalid
from gradwatch_service.queries.answers import cacheable
from gradwatch_service.queries.histograms import merged
from gradwatch_service.queries.reading import Selection, select, unknown_name
from gradwatch_service.routes.remembering import RememberingRoute
from gradwatch_service.schemas import PROBLEMS
from gradwatch_service.wiring import ServiceDep
from gradwatch_wire import TensorInfo

router = APIRouter(tags=["steps"], route_class=RememberingRoute)

Step = Annotated[int | None, Query(ge=0, le=2**62)]


@router.get("/api/v1/runs/{run}/histogram", responses=PROBLEMS)
def get_histogram(
    *,
    request: Request,
    service: ServiceDep,
    record: VisibleRun,
    tensor: Annotated[str | None, Query(max_length=2048)] = None,
    group: Annotated[str | None, Query(max_length=2048)] = None,
    start: Step = None,
    end: Step = None,
    attempt: Annotated[int | None, Query(ge=0)] = None,
    optimizer: Annotated[str | None, Query(max_length=512)] = None,
) -> Response:
    """Elements by magnitude, added up over the steps ``start`` to ``end`` inclusive.

    Bin b counts elements with ``2**(lowest_exponent + b/B) <= |g| < 2**(lowest_exponent +
    (b+1)/B)``, B ``bins_per_octave``; the first and last also hold what lies beyond. Without
    ``tensor`` or ``group`` all tensors are added up. ``steps`` 0: no histogram was reported.
    """
    if start is not None and end is not None and start > end:
        raise invalid("start", f"start={start} lies after end={end}; both are steps, inclusive.")
    if tensor is not None and group is not None:
        raise invalid("group", "give tensor= or group=, not both.")
    found = select(service.store, record.run, attempt=attempt, optimizer=optimizer)
    _check(found, tensor, group)

    def picked(one: TensorInfo) -> bool:
        return one.name == tensor if tensor is not None else one.group == group

    pick = picked if tensor is not None or group is not None else None
    whole = merged(service.store, found, start=start, end=end, pick=pick)
    answer: dict[str, Any] = {
        "run": record.run,
        "tensor": tensor,
        "group": group,
        "attempt": found.attempt,
        "optimizer": found.optimizer,
        "steps": 0,
        "start_step": None,
        "end_step": None,
        "bins_per_octave": 4,
        "lowest_exponent": -48,
        "sampled": 1.0,
        "counts": [],
    }
    if whole is not None:
        counts = whole.counts.sum(axis=0)
        used = np.flatnonzero(counts)
        answer |= {
            "steps": len(whole.steps),
            "start_step": int(whole.steps.min()),
            "end_step": int(whole.steps.max()),
            "bins_per_octave": whole.bins_per_octave,
            "lowest_exponent": whole.lowest_exponent,
            "sampled": whole.sampled,
            "counts": counts[: int(used[-1]) + 1 if len(used) else 0].astype(np.int64).tolist(),
        }
    return cacheable(request, answer)


def _check(found: Selection, tensor: str | None, group: str | None) -> None:
    tensors = found.tensors
    groups = list(dict.fromkeys(t.group for t in tensors.values()))
    if tensor is not None and tensor not in tensors:
        raise invalid("tensor", unknown_name("tensor", tensor, list(tensors)))
    if group is not None and group not in groups:
        raise invalid("group", unknown_name("group", group, groups))
