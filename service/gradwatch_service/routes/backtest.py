"""Routes of backtests: what thresholds would have done to the recorded steps."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Response
from pydantic import BaseModel, ConfigDict, Field

from gradwatch_service.access import VisibleRun
from gradwatch_service.problems import invalid
from gradwatch_service.queries.answers import json_answer
from gradwatch_service.queries.backtests import MOST_THRESHOLDS, Policy, Retrospect, backtest
from gradwatch_service.queries.questions import documented, read_as
from gradwatch_service.queries.rule_backtests import RULES, rule_backtest
from gradwatch_service.recommenders.base import Preference
from gradwatch_service.schemas import PROBLEMS
from gradwatch_service.wiring import ServiceDep

router = APIRouter(tags=["recommendation"])

WAYS = ("threshold", "thresholds", "grid")
Threshold = Annotated[float, Field(gt=0, le=1e38, strict=True)]


class Question(BaseModel):
    """What to try: exactly one of ``threshold``, ``thresholds`` and ``grid``.

    None of them for ``adaptive``, ``autoclip``, ``zclip``, ``adagc`` and ``quantile``: these rules find
    their own thresholds.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    policy: Policy = "norm"
    threshold: Threshold | None = None
    thresholds: list[Threshold] | None = Field(None, min_length=1, max_length=MOST_THRESHOLDS)
    grid: int | None = Field(
        None, ge=2, le=MOST_THRESHOLDS, description="That many, evenly in ln, over what was seen."
    )
    start: int | None = Field(None, ge=0, description="First step, inclusive.")
    end: int | None = Field(None, ge=0, description="Last step, inclusive.")
    attempt: int | None = Field(None, ge=0)
    optimizer: str | None = Field(None, max_length=512)
    preference: Preference | None = Field(None, description="For adaptive; balanced by default.")


@router.post("/api/v1/runs/{run}/backtest", openapi_extra=documented(Question), responses=PROBLEMS)
def post_backtest(
    body: Annotated[Question, Depends(read_as(Question))],
    service: ServiceDep,
    record: VisibleRun,
) -> Response:
    """Try thresholds on every finite recorded step, in float64 over the stored float32 values.

    Says what would have been clipped, never what will be: the next steps differ.
    """
    rule = body.policy in RULES
    given = [name for name in WAYS if getattr(body, name) is not None]
    if rule and given:
        raise invalid(given[0], f"policy={body.policy} finds its own thresholds; leave it out.")
    if not rule and len(given) != 1:
        raise invalid(
            "threshold", "give exactly one of threshold, thresholds and grid (a number of them)."
        )
    if body.preference is not None and body.policy != "adaptive":
        raise invalid("preference", f"preference is for policy=adaptive, not for {body.policy}.")
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
        preference=body.preference or "balanced",
    )
    made = rule_backtest if rule else backtest
    return json_answer(made(service.store, record.run, asked))


def _thresholds(body: Question) -> tuple[float, ...]:
    if body.threshold is not None:
        return (body.threshold,)
    return tuple(body.thresholds or ())
