"""Durable ingest beside other trackers, round by round in one run."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
from collections import defaultdict
from pathlib import Path

from benchmarks.ingest import COLUMNS, STAGES, Load, measure
from benchmarks.peer_servers import SERVERS, program
from benchmarks.peers import DOES_MORE, PEERS

__all__ = ["compare"]

SCRIPT = Path(__file__).parent / "peers.py"
OURS = "gradwatch"


def compare(tensors: int, seconds: float, python: str, rounds: int = 3, steps: int = 60) -> None:
    """Print microseconds of CPU per sample, ours and theirs.

    Args:
        tensors: Tensors of our job; a peer logs as many scalars per step as we store samples.
        seconds: How long we are measured in each round.
        python: Interpreter that has the peers; those it lacks are left out and named.
        rounds: Rounds, in which everybody has a turn.
        steps: Steps that each peer of the training process logs in a round.
    """
    samples = tensors * COLUMNS
    missing = {name: "not installed" for name in PEERS if not has(python, name)}
    programs = {name: program(server, python) for name, server in SERVERS.items()}
    missing |= {name: "no such program" for name, found in programs.items() if found is None}
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
        for name, found in programs.items():
            if found is None:
                continue
            taken = SERVERS[name].measure(found, samples)
            costs[name].append(taken.cpu / taken.samples)
            if taken.bytes is not None:
                sizes[name] = taken.bytes / taken.samples
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
    print(f"load {os.getloadavg()[0]:.1f} at the end")
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
