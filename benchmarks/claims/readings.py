"""What claims read from experiments: paired numbers of two arms, as cases."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from benchmarks.claims.figures import Figure, paired, ratio, share, smooth, steps_to
from benchmarks.claims.job import CALM, Fault, Outcome
from benchmarks.claims.tuning import Experiment
from benchmarks.claims.verdict import Case

__all__ = [
    "Experiments",
    "lower",
    "lower_by_ratio",
    "more_often",
    "numbers",
    "sooner",
    "target",
    "words",
]

Experiments = Mapping[str, Experiment]
Reading = Callable[[Outcome], float]
Comparison = Callable[[Sequence[float], Sequence[float]], Figure]

PROGRESS = 0.9  # of what the unclipped arm makes, is the target


def score(outcome: Outcome) -> float:
    """The job's own score."""
    return outcome.score


def numbers(
    experiment: Experiment, arm: str, reading: Reading = score, fault: Fault = CALM
) -> list[float]:
    """One number for each final seed."""
    return [reading(outcome) for outcome in experiment.finals[fault.name, arm]]


def lower(
    experiment: Experiment,
    when: str,
    what: str,
    margin: float,
    reading: Reading = score,
    *,
    fault: Fault = CALM,
    arms: tuple[str, str] = ("none", "value"),
    compare: Comparison = paired,
) -> Case:
    """Does the second arm end lower than the first?"""
    first, second = (numbers(experiment, arm, reading, fault) for arm in arms)
    levels = _levels(arms, first, second)
    return Case(when, what, compare(first, second), margin, levels, arms, fault == CALM)


def lower_by_ratio(
    experiment: Experiment,
    when: str,
    what: str,
    margin: float,
    reading: Reading = score,
    *,
    fault: Fault = CALM,
    arms: tuple[str, str] = ("none", "value"),
) -> Case:
    """As :func:`lower`, by the binary logarithm of the ratio."""
    return lower(experiment, when, what, margin, reading, fault=fault, arms=arms, compare=ratio)


def more_often(
    experiment: Experiment,
    when: str,
    what: str,
    margin: float,
    test: Callable[[Outcome], bool],
    *,
    fault: Fault = CALM,
    arms: tuple[str, str] = ("none", "value"),
) -> Case:
    """Does the second arm pass the test more often than the first?"""
    first, second = ([test(o) for o in experiment.finals[fault.name, arm]] for arm in arms)
    levels = ", ".join(
        f"{arm} {sum(hits)}/{len(hits)}" for arm, hits in zip(arms, (first, second), strict=True)
    )
    return Case(when, what, share(second, first), margin, levels, arms, fault == CALM)


def sooner(
    experiment: Experiment, when: str, margin: float, arms: tuple[str, str] = ("none", "value")
) -> Case:
    """Does the second arm need fewer steps to the target?"""
    goal = target(experiment)
    what = "steps to the target, log2 of the ratio"
    return lower_by_ratio(
        experiment, when, what, margin, lambda outcome: steps_to(goal, outcome), arms=arms
    )


def target(experiment: Experiment) -> float:
    """The loss at 90 % of the progress that the unclipped arm made on the tuning seeds."""
    curves = [smooth(outcome.curve) for outcome in experiment.tuning["none"]]
    start = float(np.mean([curve[0] for curve in curves]))
    end = float(np.mean([curve[-1] for curve in curves]))
    return start - PROGRESS * (start - end)


def _levels(arms: tuple[str, str], first: Sequence[float], second: Sequence[float]) -> str:
    return f"{arms[0]} {np.mean(first):.3g}, {arms[1]} {np.mean(second):.3g}"


def words(figure: Figure) -> str:
    """``+0.12 [+0.03, +0.21]``."""
    return f"{figure.middle:+.3g} [{figure.low:+.3g}, {figure.high:+.3g}]"
