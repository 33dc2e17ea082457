"""From figures to a verdict, by one rule for all claims."""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.claims.figures import Figure

__all__ = ["RULE", "Case", "Claim", "circumstances", "mark", "verdict"]

RULE = (
    "A figure speaks **for** a claim when the whole 95 % interval of the paired difference lies beyond "
    "its margin on the claimed side, **against** it when the whole interval lies on the other side of "
    "0, else it shows **nothing**. A claim *holds* when all its figures speak for it; *holds when ...* "
    "names the circumstances of which all figures do; it *does not hold* when there are none."
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
        arms: The two; a figure above 0 is in favour of the second.
        calm: Nothing went wrong in the trainings, and rates were tuned.
    """

    when: str
    what: str
    figure: Figure
    margin: float
    levels: str
    arms: tuple[str, str] = ("none", "value")
    calm: bool = True


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


def circumstances(cases: Sequence[Case], wanted: str) -> list[str]:
    """The circumstances of which all figures speak as wanted, in order."""
    marks: dict[str, set[str]] = {}
    for case in cases:
        marks.setdefault(case.when, set()).add(mark(case))
    return [when for when, said in marks.items() if said == {wanted}]


def verdict(cases: Sequence[Case]) -> str:
    """``holds``, ``holds when ...`` or ``does not hold``, as :data:`RULE` says."""
    supporting = circumstances(cases, "for")
    if not supporting:
        return "does not hold"
    if all(mark(case) == "for" for case in cases):
        return "holds"
    return "holds when " + "; or ".join(supporting)
