"""Durable ingest: samples per second of server CPU, with and without what happens behind it.

    python -m benchmarks ingest [--seconds 6] [--tensors 200] [--peers [PYTHON]]

Starts the real service in processes of its own, posts distinct deliveries over HTTP, and reads the
server's CPU time from the operating system. A sample is one statistic of one tensor at one step.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from benchmarks.machine import cpu_name
from benchmarks.sender import COLUMNS, Load, Sender, delivery
from benchmarks.server_process import (
    cpu_seconds,
    free_port,
    rss_megabytes,
    settle,
    wait_until_ready,
)

from gradwatch_service.analysis.analyser import Analyser
from gradwatch_service.app import create_app
from gradwatch_service.server import Server, bound_arenas, configure
from gradwatch_service.settings import Settings
from gradwatch_service.store.opening import open_store
from gradwatch_service.store.sqlite.maintenance import Maintenance
from gradwatch_service.store.sqlite.tools import stats

CONNECTIONS = 8
# What runs behind the commit, by the name of the row.
STAGES = ("durable", "+ chunks and roll-ups", "+ analysis")
DISTINCT = 48


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
        # What was put off is part of the price: wait until all of it is done.
        wait_until_done(load, senders, folder)
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


def wait_until_done(load: Load, senders: list[Sender], folder: Path) -> None:
    """Return once everything that was stored is compacted and analysed, as far as the stage goes.

    On a busy machine a server that rests may only be waiting for its turn.
    """
    end = time.monotonic() + 120
    while load.stage != STAGES[0]:
        compacted = stats(folder / "bench.db").hot_deliveries == 0
        if compacted and (load.stage != STAGES[2] or all(s.is_analysed() for s in senders)):
            return
        if time.monotonic() > end:
            raise TimeoutError("not everything was compacted and analysed within 120 s")
        time.sleep(1.0)  # asking costs the server as well


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
