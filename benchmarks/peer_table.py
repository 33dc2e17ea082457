"""Durable ingest beside other trackers, round by round in one run."""

from __future__ import annotations

import http.client
import json
import shutil
import statistics
import subprocess
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from benchmarks.ingest import COLUMNS, STAGES, Load, measure
from benchmarks.peers import DOES_MORE, PEERS
from benchmarks.server_process import cpu_seconds, free_port

__all__ = ["compare"]

SCRIPT = Path(__file__).parent / "peers.py"
PUSHGATEWAYS = ("prometheus-pushgateway", "pushgateway")
OURS = "gradwatch"


def compare(tensors: int, seconds: float, python: str, rounds: int = 3, steps: int = 60) -> None:
    """Print microseconds of CPU per sample, ours and theirs.

    Args:
        tensors: Tensors of our job; a peer logs as many scalars per step as we store samples.
        seconds: How long we are measured in each round.
        python: Interpreter that has the peers; those it lacks are left out and named.
        rounds: Rounds, in which everybody has a turn.
        steps: Steps that each peer logs in a round.
    """
    samples = tensors * COLUMNS
    missing = {name: "not installed" for name in PEERS if not has(python, name)}
    gateway = next(filter(None, map(shutil.which, PUSHGATEWAYS)), None)
    if gateway is None:
        missing["pushgateway"] = "no such program"
    costs: dict[str, list[float]] = defaultdict(list)
    sizes: dict[str, float] = {}
    for _ in range(rounds):
        ours = measure(Load(STAGES[2], 50, tensors, seconds))
        costs[OURS].append(ours.cpu / ours.samples)
        sizes[OURS] = ours.bytes_per_sample
        for name in PEERS.keys() - missing.keys():
            made = logged(python, name, steps, samples)
            costs[name].append(made["cpu"] / steps / samples)
            sizes[name] = made["bytes"] / steps / samples
        if gateway is not None:
            costs["pushgateway"].append(pushed(gateway, steps, samples) / steps / samples)
    mine = statistics.median(costs[OURS])
    print("\n| | CPU us per sample, median | lowest | highest | x ours | bytes per sample | more |")
    print("|---|---|---|---|---|---|---|")
    for name, cost in sorted(costs.items(), key=lambda item: statistics.median(item[1])):
        middle = statistics.median(cost)
        size = f"{sizes[name]:.1f}" if name in sizes else "-"
        print(
            f"| {name} | {middle * 1e6:.3f} | {min(cost) * 1e6:.3f} | {max(cost) * 1e6:.3f} "
            f"| {middle / mine:.0f} | {size} | {DOES_MORE.get(name, '')} |"
        )
    for name, why in missing.items():
        print(f"{name} left out: {why}")


def has(python: str, module: str) -> bool:
    """Whether an interpreter can import a module."""
    command = [python, "-c", f"import {module}"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def logged(python: str, name: str, steps: int, samples: int) -> dict[str, float]:
    """What logging so many steps took a peer."""
    command = [python, str(SCRIPT), name, str(steps), str(samples)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def pushed(program: str, steps: int, samples: int) -> float:
    """Server CPU seconds that pushing so many steps took; one push per step, as jobs do."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [program, f"--web.listen-address=127.0.0.1:{port}"],
            cwd=folder,
            stderr=subprocess.DEVNULL,
        )
        try:
            connection = ready(port)
            before = cpu_seconds(process.pid)
            for step in range(steps):
                lines = [f'g{{tensor="layers.{i}"}} {i % 97 + step / 7}\n' for i in range(samples)]
                connection.request("PUT", "/metrics/job/bench", "".join(lines).encode())
                answer = connection.getresponse()
                answer.read()
                if answer.status >= 300:
                    raise RuntimeError(f"pushgateway answered {answer.status}")
            return cpu_seconds(process.pid) - before
        finally:
            process.terminate()
            process.wait(30)


def ready(port: int) -> http.client.HTTPConnection:
    """A connection to the gateway, once it listens."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            connection.connect()
        except OSError:
            time.sleep(0.05)
        else:
            return connection
    raise TimeoutError(f"nothing answers on port {port}")
