"""From figures to a verdict, by one rule for all claims."""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.claims.figures import Figure

__all__ = ["RULE", "Case", "Claim", "mark", "verdict"]

RULE = (
    "A case speaks **for** a claim when the whole 95 % interval of the paired difference lies beyond "
    "its margin on the claimed side, **against** it when the whole interval lies on the other side of "
    "0, else it shows **nothing**. A claim *holds* when all its cases speak for it, *holds when ...* "
    "names those that do, and *does not hold* when none does."
)


@dataclass(frozen=True, slots=True)
class Case:
    """One comparison of two arms.

    Attributes:
        when: The circumstances, to be read after "when".
        what: What is compared and in which unit.
        figure: Above 0 in favour of the claim.
        margin: A difference below this is none in practice.
        levels: Where the two arms stand, in words.
    """

    when: str
    what: str
    figure: Figure
    margin: float
    levels: str


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim with its evidence.

    Attributes:
        title: A few words.
        said: The claim as its proponents put it.
        experiment: What was done.
        cases: What the verdict is computed from.
        beside: Comparisons that do not enter the verdict.
        jobs: Names of the jobs it rests on.
    """

    title: str
    said: str
    experiment: str
    cases: Sequence[Case]
    beside: Sequence[Case] = ()
    jobs: Sequence[str] = ()


def mark(case: Case) -> str:
    """``for``, ``against`` or ``nothing``, as :data:`RULE` says."""
    if case.figure.low > case.margin:
        return "for"
    return "against" if case.figure.high < 0 else "nothing"


def verdict(cases: Sequence[Case]) -> str:
    """``holds``, ``holds when ...`` or ``does not hold``, as :data:`RULE` says."""
    supporting = [case.when for case in cases if mark(case) == "for"]
    if not supporting:
        return "does not hold"
    if len(supporting) == len(cases):
        return "holds"
    return "holds when " + "; or ".join(supporting)
