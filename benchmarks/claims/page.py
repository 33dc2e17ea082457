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
from benchmarks.claims.verdict import RULE, Case, Claim, mark, verdict
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


def provenance(seconds: float, load: float) -> str:
    """Machine, versions, date, load."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return (
        f"`{COMMAND}`, {today}: {cpu_name()}, two processes of one thread each, {seconds / 60:.0f} min with a load of "
        f"{load:.0f} at the end; {platform.system()} {platform.machine()}, Python {platform.python_version()}, torch "
        f"{torch.__version__}, numpy {np.__version__}, gradwatch {gradwatch.__version__}. Seeds are fixed: the same versions on the "
        "same machine give the same table to the last digit, whatever the load; another Python brings a slightly "
        "different text."
    )


def summary(claims: Sequence[Claim]) -> list[str]:
    """Five lines for a practitioner, put together from the cases alone."""
    lines = [
        ("It pays when", "for"),
        ("It shows nothing when", "nothing"),
        ("It loses when", "against"),
    ]
    told = []
    for words_before, wanted in lines:
        cases = [
            f"{case.when} ({number})"
            for number, claim in enumerate(claims, start=1)
            for case in claim.cases
            if mark(case) == wanted
        ]
        told.append(f"- **{words_before}** {'; '.join(cases) or 'nothing of what was tried'}.")
    return [
        "Element-wise limits `value(c)` against no clipping, in brackets the claim:",
        "\n".join(told),
    ]


def method() -> str:
    """How arms were tuned and verdicts found."""
    return (
        "Clipped arms run gradwatch's own policies through `gradwatch.clip_grad_`. No arm is tuned less than another: all try the same "
        "four learning rates, clipped ones with three limits each, the unclipped one with eight more rates between and above them; all "
        "twelve trials on one tuning seed, the best three on two more, the best mean wins. Figures come from "
        f"{len(FINAL_SEEDS)} other seeds, paired: the same start and the same batches for every arm. Intervals: Student's t of the paired "
        "differences, 95 %; for shares of runs Newcombe's hybrid score interval (1998, method 10). They are not corrected for "
        f"the number of cases. Figures above 0 speak for the claim. {RULE}"
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
        figures = "<br>".join(f"{case.when}: {_figure(case)}" for case in claim.cases)
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
