"""The tables of the closed loop, from the figures of its trainings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from benchmarks.closed_loop_arms import FIXED, Unit
from benchmarks.closed_loop_figures import TARGET, Figures, interval, regret
from benchmarks.small_jobs import SMALL_JOBS

__all__ = ["CHOSEN_ON", "FACTORS", "best_factor", "report"]

FACTORS = (0.1, 0.3, 1.0, 3.0)
CHOSEN_ON = (0, 1)  # seeds on which each arm's learning rate is chosen
AGAINST = "AutoClip"

Found = Mapping[Unit, Figures]


class Results:
    """Trainings by job, arm and seed.

    Args:
        found: Every training, at every learning rate.
        seeds: Seeds that count.
        steps: Steps of a training.
        tuned: Each arm at its own best learning rate instead of the job's.
    """

    def __init__(self, found: Found, seeds: int, steps: int, *, tuned: bool = False) -> None:
        self._found, self._seeds, self._steps, self._tuned = found, seeds, steps, tuned

    def of(self, job: str, arm: str) -> list[Figures]:
        """One training per seed; fewer while some are not done."""
        units = [Unit(job, arm, seed, self._steps) for seed in range(self._seeds)]
        if self._tuned:
            units = [replace(u, factor=best_factor(self._found, u)) for u in units]
        return [self._found[unit] for unit in units if unit in self._found]

    def complete(self, job: str, arm: str) -> bool:
        """Whether every seed is there."""
        return len(self.of(job, arm)) == self._seeds

    def final(self, job: str, arm: str) -> float:
        """Mean loss at the end."""
        return float(np.mean([f.final for f in self.of(job, arm)]))

    def best(self, job: str) -> float:
        """Loss of the fixed threshold that did best on this job."""
        return min(self.final(job, arm) for arm in FIXED if self.complete(job, arm))

    def regrets(self, job: str, arm: str) -> list[float]:
        """Regret of each seed against the one fixed threshold that is best for the job."""
        best = self.best(job)
        return [regret(f.final, best, f.start) for f in self.of(job, arm)]

    def ready(self, jobs: Sequence[str], arms: Sequence[str]) -> tuple[list[str], list[str]]:
        """The jobs, and the arms done on all of them."""
        usable = [j for j in jobs if all(self.complete(j, a) for a in FIXED)]
        return usable, [a for a in arms if usable and all(self.complete(j, a) for j in usable)]


def best_factor(found: Found, unit: Unit) -> float:
    """Which of the four learning rates left the lowest loss on the first two seeds."""
    means = {}
    for factor in FACTORS:
        tried = [found.get(replace(unit, seed=seed, factor=factor)) for seed in CHOSEN_ON]
        done = [figures.final for figures in tried if figures is not None]
        if done:
            means[factor] = float(np.mean(done))
    return min(means, key=lambda factor: means[factor], default=1.0)


def report(found: Found, jobs: Sequence[str], arms: Sequence[str], seeds: int, steps: int) -> str:
    """All tables, of what is done so far."""
    given = Results(found, seeds, steps)
    shown, rows = given.ready(jobs, arms)
    if not shown or not rows:
        return "Nothing to show yet: the fixed thresholds have to be done first."
    parts = [
        f"{steps} steps, {seeds} seeds, torch {torch.__version__}, one thread.",
        "Loss at the end (mean of the last tenth):\n\n" + losses(given, shown, rows),
        "Regret against the best fixed threshold of each job:\n\n" + regrets(given, shown, rows),
    ]
    if any(SMALL_JOBS[job].calm for job in shown) and "none" in rows:
        told = "Beside no clipping on the calm jobs, paired by seed:\n\n"
        parts.append(told + calm(given, shown, rows))
    if AGAINST in rows:
        told = f"Regret minus that of {AGAINST}, paired by seed:\n\n"
        parts.append(told + paired(given, shown, rows))
    if any(not SMALL_JOBS[job].calm for job in shown):
        told = "On the way, mean over the jobs that are not calm:\n\n"
        parts.append(told + on_the_way(given, shown, rows))
    tuned = Results(found, seeds, steps, tuned=True)
    tried = [
        a for a in rows if all(tuned.complete(j, a) and _tried(found, j, a, steps) for j in shown)
    ]
    if set(FIXED) <= set(tried):
        parts.append(
            "Each arm at its own best of four learning rates (times 0.1, 0.3, 1, 3; chosen on the "
            "first two seeds), regret against the best fixed threshold at its own best:\n\n"
            + regrets(tuned, shown, tried)
        )
    return "\n\n".join(parts)


def _tried(found: Found, job: str, arm: str, steps: int) -> bool:
    return all(Unit(job, arm, seed, steps, f) in found for seed in CHOSEN_ON for f in FACTORS)


def losses(given: Results, jobs: Sequence[str], arms: Sequence[str]) -> str:
    """One row per arm, one column per job."""
    lines = _head(["arm", *jobs, "diverged"])
    for arm in arms:
        gone = sum(f.diverged for job in jobs for f in given.of(job, arm))
        lines.append(_row([arm, *(f"{given.final(job, arm):.3f}" for job in jobs), str(gone)]))
    return "\n".join(lines)


def regrets(given: Results, jobs: Sequence[str], arms: Sequence[str]) -> str:
    """The same as regret, with the mean over the jobs and the worst."""
    lines = _head(["arm", *jobs, "mean", "95 %", "worst"])
    for arm in arms:
        each = [given.regrets(job, arm) for job in jobs]
        means = [float(np.mean(values)) for values in each]
        low, high = interval(list(np.mean(each, axis=0)))
        cells = [f"{mean:.2f}" for mean in means]
        told = [f"{np.mean(means):.3f}", f"{low:.3f} to {high:.3f}", f"{max(means):.2f}"]
        lines.append(_row([arm, *cells, *told]))
    return "\n".join(lines)


def calm(given: Results, jobs: Sequence[str], arms: Sequence[str]) -> str:
    """By how much the loss ended above (+) or below (-) that without clipping."""
    quiet = [job for job in jobs if SMALL_JOBS[job].calm]
    lines = _head(["arm", *quiet])
    for arm in arms:
        if arm == "none":
            continue
        cells = []
        for job in quiet:
            pairs = zip(given.of(job, arm), given.of(job, "none"), strict=True)
            cells.append(_spread([100 * (a.final / n.final - 1) for a, n in pairs], "{:+.1f} %"))
        lines.append(_row([arm, *cells]))
    return "\n".join(lines)


def paired(given: Results, jobs: Sequence[str], arms: Sequence[str]) -> str:
    """Below 0 the arm did better than the rule it is compared with."""
    lines = _head(["arm", *jobs, "all jobs"])
    for arm in arms:
        if arm in {AGAINST, *FIXED}:
            continue
        each = [
            [a - b for a, b in zip(given.regrets(j, arm), given.regrets(j, AGAINST), strict=True)]
            for j in jobs
        ]
        cells = [_spread(values, "{:+.2f}") for values in each]
        lines.append(_row([arm, *cells, _spread(list(np.mean(each, axis=0)), "{:+.3f}")]))
    return "\n".join(lines)


def on_the_way(given: Results, jobs: Sequence[str], arms: Sequence[str]) -> str:
    """Speed, rises and unrest."""
    wild = [job for job in jobs if not SMALL_JOBS[job].calm]
    lines = _head(["arm", "steps_to_target", "overshoot", "roughness", "recovery_steps"])

    def mean(arm: str, figure: Callable[[str, Figures], float]) -> float:
        return float(np.mean([figure(job, f) for job in wild for f in given.of(job, arm)]))

    def arrived(job: str, f: Figures) -> float:
        return f.steps_to(f.start - TARGET * (f.start - given.best(job)))

    for arm in arms:
        cells = [
            f"{mean(arm, arrived):.0f}",
            f"{mean(arm, lambda _, f: f.overshoot):.0%}",
            f"{mean(arm, lambda _, f: f.roughness):.1%}",
            f"{mean(arm, lambda _, f: f.recovery_steps):.0f}",
        ]
        lines.append(_row([arm, *cells]))
    return "\n".join(lines)


def _spread(values: list[float], form: str) -> str:
    low, high = interval(values)
    return f"{form.format(np.mean(values))} ({form.format(low)} to {form.format(high)})"


def _head(names: Sequence[str]) -> list[str]:
    return [_row(names), "|---" * len(names) + "|"]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
