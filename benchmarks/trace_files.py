"""Traces on disk: ``<job>.<run>.npz`` with the numbers, ``.json`` with names and labels."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.client_trace import Recorded

from gradwatch_wire import Manifest

__all__ = ["save_healthy", "save_trace"]

COUNTS = ("zeros", "nonfinite", "nans", "present")
EXACT = ("checksum",)  # equal weights give the same number to the last bit
BULKY = ("hist", "hist_step", "hist_bins_per_octave", "hist_sampled", "absmax", "mean", "checksum")


def save_trace(
    directory: Path,
    name: str,
    columns: Mapping[str, Any],
    manifest: Manifest,
    faults: Sequence[Mapping[str, Any]] = (),
    **about: Any,
) -> None:
    """Write one trace and its labels.

    Args:
        directory: Where.
        name: ``<job>.<run>``.
        columns: Its numbers by name.
        manifest: Its tensors.
        faults: Labels, see ``docs/diagnosis.md``.
        about: What else to say of it.
    """
    job, run = name.split(".", 1)
    arrays = {key: _narrow(key, np.asarray(value)) for key, value in columns.items()}
    tensors = manifest.tensors
    arrays.setdefault("sizes", np.array([tensor.numel for tensor in tensors], np.int64))
    np.savez_compressed(directory / f"{name}.npz", **arrays)
    meta = {
        "job": job,
        "run": run,
        "steps": len(arrays["norm"]),
        "names": [tensor.name for tensor in tensors],
        "shapes": [list(tensor.shape) for tensor in tensors],
        "dtypes": [tensor.dtype for tensor in tensors],
        "groups": [tensor.group for tensor in tensors],
        "optimizer": manifest.optimizer_class,
        **about,
        "faults": list(faults),
    }
    (directory / f"{name}.json").write_text(json.dumps(meta, indent=1) + "\n")


def save_healthy(directory: Path, name: str, recorded: Recorded) -> None:
    """Write what one start of a healthy job reported, without what no detector reads."""
    kept = {key: value for key, value in recorded.columns.items() if key not in BULKY}
    save_trace(directory, name, kept, recorded.manifest)


def _narrow(key: str, values: Any) -> Any:
    if key in COUNTS:
        return values.astype(np.int32)
    if key in EXACT:
        return values
    return values.astype(np.float32) if values.dtype == np.float64 else values
