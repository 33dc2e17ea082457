"""Sharded steps: many ranks send their parts of the same step; CPU, memory, time until it is whole.

    python -m benchmarks sharded [--ranks 1 8 64 512] [--steps 20] [--tensors 200] [--pause 1]

Every rank has a connection of its own and posts its part of each step, all at the same moment, as
ranks do after a collective. "Whole" is when `/series` shows the step, asked every 5 ms. Server CPU
comes from the operating system. One rank posts whole steps, for comparison.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
from benchmarks.machine import cpu_name
from benchmarks.server_process import (
    cpu_seconds,
    free_port,
    rss_megabytes,
    settle,
    wait_until_ready,
)

import gradwatch_wire as wire

ELEMENTS = 2**20  # of each tensor
ASK_SECONDS = 0.005
GIVE_UP_SECONDS = 60.0


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="parts of sharded steps, combined")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 8, 64, 512])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--tensors", type=int, default=200)
    parser.add_argument("--pause", type=float, default=1.0, help="seconds between two steps")
    given = parser.parse_args()
    print(
        f"{cpu_name()}, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}; "
        f"{given.tensors} tensors x 8 statistics, {given.steps} steps, {given.pause:g} s apart"
    )
    print(
        "| ranks | server CPU, ms/step | ms/part | all acknowledged, ms, p50 | longest "
        "| whole after the last answer, ms, p50 | longest | RSS, MB |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for ranks in given.ranks:
        print("| " + " | ".join(measure(ranks, given)) + " |", flush=True)


def measure(ranks: int, given: argparse.Namespace) -> list[str]:
    """One row: a service of its own, a run of so many ranks."""
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as (process, port):
        senders = Senders(port, ranks, given.tensors)
        senders.register()
        settle(process.pid)
        acknowledged, whole, memory = [], [], []
        before = cpu_seconds(process.pid)
        for step in range(given.steps):
            begun = time.monotonic()
            senders.post(step)
            acknowledged.append(time.monotonic() - begun)
            whole.append(senders.wait_for(step))
            memory.append(rss_megabytes(process.pid))
            time.sleep(max(0.0, begun + given.pause - time.monotonic()))
        settle(process.pid)
        cpu = 1000 * (cpu_seconds(process.pid) - before) / given.steps
        senders.close()
    times = [(np.median(t) * 1000, max(t) * 1000) for t in (acknowledged, whole)]
    figures = [f"{t:.0f}" for pair in times for t in pair]
    return [str(ranks), f"{cpu:.1f}", f"{cpu / ranks:.2f}", *figures, f"{max(memory):.0f}"]


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A service in a process of its own."""
    port = free_port()
    command = [sys.executable, "-m", "gradwatch_cli", "serve", "--port", str(port)]
    command += ["--store", f"sqlite:///{folder / 'bench.db'}"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            wait_until_ready(port)
            yield process, port
        finally:
            process.terminate()


class Senders:
    """A connection per rank, and one that asks."""

    def __init__(self, port: int, ranks: int, tensors: int) -> None:
        self._ranks, self._tensors = ranks, tensors
        self._rng = np.random.default_rng(0)
        self._sockets = [socket.create_connection(("127.0.0.1", port)) for _ in range(ranks)]
        self._hash = self._manifest(0).hash
        self._http = httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1/runs/", timeout=60)

    def register(self) -> None:
        """Announce every rank."""
        for rank in range(self._ranks):
            self._http.put("big", json=self._manifest(rank).to_json()).raise_for_status()

    def post(self, step: int) -> None:
        """Send every rank's part at once; returns when all are acknowledged."""
        for rank, sender in enumerate(self._sockets):
            body = wire.encode(self._part(rank, step))
            head = (
                "POST /api/v1/runs/big/reports HTTP/1.1\r\nHost: 127.0.0.1\r\n"
                f"Content-Type: {wire.CONTENT_TYPE}\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            sender.sendall(head.encode() + body)
        poller = select.poll()
        waiting = {sender.fileno(): (sender, bytearray()) for sender in self._sockets}
        for number in waiting:
            poller.register(number, select.POLLIN)
        while waiting:
            ready = poller.poll(GIVE_UP_SECONDS * 1000)
            if not ready:
                raise TimeoutError(f"{len(waiting)} parts of step {step} were not acknowledged")
            for number, _ in ready:
                sender, answer = waiting[number]
                answer += sender.recv(65536)
                if complete(answer):
                    poller.unregister(number)
                    del waiting[number]

    def wait_for(self, step: int) -> float:
        """Seconds from now until the step is whole."""
        begun = time.monotonic()
        while time.monotonic() < begun + GIVE_UP_SECONDS:
            answer = self._http.get("big/series", params={"start": step})
            if json.loads(answer.content)["count"] == [1]:
                return time.monotonic() - begun
            time.sleep(ASK_SECONDS)
        raise TimeoutError(f"step {step} never became whole")

    def close(self) -> None:
        """Let go of the connections."""
        for sender in self._sockets:
            sender.close()
        self._http.close()

    def _manifest(self, rank: int) -> wire.Manifest:
        tensors = tuple(
            wire.TensorInfo(f"layers.{i}.weight", (ELEMENTS,), "float32", f"layers.{i // 8}")
            for i in range(self._tensors)
        )
        return wire.Manifest(tensors, world_size=self._ranks, rank=rank, session="one")

    def _part(self, rank: int, step: int) -> wire.Report:
        shape = (1, self._tensors)
        norm = np.exp(self._rng.normal(0, 0.3, shape)).astype("<f4")
        counts = self._rng.integers(0, 9, shape).astype("<u4")
        nothing = np.zeros(shape, "<u4")
        after = np.minimum(norm, 1)
        columns = {
            "norm": norm,
            "max_abs": norm / 100,
            "mean": norm / 1e4,
            "zero_count": counts,
            "nonfinite_count": nothing,
            "clipped_count": counts,
            "norm_after": after,
        }
        if self._ranks > 1:
            columns["dot_after"] = norm * after
        return wire.Report(
            attempt=0,
            rank=rank,
            optimizer="default",
            sequence=step,
            manifest=self._hash,
            steps=column(np.array([step])),
            scalars={"loss": column(np.array([2.0]))} if rank == 0 else {},
            tensors={name: column(values) for name, values in columns.items()},
            time=column(np.array([time.time()])),
            partial=self._partial(),
        )

    def _partial(self) -> wire.Partial | None:
        if self._ranks == 1:
            return None
        local = np.full(self._tensors, ELEMENTS // self._ranks, "<u8")
        ranks = tuple(range(self._ranks))
        return wire.Partial(ranks, column(np.ones(self._tensors)), column(local))


def complete(answer: bytearray) -> bool:
    """Whether all of an HTTP answer is here; raises unless it says 200."""
    head, found, body = answer.partition(b"\r\n\r\n")
    if not found:
        return False
    if not head.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(answer[:500].decode(errors="replace"))
    length = next(
        line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")
    )
    return len(body) >= int(length.partition(b":")[2])


def column(values: np.ndarray) -> wire.Column:
    kind = f"{values.dtype.kind}{values.dtype.itemsize}"
    return wire.Column(kind, values.shape, np.ascontiguousarray(values).tobytes())


if __name__ == "__main__":
    main()
