"""A job that posts deliveries to a service, for benchmarks: numbers as hard to compress as gradients are."""

from __future__ import annotations

import http.client
import json
import threading
import time
from dataclasses import dataclass

import numpy as np
import zstandard

import gradwatch_wire as wire

__all__ = ["COLUMNS", "Load", "Sender", "delivery"]

COLUMNS = 10


@dataclass(frozen=True)
class Load:
    """One row of the table."""

    stage: str
    steps: int
    tensors: int
    seconds: float


class Sender(threading.Thread):
    """One job: posts deliveries one after the other and notes how long each took."""

    def __init__(self, port: int, index: int, load: Load, bodies: list[wire.Report]) -> None:
        super().__init__(daemon=True)
        self.waits: list[float] = []
        self.failure: str | None = None
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self._run = f"run-{index}"
        self._load = load
        self._bodies = bodies
        manifest = manifest_of(load.tensors)
        register = json.dumps(manifest.to_json())
        self._ask("PUT", f"/api/v1/runs/{self._run}", register.encode(), "application/json")

    def run(self) -> None:
        """Post until the time is over."""
        end = time.perf_counter() + self._load.seconds
        sequence = 0
        while time.perf_counter() < end and self.failure is None:
            self.waits.append(self.send(sequence))
            sequence += 1

    def send(self, sequence: int) -> float:
        """Post one delivery and return how long the answer took, in seconds."""
        body = zstandard.compress(self._body(sequence), 1)
        start = time.perf_counter()
        self._ask("POST", f"/api/v1/runs/{self._run}/reports", body, wire.CONTENT_TYPE, "zstd")
        return time.perf_counter() - start

    def is_analysed(self) -> bool:
        """Whether analysis has come to the newest step."""
        run = json.loads(self._ask("GET", f"/api/v1/runs/{self._run}"))
        return bool(run["analysed_step"] == run["last_step"])

    def _body(self, sequence: int) -> bytes:
        made = self._bodies[sequence % len(self._bodies)]
        first = sequence * self._load.steps
        steps = np.arange(first, first + self._load.steps, dtype="<i8")
        column = wire.Column("i8", steps.shape, steps.tobytes())
        fields = {name: getattr(made, name) for name in made.__slots__}
        return wire.encode(wire.Report(**{**fields, "sequence": sequence, "steps": column}))

    def _ask(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        kind: str = "application/json",
        encoding: str = "identity",
    ) -> bytes:
        headers = {"Content-Type": kind, "Content-Encoding": encoding}
        self._connection.request(method, path, body, headers)
        answer = self._connection.getresponse()
        content = answer.read()
        if answer.status >= 300:
            self.failure = f"{answer.status}: {content[:300]!r}"
        return content


def manifest_of(tensors: int) -> wire.Manifest:
    """The tensors of a model of ordinary size."""
    return wire.Manifest(
        tensors=tuple(
            wire.TensorInfo(f"layers.{i}.weight", (512, 512), "float32", f"layers.{i // 8}")
            for i in range(tensors)
        )
    )


def delivery(load: Load, number: int) -> wire.Report:
    """A delivery of noise around a level per tensor: as hard to compress as gradients are."""
    rng = np.random.default_rng(number)
    shape = (load.steps, load.tensors)
    # A tensor keeps its level from delivery to delivery, as in a job that trains.
    level = np.random.default_rng(0).normal(-2, 1, load.tensors)
    numel = 512 * 512

    def floats() -> np.ndarray:
        return np.exp(level + rng.normal(0, 0.3, shape)).astype("<f4")

    few = rng.random(load.tensors) < 0.2
    tensors = {
        "norm": floats(),
        "max_abs": floats(),
        "mean": (floats() * rng.choice([-1, 1], shape)).astype("<f4"),
        "norm_after": floats(),
        "cosine_after": np.tanh(floats()).astype("<f4"),
        "cosine_previous": np.tanh(floats()).astype("<f4"),
        "weight_norm": floats(),
        "nonfinite_count": np.zeros(shape, "<u4"),
        "zero_count": (few * rng.integers(0, numel, shape)).astype("<u4"),
        "clipped_count": ((rng.random(shape) < 0.1) * rng.integers(0, numel, shape)).astype("<u4"),
    }
    assert len(tensors) == COLUMNS
    columns = {name: packed(values) for name, values in tensors.items()}
    scalars = {"loss": packed(rng.normal(2, 0.1, load.steps).astype("<f8"))}
    steps = packed(np.arange(load.steps, dtype="<i8"))
    return wire.Report(
        attempt=0,
        rank=0,
        optimizer="default",
        sequence=0,
        manifest=manifest_of(load.tensors).hash,
        steps=steps,
        scalars=scalars,
        tensors=columns,
    )


def packed(values: np.ndarray) -> wire.Column:
    """An array as a column."""
    return wire.Column(
        f"{values.dtype.kind}{values.dtype.itemsize}", values.shape, values.tobytes()
    )
