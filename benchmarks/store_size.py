"""Bytes that recorded gradients take on disk, nothing lost: as acknowledged, and compacted.

    python -m benchmarks store_size TRACES        # a folder of <job>.<run>.npz, see record_traces

Every trace is stored as a run of its own, 50 steps to a delivery, then compacted as the service
does it, read back and compared bit for bit. A sample is one statistic of one tensor at one step.
Steps, times and scalars are stored too and their bytes count; they are not counted as samples.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from benchmarks.machine import cpu_name

import gradwatch_wire as wire
from gradwatch_service.rows import StepRows
from gradwatch_service.settings import Settings
from gradwatch_service.store.base import Store
from gradwatch_service.store.delivering import deliver
from gradwatch_service.store.opening import open_store
from gradwatch_service.store.sqlite.tools import StoreStats, compact, stats

PER_DELIVERY = 50
# What the recordings call a statistic, what we do, and the type that the client sends it in.
COLUMNS = {
    "norm": ("norm", "<f4"),
    "absmax": ("max_abs", "<f4"),
    "mean": ("mean", "<f4"),
    "zeros": ("zero_count", "<u4"),
    "nonfinite": ("nonfinite_count", "<u4"),
    "cos": ("cosine_previous", "<f4"),
    "pnorm": ("weight_norm", "<f4"),
}
SCALARS = {"loss": "loss", "lr": "learning_rate", "gcos": "cosine_previous"}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="bytes per sample on recorded gradients")
    parser.add_argument("traces", type=Path, help="folder of .npz files")
    given = parser.parse_args()
    found = sorted(given.traces.glob("*.npz"))
    if not found:
        parser.error(f"{given.traces}: no .npz files there")
    runs = {path.stem: rows_of(path) for path in found}
    samples = sum(v.size for rows in runs.values() for v in rows.tensors.values())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bench.db"
        settings = Settings(store=f"sqlite:///{path}")
        with opened(settings) as store:
            for run, rows in runs.items():
                fill(store, run, rows)
            hot = stats(path)
        compact(path, settings)
        cold = stats(path)
        with opened(settings) as store:
            for run, rows in runs.items():
                verify(store, run, rows)
    steps = sum(map(len, runs.values()))
    print(
        f"{cpu_name()}, load {os.getloadavg()[0]:.1f}; {len(runs)} recorded runs, {steps} steps, "
        f"{samples} samples, all read back bit for bit"
    )
    show(hot, cold, samples)


def show(hot: StoreStats, cold: StoreStats, samples: int) -> None:
    """Print what lies where."""
    print("| | bytes per sample |")
    print("|---|---|")
    for name, size in (
        ("deliveries as acknowledged", hot.hot_bytes),
        ("compacted, every step", cold.chunk_bytes),
        ("roll-ups beside it", cold.rollup_bytes),
        ("the whole file", cold.file_bytes + cold.journal_bytes),
    ):
        print(f"| {name} | {size / samples:.2f} |")


def rows_of(path: Path) -> StepRows:
    """A recording as rows; what was not finite is 0, as the client sends it."""
    with np.load(path) as columns:
        known = {name: columns[name] for name in columns.files}
    count, width = known["norm"].shape
    tensors = {
        ours: np.nan_to_num(known[theirs], nan=0, posinf=0, neginf=0).astype(dtype)
        for theirs, (ours, dtype) in COLUMNS.items()
        if theirs in known
    }
    scalars = {
        ours: known[theirs].astype("<f8") for theirs, ours in SCALARS.items() if theirs in known
    }
    infos = tuple(
        wire.TensorInfo(f"tensor.{i}", (int(size),), "float32", f"tensor.{i}")
        for i, size in enumerate(known["sizes"])
    )
    assert len(infos) == width
    return StepRows(
        attempt=0,
        optimizer="default",
        rank=0,
        steps=np.arange(count, dtype="<i8"),
        time=1.7e9 + np.cumsum(np.random.default_rng(0).gamma(8.0, 0.01, count)),
        scalars=scalars,
        tensors=tensors,
        manifest=wire.Manifest(tensors=infos),
    )


@contextlib.contextmanager
def opened(settings: Settings) -> Iterator[Store]:
    """A store, closed at the end."""
    store = open_store(settings)
    try:
        yield store
    finally:
        store.close()


def fill(store: Store, run: str, rows: StepRows) -> None:
    """Store a run, delivery by delivery."""
    now = time.time()
    store.register(run, rows.manifest, now=now)
    digest = rows.manifest.hash
    waiting = [
        store.append(
            deliver(
                run,
                rows.cut(first, first + PER_DELIVERY),
                sequence=sequence,
                manifest=digest,
                received=now,
                dropped={},
            )
        )
        for sequence, first in enumerate(range(0, len(rows), PER_DELIVERY))
    ]
    for future in waiting:
        future.result()


def verify(store: Store, run: str, rows: StepRows) -> None:
    """Hold what is read to what was stored.

    Raises:
        AssertionError: A bit differs.
    """
    parts = list(store.read(run, attempt=0, optimizer="default", rank=0))
    for name, values in rows.tensors.items():
        there = np.concatenate([part.tensors[name] for part in parts])
        assert there.dtype == values.dtype, name
        assert there.tobytes() == np.ascontiguousarray(values).tobytes(), name
    for name, series in rows.scalars.items():
        there = np.concatenate([part.scalars[name] for part in parts])
        assert there.tobytes() == series.tobytes(), name


if __name__ == "__main__":
    main()
