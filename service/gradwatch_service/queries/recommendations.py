"""Finds what a recommendation rests on: analysed state where there is one, stored steps otherwise."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gradwatch_service.detectors.base import RunContext
from gradwatch_service.queries.histograms import magnitude_history
from gradwatch_service.queries.memo import Memo
from gradwatch_service.queries.priors import earlier_norms
from gradwatch_service.queries.reading import Selection, blocks, select
from gradwatch_service.queries.tensor_answers import context_of, ratio_answer, tensors_answer
from gradwatch_service.recommenders.answer import CODES, answer_norm
from gradwatch_service.recommenders.base import STATUSES, Asked
from gradwatch_service.recommenders.elementwise import MagnitudeHistory, answer_value
from gradwatch_service.recommenders.norm import (
    NormRecommender,
    NormState,
    initial_state,
)
from gradwatch_service.recommenders.prior import PRIOR_NORMS, Prior, learned
from gradwatch_service.store.base import RunRecord, Store
from gradwatch_service.wiring import Service

__all__ = ["POLICIES", "Policy", "recommendation"]

Policy = Literal["norm", "value", "per_tensor", "agc"]
POLICIES: tuple[Policy, ...] = ("norm", "value", "per_tensor", "agc")
Floats = NDArray[np.float64]

# Steps replayed for a run that analysis no longer holds in memory. Over that many the threshold
# could have risen 60-fold, so what came before hardly ever still holds it down.
REPLAY_STEPS = 4096
# A recommendation must not lag behind what its asker has just been told is stored.
CATCH_UP_SECONDS = 0.25
STALE_SECONDS = 300.0
PRIOR_SECONDS = 10.0  # looking through a project's runs is too much for every question

# One memory per store, gone with it: a service is built around exactly one.
_memos: weakref.WeakKeyDictionary[Store, Memo[Any]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the norm rule remembers of a run, and of which stream."""

    state: NormState
    context: RunContext


def recommendation(
    service: Service,
    record: RunRecord,
    policy: Policy,
    asked: Asked,
    *,
    optimizer: str | None = None,
    removed_energy: float = 0.01,
    with_prior: bool = False,
    now: float,
) -> dict[str, Any]:
    """The answer of ``GET /runs/{run}/recommendation``.

    Args:
        service: The service.
        record: The run.
        policy: What kind of limit is asked for.
        asked: Preference and bounds.
        optimizer: The optimizer asked for; None: ``default`` or the first.
        removed_energy: For ``value``: share of the energy that clipping may remove.
        with_prior: For ``norm``: whether earlier runs of the same model may speak for a new one.
        now: Server clock, Unix seconds.

    Raises:
        ServiceError: 422, no such optimizer.
    """
    incident = _incident(service, record.run)
    stale = _stale(record, now)
    if policy == "norm":
        evidence = _norm_evidence(service, record, optimizer)
        given = answer_norm(
            evidence.state,
            asked,
            context=evidence.context,
            incident=incident,
            stale=stale,
            prior=_prior(service.store, record, evidence.state, asked, now) if with_prior else None,
        )
        return given | {"run": record.run}
    store = service.store
    found = select(store, record.run, optimizer=optimizer)
    if policy == "value":
        given = _value(store, record, found, asked, removed_energy)
    else:
        make = tensors_answer if policy == "per_tensor" else ratio_answer
        key = (policy, record.run, optimizer, asked)
        given = _memo(store).get(key, record.revision, lambda: make(store, found, asked))
    return _overlaid(given | {"run": record.run}, incident=incident, stale=stale)


def _prior(
    store: Store, record: RunRecord, state: NormState, asked: Asked, now: float
) -> Prior | None:
    if state.accepted >= PRIOR_NORMS:
        return None
    # What earlier runs began with does not change, but runs end and are deleted meanwhile.
    period = int(now // PRIOR_SECONDS)
    earlier = _memo(store).get(("prior", record.run), period, lambda: earlier_norms(store, record))
    return learned(earlier, age=state.accepted, preference=asked.preference)


def _norm_evidence(service: Service, record: RunRecord, optimizer: str | None) -> Evidence:
    if optimizer is None:
        service.analyser.wait(record.run, CATCH_UP_SECONDS)
        held = service.analyser.recommender_state(record.run)
        if held is not None:
            return Evidence(held[0], held[1])
    found = select(service.store, record.run, optimizer=optimizer)
    replayed: Evidence = _memo(service.store).get(
        ("replay", record.run, optimizer),
        record.revision,
        lambda: _replayed(service.store, found),
    )
    return replayed


def _replayed(store: Store, found: Selection) -> Evidence:
    rule, state = NormRecommender(), initial_state()
    start = max(0, (found.last_step or 0) - REPLAY_STEPS + 1)
    for rows in blocks(store, found, start=start, columns=("norm", "nonfinite_count")):
        state, _ = rule.advance(state, rows)
    return Evidence(state, context_of(found))


def _value(
    store: Store, record: RunRecord, found: Selection, asked: Asked, removed_energy: float
) -> dict[str, Any]:
    memo, stream = _memo(store), (record.run, found.optimizer)
    history: MagnitudeHistory = memo.get(
        ("magnitudes", *stream), record.revision, lambda: magnitude_history(store, found)
    )
    given: dict[str, Any] = memo.get(
        ("value", *stream, asked, removed_energy),
        record.revision,
        lambda: answer_value(history, asked, removed_energy, context_of(found)),
    )
    return given


def _overlaid(given: dict[str, Any], *, incident: bool, stale: bool) -> dict[str, Any]:
    """What holds beyond the record of steps; it can only lower the status."""
    if given["status"] == "none":
        return given
    codes = [c for c, holds in (("open_incident", incident), ("stale", stale)) if holds]
    if not codes:
        return given
    status = given["status"]
    if incident:
        status = STATUSES[min(STATUSES.index(status), STATUSES.index("provisional"))]
    kept = [code for code in given["reasons"] if code != "ok"]
    reason = "; ".join([given["reason"], *(CODES[code] for code in codes)])
    return given | {"status": status, "reasons": [*kept, *codes], "reason": reason}


def _incident(service: Service, run: str) -> bool:
    """Whether something worse than a remark is open; an ``info`` incident holds nothing back."""
    return any(i["severity"] != "info" for i in service.analyser.open_incidents(run))


def _stale(record: RunRecord, now: float) -> bool:
    last = record.last_report_at
    return record.status is None and last is not None and now - last > STALE_SECONDS


def _memo(store: Store) -> Memo[Any]:
    return _memos.setdefault(store, Memo())
