"""How long questions take: latency of every query on a long and a wide run, idle and under ingest.

    python -m benchmarks queries                  # 1 M steps of one tensor, 100 k steps of 20 tensors
    python -m benchmarks queries --steps 100000   # the same, smaller

Starts a service of its own on a free port, fills it over HTTP, waits for compaction, asks. Wall
time is what a poller sees; server CPU comes from the operating system. "Anew" asks with a parameter
that nobody has used before, so that nothing of the answer itself can be remembered; "again" repeats
one question, as pollers do.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http import client
from pathlib import Path
from typing import Any

import httpx
import numpy as np

import gradwatch_wire as wire

PER_DELIVERY = 4096
TENSORS = 20
ANEW = itertools.count()
TICKS = os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1_000_000, help="Steps of the long run.")
    parser.add_argument("--asks", type=int, default=200, help="Times each question is asked.")
    parser.add_argument("--send", nargs=2, metavar=("PORT", "RUN"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.send:
        send(int(arguments.send[0]), arguments.send[1])
        return
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as (process, http):
        wide = max(PER_DELIVERY, arguments.steps // 10)
        fill(http, "long", 1, arguments.steps)
        fill(http, "wide", TENSORS, wide)
        settle(http, Path(folder))
        asked = questions(arguments.steps, wide)
        rows = [measure(http, process, *q, arguments.asks) for q in asked]
        rows += [measure(http, process, *q, arguments.asks, again=True) for q in asked[:5]]
        with saturating(http):
            busy = [(f"{name}, while ingest saturates", path) for name, path in asked[:5]]
            rows += [measure(http, process, *q, arguments.asks) for q in busy]
            rows += [measure(http, process, *q, arguments.asks, again=True) for q in busy]
    print(table(rows, arguments.steps, wide))


def questions(steps: int, wide: int) -> list[tuple[str, str]]:
    """What is asked, by name."""
    return [
        ("recommendation, norm", "runs/wide/recommendation?policy=norm&default=1"),
        (f"series, {steps} steps to 1000 points", "runs/long/series?points=1000"),
        (
            f"series of one tensor, {wide} steps",
            "runs/wide/series?metric=norm&tensor=layer.7.weight",
        ),
        ("tensors, newest step", "runs/wide/tensors"),
        ("run summary", "runs/wide"),
        ("recommendation, per_tensor", "runs/wide/recommendation?policy=per_tensor"),
        ("recommendation, value", "runs/wide/recommendation?policy=value"),
        ("series, newest 1000 steps", f"runs/long/series?start={steps - 1000}"),
        ("series of one group", f"runs/wide/series?group=layer.7&start={wide - 5000}"),
        ("list of runs", "runs"),
        ("incidents", "runs/wide/incidents"),
    ]


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], httpx.Client]]:
    """A service in a process of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "gradwatch_cli", "serve", "--port", str(port)]
    process = subprocess.Popen(
        [*command, "--store", f"sqlite:///{folder / 'bench.db'}"], stdout=subprocess.DEVNULL
    )
    with httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1/", timeout=120) as http:
        try:
            until(lambda: ready(http, port), 30)
            yield process, http
        finally:
            process.terminate()
            process.wait(30)


def ready(http: httpx.Client, port: int) -> bool:
    try:
        return http.get(f"http://127.0.0.1:{port}/readyz").status_code == 200
    except httpx.TransportError:
        return False


def until(condition: Callable[[], Any], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"not after {seconds} s")
        time.sleep(0.2)


def fill(http: httpx.Client, run: str, tensors: int, steps: int) -> None:
    """Post a run of so many steps, with histograms on every hundredth of the last ten thousand."""
    infos = tuple(
        wire.TensorInfo(f"layer.{i}.weight", (64, 64), "float32", f"layer.{i}")
        for i in range(tensors)
    )
    manifest = wire.Manifest(tensors=infos, optimizer_class="AdamW")
    http.put(f"runs/{run}", json=manifest.to_json()).raise_for_status()
    rng = np.random.default_rng(0)
    for sequence, first in enumerate(range(0, steps, PER_DELIVERY)):
        number = min(PER_DELIVERY, steps - first)
        late = steps - first <= 10_000
        body = wire.encode(report(rng, manifest, sequence, first, number, histograms=late))
        headers = {"content-type": wire.CONTENT_TYPE}
        while (
            a := http.post(f"runs/{run}/reports", content=body, headers=headers)
        ).status_code == 429:
            time.sleep(float(a.headers["retry-after"]))
        assert a.status_code == 200, a.text


def report(
    rng: np.random.Generator,
    manifest: wire.Manifest,
    sequence: int,
    first: int,
    number: int,
    *,
    histograms: bool = False,
) -> wire.Report:
    shape = (number, len(manifest.tensors))
    norms = np.exp(rng.normal(0, 0.3, shape)).astype("<f4")
    counts = rng.integers(0, 9, shape).astype("<u4")
    steps = np.arange(first, first + number)
    parts = None
    if histograms:
        at = steps[::100]
        bins = rng.poisson(12, (len(at), shape[1], 256)).astype("<u4")
        parts = wire.Histograms(column(at), 4, -48, 1.0, column(bins))
    return wire.Report(
        attempt=0,
        rank=0,
        optimizer="default",
        sequence=sequence,
        manifest=manifest.hash,
        steps=column(steps),
        scalars={"loss": column(rng.random(number))},
        tensors={
            "norm": column(norms),
            "max_abs": column(norms / 4),
            "nonfinite_count": column(np.zeros(shape, "<u4")),
            "clipped_count": column(counts),
        },
        histograms=parts,
    )


def column(values: np.ndarray) -> wire.Column:
    dtype = f"{values.dtype.kind}{values.dtype.itemsize}"
    return wire.Column(dtype, values.shape, np.ascontiguousarray(values).tobytes())


def settle(http: httpx.Client, folder: Path) -> None:
    """Finish the runs and wait until the store has stopped changing: compaction is done."""
    for run in ("long", "wide"):
        until(lambda r=run: http.post(f"runs/{r}/finish", json={}).json()["analysed"], 600)
    sizes: list[int] = []

    def still() -> bool:
        sizes.append(sum(p.stat().st_mtime_ns for p in folder.iterdir()))
        time.sleep(2)
        return len(sizes) > 6 and len(set(sizes[-5:])) == 1

    until(still, 180)


@contextlib.contextmanager
def saturating(http: httpx.Client) -> Iterator[None]:
    """Two senders, in processes of their own, that post as fast as they are answered."""
    command = [sys.executable, "-m", "benchmarks", "queries", "--send", str(http.base_url.port)]
    senders = [subprocess.Popen([*command, f"load-{i}"]) for i in range(2)]
    try:
        until(lambda: all(f'"load-{i}"' in http.get("runs").text for i in range(2)), 30)
        time.sleep(2)
        yield
        assert all(sender.poll() is None for sender in senders), "a sender ended"
    finally:
        for sender in senders:
            sender.terminate()
            sender.wait(10)


def send(port: int, run: str) -> None:
    """Post 50 steps of 200 tensors at a time, for ever."""
    infos = tuple(wire.TensorInfo(f"t{i}", (64, 64), "float32", "t") for i in range(200))
    manifest = wire.Manifest(tensors=infos)
    rng = np.random.default_rng(1)
    made = [report(rng, manifest, 0, 0, 50) for _ in range(8)]
    sequence = 0
    with httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1/runs/", timeout=60) as own:
        own.put(run, json=manifest.to_json()).raise_for_status()
        while True:
            steps = column(np.arange(50 * sequence, 50 * sequence + 50))
            body = wire.encode(replace(made[sequence % 8], sequence=sequence, steps=steps))
            headers = {"content-type": wire.CONTENT_TYPE}
            answer = own.post(f"{run}/reports", content=body, headers=headers)
            sequence += answer.status_code == 200


def measure(
    http: httpx.Client,
    process: subprocess.Popen[bytes],
    name: str,
    path: str,
    asks: int,
    *,
    again: bool = False,
) -> list[str]:
    """Ask on one connection of the standard library; the first three answers are not counted."""
    port = http.base_url.port
    assert port is not None
    connection = client.HTTPConnection("127.0.0.1", port, timeout=120)
    walls = []
    size = 0
    for number in range(-3, asks):
        if number == 0:
            before = cpu_seconds(process)
        mark = "&" if "?" in path else "?"
        start = time.perf_counter()
        connection.request("GET", f"/api/v1/{path}{'' if again else f'{mark}anew={next(ANEW)}'}")
        answer = connection.getresponse()
        size = len(answer.read())
        walls.append(1000 * (time.perf_counter() - start))
        assert answer.status == 200, answer.status
    cpu = 1000 * (cpu_seconds(process) - before) / asks
    p50, p99 = np.percentile(walls[3:], [50, 99])
    how = "again" if again else "anew"
    return [name, how, f"{p50:.2f}", f"{p99:.2f}", f"{cpu:.2f}", f"{size / 1000:.1f}"]


def cpu_seconds(process: subprocess.Popen[bytes]) -> float:
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def table(rows: list[list[str]], steps: int, wide: int) -> str:
    lines = [
        f"Queries over one connection; runs of {steps} steps x 1 tensor and {wide} steps x "
        f"{TENSORS} tensors, compacted; Python {platform.python_version()}, "
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}",
        "",
        "| question | asked | p50 ms | p99 ms | server CPU ms | answer kB |",
        "|---|---|---|---|---|---|",
    ]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


if __name__ == "__main__":
    main()
