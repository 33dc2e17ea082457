"""The page: what a practitioner should know, one row per claim, and how each figure came about."""

import datetime
import platform
from collections.abc import Sequence

import numpy as np
import torch
from benchmarks.claims.figures import mean_interval
from benchmarks.claims.job import CALM, Trial
from benchmarks.claims.readings import Experiments, words
from benchmarks.claims.tuning import FINAL_SEEDS, Experiment
from benchmarks.claims.verdict import RULE, Case, Claim, circumstances, mark, verdict
from benchmarks.machine import cpu_name

import gradwatch

__all__ = ["COMMAND", "page", "provenance", "table"]

COMMAND = "make claims"

SIGNS = {"for": "**for**", "nothing": "nothing", "against": "**against**"}


def page(claims: Sequence[Claim], found: Experiments, measured: str) -> str:
    """The whole of docs/claims.md.

    Args:
        claims: In the order of the rows.
        found: What they rest on.
        measured: From :func:`provenance`.
    """
    parts = [
        "# What zero-centred clipping does, and what it does not",
        f"<!-- Written by `{COMMAND}`; do not edit. -->",
        *summary(claims),
        "## The claims",
        method(),
        table(claims),
        measured,
        *(section(number, claim, found) for number, claim in enumerate(claims, start=1)),
    ]
    return "\n\n".join(parts) + "\n"


def provenance(seconds: float | None, load: float) -> str:
    """Machine, versions, date, load; ``seconds`` is None for a run that was taken up again."""
    took = "stopped and taken up again" if seconds is None else f"{seconds / 60:.0f} min"
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return (
        f"`{COMMAND}`, {today}: {cpu_name()}, two processes of one thread each, {took}, with a load of "
        f"{load:.0f} at the end; {platform.system()} {platform.machine()}, Python {platform.python_version()}, torch "
        f"{torch.__version__}, numpy {np.__version__}, gradwatch {gradwatch.__version__}. Seeds are fixed: the same versions on the "
        "same machine give the same table to the last digit, whatever the load; another Python brings a slightly "
        "different text."
    )


def summary(claims: Sequence[Claim]) -> list[str]:
    """Five lines for a practitioner, put together from the cases alone."""
    cases = [claim.cases for claim in claims]
    plain = [case for some in cases for case in some if case.arms == ("none", "value")]
    lines = [
        f"- **In short**: {_counted(plain, calm=True)} in calm training with tuned learning rates; "
        f"{_counted(plain, calm=False)} after a fault, with damaged data or at a rate that is not the arm's own.",
        f"- **It pays when** {_told(cases, 'for')}.",
        f"- **It shows nothing when** {_told(cases, 'nothing')}.",
        f"- **It loses when** {_told(cases, 'against')}.",
        f"- **Other means pay when** {_told([claim.beside for claim in claims], 'for')}.",
    ]
    return [
        "Holding every gradient element in `[-c, +c]`, compared with no clipping (claim 1: with a "
        "maximum alone); the number of the claim in brackets.",
        "\n".join(lines),
    ]


def _told(cases: Sequence[Sequence[Case]], wanted: str) -> str:
    told = [
        f"{when} ({number})"
        for number, some in enumerate(cases, start=1)
        for when in circumstances(some, wanted)
    ]
    return "; ".join(told) or "nothing that was tried"


def _counted(cases: Sequence[Case], *, calm: bool) -> str:
    marks = [mark(case) for case in cases if case.calm == calm]
    return f"{marks.count('for')} of {len(marks)} figures speak for it, {marks.count('against')} against it"


def method() -> str:
    """How arms were tuned and verdicts found."""
    return (
        "Clipped arms run gradwatch's own policies through `gradwatch.clip_grad_`. No arm is tuned less than another: all try the same "
        "four learning rates, clipped ones with three limits each, the unclipped one with eight more rates between and above them; all "
        "twelve trials on one tuning seed, the best three on two more, the best mean wins. Three tuning seeds choose: where few runs of an arm succeed, its choice is uncertain, too. Figures come from "
        f"{len(FINAL_SEEDS)} other seeds, paired: the same start and the same batches for every arm. Intervals: Student's t of the paired "
        "differences, 95 %; for shares of runs Newcombe's hybrid score interval (1998, method 10). They are not corrected for "
        f"the number of figures. Figures above 0 speak for the claim. {RULE}"
    )


def table(claims: Sequence[Claim]) -> str:
    """One row per claim; the same figures give the same text."""
    rows = [
        "| # | claim, as it is made | experiment | figure, 95 % interval | verdict |",
        "|---|---|---|---|---|",
    ]
    for number, claim in enumerate(claims, start=1):
        seeds = claim.cases[0].figure.seeds
        trained = f"{claim.experiment} {seeds} seeds."
        figures = "<br>".join(f"{case.when} ({case.what}): {_figure(case)}" for case in claim.cases)
        cells = (
            f"{number}",
            f"**{claim.title}.** {claim.said}",
            trained,
            figures,
            f"*{verdict(claim.cases)}*",
        )
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def section(number: int, claim: Claim, found: Experiments) -> str:
    """One claim at length: every case, what was compared beside it, the tuned values."""
    lines = [
        f"## {number}. {claim.title}",
        "",
        f"{claim.experiment} Verdict: *{verdict(claim.cases)}*.",
        "",
        "| when | what | levels | difference | margin | speaks |",
        "|---|---|---|---|---|---|",
        *(_row(case, SIGNS[mark(case)]) for case in claim.cases),
        *(_row(case, "beside") for case in claim.beside),
        "",
        "| job | arm | learning rate | limit | score, tuned, calm |",
        "|---|---|---|---|---|",
        *(row for name in claim.jobs for row in _tuned(found[name])),
    ]
    return "\n".join(lines)


def _figure(case: Case) -> str:
    return f"{words(case.figure)}, {SIGNS[mark(case)]}"


def _row(case: Case, last: str) -> str:
    cells = (case.when, case.what, case.levels, words(case.figure), f"{case.margin:g}", last)
    return "| " + " | ".join(cells) + " |"


def _tuned(experiment: Experiment) -> list[str]:
    rows = []
    first = experiment.job.finals[0]
    for arm, trial in experiment.best.items():
        scores = mean_interval([o.score for o in experiment.finals[first.name, arm]])
        where = "" if first == CALM else f" ({first.name})"
        found = f"{scores.middle:.4g} [{scores.low:.4g}, {scores.high:.4g}]{where}"
        rows.append(
            f"| {experiment.job.name}, {experiment.job.steps} steps | {arm} | {trial.rate:.3g} | {_limits(arm, trial)} | {found} |"
        )
    return rows


def _limits(arm: str, trial: Trial) -> str:
    names = {"norm": ("norm",), "value + norm": ("value", "norm")}.get(arm, ("value",))
    return ", ".join(f"{name} {c:g}" for name, c in zip(names, trial.limit, strict=False)) or "none"
