"""Routes of backtests: what thresholds would have done to the recorded steps."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, ConfigDict, Field

from gradwatch_service.access import VisibleRun
from gradwatch_service.problems import invalid
from gradwatch_service.queries.answers import json_answer
from gradwatch_service.queries.backtests import MOST_THRESHOLDS, Retrospect, backtest
from gradwatch_service.queries.questions import documented, read_as
from gradwatch_service.schemas import PROBLEMS
from gradwatch_service.wiring import ServiceDep

router = APIRouter(tags=["recommendation"])

Threshold = Annotated[float, Field(gt=0, le=1e38)]


class Question(BaseModel):
    """Which thresholds to try: exactly one of ``threshold``, ``thresholds`` and ``grid``."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    policy: Literal["norm", "value", "per_tensor", "agc"] = "norm"
    threshold: Threshold | None = None
    thresholds: list[Threshold] | None = Field(None, min_length=1, max_length=MOST_THRESHOLDS)
    grid: int | None = Field(
        None, ge=2, le=MOST_THRESHOLDS, description="That many, evenly in ln, over what was seen."
    )
    start: int | None = Field(None, ge=0, description="First step, inclusive.")
    end: int | None = Field(None, ge=0, description="Last step, inclusive.")
    attempt: int | None = Field(None, ge=0)
    optimizer: str | None = Field(None, max_length=512)


@router.post("/api/v1/runs/{run}/backtest", openapi_extra=documented(Question), responses=PROBLEMS)
def post_backtest(
    body: Annotated[Question, Depends(read_as(Question))],
    service: ServiceDep,
    record: VisibleRun,
) -> Response:
    """Try thresholds on every finite recorded step, in float64 over the stored float32 values.

    Says what would have been clipped, never what will be: the next steps differ.
    """
    given = [body.threshold is not None, body.thresholds is not None, body.grid is not None]
    if sum(given) != 1:
        raise invalid(
            "threshold", "give exactly one of threshold, thresholds and grid (a number of them)."
        )
    if body.start is not None and body.end is not None and body.start > body.end:
        raise invalid("start", f"start={body.start} lies after end={body.end}.")
    asked = Retrospect(
        policy=body.policy,
        thresholds=_thresholds(body),
        grid=body.grid,
        start=body.start,
        end=body.end,
        attempt=body.attempt,
        optimizer=body.optimizer,
    )
    answer: dict[str, Any] = backtest(service.store, record.run, asked)
    return json_answer(answer)


def _thresholds(body: Question) -> tuple[float, ...]:
    if body.threshold is not None:
        return (body.threshold,)
    return tuple(body.thresholds or ())
