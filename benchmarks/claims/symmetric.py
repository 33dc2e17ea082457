"""Claim 1: limits on both sides leave no drift, where a maximum alone does."""

from benchmarks.claims.catalog import SAME_LIMIT
from benchmarks.claims.job import CALM
from benchmarks.claims.readings import Experiments, lower
from benchmarks.claims.verdict import Claim

__all__ = ["RESTS_ON", "symmetric"]

MARGIN = 0.05  # in units of the noise's scale
LOST = 100.0  # how far a run counts that left the numbers

RESTS_ON = (
    "bowl, symmetric noise",
    "bowl, normal noise",
    "bowl, skewed noise",
    "text LSTM, SGD",
)


def symmetric(found: Experiments) -> Claim:
    """Compare how far from the optimum the noise carries each arm, and a real text model."""
    arms = ("max-only", "value")
    drift = "distance of the median element from the optimum"
    cases = [
        lower(
            found[f"bowl, {noise} noise"],
            f"{limits} and the noise is {words}",
            drift,
            MARGIN,
            lambda outcome: abs(outcome.extra.get("drift", LOST)),
            fault=fault,
            arms=arms,
        )
        for limits, fault in (
            ("both have the same limit", SAME_LIMIT),
            ("each has its own best limit", CALM),
        )
        for noise, words in (
            ("symmetric", "symmetric and heavy-tailed"),
            ("normal", "normal"),
            ("skewed", "heavy-tailed on one side"),
        )
    ]
    text = lower(
        found["text LSTM, SGD"],
        "each has its own best limit and an LSTM learns text",
        "bits per character",
        0.02,
        arms=arms,
    )
    return Claim(
        title="Symmetric limits against max-only",
        said="Limits on both sides of zero keep updates unbiased, while a limit on the maximum alone lets gradients drift.",
        experiment="A bowl in 200 dimensions, started at its optimum; its gradient comes with noise of mean 0: "
        "Student's t with 1.5 degrees of freedom, normal, or Pareto of index 1.5 on the negative side. Then the character "
        "LSTM of claim 5. `value(c)` against `g.clamp_(max=c)`, both at the rate and limit that suit `value` best, and each at its own best.",
        cases=[*cases, text],
        jobs=RESTS_ON,
    )  # fmt: skip
