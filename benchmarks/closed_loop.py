"""Training with recommended thresholds beside fixed ones and none: what it ends with.

    python -m benchmarks closed_loop --quick           # 5 jobs, 2 seeds, 5 fixed thresholds
    python -m benchmarks closed_loop --out loop.jsonl  # 5 jobs, 5 seeds, 7 fixed; goes on after a stop

Each step is clipped by norm at the threshold that the service's rule recommends from the norms of
the steps before it, exactly as a job that follows the service without delay would be. AutoClip
(Seetharaman et al. 2020) clips at the 10th percentile of all norms so far, this step's included.

Regret: share of the progress of the best fixed threshold that an arm did not make,
(loss - best) / (start - best), on the mean loss of the last tenth of the steps.
"""

from __future__ import annotations

import argparse
import json
import math
import sysconfig
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.recorded_jobs import JOBS
from torch import Tensor, nn

from gradwatch_service.recommenders.norm import advance_norms, initial_state

GRID = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
QUICK_GRID = (0.1, 0.3, 1.0, 3.0, 10.0)
CALM = ("attention, AdamW", "residual, AdamW")

Step = Callable[[int], Tensor]


@dataclass
class Training:
    """A model, its optimizer, and a function from step to loss."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Step
    rate: Callable[[int], float] = lambda _: 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="Fewer seeds, steps and thresholds.")
    parser.add_argument("--out", type=Path, help="Results so far, one per line; taken up again.")
    parser.add_argument("--steps", type=int, help="Steps per training.")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    steps = arguments.steps or (400 if arguments.quick else 2000)
    seeds = range(2 if arguments.quick else 5)
    grid = QUICK_GRID if arguments.quick else GRID
    done = read(arguments.out)
    arms = ["none", *(f"fixed {c:g}" for c in grid), "AutoClip", "tight", "balanced", "guard"]
    for seed in seeds:
        for job in TRAININGS:
            for arm in arms:
                key = (job, arm, seed, steps)
                if key not in done:
                    done[key] = train(job, arm, seed, steps)
                    append(arguments.out, key, done[key])
    print(table(done, arms, steps, len(seeds)))


def train(job: str, arm: str, seed: int, steps: int) -> dict[str, float]:
    """Final loss (mean of the last tenth), start, largest rise over the running minimum, seconds."""
    torch.manual_seed(seed)
    made = TRAININGS[job](seed, steps)
    limit = limits(arm)
    parameters = list(made.model.parameters())
    base = [group["lr"] for group in made.optimizer.param_groups]
    losses: list[float] = []
    started = time.process_time()
    for step in range(steps):
        for group, rate in zip(made.optimizer.param_groups, base, strict=True):
            group["lr"] = rate * made.rate(step)
        made.optimizer.zero_grad()
        loss = made.loss(step)
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            losses += [losses[0]] * (steps - step - 1)
            break
        loss.backward()
        norm = float(torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in parameters])))
        threshold = limit(norm)
        if threshold is not None and norm > threshold:
            for p in parameters:
                p.grad.mul_(threshold / norm)
        made.optimizer.step()
    finite = np.nan_to_num(losses, nan=losses[0], posinf=1e9)
    lowest = np.minimum.accumulate(finite)
    return {
        "loss": float(finite[-steps // 10 :].mean()),
        "start": float(finite[:3].mean()),
        "overshoot": float((finite - lowest).max()),
        "diverged": float(not math.isfinite(losses[-1]) or finite[-1] > 2 * finite[0]),
        "cpu_seconds": time.process_time() - started,
    }


def limits(arm: str) -> Callable[[float], float | None]:
    """From this step's norm to the limit; the service's rule knows only the norms before it."""
    if arm == "none":
        return lambda _: None
    if arm.startswith("fixed"):
        fixed = float(arm.split()[1])
        return lambda _: fixed
    if arm == "AutoClip":
        seen: list[float] = []

        def autoclip(norm: float) -> float:
            if math.isfinite(norm):
                seen.append(norm)
            return float(np.percentile(seen, 10)) if seen else math.inf

        return autoclip
    state = initial_state()

    def rule(norm: float) -> float | None:
        nonlocal state
        threshold = state.threshold(arm)
        finite = math.isfinite(norm)
        row = np.array([state.seen]), np.array([norm if finite else 0.0]), np.array([finite])
        state = advance_norms(state, *row, np.array([np.nan]))
        return threshold

    return rule


def temporal_order(seed: int, steps: int) -> Training:
    """Two marked symbols far apart decide the class (Pascanu et al. 2013, section 4.1), length 20."""
    del steps
    length, classes = 20, 4
    rnn, out = nn.RNN(6, 50, batch_first=True), nn.Linear(50, classes)
    nn.init.normal_(rnn.weight_hh_l0, 0, 0.1)
    model = nn.ModuleList([rnn, out])
    generator = torch.Generator().manual_seed(1000 + seed)

    def loss(step: int) -> Tensor:
        del step
        symbols = torch.randint(2, 6, (20, length), generator=generator)
        marks = torch.randint(0, 2, (20, 2), generator=generator)
        first = torch.randint(length // 10, length // 5, (20,), generator=generator)
        second = torch.randint(length // 2, 6 * length // 10, (20,), generator=generator)
        symbols[torch.arange(20), first] = marks[:, 0]
        symbols[torch.arange(20), second] = marks[:, 1]
        hidden = rnn(nn.functional.one_hot(symbols, 6).float())[0][:, -1]
        return nn.functional.cross_entropy(out(hidden), 2 * marks[:, 0] + marks[:, 1])

    return Training(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), loss)


def char_lstm(rate: float, fault: float = 1.0) -> Callable[[int, int], Training]:
    """A character LSTM on the standard library's own sources; the fault multiplies the learning rate."""

    def make(seed: int, steps: int) -> Training:
        text = corpus()
        embed, lstm, out = (
            nn.Embedding(96, 24),
            nn.LSTM(24, 64, batch_first=True),
            nn.Linear(64, 96),
        )
        model = nn.ModuleList([embed, lstm, out])
        generator = torch.Generator().manual_seed(2000 + seed)

        def loss(step: int) -> Tensor:
            del step
            at = torch.randint(0, len(text) - 33, (12,), generator=generator)
            window = text[at[:, None] + torch.arange(33)]
            logits = out(lstm(embed(window[:, :-1]))[0])
            return nn.functional.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten())

        optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
        inside = range(steps // 2, steps // 2 + 20)
        return Training(model, optimizer, loss, lambda step: fault if step in inside else 1.0)

    return make


def recorded(name: str) -> Callable[[int, int], Training]:
    """One of the small jobs that traces are recorded from."""

    def make(seed: int, steps: int) -> Training:
        job = JOBS[name]
        model = job.model()
        optimizer = job.optimizer(list(model.parameters()))
        generator = torch.Generator().manual_seed(3000 + seed)

        def loss(step: int) -> Tensor:
            inputs, targets = job.batch(step, generator)
            return nn.functional.cross_entropy(model(inputs), targets)

        return Training(model, optimizer, loss, lambda step: job.schedule(step, steps))

    return make


def corpus() -> Tensor:
    """Printable ASCII of a few sources of the standard library, as numbers below 96."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    text = "".join((folder / f).read_text() for f in ("argparse.py", "ast.py", "cmd.py", "csv.py"))
    codes = [ord(c) - 31 if 32 <= ord(c) < 127 else 0 for c in text]
    return torch.tensor(codes)


TRAININGS: dict[str, Callable[[int, int], Training]] = {
    "tanh RNN, temporal order, SGD .1": temporal_order,
    "char LSTM, SGD 8": char_lstm(8.0),
    "char LSTM, SGD .5, rate x30 for 20 steps": char_lstm(0.5, fault=30.0),
    "attention, AdamW": recorded("attention_adamw"),
    "residual, AdamW": recorded("residual_adamw"),
}


def read(path: Path | None) -> dict[tuple[Any, ...], dict[str, float]]:
    """Results of an earlier call."""
    if path is None or not path.exists():
        return {}
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {tuple(line["key"]): line["result"] for line in lines}


def append(path: Path | None, key: tuple[Any, ...], result: dict[str, float]) -> None:
    if path is not None:
        with path.open("a") as out:
            out.write(json.dumps({"key": key, "result": result}) + "\n")


def table(
    done: dict[tuple[Any, ...], dict[str, float]], arms: list[str], steps: int, seeds: int
) -> str:
    lines = [
        f"Mean loss of the last tenth of {steps} steps, mean of {seeds} seeds "
        f"(torch {torch.__version__}, 1 thread)",
        "",
        "| arm | " + " | ".join(TRAININGS) + " | mean regret, unstable | diverged |",
        "|---" * (len(TRAININGS) + 3) + "|",
    ]
    lines += [row(done, arm, arms, steps, seeds) for arm in arms]
    return "\n".join(lines)


def row(
    done: dict[tuple[Any, ...], dict[str, float]], arm: str, arms: list[str], steps: int, seeds: int
) -> str:
    cells, regrets, diverged = [], [], 0.0
    for job in TRAININGS:
        mine = list(of(done, job, arm, steps, seeds))
        loss = np.mean([r["loss"] for r in mine])
        fixed = [a for a in arms if a.startswith("fixed")]
        best = min(np.mean([r["loss"] for r in of(done, job, a, steps, seeds)]) for a in fixed)
        start = np.mean([r["start"] for r in mine])
        cells.append(f"{loss:.3f}")
        diverged += sum(r["diverged"] for r in mine)
        if job not in CALM:
            regrets.append((loss - best) / (start - best))
    return f"| {arm} | " + " | ".join(cells) + f" | {np.mean(regrets):.2f} | {diverged:.0f} |"


def of(
    done: dict[tuple[Any, ...], dict[str, float]], job: str, arm: str, steps: int, seeds: int
) -> Iterator[dict[str, float]]:
    for seed in range(seeds):
        yield done[job, arm, seed, steps]


if __name__ == "__main__":
    main()
