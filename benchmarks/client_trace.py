"""Recordings made by the client itself: train under ``gradwatch.watch``, read back what it reported.

The client runs in mode ``offline``: what it would have sent lies in its spool, delivery by delivery.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwatch.reporting import frames
from gradwatch.reporting.delivery import read_delivery
from gradwatch.reporting.replay import find_spools
from gradwatch_wire import Column, Manifest, Report, decode

__all__ = ["COLUMNS", "SCALARS", "Recorded", "read_spools"]

Array = NDArray[Any]

# Column of a trace to the statistic of the wire.
COLUMNS: Mapping[str, str] = {
    "norm": "norm",
    "absmax": "max_abs",
    "mean": "mean",
    "zeros": "zero_count",
    "nonfinite": "nonfinite_count",
    "nans": "nan_count",
    "after": "norm_after",
    "present": "present",
    "cos": "cosine_previous",
    "pnorm": "weight_norm",
}
SCALARS: Mapping[str, str] = {
    "loss": "loss",
    "lr": "learning_rate",
    "gcos": "cosine_previous",
    "scale": "grad_scale",
    "skipped": "skipped",
    "checksum": "weight_checksum",
    "since": "steps_since",
    "bad_since": "nonfinite_steps_since",
}
_ZERO_IF_MISSING = ("skipped",)


@dataclass(frozen=True, slots=True)
class Recorded:
    """What one rank of one start of a job reported of one optimizer's tensors.

    Attributes:
        run: Run id.
        session: Which start.
        rank: Which rank.
        manifest: Its tensors.
        columns: As ``docs/diagnosis.md`` lists them; ``step`` numbers the rows. NaN = not measured.
    """

    run: str
    session: str
    rank: int
    manifest: Manifest
    columns: dict[str, Array]


def read_spools(directory: Path) -> list[Recorded]:
    """Everything that was reported below a directory, in the order in which the jobs started."""
    return [
        Recorded(spool.run, spool.session, spool.rank, manifest, _columns(reports))
        for spool in find_spools(directory)
        for manifest, reports in _reports(spool.folder)
    ]


def _reports(folder: Path) -> list[tuple[Manifest, list[Report]]]:
    """The deliveries of a spool that carry steps, by the tensors they are about."""
    manifests: dict[str, Manifest] = {}
    reports: dict[str, list[Report]] = {}
    for path in sorted(folder.glob("*.gw")):
        for frame in _frames(path):
            if frame.kind == frames.MANIFEST:
                manifest = Manifest.from_json(json.loads(frame.body))
                manifests[manifest.hash] = manifest
            elif frame.kind == frames.DELIVERY:
                report = decode(read_delivery(frame.body).body)
                if report.steps.shape[0]:
                    reports.setdefault(report.manifest, []).append(report)
    return [(manifests[key], found) for key, found in reports.items()]


def _frames(path: Path) -> Iterator[frames.Frame]:
    with path.open("rb") as file:
        yield from frames.unpack(file)


def _columns(reports: list[Report]) -> dict[str, Array]:
    columns = {"step": np.concatenate([_array(r.steps) for r in reports])}
    for key, name in COLUMNS.items():
        if any(name in r.tensors for r in reports):
            shape = reports[0].tensors["norm"].shape[1:]
            columns[key] = np.concatenate(
                [
                    _array(r.tensors[name])
                    if name in r.tensors
                    else np.full((r.steps.shape[0], *shape), np.nan, np.float32)
                    for r in reports
                ]
            )
    for key, name in SCALARS.items():
        if any(name in r.scalars for r in reports):
            missing = 0.0 if key in _ZERO_IF_MISSING else np.nan
            columns[key] = np.concatenate(
                [
                    _array(r.scalars[name])
                    if name in r.scalars
                    else np.full(r.steps.shape[0], missing)
                    for r in reports
                ]
            )
    return columns | _histograms(reports)


def _histograms(reports: list[Report]) -> dict[str, Array]:
    parts = [r.histograms for r in reports if r.histograms is not None]
    if not parts:
        return {}
    counts = [_array(part.counts) for part in parts]
    bins = max(c.shape[2] for c in counts)
    wide = [np.pad(c, ((0, 0), (0, 0), (0, bins - c.shape[2]))) for c in counts]
    return {
        "hist": np.concatenate(wide).astype(np.uint32),
        "hist_step": np.concatenate([_array(part.steps) for part in parts]),
        "hist_bins_per_octave": np.array(parts[0].bins_per_octave),
        "hist_sampled": np.array(min(part.sampled for part in parts)),
    }


def _array(column: Column) -> Array:
    return np.frombuffer(column.data, f"<{column.dtype}").reshape(column.shape)
