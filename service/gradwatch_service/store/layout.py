"""How rows become packed columns and rows again: the one place that knows the columns' names."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwatch_service.rows import HistogramRows, StepRows
from gradwatch_service.store.packing import FAST_LEVEL, pack, unpack
from gradwatch_wire import Manifest

__all__ = [
    "HISTOGRAM",
    "SCALAR",
    "STEPS",
    "TENSOR",
    "TIME",
    "cut_tensors",
    "histogram_head",
    "histogram_rows",
    "join",
    "named",
    "pack_rows",
    "pick",
    "unpack_rows",
    "wanted_columns",
    "widen",
]

Array = NDArray[Any]
STEPS, TIME, SCALAR, TENSOR, HISTOGRAM = "n", "u", "s:", "t:", "h:"


def pack_rows(rows: StepRows) -> bytes:
    """Pack a delivery's rows until they are compacted.

    A tensor column is kept tensor by tensor: its steps stand together.
    """
    columns: dict[str, Array] = {STEPS: rows.steps, TIME: rows.time}
    columns.update({SCALAR + name: values for name, values in rows.scalars.items()})
    columns.update({TENSOR + name: values.T for name, values in rows.tensors.items()})
    for index, part in enumerate(rows.histograms):
        columns.update(histogram_head(index, part))
        columns[f"{HISTOGRAM}{index}c"] = part.counts
    return pack(columns, FAST_LEVEL)


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
    found = unpack(blob, wanted_columns(columns, histograms=histograms))
    counts = {name: v for name, v in found.items() if name[:2] == HISTOGRAM and name[-1] == "c"}
    return StepRows(
        attempt=attempt,
        optimizer=optimizer,
        rank=rank,
        steps=found[STEPS],
        time=found[TIME],
        scalars=named(found, SCALAR),
        tensors={name: values.T for name, values in named(found, TENSOR).items()},
        manifest=manifest,
        histograms=histogram_rows(found, list(counts.values())),
    )


def histogram_head(index: int, part: HistogramRows) -> dict[str, Array]:
    """The columns of a histogram beside its counts."""
    head = np.array([part.bins_per_octave, part.lowest_exponent, part.sampled])
    return {f"{HISTOGRAM}{index}n": part.steps, f"{HISTOGRAM}{index}m": head}


def histogram_rows(
    found: Mapping[str, Array], counts: Sequence[Array]
) -> tuple[HistogramRows, ...]:
    """Histograms from their heads in ``found`` and their counts, in the same order."""
    parts = []
    for index, values in enumerate(counts):
        bins_per_octave, lowest_exponent, sampled = found[f"{HISTOGRAM}{index}m"].tolist()
        parts.append(
            HistogramRows(
                found[f"{HISTOGRAM}{index}n"],
                int(bins_per_octave),
                int(lowest_exponent),
                float(sampled),
                values,
            )
        )
    return tuple(parts)


def wanted_columns(columns: Collection[str] | None, *, histograms: bool) -> Callable[[str], bool]:
    """Which packed columns to read: these tensor columns (None: all), with or without histograms."""

    def wanted(name: str) -> bool:
        if name.startswith(TENSOR):
            return columns is None or name[len(TENSOR) :] in columns
        return histograms or not name.startswith(HISTOGRAM)

    return wanted


def named(found: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    """Columns whose names begin with the prefix, without it."""
    return {name[len(prefix) :]: v for name, v in found.items() if name.startswith(prefix)}


def cut_tensors(rows: StepRows, manifest: Manifest, tensors: Sequence[int]) -> StepRows:
    """The rows with these tensors alone, in this order; ``manifest`` is what is then left."""
    index = np.asarray([i for i in tensors if i < len(rows.manifest.tensors)], dtype=np.intp)
    return replace(
        rows,
        tensors={name: values[:, index] for name, values in rows.tensors.items()},
        histograms=tuple(replace(h, counts=h.counts[:, index]) for h in rows.histograms),
        manifest=manifest,
    )


def widen(rows: StepRows, manifest: Manifest) -> StepRows:
    """The rows under a manifest that adds tensors: those are not present, their columns are 0."""
    missing = len(manifest.tensors) - len(rows.manifest.tensors)
    if missing <= 0:
        return rows
    had = (len(rows), len(rows.manifest.tensors))
    columns = dict(rows.tensors)
    columns.setdefault("present", np.ones(had, dtype=np.uint8))
    return replace(
        rows,
        tensors={name: np.pad(values, ((0, 0), (0, missing))) for name, values in columns.items()},
        histograms=tuple(
            replace(h, counts=np.pad(h.counts, ((0, 0), (0, missing), (0, 0))))
            for h in rows.histograms
        ),
        manifest=manifest,
    )


def pick(rows: StepRows, index: Array) -> StepRows:
    """These rows, by their places. Histograms stay as they are."""
    return replace(
        rows,
        steps=rows.steps[index],
        time=rows.time[index],
        scalars={name: values[index] for name, values in rows.scalars.items()},
        tensors={name: values[index] for name, values in rows.tensors.items()},
    )


def join(parts: Sequence[StepRows], manifest: Manifest | None = None) -> StepRows:
    """Rows of one stream as one, under the manifest given or the first one's.

    A column that a part lacks is NaN there; a counting column becomes f8 for it, since only that
    has a NaN.
    """
    if manifest is not None:
        parts = [widen(part, manifest) for part in parts]
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
    single = all(column is None or column.dtype == np.float32 for column in columns)
    return np.concatenate(
        [
            np.full(shape, np.nan, dtype="f4" if single else "f8") if column is None else column
            for column, shape in zip(columns, shapes, strict=True)
        ]
    )
