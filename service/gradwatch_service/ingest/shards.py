"""Parts of a step, one per rank, as the numbers of the whole tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwatch_service.rows import HistogramRows, StepRows
from gradwatch_wire import TENSOR_COLUMNS

__all__ = ["Part", "combine", "complete_steps"]

Array = NDArray[Any]
Floats = NDArray[np.float64]
SQUARES = frozenset({"norm", "norm_after", "weight_norm", "update_norm"})
GREATEST = frozenset({"max_abs", "present", "threshold", "unit_ratio"})


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """What one rank delivered of its share.

    Attributes:
        rows: Its steps.
        ranks: The ranks whose parts make the whole.
        weights: [T] what this rank's squares and counts count for.
        local_numel: [T] elements that this rank holds.
    """

    rows: StepRows
    ranks: tuple[int, ...]
    weights: Floats
    local_numel: Floats


def complete_steps(parts: Sequence[Part]) -> list[int]:
    """The steps that every rank has delivered, increasing."""
    by_rank: dict[int, set[int]] = {rank: set() for rank in parts[0].ranks}
    for part in parts:
        if part.rows.rank in by_rank:
            by_rank[part.rows.rank].update(part.rows.steps.tolist())
    return sorted(set.intersection(*by_rank.values()))


def combine(parts: Sequence[Part], steps: Sequence[int]) -> StepRows:
    """Rows of the whole tensors at these steps, each of which every rank delivered.

    norm = sqrt(sum w n^2); maxima; counts = sum w k; mean by local elements; cosines from their dot
    products; histograms add. Scalars and time are the lowest rank's. A column that some part lacks
    is left out: a sum over fewer ranks would be too small.
    """
    first = min(parts[0].ranks)
    by_rank: dict[int, list[Part]] = {}
    for part in parts:
        by_rank.setdefault(part.rows.rank, []).append(part)
    shares = [_share(by_rank[rank], steps) for rank in sorted(parts[0].ranks)]
    lead = shares[0]
    names = set(lead.rows.tensors).intersection(*(share.rows.tensors for share in shares))
    columns = {name: _column(name, shares) for name in sorted(names) if _known(name)}
    columns.update(_cosines(columns, shares, names, np.asarray(steps)))
    return replace(
        lead.rows,
        rank=first,
        tensors={name: _typed(name, values) for name, values in columns.items()},
        histograms=_histograms(shares),
    )


def _share(parts: Sequence[Part], steps: Sequence[int]) -> Part:
    """One rank's rows at exactly these steps, whatever deliveries they came in."""
    wanted = np.asarray(steps)
    rows = [_picked(part.rows, np.isin(part.rows.steps, wanted)) for part in parts]
    rows = [r for r in rows if len(r)]
    merged = rows[0]
    if len(rows) > 1:
        merged = _stacked(rows)
    return replace(parts[0], rows=merged)


def _picked(rows: StepRows, mask: Array) -> StepRows:
    steps = rows.steps[mask]
    return replace(
        rows,
        steps=steps,
        time=rows.time[mask],
        scalars={name: values[mask] for name, values in rows.scalars.items()},
        tensors={name: values[mask] for name, values in rows.tensors.items()},
        histograms=tuple(
            replace(h, steps=h.steps[keep], counts=h.counts[keep])
            for h in rows.histograms
            if (keep := np.isin(h.steps, steps)).any()
        ),
    )


def _stacked(rows: Sequence[StepRows]) -> StepRows:
    steps = np.concatenate([r.steps for r in rows])
    # A step that two deliveries hold is taken once, from the later delivery.
    order = len(steps) - 1 - np.unique(steps[::-1], return_index=True)[1]
    scalars = set.intersection(*(set(r.scalars) for r in rows))
    tensors = set.intersection(*(set(r.tensors) for r in rows))
    return replace(
        rows[0],
        steps=steps[order],
        time=np.concatenate([r.time for r in rows])[order],
        scalars={n: np.concatenate([r.scalars[n] for r in rows])[order] for n in sorted(scalars)},
        tensors={n: np.concatenate([r.tensors[n] for r in rows])[order] for n in sorted(tensors)},
        histograms=tuple(h for r in rows for h in r.histograms),
    )


def _known(name: str) -> bool:
    kind = TENSOR_COLUMNS.get(name)
    return (
        name in SQUARES or name in GREATEST or name == "mean" or (kind is not None and kind.count)
    )


def _column(name: str, shares: Sequence[Part]) -> Floats:
    values = [np.asarray(share.rows.tensors[name], np.float64) for share in shares]
    if name in GREATEST:
        greatest: Floats = np.max(values, axis=0)
        return greatest
    if name == "mean":
        weights = [share.weights * share.local_numel for share in shares]
        total = np.sum([w * v for w, v in zip(weights, values, strict=True)], axis=0)
        elements = np.sum(weights, axis=0)
        mean: Floats = np.divide(total, elements, out=np.zeros_like(total), where=elements > 0)
        return mean
    if name in SQUARES:
        squares = [s.weights * v * v for s, v in zip(shares, values, strict=True)]
        root: Floats = np.sqrt(np.sum(squares, axis=0))
        return root
    counts: Floats = np.rint(
        np.sum([s.weights * v for s, v in zip(shares, values, strict=True)], axis=0)
    )
    return counts


def _cosines(
    columns: Mapping[str, Floats], shares: Sequence[Part], names: set[str], steps: Array
) -> dict[str, Floats]:
    found: dict[str, Floats] = {}
    norm = columns.get("norm")
    if norm is None:
        return found
    if "dot_after" in names and "norm_after" in columns:
        found["cosine_after"] = _cosine(shares, "dot_after", norm * columns["norm_after"])
    if "dot_previous" in names:
        before = np.full_like(norm, np.nan)
        before[1:] = np.where((np.diff(steps) == 1)[:, None], norm[:-1], np.nan)
        found["cosine_previous"] = _cosine(shares, "dot_previous", norm * before)
    return found


def _cosine(shares: Sequence[Part], name: str, scale: Floats) -> Floats:
    dot = np.sum([s.weights * s.rows.tensors[name].astype(np.float64) for s in shares], axis=0)
    cosine = np.divide(dot, scale, out=np.full_like(scale, np.nan), where=scale > 0)
    held: Floats = np.clip(cosine, -1.0, 1.0)
    return held


def _typed(name: str, values: Floats) -> Array:
    kind = TENSOR_COLUMNS[name]
    if kind.count and values.size and values.max() >= 2**32:
        return values.astype("<u8")
    return values.astype("<" + kind.dtypes[0])


def _histograms(shares: Sequence[Part]) -> tuple[HistogramRows, ...]:
    """Histograms of the steps at which every rank sent one of the same shape."""
    lead = shares[0].rows.histograms
    kept = []
    for part in lead:
        others = [_like(part, share.rows.histograms) for share in shares]
        if any(other is None for other in others):
            continue
        bins = max(other.counts.shape[2] for other in others if other is not None)
        total = np.sum(
            [
                np.pad(o.counts, ((0, 0), (0, 0), (0, bins - o.counts.shape[2])))
                * s.weights[None, :, None]
                for o, s in zip(others, shares, strict=True)
                if o is not None
            ],
            axis=0,
        )
        kept.append(replace(part, counts=np.rint(total).astype("<u8")))
    return tuple(kept)


def _like(part: HistogramRows, given: Sequence[HistogramRows]) -> HistogramRows | None:
    for other in given:
        if (
            np.array_equal(other.steps, part.steps)
            and other.bins_per_octave == part.bins_per_octave
            and other.lowest_exponent == part.lowest_exponent
        ):
            return other
    return None
