"""Stored steps in the form that they were reported in, so that they can be taken elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwatch_service.rows import HistogramRows, StepRows
from gradwatch_service.store.base import Store, Stream
from gradwatch_service.store.layout import join, widen
from gradwatch_wire import Column, Histograms, Manifest, Report

__all__ = ["MOST_NUMBERS", "stored_report"]

MOST_NUMBERS = 2**19  # in one answer: 2 MB in the compact form


def stored_report(store: Store, run: str, stream: Stream, start: int, limit: int) -> Report:
    """The next steps of a stream from ``start`` on, under its newest manifest.

    Fewer than ``limit`` where numbers would be more than :data:`MOST_NUMBERS`, or where the bins of
    histograms change; none only when there are no more. ``sequence`` says nothing: it is 0.
    """
    found = store.read(
        run,
        attempt=stream.attempt,
        optimizer=stream.optimizer,
        rank=stream.rank,
        start=start,
        limit=limit,
    )
    rows = _bounded(found, stream.manifest)
    head = Report(
        attempt=stream.attempt,
        rank=stream.rank,
        optimizer=stream.optimizer,
        sequence=0,
        manifest=stream.manifest.hash,
        steps=_column(np.empty(0, np.int64)),
    )
    if rows is None:
        return head
    return replace(
        head,
        steps=_column(rows.steps),
        time=_column(rows.time),
        scalars={name: _column(values) for name, values in rows.scalars.items()},
        tensors={name: _column(values) for name, values in rows.tensors.items()},
        histograms=_histograms(rows),
    )


def _bounded(blocks: Iterable[StepRows], manifest: Manifest) -> StepRows | None:
    kept: list[StepRows] = []
    numbers = 0
    for block in blocks:
        rows = widen(block, manifest)
        each = max(1, rows.nbytes // 4 // len(rows))
        room = (MOST_NUMBERS - numbers) // each
        if kept and (room <= 0 or _kinds(rows) != _kinds(kept[0])):
            break
        room = max(1, room)
        kept.append(rows.cut(0, room))
        numbers += each * len(kept[-1])
        if room < len(rows):
            break
    if not kept:
        return None
    rows = join(kept, manifest)
    return rows.cut(0, _steps_with_same_bins(rows))


def _kinds(rows: StepRows) -> dict[str, str]:
    return {name: values.dtype.str for name, values in rows.tensors.items()}


def _steps_with_same_bins(rows: StepRows) -> int:
    parts = sorted(rows.histograms, key=lambda part: int(part.steps[0]))
    for part in parts[1:]:
        if _bins(part) != _bins(parts[0]):
            return int(np.searchsorted(rows.steps, part.steps[0]))
    return len(rows)


def _bins(part: HistogramRows) -> tuple[Any, ...]:
    return part.bins_per_octave, part.lowest_exponent, part.sampled


def _histograms(rows: StepRows) -> Histograms | None:
    parts = sorted(rows.histograms, key=lambda part: int(part.steps[0]))
    if not parts:
        return None
    width = max(part.counts.shape[2] for part in parts)
    kind = max(part.counts.dtype for part in parts)
    counts = [
        np.pad(part.counts, ((0, 0), (0, 0), (0, width - part.counts.shape[2]))).astype(kind)
        for part in parts
    ]
    bins_per_octave, lowest_exponent, sampled = _bins(parts[0])
    return Histograms(
        steps=_column(np.concatenate([part.steps for part in parts])),
        bins_per_octave=bins_per_octave,
        lowest_exponent=lowest_exponent,
        sampled=sampled,
        counts=_column(np.concatenate(counts)),
    )


def _column(values: NDArray[Any]) -> Column:
    kind = f"{values.dtype.kind}{values.dtype.itemsize}"
    return Column(kind, values.shape, np.ascontiguousarray(values).tobytes())
