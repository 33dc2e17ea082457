"""A recorded trace as the reports that a client would have sent, of any size and sampling."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
from benchmarks.client_trace import COLUMNS, SCALARS
from benchmarks.trace_scorer import Trace
from numpy.typing import NDArray

from gradwatch_wire import Column, Histograms, Manifest, Report, TensorInfo

__all__ = ["manifest_of", "reports"]

DTYPES: Final = {
    "zero_count": "<u4",
    "nonfinite_count": "<u4",
    "nan_count": "<u4",
    "present": "<u1",
}
SPARSE: Final = ("cosine_previous", "weight_norm")
LOWEST_EXPONENT: Final = -48
Array = NDArray[Any]


def manifest_of(trace: Trace, **fields: Any) -> Manifest:
    """The tensors of a trace; where their shapes are not recorded, weights get two dimensions."""
    sizes = trace.columns["sizes"].tolist()
    about = trace.about
    shapes = about.get("shapes") or [
        [size] if "bias" in name else [size, 1]
        for name, size in zip(trace.tensors, sizes, strict=True)
    ]
    dtypes = about.get("dtypes") or ["float32"] * len(sizes)
    groups = about.get("groups") or ["all"] * len(sizes)
    return Manifest(
        tensors=tuple(
            TensorInfo(name=name, shape=tuple(shape), dtype=dtype, group=group)
            for name, shape, dtype, group in zip(trace.tensors, shapes, dtypes, groups, strict=True)
        ),
        optimizer_class=about.get("optimizer"),
        rank=about.get("rank", 0),
        world_size=about.get("world_size", 1),
        **fields,
    )


def reports(
    trace: Trace,
    *,
    batch: int = 10,
    cosine_every: int = 1,
    histogram_every: int = 10,
    without: Sequence[str] = (),
) -> Iterator[tuple[Report, Manifest]]:
    """Cut a trace into deliveries.

    Args:
        trace: With the columns that :mod:`benchmarks.client_trace` names; those it lacks are not sent.
        batch: Steps per delivery.
        cosine_every: Steps between the cosines and weight norms that are sent.
        histogram_every: The same for histograms, where the trace has one for every step.
        without: Statistics and scalars to leave out, by their names on the wire.
    """
    manifest = manifest_of(trace)
    steps = trace.columns.get("step", np.arange(trace.steps)).astype(np.int64)
    scalars, tensors = _scalars(trace, steps, cosine_every), _tensors(trace, steps, cosine_every)
    for sequence, start in enumerate(range(0, trace.steps, batch)):
        rows = slice(start, min(start + batch, trace.steps))
        yield (
            Report(
                attempt=0,
                rank=manifest.rank,
                optimizer="default",
                sequence=sequence,
                manifest=manifest.hash,
                steps=_column(steps[rows], "<i8"),
                scalars={
                    n: _column(v[rows], "<f8") for n, v in scalars.items() if n not in without
                },
                tensors={
                    name: _column(values[rows], DTYPES.get(name, "<f4"))
                    for name, values in tensors.items()
                    if name not in without
                },
                histograms=_histograms(trace, steps[rows], histogram_every),
            ),
            manifest,
        )


def _scalars(trace: Trace, steps: Array, cosine_every: int) -> Mapping[str, Array]:
    found = {}
    for key, name in SCALARS.items():
        if key in trace.columns:
            values = trace.columns[key].astype(np.float64)
            if name in SPARSE:
                values[steps % cosine_every != 0] = np.nan
            found[name] = np.where(np.isfinite(values), values, np.nan)
    return found


def _tensors(trace: Trace, steps: Array, cosine_every: int) -> Mapping[str, Array]:
    found = {}
    for key, name in COLUMNS.items():
        if key in trace.columns:
            values = trace.columns[key]
            if name in SPARSE:
                values = values.astype(np.float32)
                values[steps % cosine_every != 0] = np.nan
            found[name] = values
    return found


def _histograms(trace: Trace, steps: Array, every: int) -> Histograms | None:
    counts = trace.columns.get("hist")
    if counts is None:
        return None
    at = trace.columns.get("hist_step", np.arange(trace.steps))
    due = np.flatnonzero((at >= steps[0]) & (at <= steps[-1]) & (at % every == 0))
    if not len(due):
        return None
    per_octave = int(trace.columns.get("hist_bins_per_octave", 1))
    return Histograms(
        steps=_column(at[due], "<i8"),
        bins_per_octave=per_octave,
        lowest_exponent=LOWEST_EXPONENT,
        sampled=float(trace.columns.get("hist_sampled", 1.0)),
        counts=_column(counts[due], "<u4"),
    )


def _column(values: Any, dtype: str) -> Column:
    array = np.ascontiguousarray(values, dtype)
    return Column(dtype[1:], array.shape, array.tobytes())
