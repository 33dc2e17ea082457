"""The arms of the closed loop: what clips a training, and how one training is run with it."""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from benchmarks.server_process import free_port, wait_until_ready
from benchmarks.small_jobs import SMALL_JOBS, Training

import gradwatch
from gradwatch import clip

__all__ = ["ARMS", "FIXED", "GRID", "LIVE", "Unit", "run", "serving"]

GRID = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
FIXED = tuple(f"fixed {c:g}" for c in GRID)
LIVE = "clip.recommended"
BASE, INTERVAL = 10.0, 5

# The arm `none` is watched like the others: only the clipping differs.
POLICIES: dict[str, Any] = {
    "none": None,
    **{arm: clip.norm(c) for arm, c in zip(FIXED, GRID, strict=True)},
    "AutoClip": clip.published.autoclip(),
    "ZClip": clip.published.zclip(),
    "AdaGC": clip.published.adagc(),
    "clip.adaptive": clip.adaptive(),
    LIVE: clip.recommended(clip.norm(BASE), interval=INTERVAL),
}
ARMS = tuple(POLICIES)


@dataclass(frozen=True)
class Unit:
    """One training: everything that decides what comes out."""

    job: str
    arm: str
    seed: int
    steps: int
    factor: float = 1.0

    @property
    def rate(self) -> float:
        """The learning rate."""
        return SMALL_JOBS[self.job].rate * self.factor


def run(unit: Unit, url: str | None = None) -> dict[str, Any]:
    """Train once: the loss before every step until it is not finite, and the CPU seconds.

    Args:
        unit: What to train.
        url: Address of a service; the live arm needs it.
    """
    torch.manual_seed(unit.seed)
    training = SMALL_JOBS[unit.job].make(unit.seed, unit.steps, unit.rate)
    started = time.process_time()
    losses: list[float] = []
    with watched(training, unit, url) as watches:
        for step in range(unit.steps):
            losses.append(float(training.advance(step)))
            if not math.isfinite(losses[-1]):
                break
            # These steps take milliseconds, deliveries a second and analysis its time. Waiting for
            # both gives the service the say that it has in a job whose steps take longer.
            if unit.arm == LIVE and step % INTERVAL == INTERVAL - 1:
                for run_id, watch in watches.items():
                    watch.flush(10.0)
                    wait_until_analysed(f"{url}/api/v1/runs/{run_id}", step)
    known = [round(loss, 5) if math.isfinite(loss) else None for loss in losses]
    return {"losses": known, "cpu_seconds": round(time.process_time() - started, 3)}


def wait_until_analysed(run: str, step: int) -> None:
    """Return once the service has looked at a step of the run, or after ten seconds."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        with urllib.request.urlopen(run, timeout=10) as answer:  # noqa: S310 - our own service
            seen = json.load(answer)["analysed_step"]
        if seen is not None and seen >= step:
            return
        time.sleep(0.002)


_runs = itertools.count()


@contextmanager
def watched(
    training: Training, unit: Unit, url: str | None
) -> Iterator[dict[str, gradwatch.Watch]]:
    """Put the arm's policy on every part; gives the watches by run."""
    live = unit.arm == LIVE
    if live and url is None:
        raise ValueError("the live arm needs the address of a service")
    with ExitStack() as stack:
        watches = {}
        for part, (model, optimizer) in training.parts.items():
            run_id = f"loop-{os.getpid()}-{next(_runs)}-{part}"
            options: dict[str, Any] = {"url": url} if live else {"mode": "disabled"}
            policy = POLICIES[unit.arm]
            watch = gradwatch.watch(
                model, optimizer, clip=policy, run=run_id, histogram_every=0, **options
            )
            watches[run_id] = stack.enter_context(watch)
        yield watches


@contextmanager
def serving() -> Iterator[str]:
    """A real ``gradwatch serve`` in a process of its own; gives its address."""
    with tempfile.TemporaryDirectory(prefix="closed-loop-") as folder:
        port = free_port()
        command = [sys.executable, "-m", "gradwatch_cli", "serve", "--port", str(port)]
        log = Path(folder) / "serve.log"
        with log.open("w") as out:
            process = subprocess.Popen(
                [*command, "--store", f"sqlite:///{folder}/loop.db"],
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        try:
            wait_until_ready(port)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(20)
