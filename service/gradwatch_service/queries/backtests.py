"""Backtests of a stored run: reads the steps, tries the thresholds, names the incidents touched."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gradwatch_service.measures import global_norm, nonfinite_count
from gradwatch_service.queries.histograms import merged
from gradwatch_service.queries.reading import Selection, blocks, select
from gradwatch_service.recommenders.backtest import Backtest, backtest_norm, backtest_value
from gradwatch_service.recommenders.base import Preference
from gradwatch_service.recommenders.magnitudes import spans
from gradwatch_service.recommenders.ratio import ratios
from gradwatch_service.rows import StepRows
from gradwatch_service.store.base import Store

__all__ = [
    "MOST_THRESHOLDS",
    "Policy",
    "Record",
    "Retrospect",
    "Rule",
    "Threshold",
    "answered",
    "backtest",
    "exploding",
    "matrix",
    "nothing",
    "record_of",
    "touches",
]

Floats = NDArray[np.float64]
Steps = NDArray[np.int64]

Threshold = Literal["norm", "value", "per_tensor", "agc"]
Rule = Literal["adaptive", "autoclip", "zclip", "adagc", "quantile"]
Policy = Literal[
    "norm", "value", "per_tensor", "agc", "adaptive", "autoclip", "zclip", "adagc", "quantile"
]

MOST_THRESHOLDS = 256
CONTENTS = {
    "norm": ("norm",),
    "per_tensor": ("norm", "present"),
    "agc": ("norm", "weight_norm", "unit_ratio", "present"),
}


@dataclass(frozen=True, slots=True)
class Retrospect:
    """What to try on which steps; the steps of the newest attempts unless one is named."""

    policy: Policy
    thresholds: tuple[float, ...]
    grid: int | None = None
    start: int | None = None
    end: int | None = None
    attempt: int | None = None
    optimizer: str | None = None
    preference: Preference = "balanced"


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """What a policy looks at, for the finite steps: one value per step, or per step and tensor.

    Attributes:
        steps: [n] finite steps.
        values: [m] what is compared with the threshold.
        weights: [m] the norms that the policy would scale; NaN where that cannot be told.
        step_of: [m] index into ``steps``.
    """

    steps: Steps
    values: Floats
    weights: Floats
    step_of: Steps


def backtest(store: Store, run: str, asked: Retrospect) -> dict[str, Any]:
    """Try the thresholds; the answer has the fields of the REST interface.

    Raises:
        ServiceError: 422, no such optimizer.
        UnknownAttemptError: No such attempt.
    """
    found = select(store, run, attempt=asked.attempt, optimizer=asked.optimizer)
    if asked.policy == "value":
        return _value(store, found, asked)
    record = record_of(store, found, asked)
    thresholds = asked.thresholds or _grid(record.values, asked.grid or 2)
    incidents = exploding(store, run, found)
    results = []
    for threshold in thresholds:
        tried = _try(record, threshold)
        clipped = record.steps[np.unique(record.step_of[record.values > threshold])]
        touched = [i["id"] for i in incidents if touches(i, clipped)]
        results.append({**tried, "incidents": touched})
    return answered(found, asked, record.steps, _reasons(record), results)


def _value(store: Store, found: Selection, asked: Retrospect) -> dict[str, Any]:
    """The same for a limit on every element, from the histograms of the finite steps."""
    whole = merged(store, found, start=asked.start, end=asked.end)
    finite = record_of(store, found, replace(asked, policy="norm")).steps
    if whole is None:
        codes = ["unknown_policy_data" if len(finite) else "too_few_steps"]
        empty = [nothing(t) | {"incidents": []} for t in asked.thresholds]
        return answered(found, asked, finite[:0], codes, empty)
    kept = np.isin(whole.steps, finite) & whole.counts.any(axis=1)
    steps, counts = whole.steps[kept], whole.counts[kept]
    bins = spans(whole.bins_per_octave, whole.lowest_exponent)
    incidents = exploding(store, found.run, found)
    results = []
    for threshold in asked.thresholds or _grid(_filled(counts, bins), asked.grid or 2):
        tried = backtest_value(counts, bins, threshold)
        if tried is None:
            results.append(nothing(threshold) | {"incidents": []})
            continue
        clipped = steps[counts[:, bins[1] > threshold].any(axis=1)]
        touched = [i["id"] for i in incidents if touches(i, clipped)]
        results.append({**asdict(tried), "incidents": touched})
    return answered(found, asked, steps, ["ok"] if len(steps) else ["too_few_steps"], results)


def _filled(counts: Floats, bins: Floats) -> Floats:
    """Edges of the bins that hold elements: between them thresholds make a difference."""
    return bins[:, counts.any(axis=0)].ravel()


def answered(
    found: Selection,
    asked: Retrospect,
    steps: Steps,
    reasons: list[str],
    results: list[dict[str, Any]],
) -> dict[str, Any]:
    """The fields of the REST answer, whatever was tried."""
    return {
        "run": found.run,
        "policy": asked.policy,
        "attempt": found.attempt,
        "optimizer": found.optimizer,
        "first_step": int(steps[0]) if len(steps) else None,
        "last_step": int(steps[-1]) if len(steps) else None,
        "reasons": reasons,
        "results": results,
    }


def record_of(store: Store, found: Selection, asked: Retrospect) -> Record:
    """What the policy looks at in the steps that were asked for."""
    columns = (*CONTENTS[asked.policy], "nonfinite_count")
    parts = [
        _part(rows, asked.policy)
        for rows in blocks(store, found, start=asked.start, end=asked.end, columns=columns)
        if len(rows)
    ]
    if not parts:
        return Record(np.empty(0, np.int64), np.empty(0), np.empty(0), np.empty(0, np.int64))
    offsets = np.cumsum([0, *(len(p.steps) for p in parts[:-1])])
    return Record(
        steps=np.concatenate([p.steps for p in parts]),
        values=np.concatenate([p.values for p in parts]),
        weights=np.concatenate([p.weights for p in parts]),
        step_of=np.concatenate([p.step_of + o for p, o in zip(parts, offsets, strict=True)]),
    )


def _part(rows: StepRows, policy: str) -> Record:
    """The finite steps of a block. A step where nothing was measured is left out."""
    if policy == "norm":
        norms = global_norm(rows)
        kept = (nonfinite_count(rows) == 0) & np.isfinite(norms)
        steps, norms = rows.steps[kept], norms[kept]
        return Record(steps, norms, norms, np.arange(len(steps)))
    kept = nonfinite_count(rows) == 0
    steps = rows.steps[kept]
    norms = matrix(rows, "norm")[kept]
    there = matrix(rows, "present", missing=1.0)[kept] != 0
    values = norms
    if policy == "agc":
        values = ratios(norms, matrix(rows, "weight_norm")[kept])
        units = matrix(rows, "unit_ratio")[kept]
        if not np.isnan(units).all():
            # How much of a tensor its largest unit takes along is not known: no weight, no shares.
            values, norms = units, np.full_like(norms, np.nan)
    there &= np.isfinite(values)
    return Record(steps, values[there], norms[there], np.nonzero(there)[0])


def matrix(rows: StepRows, name: str, missing: float = np.nan) -> Floats:
    """[n, T] the column as float64, ``missing`` throughout where it was not sent."""
    values = rows.tensors.get(name)
    if values is None:
        return np.full((len(rows), len(rows.manifest.tensors)), missing)
    return np.asarray(values, np.float64)


def _try(record: Record, threshold: float) -> dict[str, Any]:
    """The result of one threshold; over (step, tensor) pairs where tensors are clipped singly."""
    known = not np.isnan(record.weights).any()
    tried = backtest_norm(record.values, threshold, scaled=record.weights if known else None)
    if tried is None:
        return nothing(threshold)
    told = asdict(tried) if known else nothing(threshold) | {"clipped_share": tried.clipped_share}
    return told | {"steps": len(record.steps)}


def nothing(threshold: float | None) -> dict[str, Any]:
    """A result on which nothing could be tried: nulls, no guess."""
    return dict.fromkeys(Backtest.__slots__) | {"threshold": threshold, "steps": 0}


def _grid(values: Floats, number: int) -> tuple[float, ...]:
    """Thresholds from the 1st percentile of what was seen to its maximum, evenly in ln."""
    above = values[values > 0]
    if not len(above):
        return ()
    low, high = float(np.quantile(above, 0.01)), float(above.max())
    return tuple(np.geomspace(low, max(high, low * (1 + 1e-9)), number).tolist())


def _reasons(record: Record) -> list[str]:
    if len(record.steps) == 0:
        return ["too_few_steps"]
    return ["ok"] if len(record.values) else ["unknown_policy_data"]


def exploding(store: Store, run: str, found: Selection) -> list[dict[str, Any]]:
    """The exploding incidents of the selection, retracted ones left out."""
    attempts = {s.attempt for s in found.streams}
    incidents = [json.loads(data) for data in store.documents(run, "incident").values()]
    return [
        i
        for i in incidents
        if i["attempt"] in attempts
        and i["optimizer"] == found.optimizer
        and i["status"] != "retracted"
        and i["kind"] == "exploding"
    ]


def touches(incident: dict[str, Any], clipped: Steps) -> bool:
    """Whether a clipped step lies between the incident's onset and its last evidence."""
    at = np.searchsorted(clipped, incident["onset_step"])
    return bool(at < len(clipped) and clipped[at] <= incident["last_step"])
