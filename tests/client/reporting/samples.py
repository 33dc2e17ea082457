"""Samples as the hook makes them, without a training around them."""

import time
from collections.abc import Mapping
from pathlib import Path

import torch

from gradwatch.identity import Identity
from gradwatch.reporting.sample import Sample
from gradwatch.settings import Settings
from gradwatch.statistics import STATISTICS, GradStats
from gradwatch_wire import Manifest, TensorInfo

IDENTITY = Identity(run="r", session="s", rank=0)
TENSORS = 3


def manifest(optimizer: str = "default", tensors: int = TENSORS) -> Manifest:
    infos = tuple(TensorInfo(f"t{i}", (2, 5), "float32", "g") for i in range(tensors))
    return Manifest(infos, optimizer=optimizer, session=IDENTITY.session)


def settings(url: str, directory: Path, **changes: object) -> Settings:
    options = {"url": url, "directory": directory, "timeout": 2.0, "quiet": True} | changes
    return Settings(**options)  # type: ignore[arg-type] # a test's own options


def stats(value: float = 1.0, nonfinite: int = 0, tensors: int = TENSORS) -> GradStats:
    """Every magnitude of every tensor is ``value``; counts are 0 but for the first's ``nonfinite``."""
    names = ("global_norm", "global_norm_after", "skipped")
    fixed = {"present": 1.0, "cosine_after": 1.0}
    rows = [
        [0.0 if name.endswith("_count") else fixed.get(name, value)] * tensors
        for name in STATISTICS
    ]
    rows[STATISTICS.index("nonfinite_count")][0] = float(nonfinite)
    flat = [number for row in rows for number in row] + [value, value, 0.0]
    buffer = torch.tensor(flat, dtype=torch.float64)
    count = len(STATISTICS) * tensors
    return GradStats(
        packed=buffer[:count].view(len(STATISTICS), tensors),
        scalars=buffer[count:],
        buffer=buffer,
        scalar_names=names,
    )


def sample(
    step: int,
    *,
    optimizer: str = "default",
    scalars: Mapping[str, float] | None = None,
    nonfinite: int = 0,
    value: float = 1.0,
    tensors: int = TENSORS,
) -> Sample:
    return Sample(
        optimizer,
        step,
        stats(value, nonfinite, tensors),
        dict(scalars or {}),
        time.time(),
    )
