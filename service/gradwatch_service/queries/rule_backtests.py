"""Backtests of rules that find their own thresholds: what each would have done to the recorded steps."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from gradwatch_service.measures import global_norm, nonfinite_count, scalar
from gradwatch_service.queries.backtests import (
    Policy,
    Record,
    Retrospect,
    Rule,
    answered,
    exploding,
    matrix,
    nothing,
    record_of,
    touches,
)
from gradwatch_service.queries.reading import Selection, blocks, select
from gradwatch_service.recommenders import rules
from gradwatch_service.recommenders.backtest import backtest_factors
from gradwatch_service.recommenders.norm import PREFERENCES, in_force
from gradwatch_service.store.base import Store

__all__ = ["RULES", "rule_backtest"]

Floats = NDArray[np.float64]

RULES: tuple[Rule, ...] = get_args(Rule)
# A rule goes through the record step by step; of a longer one the newest steps are taken.
MOST_STEPS = 100_000
MOST_CELLS = 50_000_000  # of step and tensor, for adagc


def rule_backtest(store: Store, run: str, asked: Retrospect) -> dict[str, Any]:
    """Carry the rule out on the recorded steps; the answer has the fields of a backtest.

    ``threshold`` is null: the rule has another one at every step. As everywhere the norms are those
    that were: had the rule been at work, training would have gone another way.

    Raises:
        ServiceError: 422, no such optimizer.
        UnknownAttemptError: No such attempt.
    """
    found = select(store, run, attempt=asked.attempt, optimizer=asked.optimizer)
    asked = replace(asked, start=_newest(found, asked))
    if asked.policy == "adagc":
        record, factors = _adagc(store, found, asked)
    elif asked.policy == "adaptive":
        record, factors = _adaptive(store, found, asked)
    else:
        record = record_of(store, found, replace(asked, policy="norm"))
        factors = _published(asked.policy, record.values)
    tried = backtest_factors(factors, record.weights)
    clipped = record.steps[np.unique(record.step_of[factors < 1])]
    told = nothing(None) if tried is None else asdict(tried) | {"threshold": None}
    told |= {
        "steps": len(record.steps),
        "incidents": [i["id"] for i in exploding(store, run, found) if touches(i, clipped)],
    }
    reasons = ["ok"]
    if tried is None:
        reasons = ["unknown_policy_data" if len(record.steps) else "too_few_steps"]
        told["steps"] = 0
    return answered(found, asked, record.steps, reasons, [told])


def _published(policy: Policy, norms: Floats) -> Floats:
    if policy == "autoclip":
        return rules.autoclip(norms)
    return rules.zclip(norms) if policy == "zclip" else rules.quantile_tracker(norms)


def _newest(found: Selection, asked: Retrospect) -> int | None:
    last = found.last_step if asked.end is None else asked.end
    most = MOST_STEPS
    if asked.policy == "adagc":
        most = min(most, max(1, MOST_CELLS // max(1, len(found.tensors))))
    return max(asked.start or 0, (last or 0) - most + 1)


def _adaptive(store: Store, found: Selection, asked: Retrospect) -> tuple[Record, Floats]:
    """The service's own rule; what is not finite and the learning rates take part in it."""
    parts = [np.empty((4, 0))]
    columns = ("norm", "nonfinite_count")
    for rows in blocks(store, found, start=asked.start, end=asked.end, columns=columns):
        norms = global_norm(rows)
        finite = (nonfinite_count(rows) == 0).astype(np.float64)
        part = np.stack([rows.steps, norms, finite, scalar(rows, "learning_rate")])
        parts.append(part[:, ~np.isnan(norms)])
    steps, norms, finite, rates = np.concatenate(parts, axis=1)
    limits = in_force(norms, finite != 0, rates)[PREFERENCES[asked.preference]]
    kept = (finite != 0) & np.isfinite(norms)
    norms = norms[kept]
    factors = rules.scaled_down(np.nan_to_num(limits[kept], nan=np.inf), norms)
    record = Record(steps[kept].astype(np.int64), norms, norms, np.arange(len(norms)))
    return record, factors


def _adagc(store: Store, found: Selection, asked: Retrospect) -> tuple[Record, Floats]:
    """Tensor by tensor, as published; tensors may have been added on the way."""
    place = {name: index for index, name in enumerate(found.tensors)}
    steps, norms = [np.empty(0, np.int64)], [np.empty((0, len(place)))]
    columns = ("norm", "present", "nonfinite_count")
    for rows in blocks(store, found, start=asked.start, end=asked.end, columns=columns):
        finite = nonfinite_count(rows) == 0
        there = matrix(rows, "present", missing=1.0) != 0
        part = np.full((len(rows), len(place)), np.nan)
        own = [place[t.name] for t in rows.manifest.tensors]
        part[:, own] = np.where(there, matrix(rows, "norm"), np.nan)
        steps.append(rows.steps[finite])
        norms.append(part[finite])
    whole, all_steps = np.concatenate(norms), np.concatenate(steps)
    factors = rules.adagc(whole)
    known = ~np.isnan(whole)
    record = Record(all_steps, whole[known], whole[known], np.nonzero(known)[0])
    return record, factors[known]
