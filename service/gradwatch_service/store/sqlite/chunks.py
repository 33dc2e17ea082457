"""Chunks: many steps stored tensor by tensor, so that one tensor's curve reads little."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwatch_service.rows import StepRows
from gradwatch_service.store.layout import (
    HISTOGRAM,
    SCALAR,
    STEPS,
    TENSOR,
    TIME,
    histogram_head,
    histogram_rows,
    named,
    wanted_columns,
)
from gradwatch_service.store.packing import is_constant, pack, pack_each, unpack
from gradwatch_wire import Manifest

__all__ = ["PackedChunk", "pack_chunk", "read_chunk"]

ORDER = "q"
SEPARATOR = "\n"  # no name holds one: they are printable
Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class PackedChunk:
    """A chunk ready to be written: what all tensors share, then each tensor's columns."""

    first_step: int
    last_step: int
    steps: int
    body: bytes
    tensors: tuple[bytes, ...]

    @property
    def size(self) -> int:
        """Bytes to be written."""
        return len(self.body) + sum(map(len, self.tensors))


def pack_chunk(rows: StepRows, order: Array) -> PackedChunk:
    """Pack rows and the sequence that each came in."""
    shared: dict[str, Array] = {STEPS: rows.steps, TIME: rows.time, ORDER: order.astype("i8")}
    shared.update({SCALAR + name: values for name, values in rows.scalars.items()})
    for index, part in enumerate(rows.histograms):
        shared.update(histogram_head(index, part))
    return PackedChunk(
        first_step=int(rows.steps[0]),
        last_step=int(rows.steps[-1]),
        steps=len(rows),
        body=pack(shared),
        tensors=tuple(_tensors(rows)),
    )


def _tensors(rows: StepRows) -> list[bytes]:
    own = _sheets(rows.tensors)
    for index, part in enumerate(rows.histograms):
        own[f"{HISTOGRAM}{index}c"] = part.counts.swapaxes(0, 1)
    if not own:
        return [pack({})] * len(rows.manifest.tensors)
    return pack_each(own)


def _sheets(columns: Mapping[str, Array]) -> dict[str, Array]:
    """Columns of one type as one array [T, columns, steps], under a name that lists them.

    One compressed piece per tensor and type instead of one per column: a fifth of the work. A
    column that says the same everywhere stays alone: it is not compressed at all.
    """
    alike: dict[tuple[str, bool, str], list[str]] = {}
    for name, values in columns.items():
        same = is_constant(values)
        alike.setdefault((values.dtype.str, same, name if same else ""), []).append(name)
    return {
        TENSOR + SEPARATOR.join(names): _sheet([columns[n] for n in names])
        for names in alike.values()
    }


def _sheet(columns: Sequence[Array]) -> Array:
    steps, tensors = columns[0].shape
    sheet = np.empty((tensors, len(columns), steps), columns[0].dtype)
    for index, values in enumerate(columns):
        sheet[:, index] = values.T
    return sheet


def _columns(sheets: Mapping[str, Array], wanted: Collection[str] | None) -> dict[str, Array]:
    """What :func:`_sheets` joined, as [steps, T] columns."""
    found = {}
    for title, sheet in sheets.items():
        for index, name in enumerate(title.split(SEPARATOR)):
            if wanted is None or name in wanted:
                found[name] = sheet[index].swapaxes(0, 1)
    return found


def read_chunk(
    connection: sqlite3.Connection,
    run_id: int,
    chunk_id: int,
    manifest: Manifest,
    *,
    tensors: Sequence[int] | None,
    columns: Collection[str] | None,
    histograms: bool,
) -> tuple[StepRows, Array] | None:
    """Read a chunk and the sequence that each row came in; None when it is gone.

    Tensors that the chunk does not have are left out. Attempt, optimizer and rank are the
    caller's to fill in.
    """
    row = connection.execute(
        "SELECT body FROM chunk WHERE id = ? AND detail = 1", (chunk_id,)
    ).fetchone()
    if row is None:
        return None
    shared = unpack(row[0], wanted_columns(None, histograms=histograms))
    bodies = _bodies(connection, run_id, chunk_id, tensors)
    if len(bodies) != (
        len(manifest.tensors)
        if tensors is None
        else sum(i < len(manifest.tensors) for i in tensors)
    ):
        return None
    parts = [unpack(body, _wanted(columns, histograms=histograms)) for body in bodies]
    names = list(parts[0]) if parts else []
    # [columns, T, steps] for the sheets, [steps, T, bins] for the histograms.
    stacked = {name: np.stack([part[name] for part in parts], axis=1) for name in names}
    counts = [stacked[name] for name in names if name.startswith(HISTOGRAM)]
    rows = StepRows(
        attempt=0,
        optimizer="",
        rank=0,
        steps=shared[STEPS],
        time=shared[TIME],
        scalars=named(shared, SCALAR),
        tensors=_columns(named(stacked, TENSOR), columns),
        manifest=manifest,
        histograms=histogram_rows(shared, counts),
    )
    return rows, shared[ORDER]


def _wanted(columns: Collection[str] | None, *, histograms: bool) -> Callable[[str], bool]:
    def wanted(title: str) -> bool:
        if title.startswith(HISTOGRAM):
            return histograms
        held = title[len(TENSOR) :].split(SEPARATOR)
        return columns is None or not set(columns).isdisjoint(held)

    return wanted


def _bodies(
    connection: sqlite3.Connection, run_id: int, chunk_id: int, tensors: Sequence[int] | None
) -> list[bytes]:
    if tensors is None:
        rows = connection.execute(
            "SELECT body FROM chunk_tensor WHERE run_id = ? AND chunk_id = ? ORDER BY tensor",
            (run_id, chunk_id),
        )
        return [body for (body,) in rows]
    found = (
        connection.execute(
            "SELECT body FROM chunk_tensor WHERE run_id = ? AND chunk_id = ? AND tensor = ?",
            (run_id, chunk_id, tensor),
        ).fetchone()
        for tensor in tensors
    )
    return [row[0] for row in found if row is not None]
