"""Rows as a delivery: packed, counted, and with what tells a repeat from other content."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from gradwatch_service import live
from gradwatch_service.rows import StepRows
from gradwatch_service.store.base import Delivery
from gradwatch_service.store.layout import pack_rows

__all__ = ["deliver"]


def deliver(
    run: str, rows: StepRows, *, sequence: int, manifest: str, received: float, **more: Any
) -> Delivery:
    """Pack validated rows for the store; ``more`` is what else a :class:`Delivery` has."""
    counts = live.summarise(
        rows,
        manifest=manifest,
        dropped=more.get("dropped"),
        partial=more.get("partial") is not None,
    )
    return Delivery(
        run=run,
        sequence=sequence,
        manifest=manifest,
        rows=rows,
        digest=_digest(rows, manifest, more),
        packed=pack_rows(rows),
        received=received,
        counts=counts,
        **more,
    )


def _digest(rows: StepRows, manifest: str, more: Mapping[str, Any]) -> bytes:
    """16 bytes of SHA-256 over the numbers as they are stored, whatever form they came in."""
    told = hashlib.sha256(repr((manifest, rows.optimizer, len(rows))).encode())
    columns = {"": rows.steps, "time": rows.time}
    columns.update({f"s {name}": values for name, values in rows.scalars.items()})
    columns.update({f"t {name}": values for name, values in rows.tensors.items()})
    for index, part in enumerate(rows.histograms):
        columns[f"h {index} {part.bins_per_octave} {part.lowest_exponent}"] = part.steps
        columns[f"c {index} {part.sampled}"] = part.counts
    for name in sorted(columns):
        told.update(name.encode())
        told.update(np.ascontiguousarray(columns[name]).data)
    partial = more.get("partial")
    dropped = sorted((more.get("dropped") or {}).items())
    told.update(repr((dropped, partial and partial.ranks)).encode())
    return told.digest()[:16]
