"""Routes of recommendations: which threshold, how sure, and why."""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from gradwatch_service.access import Reader, VisibleRun
from gradwatch_service.problems import ServiceError, invalid
from gradwatch_service.queries.answers import cacheable, json_answer
from gradwatch_service.queries.questions import documented, read_as
from gradwatch_service.queries.recommendations import Policy, recommendation
from gradwatch_service.recommenders.answer import answer_norm
from gradwatch_service.recommenders.base import Asked, BadQuestion, Preference
from gradwatch_service.recommenders.norm import advance_norms, initial_state
from gradwatch_service.schemas import PROBLEMS
from gradwatch_service.wiring import ServiceDep

router = APIRouter(tags=["recommendation"])

LARGEST = float(np.finfo(np.float32).max)  # what a stored norm can be

Bound = Annotated[float | None, Query(description="Finite, above 0.")]


class Norms(BaseModel):
    """Norms of a job that this service does not store, oldest first."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    policy: Literal["norm"] = "norm"
    norms: list[Annotated[float, Field(ge=0, le=LARGEST)] | None] = Field(
        max_length=100_000,
        description="Global gradient norms; null is a step that was not finite.",
    )
    learning_rates: list[Annotated[float, Field(ge=0)] | None] | None = Field(
        None, description="One per norm; a change by more than 2x holds the threshold for 20 steps."
    )
    optimizer_class: str | None = Field(None, max_length=128)
    preference: Preference = "balanced"
    default: float | None = None
    min: float | None = None
    max: float | None = None


@router.get("/api/v1/runs/{run}/recommendation", responses=PROBLEMS)
def get_recommendation(
    *,
    request: Request,
    service: ServiceDep,
    record: VisibleRun,
    policy: Annotated[Policy, Query()] = "norm",
    preference: Annotated[Preference, Query()] = "balanced",
    default: Bound = None,
    minimum: Annotated[float | None, Query(alias="min")] = None,
    maximum: Annotated[float | None, Query(alias="max")] = None,
    removed_energy: Annotated[
        float, Query(gt=0, lt=1, description="For value: share of the energy it may remove.")
    ] = 0.01,
    prior: Annotated[
        bool, Query(description="For norm: let earlier runs of the same model speak at the start.")
    ] = False,
    optimizer: Annotated[str | None, Query(max_length=512)] = None,
) -> Response:
    """The recommended threshold with its evidence.

    With ``default`` given, ``effective_threshold`` is never null: a script can follow it from the
    first step on.
    """
    with service.instruments.recommendation.time():
        given = recommendation(
            service,
            record,
            policy,
            _asked(preference, default, minimum, maximum),
            optimizer=optimizer,
            removed_energy=removed_energy,
            with_prior=prior,
            now=time.time(),
        )
    return cacheable(request, given)


@router.post("/api/v1/recommend", openapi_extra=documented(Norms), responses=PROBLEMS)
def post_recommend(body: Annotated[Norms, Depends(read_as(Norms))], _: Reader) -> Response:
    """The same answer for norms that are sent along; nothing is stored."""
    asked = _asked(body.preference, body.default, body.min, body.max)
    return json_answer(recommend_for(body, asked))


def recommend_for(body: Norms, asked: Asked) -> dict[str, Any]:
    """Run the rule over the norms that were sent."""
    rates = body.learning_rates
    if rates is not None and len(rates) != len(body.norms):
        raise invalid(
            "learning_rates",
            f"{len(rates)} learning rates for {len(body.norms)} norms; give one per norm.",
        )
    # Stored norms are float32; the same rounding here gives the same answer.
    norms = np.array(body.norms, np.float64).astype(np.float32).astype(np.float64)
    learning = np.full(len(norms), np.nan) if rates is None else np.array(rates, np.float64)
    steps = np.arange(len(norms))
    state = advance_norms(initial_state(), steps, norms, np.isfinite(norms), learning)
    return answer_norm(state, asked)


def _asked(
    preference: Preference, default: float | None, minimum: float | None, maximum: float | None
) -> Asked:
    try:
        return Asked(preference, default, minimum, maximum)
    except BadQuestion as bad:
        raise ServiceError(422, "invalid", str(bad), errors=[bad.problem()]) from bad
