"""Every claim that is tested, in the order of the page, and the jobs it rests on."""

from collections.abc import Callable

from benchmarks.claims import (
    exploding,
    language,
    oscillation,
    others,
    speed,
    stability,
    symmetric,
    vanishing,
)
from benchmarks.claims.readings import Experiments
from benchmarks.claims.verdict import Claim

__all__ = ["CLAIMS", "Judge"]

Judge = Callable[[Experiments], Claim]

CLAIMS: dict[Judge, tuple[str, ...]] = {
    symmetric.symmetric: symmetric.RESTS_ON,
    stability.stability: stability.RESTS_ON,
    oscillation.oscillation: oscillation.RESTS_ON,
    speed.speed: speed.RESTS_ON,
    language.language: language.RESTS_ON,
    exploding.exploding: exploding.RESTS_ON,
    vanishing.vanishing: vanishing.RESTS_ON,
    others.others: others.RESTS_ON,
}
