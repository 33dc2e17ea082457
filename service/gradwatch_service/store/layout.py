"""How rows become packed columns and rows again: the one place that knows the columns' names."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwatch_service.rows import HistogramRows, StepRows
from gradwatch_service.store.packing import pack, unpack
from gradwatch_wire import Manifest

__all__ = ["cut_tensors", "join", "pack_rows", "unpack_rows"]

Array = NDArray[Any]
STEPS, TIME, SCALAR, TENSOR, HISTOGRAM = "n", "u", "s:", "t:", "h:"


def pack_rows(rows: StepRows) -> bytes:
    """Pack a delivery's rows. A tensor column is kept tensor by tensor: its steps stand together."""
    columns: dict[str, Array] = {STEPS: rows.steps, TIME: rows.time}
    columns.update({SCALAR + name: values for name, values in rows.scalars.items()})
    columns.update({TENSOR + name: values.T for name, values in rows.tensors.items()})
    for index, part in enumerate(rows.histograms):
        columns[f"{HISTOGRAM}{index}n"] = part.steps
        columns[f"{HISTOGRAM}{index}m"] = np.array(
            [part.bins_per_octave, part.lowest_exponent, part.sampled]
        )
        columns[f"{HISTOGRAM}{index}c"] = part.counts
    return pack(columns)


def unpack_rows(
    blob: bytes,
    *,
    attempt: int,
    optimizer: str,
    rank: int,
    manifest: Manifest,
    columns: Collection[str] | None = None,
    histograms: bool = True,
) -> StepRows:
    """Unpack what :func:`pack_rows` packed; ``columns`` names the tensor columns to read.

    Raises:
        ValueError: The bytes are damaged.
    """
    found = unpack(blob, _wanted(columns, histograms))
    return StepRows(
        attempt=attempt,
        optimizer=optimizer,
        rank=rank,
        steps=found[STEPS],
        time=found[TIME],
        scalars=_named(found, SCALAR),
        tensors={name: values.T for name, values in _named(found, TENSOR).items()},
        manifest=manifest,
        histograms=_histograms(found),
    )


def cut_tensors(rows: StepRows, tensors: Sequence[int]) -> StepRows:
    """The rows with these tensors alone, in this order, the manifest and histograms cut alike."""
    index = np.asarray(tensors, dtype=np.intp)
    kept = tuple(rows.manifest.tensors[i] for i in tensors)
    return replace(
        rows,
        tensors={name: values[:, index] for name, values in rows.tensors.items()},
        histograms=tuple(replace(h, counts=h.counts[:, index]) for h in rows.histograms),
        manifest=replace(rows.manifest, tensors=kept),
    )


def join(parts: Sequence[StepRows]) -> StepRows:
    """Rows of one stream and one manifest as one; a column that a part lacks is NaN there.

    A counting column that some part lacks becomes f8, since only that has a NaN.
    """
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    lengths = [len(part) for part in parts]
    width = len(first.manifest.tensors)
    return replace(
        first,
        steps=np.concatenate([part.steps for part in parts]),
        time=np.concatenate([part.time for part in parts]),
        scalars={
            name: _stack([p.scalars.get(name) for p in parts], [(n,) for n in lengths])
            for name in _names([part.scalars for part in parts])
        },
        tensors={
            name: _stack([p.tensors.get(name) for p in parts], [(n, width) for n in lengths])
            for name in _names([part.tensors for part in parts])
        },
        histograms=tuple(h for part in parts for h in part.histograms),
    )


def _names(columns: Sequence[Mapping[str, Array]]) -> list[str]:
    return list(dict.fromkeys(name for part in columns for name in part))


def _stack(columns: Sequence[Array | None], shapes: Sequence[tuple[int, ...]]) -> Array:
    return np.concatenate(
        [
            np.full(shape, np.nan, dtype="f4" if _is_f4(columns) else "f8") if column is None else column
            for column, shape in zip(columns, shapes, strict=True)
        ]
    )


def _is_f4(columns: Sequence[Array | None]) -> bool:
    return all(column is None or column.dtype == np.float32 for column in columns)


def _wanted(columns: Collection[str] | None, histograms: bool) -> Callable[[str], bool]:  # noqa: FBT001 - private
    def wanted(name: str) -> bool:
        if name.startswith(TENSOR):
            return columns is None or name[len(TENSOR) :] in columns
        return histograms or not name.startswith(HISTOGRAM)

    return wanted


def _named(found: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    return {name[len(prefix) :]: v for name, v in found.items() if name.startswith(prefix)}


def _histograms(found: Mapping[str, Array]) -> tuple[HistogramRows, ...]:
    parts = []
    index = 0
    while f"{HISTOGRAM}{index}n" in found:
        bins_per_octave, lowest_exponent, sampled = found[f"{HISTOGRAM}{index}m"].tolist()
        parts.append(
            HistogramRows(
                found[f"{HISTOGRAM}{index}n"],
                int(bins_per_octave),
                int(lowest_exponent),
                float(sampled),
                found[f"{HISTOGRAM}{index}c"],
            )
        )
        index += 1
    return tuple(parts)
