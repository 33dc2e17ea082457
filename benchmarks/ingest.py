"""Durable ingest: samples per second of server CPU, with and without what happens behind it.

    python -m benchmarks ingest [--seconds 6] [--tensors 200] [--peers [PYTHON]]

Starts the real service in processes of its own, posts distinct deliveries over HTTP, and reads the
server's CPU time from the operating system. A sample is one statistic of one tensor at one step.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import platform
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zstandard
from benchmarks.machine import cpu_name
from benchmarks.server_process import (
    cpu_seconds,
    free_port,
    rss_megabytes,
    settle,
    wait_until_ready,
)

import gradwatch_wire as wire
from gradwatch_service.analysis.analyser import Analyser
from gradwatch_service.app import create_app
from gradwatch_service.server import Server, bound_arenas, configure
from gradwatch_service.settings import Settings
from gradwatch_service.store.opening import open_store
from gradwatch_service.store.sqlite.maintenance import Maintenance

COLUMNS = 10
CONNECTIONS = 8
# What runs behind the commit, by the name of the row.
STAGES = ("durable", "+ chunks and roll-ups", "+ analysis")
DISTINCT = 48


@dataclass(frozen=True)
class Load:
    """One row of the table."""

    stage: str
    steps: int
    tensors: int
    seconds: float


@dataclass(frozen=True)
class Result:
    """What was measured."""

    samples: int
    reports: int
    wall: float
    cpu: float
    p50: float
    p99: float
    rss: float
    bytes_per_sample: float


def main(arguments: list[str] | None = None) -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description="durable ingest per server CPU second")
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--tensors", type=int, default=200)
    parser.add_argument("--live", type=int, default=100, help="runs that report once a second")
    parser.add_argument("--live-seconds", type=float, default=30.0)
    parser.add_argument("--serve", nargs=3, metavar=("STAGE", "STORE", "PORT"))
    parser.add_argument(
        "--peers",
        nargs="?",
        const=sys.executable,
        metavar="PYTHON",
        help="compare with the trackers that this interpreter has, and with Pushgateway",
    )
    given = parser.parse_args(arguments)
    if given.serve:
        serve(*given.serve)
        return
    print(
        f"{cpu_name()}, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}, "
        f"SQLite {sqlite3.sqlite_version}, numpy {np.__version__}"
    )
    if given.peers:
        # Only then: it measures with what is here.
        from benchmarks.peer_table import compare  # noqa: PLC0415 - only when peers are asked for

        compare(given.tensors, given.seconds, given.peers)
        return
    print(f"{given.tensors} tensors x {COLUMNS} statistics, {CONNECTIONS} connections, zstd bodies")
    print(
        f"{'behind the commit':<24}{'steps/post':>11}{'M samples/CPU-s':>17}{'M samples/s':>13}"
        f"{'posts/s':>9}{'ack p50':>9}{'p99 ms':>8}{'RSS MB':>8}{'B/sample':>10}"
    )
    for steps in (50, 1):
        for stage in STAGES:
            load = Load(stage, steps, given.tensors, given.seconds)
            show(load, measure(load))
    print(live(given.live, given.tensors, given.live_seconds))


def show(load: Load, result: Result) -> None:
    """Print one row."""
    print(
        f"{load.stage:<24}{load.steps:>11}{result.samples / result.cpu / 1e6:>17.1f}"
        f"{result.samples / result.wall / 1e6:>13.1f}{result.reports / result.wall:>9.0f}"
        f"{result.p50:>9.1f}{result.p99:>8.1f}{result.rss:>8.0f}{result.bytes_per_sample:>10.2f}",
        flush=True,
    )


def measure(load: Load) -> Result:
    """Serve a fresh store, post for some seconds, and read what it cost the server."""
    bodies = [delivery(load, number) for number in range(DISTINCT)]
    with served(load) as (pid, port, folder):
        senders = [Sender(port, index, load, bodies) for index in range(CONNECTIONS)]
        before, start = cpu_seconds(pid), time.perf_counter()
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join()
        wall = time.perf_counter() - start
        # What was put off is part of the price: wait until the server rests.
        settle(pid)
        cpu = cpu_seconds(pid) - before
        rss = rss_megabytes(pid)
        size = sum(p.stat().st_size for p in folder.glob("bench.db*"))
    failures = [sender.failure for sender in senders if sender.failure]
    if failures:
        raise RuntimeError(failures[0])
    waits = sorted(wait for sender in senders for wait in sender.waits)
    reports = len(waits)
    samples = reports * load.steps * load.tensors * COLUMNS
    return Result(
        samples,
        reports,
        wall,
        cpu,
        statistics.median(waits) * 1e3,
        waits[int(len(waits) * 0.99)] * 1e3,
        rss,
        size / samples,
    )


def live(runs: int, tensors: int, seconds: float) -> str:
    """Many runs that each report one step a second: what the service needs to keep up."""
    load = Load(STAGES[2], 1, tensors, seconds)
    bodies = [delivery(load, number) for number in range(DISTINCT)]
    with served(load) as (pid, port, _):
        senders = [Sender(port, index, load, bodies) for index in range(runs)]
        before, start = cpu_seconds(pid), time.perf_counter()
        waits: list[float] = []
        sequence, most = 0, 0.0
        while time.perf_counter() - start < seconds:
            for index, sender in enumerate(senders):
                pause = start + sequence + index / runs - time.perf_counter()
                time.sleep(max(0.0, pause))
                waits.append(sender.send(sequence))
            most = max(most, rss_megabytes(pid))
            sequence += 1
        wall, cpu = time.perf_counter() - start, cpu_seconds(pid) - before
    waits.sort()
    return (
        f"{runs} runs x {tensors} tensors x {COLUMNS} statistics, one step a second each, "
        f"for {wall:.0f} s: {cpu / wall * 100:.0f} % of one core, RSS at most {most:.0f} MB, "
        f"ack p50 {waits[len(waits) // 2] * 1e3:.1f} ms, p99 {waits[int(len(waits) * 0.99)] * 1e3:.1f} ms"
    )


@contextlib.contextmanager
def served(load: Load) -> Iterator[tuple[int, int, Path]]:
    """Serve a fresh store as the load says; gives process id, port and folder."""
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        command = [sys.executable, "-m", "benchmarks.ingest", "--serve", load.stage]
        process = subprocess.Popen([*command, str(Path(folder) / "bench.db"), str(port)])
        try:
            wait_until_ready(port)
            yield process.pid, port, Path(folder)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


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

    def _body(self, sequence: int) -> bytes:
        made = self._bodies[sequence % len(self._bodies)]
        first = sequence * self._load.steps
        steps = np.arange(first, first + self._load.steps, dtype="<i8")
        column = wire.Column("i8", steps.shape, steps.tobytes())
        fields = {name: getattr(made, name) for name in made.__slots__}
        return wire.encode(wire.Report(**{**fields, "sequence": sequence, "steps": column}))

    def _ask(
        self, method: str, path: str, body: bytes, kind: str, encoding: str = "identity"
    ) -> None:
        headers = {"Content-Type": kind, "Content-Encoding": encoding}
        self._connection.request(method, path, body, headers)
        answer = self._connection.getresponse()
        content = answer.read()
        if answer.status >= 300:
            self.failure = f"{answer.status}: {content[:300]!r}"


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


def serve(stage: str, store: str, port: str) -> None:
    """Be the server, with only so much behind the commit as the stage says."""
    if stage != STAGES[2]:
        Analyser.start = idle  # type: ignore[method-assign]  # measured without it
    if stage == STAGES[0]:
        Maintenance.start = idle  # type: ignore[method-assign]  # measured without it
    bound_arenas()
    settings = Settings(store=f"sqlite:///{store}", port=int(port), compact_quiet_seconds=1)
    config = configure(create_app(settings, open_store(settings)), settings)
    config.host, config.port = "127.0.0.1", int(port)
    server = Server(config)
    server.alone = True
    server.run()


def idle(_: object) -> None:
    """Start nothing."""


if __name__ == "__main__":
    main()
