"""Routes of series: one quantity over the steps of a run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Request, Response
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from gradwatch_service.access import VisibleRun
from gradwatch_service.measures import nonfinite_count
from gradwatch_service.problems import invalid
from gradwatch_service.queries.answers import cacheable
from gradwatch_service.queries.quantities import (
    COMMON_SCALARS,
    RUN_METRICS,
    TENSOR_METRICS,
    columns_of,
    counts_every_step,
    run_quantity,
    tensor_nonfinite,
    tensor_quantity,
)
from gradwatch_service.queries.reading import Selection, blocks, curve, select, unknown_name
from gradwatch_service.queries.series import Pieces, bucketed, joined
from gradwatch_service.routes.remembering import RememberingRoute
from gradwatch_service.rows import StepRows
from gradwatch_service.schemas import PROBLEMS
from gradwatch_service.store.base import Store
from gradwatch_service.wiring import ServiceDep

router = APIRouter(tags=["steps"], route_class=RememberingRoute)

Floats = NDArray[np.float64]
Step = Annotated[int | None, Query(ge=0, le=2**62)]


class Series(BaseModel):
    """A series in buckets; the lists are equally long. A bucket without a value has null."""

    run: str
    metric: str
    tensor: str | None
    group: str | None
    attempt: int = Field(description="The attempt asked for, else the newest.")
    optimizer: str | None
    start_step: list[int]
    end_step: list[int]
    min: list[float | None]
    mean: list[float | None]
    max: list[float | None]
    count: list[int] = Field(description="Steps that count: finite ones where it was measured.")
    nonfinite_count: list[int] = Field(description="Gradient elements that were not finite.")


@router.get("/api/v1/runs/{run}/series", response_model=Series, responses=PROBLEMS)
def get_series(
    *,
    request: Request,
    service: ServiceDep,
    record: VisibleRun,
    metric: Annotated[str, Query(max_length=512)] = "global_norm",
    tensor: Annotated[str | None, Query(max_length=2048)] = None,
    group: Annotated[str | None, Query(max_length=2048)] = None,
    start: Step = None,
    end: Step = None,
    points: Annotated[int, Query(ge=1, le=100_000)] = 1000,
    attempt: Annotated[int | None, Query(ge=0)] = None,
    optimizer: Annotated[str | None, Query(max_length=512)] = None,
    rank: Annotated[int | None, Query(ge=0)] = None,
) -> Response:
    """One metric over the steps ``start`` to ``end`` inclusive, as min / mean / max per bucket.

    At most ``points`` buckets: one per step where there are fewer steps than that. ``attempt=n``
    reads all of that attempt, its superseded tail included.
    """
    if start is not None and end is not None and start > end:
        raise invalid("start", f"start={start} lies after end={end}; both are steps, inclusive.")
    if tensor is not None and group is not None:
        raise invalid("group", "give tensor= or group=, not both.")
    found = select(service.store, record.run, attempt=attempt, optimizer=optimizer, rank=rank)
    question = _Question(service.store, found, metric, tensor, group)
    buckets = bucketed(joined(question.pieces(start, end, points)), points)
    answer: dict[str, Any] = {
        "run": record.run,
        "metric": metric,
        "tensor": tensor,
        "group": group,
        "attempt": found.attempt,
        "optimizer": found.optimizer,
    }
    return cacheable(request, answer | buckets)


@dataclass(frozen=True, slots=True)
class _Question:
    """One metric of one selection, checked before the first row is read where that is possible."""

    store: Store
    found: Selection
    metric: str
    tensor: str | None
    group: str | None

    def __post_init__(self) -> None:
        tensors = self.found.tensors
        groups = list(dict.fromkeys(t.group for t in tensors.values()))
        if self.tensor is not None:
            _known("tensor", self.tensor, list(tensors))
            _known("metric", self.metric, list(TENSOR_METRICS), "metric of a tensor")
        if self.group is not None:
            _known("group", self.group, groups)
            _known("metric", self.metric, list(RUN_METRICS), "metric of a group")

    def pieces(self, start: int | None, end: int | None, points: int) -> Iterator[Pieces]:
        """The steps from start to end, in no certain order, as coarse as ``points`` allow.

        Raises:
            ServiceError: 422, the metric is none of the known ones and no scalar of the run.
        """
        names = dict.fromkeys((*RUN_METRICS, *COMMON_SCALARS))
        every_step = counts_every_step(self.metric, tensor=self.tensor is not None)
        for part in self._parts(start, end, points):
            if isinstance(part, Pieces):
                if part.count.any():
                    names[self.metric] = None
                yield part
                continue
            names.update(dict.fromkeys(part.scalars))
            values, nonfinite = self._measure(part)
            yield Pieces.of_steps(part.steps, values, nonfinite, every_step=every_step)
        if self.tensor is None:
            _known("metric", self.metric, list(names))

    def _parts(
        self, start: int | None, end: int | None, points: int
    ) -> Iterator[StepRows | Pieces]:
        columns = columns_of(self.metric, tensor=self.tensor is not None)
        if self.group is not None:
            # A group's tensors differ by run: there is no roll-up of it.
            return blocks(
                self.store,
                self.found,
                start=start,
                end=end,
                columns=columns,
                pick=lambda tensor: tensor.group == self.group,
            )
        return curve(
            self.store,
            self.found,
            metric=self.metric,
            tensor=self.tensor,
            columns=columns,
            start=start,
            end=end,
            points=points,
        )

    def _measure(self, rows: StepRows) -> tuple[Floats, Floats]:
        if self.tensor is None and self.group is None:
            return run_quantity(rows, self.metric), nonfinite_count(rows)
        if not rows.manifest.tensors:
            # Registered later than these rows were reported: they hold nothing of it.
            return np.full(len(rows), np.nan), np.zeros(len(rows))
        if self.tensor is None:
            return run_quantity(rows, self.metric), nonfinite_count(rows)
        return tensor_quantity(rows, self.metric, 0), tensor_nonfinite(rows, 0)


def _known(at: str, name: str, names: list[str], kind: str | None = None) -> None:
    if name not in names:
        raise invalid(at, unknown_name(kind or at, name, names))
