"""Claim 7: clipping prevents vanishing gradients."""

from benchmarks.claims.catalog import FOURFOLD
from benchmarks.claims.figures import paired
from benchmarks.claims.job import Outcome
from benchmarks.claims.readings import Experiments, lower, numbers
from benchmarks.claims.verdict import Case, Claim

__all__ = ["RESTS_ON", "vanishing"]

DECADES = 1.0

SHRINKING = "order, radius 0.5, length 40"
RESTS_ON = (
    SHRINKING,
    "order, orthogonal, length 40",
    "order, LSTM, length 40",
    "order, radius 0.95",
)


def lost_on_the_way(outcome: Outcome) -> float:
    """Decades by which the gradient at the first step is below that at the last; 30 when all is lost.

    A gradient that is larger there has not vanished: 0, so that an explosion counts as no merit.
    """
    return max(0.0, -outcome.extra.get("reach", -30.0))


def vanishing(found: Experiments) -> Claim:
    """Compare how much of the gradient reaches the first time step."""
    what = "decades by which the gradient at the first step is below that at the last"
    small, big = found[SHRINKING], found["order, radius 0.95"]
    cases = [
        lower(small, "the initial weights shrink it", what, DECADES, lost_on_the_way),
        lower(
            big, "an explosion saturates the units, at four times the best unclipped rate",
            what, DECADES, lost_on_the_way, fault=FOURFOLD,
        ),
    ]  # fmt: skip
    beside = [
        lower(small, "the norm is clipped instead", what, DECADES, lost_on_the_way, arms=("none", "norm")),
        *(
            _against(found, name, f"the start is changed instead, unclipped: {words}", what)
            for name, words in (
                ("order, orthogonal, length 40", "orthogonal recurrent weights"),
                ("order, LSTM, length 40", "an LSTM with open forget gates"),
            )
        ),
    ]  # fmt: skip
    return Claim(
        title="Vanishing gradients",
        said="Clipping prevents vanishing as well as exploding gradients.",
        experiment="Temporal order with sequences of 40 and an initial spectral radius of 0.5, 200 steps: the norm of the loss' gradient "
        "with respect to the first input over that with respect to the last, in float64, after training. And the same with sequences of 20 after the explosion "
        "of claim 6, where saturated units could pass nothing on.",
        cases=cases,
        beside=beside,
        jobs=RESTS_ON,
    )  # fmt: skip


def _against(found: Experiments, other: str, when: str, what: str) -> Case:
    first = numbers(found[SHRINKING], "none", lost_on_the_way)
    second = numbers(found[other], "none", lost_on_the_way)
    means = f"as it was {sum(first) / len(first):.3g}, changed {sum(second) / len(second):.3g}"
    return Case(when, what, paired(first, second), DECADES, means)
