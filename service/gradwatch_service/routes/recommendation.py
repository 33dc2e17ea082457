"""Routes of recommendations: which threshold, how sure, and why."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response

from gradwatch_service.access import Reader, VisibleRun
from gradwatch_service.problems import ServiceError
from gradwatch_service.queries.answers import cacheable, json_answer
from gradwatch_service.queries.questions import documented, read_as
from gradwatch_service.queries.recommendations import Policy, recommendation
from gradwatch_service.queries.sent import Sent, recommend_for
from gradwatch_service.recommenders.base import Asked, BadQuestion, Preference
from gradwatch_service.routes.remembering import RememberingRoute
from gradwatch_service.schemas import PROBLEMS
from gradwatch_service.wiring import ServiceDep

router = APIRouter(tags=["recommendation"], route_class=RememberingRoute)

Bound = Annotated[float | None, Query(description="Finite, above 0.")]


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


@router.post("/api/v1/recommend", openapi_extra=documented(Sent), responses=PROBLEMS)
def post_recommend(body: Annotated[Sent, Depends(read_as(Sent))], _: Reader) -> Response:
    """The same answer for measurements that are sent along; nothing is stored."""
    asked = _asked(body.preference, body.default, body.min, body.max)
    return json_answer(recommend_for(body, asked))


def _asked(
    preference: Preference, default: float | None, minimum: float | None, maximum: float | None
) -> Asked:
    try:
        return Asked(preference, default, minimum, maximum)
    except BadQuestion as bad:
        raise ServiceError(422, "invalid", str(bad), errors=[bad.problem()]) from bad
