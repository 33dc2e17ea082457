"""Claim 3: clipping prevents oscillation and overshoot."""

from benchmarks.claims.catalog import FOURFOLD
from benchmarks.claims.figures import largest_rise
from benchmarks.claims.job import Outcome
from benchmarks.claims.readings import Experiments, lower, lower_by_ratio
from benchmarks.claims.verdict import Claim

__all__ = ["RESTS_ON", "oscillation"]

RISE, TURNING = 1.0, 0.1

RESTS_ON = ("full batch, tanh net", "text LSTM, SGD", "order, radius 2")


def turning(outcome: Outcome) -> float:
    """Share of steps against the one before; a lost run has overshot to the end of the numbers."""
    return outcome.extra.get("turning", 1.0)


def oscillation(found: Experiments) -> Claim:
    """Compare how far the loss rises on its way down, and how often the gradient turns round."""
    full, text, order = (
        found[name] for name in ("full batch, tanh net", "text LSTM, SGD", "order, radius 2")
    )
    rise = "overshoot: largest rise of the loss, log2 of the ratio"
    turns = "oscillation: share of gradients against the one before"
    own, high = "at each arm's own best rate", "at four times the best unclipped rate"
    cases = [
        lower_by_ratio(full, f"it is overshoot in training without noise, {own}", rise, RISE, largest_rise),
        lower_by_ratio(full, f"it is overshoot in training without noise, {high}", rise, RISE, largest_rise, fault=FOURFOLD),
        lower_by_ratio(text, f"it is overshoot on text, {own}", rise, RISE, largest_rise),
        lower_by_ratio(order, f"it is overshoot on the temporal-order task, {own}", rise, RISE, largest_rise),
        lower_by_ratio(order, f"it is overshoot on the temporal-order task, {high}", rise, RISE, largest_rise, fault=FOURFOLD),
        lower(full, f"it is oscillation in training without noise, {own}", turns, TURNING, turning),
        lower(full, f"it is oscillation in training without noise, {high}", turns, TURNING, turning, fault=FOURFOLD),
    ]  # fmt: skip
    return Claim(
        title="Oscillation and overshoot",
        said="Clipping prevents excessive oscillations and overshooting, so that training converges more smoothly.",
        experiment="A two-layer tanh net with full-batch gradient descent (no noise: what swings, swings by itself), the character LSTM "
        "of claim 5 and the temporal-order task of claim 6. At the arms' own best rates and at four times the best unclipped rate.",
        cases=cases,
        jobs=RESTS_ON,
    )  # fmt: skip
