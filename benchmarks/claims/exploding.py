"""Claim 6: clipping keeps exploding gradients from preventing learning."""

from benchmarks.claims.catalog import FOURFOLD
from benchmarks.claims.job import Outcome
from benchmarks.claims.readings import Experiments, more_often
from benchmarks.claims.verdict import Case, Claim

__all__ = ["RESTS_ON", "exploding"]

RESTS_ON = ("order, radius 0.95", "order, radius 2")


def solved(outcome: Outcome) -> bool:
    """At most 1 % of 1000 test sequences wrong, as in the paper (there of 10 000)."""
    return outcome.score <= 0.01


def exploding(found: Experiments) -> Claim:
    """Count the runs that solve the temporal-order task."""
    what = "share of runs that solve the task"

    def cases(arm: str, prefix: str = "") -> list[Case]:
        return [
            more_often(
                found[f"order, radius {size}"],
                f"{prefix}the initial spectral radius is {size}, {where}",
                what, 0.0, solved, fault=fault, arms=("none", arm),
            )
            for size in ("0.95", "2")
            for where, fault in (
                ("at each arm's own best rate", found[f"order, radius {size}"].job.finals[0]),
                ("at four times the best unclipped rate", FOURFOLD),
            )
        ]  # fmt: skip

    return Claim(
        title="Exploding gradients",
        said="Clipping is a simple and effective remedy for exploding gradients: recurrent nets learn what they "
        "could not without (Pascanu, Mikolov & Bengio 2013, arXiv:1211.5063).",
        experiment="Their temporal-order task, scaled down: 50 tanh units, plain SGD, batch 20, sequences of 20 (paper: 50 to 200), 500 steps "
        "(paper: up to 5 million), the best of a grid of rates (paper: 0.01), 8 seeds (paper: 5), solved at 1 % errors on 1000 sequences "
        "(paper: 10 000). Initial recurrent weights normal with spectral radius 0.95 (paper: sparse, 0.95) or 2.",
        cases=cases("value"),
        beside=cases("norm", "the norm is clipped instead: "),
        jobs=RESTS_ON,
    )  # fmt: skip
