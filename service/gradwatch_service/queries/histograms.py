"""Magnitude histograms, merged over steps and tensors: counts add up."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gradwatch_service.measures import global_norm, nonfinite_count
from gradwatch_service.queries.reading import Pick, Selection, blocks
from gradwatch_service.recommenders.elementwise import WINDOW, MagnitudeHistory
from gradwatch_service.recommenders.magnitudes import aligned
from gradwatch_service.recommenders.norm import FLOOD_WINDOW, alarm_level
from gradwatch_service.rows import HistogramRows, StepRows
from gradwatch_service.store.base import Store

__all__ = ["Merged", "magnitude_history", "merged"]

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Steps = NDArray[np.int64]

HISTORY_STEPS = 2 * WINDOW * 10  # twice the window at the client's default of every 10th step
# One histogram of one tensor takes 1 KiB while it is read; a large model is read in small pieces.
CELLS_AT_ONCE = 1_000_000
KNOWN_PER_STEP = 64


@dataclass(frozen=True, slots=True, eq=False)
class Merged:
    """Histograms of several steps in the same bins, tensors together.

    Attributes:
        bins_per_octave: B, the coarsest of all.
        lowest_exponent: Exponent of the lowest edge, the lowest of all.
        sampled: Share of the elements looked at, over all histograms.
        steps: [h] steps that had one.
        counts: [h, 64 B] elements by magnitude.
    """

    bins_per_octave: int
    lowest_exponent: int
    sampled: float
    steps: Steps
    counts: Floats


def merged(
    store: Store,
    found: Selection,
    *,
    start: int | None = None,
    end: int | None = None,
    pick: Pick | None = None,
) -> Merged | None:
    """The histograms of the steps and tensors asked for, or None when there is none."""
    rows = blocks(store, found, start=start, end=end, columns=(), pick=pick, histograms=True)
    return _together([_summed(part) for block in rows for part in block.histograms])


def magnitude_history(store: Store, found: Selection) -> MagnitudeHistory:
    """Newest histograms of healthy steps: finite, and no spike by the window's own measure."""
    parts: list[HistogramRows] = []
    read: list[tuple[Steps, Floats, Flags, Floats]] = []
    for rows in _newest_first(store, found):
        parts[:0] = [_summed(part) for part in rows.histograms]
        finite = nonfinite_count(rows) == 0
        read.insert(0, (rows.steps, global_norm(rows), finite, _tops(rows)))
    if not read:
        return _history(None, last_step=None)
    steps, norms, finite, largest = (np.concatenate(column) for column in zip(*read, strict=True))
    healthy = finite & ~_spikes(norms, finite)
    history = _history(
        _together(parts, healthy=steps[healthy]),
        last_step=int(steps[-1]),
        finite_steps=int(np.count_nonzero(finite)),
        flood=int(np.count_nonzero(~finite[-FLOOD_WINDOW:])) > FLOOD_WINDOW // 2,
    )
    # Both lists of steps increase, and every step of the history is among those read.
    return replace(history, largest=largest[np.searchsorted(steps, history.steps)])


def _tops(rows: StepRows) -> Floats:
    """[n, 64] largest elements of up to 64 tensors at each step, 0 where none is known."""
    found = np.zeros((len(rows), KNOWN_PER_STEP))
    values = rows.tensors.get("max_abs")
    if values is not None:
        largest = np.sort(np.nan_to_num(np.asarray(values, np.float64)), axis=1)[
            :, -KNOWN_PER_STEP:
        ]
        found[:, : largest.shape[1]] = largest
    return found


def _newest_first(store: Store, found: Selection) -> Iterator[StepRows]:
    """Blocks of the newest steps, backwards, until two windows of histograms are there."""
    first, end = found.first_step, found.last_step
    if first is None or end is None:
        return
    width = max(len(s.manifest.tensors) for s in found.streams)
    stride = max(1, min(HISTORY_STEPS, CELLS_AT_ONCE // max(1, width)))
    floor = max(first, end - HISTORY_STEPS + 1)
    columns = ("norm", "max_abs", "nonfinite_count")
    seen = 0
    while end >= floor and seen < 2 * WINDOW:
        start = max(floor, end - stride + 1)
        rows = blocks(store, found, start=start, end=end, columns=columns, histograms=True)
        for block in reversed(list(rows)):
            seen += sum(len(part.steps) for part in block.histograms)
            yield block
        end = start - 1


def _spikes(norms: Floats, finite: Flags) -> Flags:
    """[n] whether the norm lies above the alarm level of all finite norms together."""
    logs = np.log(
        np.maximum(norms, np.finfo(float).tiny), where=norms > 0, out=np.zeros(len(norms))
    )
    usable = finite & (norms > 0)
    if not usable.any():
        return np.zeros(len(norms), np.bool_)
    ordered = np.sort(logs[usable])[None, :]
    level = alarm_level(ordered, np.array([ordered.shape[1]]))[0]
    spikes: Flags = usable & (logs > level)
    return spikes


def _history(
    whole: Merged | None, *, last_step: int | None, finite_steps: int = 0, flood: bool = False
) -> MagnitudeHistory:
    whole = whole or Merged(4, -48, 1.0, np.empty(0, np.int64), np.empty((0, 1)))
    return MagnitudeHistory(
        steps=whole.steps,
        counts=whole.counts,
        bins_per_octave=whole.bins_per_octave,
        lowest_exponent=whole.lowest_exponent,
        sampled=whole.sampled,
        largest=np.empty((len(whole.steps), 0)),
        finite_steps=finite_steps,
        flood=flood,
        last_step=last_step,
    )


def _summed(part: HistogramRows) -> HistogramRows:
    """The same with all tensors added up: [h, 1, bins]."""
    return replace(part, counts=part.counts.sum(axis=1, keepdims=True, dtype=np.uint64))


def _together(parts: Iterable[HistogramRows], healthy: Steps | None = None) -> Merged | None:
    """The histograms in the same bins; ``healthy`` keeps those of these steps alone."""
    parts = [part for part in parts if len(part.steps)]
    if not parts:
        return None
    bins = min(part.bins_per_octave for part in parts)
    lowest = min(part.lowest_exponent for part in parts)
    steps = np.concatenate([part.steps for part in parts])
    counts = np.concatenate(
        [
            aligned(
                part.counts[:, 0],
                part.bins_per_octave,
                part.lowest_exponent,
                to_bins=bins,
                to_lowest=lowest,
            )
            for part in parts
        ]
    )
    # The elements there were, as far as the sample tells: shares add up by their reciprocals.
    seen = sum(float(part.counts.sum()) for part in parts)
    there = sum(float(part.counts.sum()) / max(part.sampled, 1e-9) for part in parts)
    if healthy is not None:
        kept = np.isin(steps, healthy)
        steps, counts = steps[kept], counts[kept]
    return Merged(bins, lowest, seen / there if there else parts[-1].sampled, steps, counts)
