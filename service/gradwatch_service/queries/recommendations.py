"""Finds what a recommendation rests on: analysed state where there is one, stored steps otherwise."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gradwatch_service.detectors.base import RunContext
from gradwatch_service.measures import nonfinite_count, scalar
from gradwatch_service.queries.histograms import magnitude_history
from gradwatch_service.queries.memo import Memo
from gradwatch_service.queries.priors import earlier_norms
from gradwatch_service.queries.reading import Selection, blocks, select
from gradwatch_service.recommenders.advice import advice
from gradwatch_service.recommenders.answer import CODES, answer_norm
from gradwatch_service.recommenders.base import STATUSES, Asked, version
from gradwatch_service.recommenders.elementwise import MagnitudeHistory, answer_value
from gradwatch_service.recommenders.norm import (
    FLOOD_WINDOW,
    NormRecommender,
    NormState,
    initial_state,
)
from gradwatch_service.recommenders.prior import PRIOR_NORMS, Prior, learned
from gradwatch_service.recommenders.ratio import answer_ratio, ratios
from gradwatch_service.recommenders.tensors import TENSOR_STEPS, answer_tensors
from gradwatch_service.rows import StepRows
from gradwatch_service.store.base import RunRecord, Store
from gradwatch_service.wiring import Service

__all__ = ["POLICIES", "Policy", "ratio_answer", "recommendation"]

Policy = Literal["norm", "value", "per_tensor", "agc"]
POLICIES: tuple[Policy, ...] = ("norm", "value", "per_tensor", "agc")
Floats = NDArray[np.float64]

# Steps replayed for a run that analysis no longer holds in memory. Over that many the threshold
# could have risen 60-fold, so what came before hardly ever still holds it down.
REPLAY_STEPS = 4096
RATIO_STEPS = 640
RATIO_COLUMNS = ("norm", "present", "nonfinite_count", "weight_norm", "unit_ratio")
# A recommendation must not lag behind what its asker has just been told is stored.
CATCH_UP_SECONDS = 0.25
STALE_SECONDS = 300.0

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
            prior=_prior(service.store, record, evidence.state, asked) if with_prior else None,
        )
        return given | {"run": record.run}
    store = service.store
    found = select(store, record.run, optimizer=optimizer)
    if policy == "value":
        given = _value(store, record, found, asked, removed_energy)
    else:
        make = _tensors if policy == "per_tensor" else ratio_answer
        key = (policy, record.run, optimizer, asked)
        given = _memo(store).get(key, record.revision, lambda: make(store, found, asked))
    return _overlaid(given | {"run": record.run}, incident=incident, stale=stale)


def _prior(store: Store, record: RunRecord, state: NormState, asked: Asked) -> Prior | None:
    if state.accepted >= PRIOR_NORMS:
        return None
    # Asked for once per run: what earlier runs began with does not change.
    earlier = _memo(store).get(("prior", record.run), 0, lambda: earlier_norms(store, record))
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
    return Evidence(state, _context(found))


def _context(found: Selection) -> RunContext:
    if not found.streams:
        return RunContext(found.run)
    stream = found.streams[-1]
    return RunContext(
        found.run,
        attempt=stream.attempt,
        optimizer=stream.optimizer,
        rank=stream.rank,
        world_size=stream.manifest.world_size,
        optimizer_class=stream.manifest.optimizer_class,
        policy=stream.manifest.policy,
    )


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
        lambda: answer_value(history, asked, removed_energy, _context(found)),
    )
    return given


def _tensors(store: Store, found: Selection, asked: Asked) -> dict[str, Any]:
    names = list(found.tensors)
    place = {name: index for index, name in enumerate(names)}
    kept, finite = [np.empty((0, len(names)))], [np.empty(0, np.bool_)]
    for rows in _newest(store, found, 2 * TENSOR_STEPS, ("norm", "present", "nonfinite_count")):
        healthy = nonfinite_count(rows) == 0
        norms = np.full((len(rows), len(names)), np.nan)
        norms[:, [place[t.name] for t in rows.manifest.tensors]] = _present(rows, "norm")
        kept.append(norms[healthy])
        finite.append(healthy)
    flags = np.concatenate(finite)[-FLOOD_WINDOW:]
    given = answer_tensors(
        np.concatenate(kept)[-TENSOR_STEPS:],
        names,
        asked,
        flood=int(np.count_nonzero(~flags)) > FLOOD_WINDOW // 2,
        last_step=found.last_step,
    )
    context, tried = _context(found), given["backtest"]
    given["version"] = version(context, given["version"])
    given["advice"] = advice(context.optimizer_class, tried["mean_coefficient"] if tried else None)
    return given


def ratio_answer(store: Store, found: Selection, asked: Asked) -> dict[str, Any]:
    """The recommendation for ``policy=agc`` from the newest steps: of units where they are known."""
    parts = [_ratios(rows) for rows in _newest(store, found, RATIO_STEPS, RATIO_COLUMNS)]
    table = np.concatenate([np.empty((5, 0)), *parts], axis=1)
    steps, finite, rates, units, tensors = table
    by_unit = np.count_nonzero(~np.isnan(units)) >= np.count_nonzero(~np.isnan(tensors))
    return answer_ratio(
        steps.astype(np.int64),
        units if by_unit else tensors,
        finite != 0,
        asked,
        of="units" if by_unit else "tensors",
        context=_context(found),
        rates=rates,
    )


def _ratios(rows: StepRows) -> Floats:
    """[5, n] step, whether finite, learning rate, largest ratio of a unit and of a tensor."""
    tensors = ratios(_present(rows, "norm"), _present(rows, "weight_norm"))
    return np.stack(
        [
            rows.steps.astype(np.float64),
            (nonfinite_count(rows) == 0).astype(np.float64),
            scalar(rows, "learning_rate"),
            _largest(_present(rows, "unit_ratio")),
            _largest(tensors),
        ]
    )


def _largest(values: Floats) -> Floats:
    """[n] largest of each row, NaN where nothing was measured."""
    known = ~np.isnan(values)
    top = np.where(known, values, -np.inf).max(axis=1, initial=-np.inf)
    return np.where(known.any(axis=1), top, np.nan)


def _newest(store: Store, found: Selection, number: int, columns: tuple[str, ...]) -> Any:
    start = max(0, (found.last_step or 0) - number + 1)
    return blocks(store, found, start=start, columns=columns)


def _present(rows: StepRows, name: str) -> Floats:
    """[n, T] the column, NaN where the tensor had no gradient or nothing was measured."""
    values = rows.tensors.get(name)
    if values is None:
        return np.full((len(rows), len(rows.manifest.tensors)), np.nan)
    present = rows.tensors.get("present")
    if present is None:
        return np.asarray(values, np.float64)
    return np.where(present != 0, values, np.nan).astype(np.float64)


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
