"""Long healthy runs through the real client, with evaluation pauses and resumed attempts.

    nice -n 19 python -m benchmarks.long_runs RUN DIRECTORY        # go on with a run, or begin it
    python -m benchmarks.long_runs RUN DIRECTORY --columns OUT     # its reports as traces

RUN is one of ``recurrent_evaluated`` and ``dropout_resumed``. A run takes minutes: killed at any moment it
goes on from its checkpoint, as a new attempt of the same run. ``dropout_resumed`` ends itself five
times on purpose, twice without a word, and is started again by this command.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from benchmarks.client_trace import read_spools
from benchmarks.trace_files import save_healthy
from torch import Tensor, nn

import gradwatch

CHECKPOINT_STEPS = 1000
EVALUATE_STEPS = 2000
LONG_PAUSE_EVERY = 20  # evaluations; the others take a few milliseconds
FLUSH_STEPS = 256


@dataclass(frozen=True)
class LongRun:
    """One healthy training.

    Attributes:
        model: Makes the model.
        optimizer: Makes its optimizer.
        batch: Step to a batch; a generator of its own per step, so that a resumed run sees the
            same data.
        rate: Step to learning rate.
        evaluates: Whether training pauses for evaluations.
        ends: Steps at which a process ends: below zero without a word.
    """

    model: Callable[[], nn.Module]
    optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    batch: Callable[[int], tuple[Tensor, Tensor]]
    rate: Callable[[int, int], float]
    evaluates: bool = False
    ends: tuple[int, ...] = ()


class Recurrent(nn.Module):
    """A GRU with batch norm behind it over [batch, time, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(4, 12, batch_first=True, bias=False)
        self.norm = nn.BatchNorm1d(12)
        self.out = nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, time, 4] to [batch, 8] logits."""
        return self.out(self.norm(self.rnn(x)[0][:, -1]))


_TEACHER = torch.randn(16, 8, generator=torch.Generator().manual_seed(1))


def _growing(step: int) -> tuple[Tensor, Tensor]:
    """Sequences that grow from 3 to 14 over the run."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(8, 3 + min(11, step // 18000), 4, generator=generator)
    pooled = torch.cat([x.mean(1), x[:, -1], x[:, 0], x.amax(1)], dim=1)
    return x, (pooled @ _TEACHER).argmax(dim=1)


def _flat(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(16, 16, generator=generator)
    noise = torch.randn(16, 8, generator=generator)
    return x, (x @ _TEACHER + 0.5 * noise).argmax(dim=1)


def _restarts(step: int, steps: int) -> float:
    """Cosine with warm restarts, each period twice as long (Loshchilov and Hutter 2017)."""
    length, start = steps // 31, 0
    while step >= start + length:
        start, length = start + length, 2 * length
    warm = min(1.0, (step + 1) / 200)
    return 2e-3 * warm * (0.02 + 0.49 * (1 + math.cos(math.pi * (step - start) / length)))


def _dropout() -> nn.Module:
    return nn.Sequential(
        nn.Linear(16, 32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 32), nn.ReLU(),
        nn.Dropout(0.3), nn.Linear(32, 8),
    )  # fmt: skip


RUNS = {
    "recurrent_evaluated": LongRun(
        Recurrent,
        lambda model: torch.optim.Adam(model.parameters(), lr=1e-3),
        _growing,
        lambda step, _steps: 1e-3 * min(1.0, (step + 1) / 500),
        evaluates=True,
    ),
    "dropout_resumed": LongRun(
        _dropout,
        lambda model: torch.optim.AdamW(model.parameters(), lr=2e-3),
        _flat,
        _restarts,
        ends=(20_310, -61_007, 90_555, 130_940, -171_003),
    ),
}


def train(name: str, directory: Path, steps: int) -> bool:
    """Go on with a run until it ends or a planned end comes; return whether it is over."""
    run = RUNS[name]
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = run.model()
    optimizer = run.optimizer(model)
    os.environ.update(GRADWATCH_DIR=str(directory / "spool"), GRADWATCH_QUIET="1")
    watch = gradwatch.watch(model, optimizer, mode="offline", run=name, histogram_every=20)
    checkpoint = directory / f"{name}.pt"
    first = _resume(checkpoint, model, optimizer, watch)
    for step in range(first, steps):
        optimizer.param_groups[0]["lr"] = run.rate(step, steps)
        x, y = run.batch(step)
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        watch.log(loss=loss.detach())
        done = step + 1
        if done % FLUSH_STEPS == 0:
            watch.flush(10)
        if run.evaluates and done % EVALUATE_STEPS == 0:
            _evaluate(model, run, done // EVALUATE_STEPS)
        if (done in run.ends or -done in run.ends) and _first_time(directory, done):
            if done in run.ends:
                watch.close(status="interrupted")
                return False
            os.kill(os.getpid(), signal.SIGKILL)
        if done % CHECKPOINT_STEPS == 0:
            _wait_while_measuring()
            _keep(checkpoint, done, model, optimizer, watch)
    watch.close()
    return True


def _resume(
    checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer, watch: gradwatch.Watch
) -> int:
    if not checkpoint.exists():
        return 0
    state = torch.load(checkpoint, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    watch.load_state_dict(state["watch"])
    torch.set_rng_state(state["random"])
    return int(state["step"])


def _first_time(directory: Path, step: int) -> bool:
    """Whether the run ends at this step for the first time; resumed, it passes it again."""
    mark = directory / f"ended-at-{step}"
    if mark.exists():
        return False
    mark.touch()
    return True


def _keep(
    checkpoint: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    watch: gradwatch.Watch,
) -> None:
    state = {
        "step": step,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "watch": watch.state_dict(),
        "random": torch.get_rng_state(),
    }
    torch.save(state, checkpoint.with_suffix(".tmp"))
    checkpoint.with_suffix(".tmp").replace(checkpoint)


def _evaluate(model: nn.Module, run: LongRun, turn: int) -> None:
    """Look at other batches without a step; every third time the caller forgets ``eval()``."""
    model.train(turn % 3 == 0)  # then batch norm's running statistics move
    with torch.no_grad():
        for batch in range(10):
            model(run.batch(10**9 + batch)[0])
    model.train()
    if turn % LONG_PAUSE_EVERY == 0:
        time.sleep(2.0)


def _wait_while_measuring() -> None:
    """Leave the processor to measurements that say so; for shared machines."""
    pause, end = os.environ.get("PAUSE_WHILE"), time.monotonic() + 90
    while pause and time.monotonic() < end and any(Path("/").glob(pause.lstrip("/"))):
        time.sleep(1)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", choices=sorted(RUNS))
    parser.add_argument("directory", type=Path)
    parser.add_argument("--steps", type=int, default=200_000)
    parser.add_argument("--columns", type=Path, help="write the reports as traces to this folder")
    parser.add_argument("--attempt", action="store_true", help="one process only")
    options = parser.parse_args()
    options.directory.mkdir(parents=True, exist_ok=True)
    if options.columns:
        options.columns.mkdir(parents=True, exist_ok=True)
        for attempt, recorded in enumerate(read_spools(options.directory / "spool" / options.run)):
            save_healthy(options.columns, f"{options.run}.attempt{attempt}", recorded)
        return
    if options.attempt:
        raise SystemExit(0 if train(options.run, options.directory, options.steps) else 3)
    command = [sys.executable, "-m", "benchmarks.long_runs", options.run, str(options.directory)]
    command += ["--steps", str(options.steps), "--attempt"]
    while (ended := subprocess.run(command, check=False).returncode) in {3, -signal.SIGKILL}:
        print(f"{options.run}: ended ({ended}), starting it again", flush=True)
    if ended:
        raise SystemExit(ended)


if __name__ == "__main__":
    main()
