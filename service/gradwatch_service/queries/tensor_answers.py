"""Recommendations that rest on what was stored of single tensors: thresholds of their own, ratios."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwatch_service.detectors.base import RunContext
from gradwatch_service.measures import nonfinite_count, scalar
from gradwatch_service.queries.reading import Selection, blocks
from gradwatch_service.recommenders.advice import advice
from gradwatch_service.recommenders.base import Asked, version
from gradwatch_service.recommenders.norm import FLOOD_WINDOW
from gradwatch_service.recommenders.ratio import answer_ratio, ratios
from gradwatch_service.recommenders.tensors import TENSOR_STEPS, answer_tensors
from gradwatch_service.rows import StepRows
from gradwatch_service.store.base import Store

__all__ = ["context_of", "ratio_answer", "tensors_answer"]

Floats = NDArray[np.float64]

RATIO_STEPS = 640
RATIO_COLUMNS = ("norm", "present", "nonfinite_count", "weight_norm", "unit_ratio")


def context_of(found: Selection) -> RunContext:
    """The newest stream of a selection, for versions and advice."""
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


def tensors_answer(store: Store, found: Selection, asked: Asked) -> dict[str, Any]:
    """The recommendation for ``policy=per_tensor`` from the newest steps."""
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
    context, tried = context_of(found), given["backtest"]
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
        context=context_of(found),
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


def _newest(
    store: Store, found: Selection, number: int, columns: tuple[str, ...]
) -> Iterator[StepRows]:
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
