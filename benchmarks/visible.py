"""How soon a step is seen: from the end of `optimizer.step()` to REST, `/metrics` and incidents.

    python -m benchmarks visible [--jobs 4] [--steps 240] [--pause 0.05]

A real `gradwatch serve` in one process, real jobs one after the other in processes of their own,
every client setting at its default, and this process asking every 50 ms, which is part of the
figures. In each job one gradient becomes NaN and, later, one is a thousand times too large for a
few steps: the time from the first faulty step to the incident of its kind also holds what the
detector waits for. Clocks are the machine's monotonic one, the same in every process.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import httpx
import torch
from benchmarks.machine import cpu_name
from benchmarks.queries import serving
from torch import nn

import gradwatch

ASK_SECONDS = 0.05
GRACE_SECONDS = 3.0  # how long a job that has ended is still looked at
KINDS = {"nonfinite": 0.5, "exploding": 0.75}  # fault to where in the job it comes
BLOWN_STEPS = 6
LAST_STEP = re.compile(r'^gradwatch_run_last_step\{[^}]*run="([^"]+)"[^}]*\} (\S+)', re.MULTILINE)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="from optimizer.step to what people see")
    parser.add_argument("--jobs", type=int, default=4)
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--pause", type=float, default=0.05, help="seconds between steps")
    parser.add_argument("--train", nargs=2, metavar=("RUN", "URL"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.train:
        print(json.dumps(train(*given.train, given.steps, given.pause)))
        return
    waits: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as (_, http):
        for number in range(given.jobs):
            follow(http, f"job-{number}", given, waits)
    print(
        f"{cpu_name()}, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}; "
        f"{given.jobs} jobs of {given.steps} steps, {given.pause:g} s apart"
    )
    print("| from optimizer.step to | times | p50, s | p95, s | longest, s |")
    print("|---|---|---|---|---|")
    for name, seconds in waits.items():
        ordered = sorted(seconds)
        half, most = ordered[len(ordered) // 2], ordered[int(0.95 * (len(ordered) - 1))]
        print(f"| {name} | {len(ordered)} | {half:.2f} | {most:.2f} | {ordered[-1]:.2f} |")


def follow(
    http: httpx.Client, run: str, given: argparse.Namespace, waits: dict[str, list[float]]
) -> None:
    """Run one job, ask all the time, and add what every step waited."""
    url = str(http.base_url).partition("/api/")[0]
    command = [sys.executable, "-m", "benchmarks.visible", "--train", run, url]
    command += ["--steps", str(given.steps), "--pause", str(given.pause)]
    seen: dict[str, list[tuple[float, int]]] = defaultdict(list)  # when, and the newest step there
    found: dict[str, float] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as job:
        ended = None
        while ended is None or time.monotonic() < ended + GRACE_SECONDS:
            look(http, url, run, seen, found)
            if ended is None and job.poll() is not None:
                ended = time.monotonic()
            time.sleep(ASK_SECONDS)
        assert job.stdout is not None
        stepped = json.loads(job.stdout.read().splitlines()[-1])
    if set(seen) != {"series", "/metrics"}:
        raise RuntimeError(f"{run} was seen only in {sorted(seen)}")
    for place, moments in seen.items():
        for step, at in enumerate(stepped):
            first = next((when for when, newest in moments if newest >= step), None)
            if first is None:
                raise RuntimeError(f"step {step} of {run} never came to {place}")
            waits[place].append(first - at)
    for kind, share in KINDS.items():
        if kind not in found:
            raise RuntimeError(f"{run}: no incident of kind {kind}")
        waits[f"{kind} incident"].append(found[kind] - stepped[int(share * given.steps)])


def look(
    http: httpx.Client,
    url: str,
    run: str,
    seen: dict[str, list[tuple[float, int]]],
    found: dict[str, float],
) -> None:
    """Ask for the newest step everywhere, and for incidents."""
    known = seen["series"][-1][1] if seen["series"] else 0
    answer = http.get(f"runs/{run}/series", params={"metric": "global_norm", "start": known})
    if answer.status_code == 200 and (steps := answer.json()["end_step"]):
        seen["series"].append((time.monotonic(), int(steps[-1])))
    page = http.get(f"{url}/metrics").text
    for name, step in LAST_STEP.findall(page):
        if name == run:
            seen["/metrics"].append((time.monotonic(), int(float(step))))
    answer = http.get(f"runs/{run}/incidents")
    if answer.status_code == 200:
        for incident in answer.json()["items"]:
            found.setdefault(incident["kind"], time.monotonic())


def train(run: str, url: str, steps: int, pause: float) -> list[float]:
    """Be the job; returns when each optimizer.step was over."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = nn.Sequential(
        nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 4)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    faults = {kind: int(share * steps) for kind, share in KINDS.items()}
    stepped = []
    clip = gradwatch.clip.norm(10.0)
    with gradwatch.watch(model, optimizer, clip=clip, run=run, url=url, nonfinite="skip"):
        for step in range(steps):
            inputs = torch.randn(32, 32)
            loss = (model(inputs) - inputs[:, :4]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            gradients = [p.grad for p in model.parameters() if p.grad is not None]
            if step == faults["nonfinite"]:
                gradients[0][0, 0] = torch.nan
            if faults["exploding"] <= step < faults["exploding"] + BLOWN_STEPS:
                for gradient in gradients:
                    gradient.mul_(1000.0)
            optimizer.step()
            stepped.append(time.monotonic())
            time.sleep(pause)
    return stepped


if __name__ == "__main__":
    main()
