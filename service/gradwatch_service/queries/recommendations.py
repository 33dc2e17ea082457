"""Finds what a recommendation rests on: analysed state where there is one, stored steps otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gradwatch_service.detectors.base import RunContext
from gradwatch_service.queries.reading import blocks, select
from gradwatch_service.recommenders.answer import answer_norm
from gradwatch_service.recommenders.base import Asked
from gradwatch_service.recommenders.norm import NormRecommender, NormState, initial_state
from gradwatch_service.store.base import RunRecord, Store
from gradwatch_service.wiring import Service

__all__ = ["Evidence", "norm_recommendation", "run_evidence"]

# Steps replayed for a run that analysis no longer holds in memory. Over that many the threshold
# could have risen 60-fold, so what came before hardly ever still holds it down.
REPLAY_STEPS = 4096
# A recommendation must not lag behind what its asker has just been told is stored.
CATCH_UP_SECONDS = 0.25
STALE_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the norm rule remembers of a run, and of which stream."""

    state: NormState
    context: RunContext


def run_evidence(service: Service, record: RunRecord, *, optimizer: str | None = None) -> Evidence:
    """The norm rule's state after everything stored of the run, or nearly everything.

    Raises:
        ServiceError: 422, no such optimizer.
    """
    if optimizer is None:
        service.analyser.wait(record.run, CATCH_UP_SECONDS)
        held = service.analyser.recommender_state(record.run)
        if held is not None:
            return Evidence(held[0], held[1])
    return _replayed(service.store, record, optimizer)


def norm_recommendation(
    service: Service, record: RunRecord, asked: Asked, *, optimizer: str | None, now: float
) -> dict[str, Any]:
    """The answer to ``policy=norm`` for a stored run.

    Args:
        service: The service.
        record: The run.
        asked: Preference and bounds.
        optimizer: The optimizer asked for; None: ``default`` or the first.
        now: Server clock, Unix seconds.
    """
    evidence = run_evidence(service, record, optimizer=optimizer)
    last = record.last_report_at
    given = answer_norm(
        evidence.state,
        asked,
        context=evidence.context,
        incident=_incident(service, record.run),
        stale=record.status is None and last is not None and now - last > STALE_SECONDS,
    )
    return given | {"run": record.run}


def _incident(service: Service, run: str) -> bool:
    """Whether something worse than a remark is open; an ``info`` incident holds nothing back."""
    return any(i["severity"] != "info" for i in service.analyser.open_incidents(run))


def _replayed(store: Store, record: RunRecord, optimizer: str | None) -> Evidence:
    found = select(store, record.run, optimizer=optimizer)
    rule, state = NormRecommender(), initial_state()
    context = RunContext(record.run, optimizer=found.optimizer or "default")
    if found.last_step is None:
        return Evidence(state, context)
    stream = found.streams[-1]
    context = RunContext(
        record.run,
        attempt=stream.attempt,
        optimizer=stream.optimizer,
        rank=stream.rank,
        world_size=stream.manifest.world_size,
        optimizer_class=stream.manifest.optimizer_class,
        policy=stream.manifest.policy,
    )
    start = max(0, found.last_step - REPLAY_STEPS + 1)
    for rows in blocks(store, found, start=start, columns=("norm", "nonfinite_count")):
        state, _ = rule.advance(state, rows)
    return Evidence(state, context)
