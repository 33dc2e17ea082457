"""A small training job, how it is tuned, and one run of it."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import torch
from benchmarks.claims.arms import ARMS, Clip, Limit
from torch import Tensor, nn

__all__ = ["CALM", "Fault", "Job", "Outcome", "Single", "Training", "Trial", "run"]


class Training(Protocol):
    """A job with its weights: one step after the other, then a score."""

    def step(self, clip: Clip, rate: float, weight: float) -> float:
        """Take one step at ``rate`` times the learning rate, the loss weighted; return the loss."""
        ...

    def score(self) -> dict[str, float]:
        """What the run is judged by: ``score``, lower is better, and what else is of interest."""
        ...


@dataclass(slots=True)
class Single:
    """One model, one optimizer."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[[], Tensor]
    measure: Callable[[], dict[str, float]]
    rates: list[float] = field(default_factory=list)
    parameters: list[nn.Parameter] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.parameters = list(self.model.parameters())

    def step(self, clip: Clip, rate: float, weight: float) -> float:
        """See :class:`Training`."""
        for group, usual in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = usual * rate
        self.optimizer.zero_grad()
        loss = self.loss()
        (loss * weight).backward()
        clip(self.parameters)
        self.optimizer.step()
        return float(loss.detach())

    def score(self) -> dict[str, float]:
        """See :class:`Training`."""
        with torch.no_grad():
            return self.measure()


@dataclass(frozen=True, slots=True)
class Fault:
    """What is different from a calm run.

    Attributes:
        name: Unique within a job.
        steps: How many steps it lasts, from half of the training on.
        rate: Factor on the learning rate in these steps.
        weight: Factor on the loss in these steps.
        unclipped_rate: Above 0, every arm trains at this multiple of the unclipped arm's best rate.
        like: If named, every arm has this arm's learning rate and limit.
    """

    name: str
    steps: int = 0
    rate: float = 1.0
    weight: float = 1.0
    unclipped_rate: float = 0.0
    like: str = ""


CALM = Fault("calm")


@dataclass(frozen=True, slots=True)
class Trial:
    """A learning rate and the limits of an arm."""

    rate: float
    limit: Limit = ()


@dataclass(frozen=True, slots=True)
class Job:
    """A training job and the grids that every arm is tuned on.

    Attributes:
        name: Unique.
        make: Seed and learning rate to a training with fresh weights.
        steps: Optimizer steps of a run.
        rates: Four learning rates, rising.
        values: Three element limits.
        norms: Three norm limits.
        worst: Score of a model that knows nothing; a lost run counts as this.
        arms: What it is run with.
        tuned_under: The fault that the arms are tuned under.
        finals: What the tuned arms are run under.
    """

    name: str
    make: Callable[[int, float], Training]
    steps: int
    rates: tuple[float, ...]
    values: tuple[float, ...]
    norms: tuple[float, ...]
    worst: float
    arms: tuple[str, ...] = ("none", "value", "norm")
    tuned_under: Fault = CALM
    finals: tuple[Fault, ...] = (CALM,)

    def trials(self, arm: str) -> list[Trial]:
        """The trials of an arm, as many for each: an arm without limits tries more rates."""
        grids = [getattr(self, grid) for grid in ARMS[arm].limits]
        if not grids:
            return [Trial(rate) for rate in self.finer_rates()]
        return [Trial(rate, limit) for rate in self.rates for limit in zip(*grids, strict=True)]

    def finer_rates(self) -> list[float]:
        """All of ``rates`` and, up to the number of trials of the others, rates between and around."""
        between = len(self.values) - 1
        ratio = [b / a for a, b in zip(self.rates, self.rates[1:], strict=False)]
        finer = [
            low * step ** (k / (between + 1))
            for low, step in zip(self.rates, ratio, strict=False)
            for k in range(between + 1)
        ]
        beyond = [self.rates[-1] * ratio[-1] ** (k / (between + 1)) for k in range(between + 1)]
        return finer + beyond


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one run.

    Attributes:
        score: Lower is better, at most the job's ``worst``.
        curve: Loss of each step; NaN from the step on at which it was lost.
        lost: A loss was not finite.
        extra: What else the job measures.
    """

    score: float
    curve: list[float]
    lost: bool = False
    extra: dict[str, float] = field(default_factory=dict)


def run(job: Job, arm: str, trial: Trial, seed: int, fault: Fault = CALM) -> Outcome:
    """Train once. The same arguments give the same outcome: one thread, fixed seeds."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    # A saturated net is ten times slower with subnormal numbers. The setting is the process's, and
    # whoever runs in it next wants them back.
    torch.set_flush_denormal(True)
    try:
        return trained(job, arm, trial, seed, fault)
    finally:
        torch.set_flush_denormal(False)


def trained(job: Job, arm: str, trial: Trial, seed: int, fault: Fault) -> Outcome:
    """Train once, in a process that has been set up."""
    training = job.make(seed, trial.rate)
    clip = ARMS[arm].make(trial.limit)
    curve: list[float] = []
    for step, (rate, weight) in enumerate(conditions(job.steps, fault)):
        loss = training.step(clip, rate, weight)
        if not math.isfinite(loss):
            return Outcome(job.worst, curve + [math.nan] * (job.steps - step), lost=True)
        curve.append(loss)
    measured = training.score()
    score = measured.pop("score")
    score = min(score, job.worst) if math.isfinite(score) else job.worst
    return Outcome(score, curve, extra=measured)


def conditions(steps: int, fault: Fault) -> Iterator[tuple[float, float]]:
    """Factor on the learning rate and weight of the loss, for each step."""
    first = steps // 2
    for step in range(steps):
        wrong = first <= step < first + fault.steps
        yield (fault.rate, fault.weight) if wrong else (1.0, 1.0)
