"""A training job as the service sees it: manifests and reports of any size, made from a seed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import gradwatch_wire as wire

TENSORS = (
    wire.TensorInfo("encoder.0.weight", (64, 32), "float32", "encoder.0"),
    wire.TensorInfo("encoder.0.bias", (64,), "float32", "encoder.0"),
    wire.TensorInfo("head.weight", (10, 64), "float32", "head"),
)


def manifest(tensors: int | tuple[wire.TensorInfo, ...] = TENSORS, **fields: Any) -> wire.Manifest:
    """A manifest of these tensors, or of so many."""
    if isinstance(tensors, int):
        tensors = tuple(
            wire.TensorInfo(f"layers.{i}.weight", (256, 64), "float32", f"layers.{i // 4}")
            for i in range(tensors)
        )
    return wire.Manifest(tensors=tensors, **fields)


def register(http: Any, run: str, made: wire.Manifest | None = None) -> dict[str, Any]:
    """PUT the manifest and return the answer."""
    answer = http.put(f"/api/v1/runs/{run}", json=(made or manifest()).to_json())
    assert answer.status_code in {200, 201}, answer.text
    return answer.json()


def report(
    steps: Any,
    *,
    sequence: int = 0,
    made: wire.Manifest | None = None,
    attempt: int = 0,
    rank: int = 0,
    seed: int = 0,
    **changes: Any,
) -> wire.Report:
    """A delivery with every usual statistic; the same seed and steps give the same numbers."""
    made = made or manifest()
    steps = np.asarray(list(steps), dtype="<i8")
    shape = (len(steps), len(made.tensors))
    numel = np.array([t.numel for t in made.tensors], dtype=np.float64)
    rng = np.random.default_rng([seed, sequence, *steps[:1].tolist()])
    norm = np.exp(rng.normal(0, 0.3, shape)).astype("<f4")
    tensors = {
        "norm": norm,
        "max_abs": (norm / 3).astype("<f4"),
        "mean": rng.normal(0, 1e-3, shape).astype("<f4"),
        "zero_count": np.zeros(shape, "<u4"),
        "nonfinite_count": np.zeros(shape, "<u4"),
        "clipped_count": (rng.random(shape) * 0.1 * numel).astype("<u4"),
        "norm_after": np.minimum(norm, 1.0).astype("<f4"),
    }
    fields: dict[str, Any] = {
        "attempt": attempt,
        "rank": rank,
        "optimizer": made.optimizer,
        "sequence": sequence,
        "manifest": made.hash,
        "steps": column(steps),
        "scalars": {
            "loss": column(rng.normal(2, 0.1, len(steps)).astype("<f8")),
            "learning_rate": column(np.full(len(steps), 0.1)),
        },
        "tensors": {name: column(values) for name, values in tensors.items()},
        "time": column(1.7e9 + steps.astype("<f8")),
    }
    return wire.Report(**(fields | changes))


def column(values: np.ndarray[Any, Any]) -> wire.Column:
    """An array as a column."""
    values = np.ascontiguousarray(values)
    kind = f"{values.dtype.kind}{values.dtype.itemsize}"
    return wire.Column(kind, values.shape, values.tobytes())


def post(http: Any, run: str, made: wire.Report, **headers: str) -> Any:
    """POST a report in the compact form."""
    headers = {"content-type": wire.CONTENT_TYPE, **headers}
    return http.post(f"/api/v1/runs/{run}/reports", content=wire.encode(made), headers=headers)


def global_norm(made: wire.Report) -> list[float]:
    """Global norm of each step, from the report alone."""
    rows = made.tensors["norm"].to_list()
    return [math.sqrt(math.fsum(x * x for x in row)) for row in rows]
