"""The claims' machinery: the same seeds give the same table, and verdicts follow from figures alone."""

import dataclasses
import functools
import math
import re
import statistics
from pathlib import Path

import pytest
import torch
from benchmarks.__main__ import names
from benchmarks.claims.arms import ARMS
from benchmarks.claims.catalog import JOBS
from benchmarks.claims.figures import Figure, largest_rise, mean_interval, ratio, share, steps_to
from benchmarks.claims.job import Fault, Job, Trial, run
from benchmarks.claims.noise import bowl
from benchmarks.claims.order import draw
from benchmarks.claims.page import page, table
from benchmarks.claims.readings import lower, more_often
from benchmarks.claims.registry import CLAIMS
from benchmarks.claims.tuning import FINAL_SEEDS, conduct
from benchmarks.claims.verdict import Case, Claim, mark, verdict
from torch import nn

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "claims.md"

TINY = Job(
    "tiny",
    functools.partial(bowl, "symmetric"),
    steps=6,
    rates=(0.1, 0.2, 0.3, 0.4),
    values=(0.3, 1.0, 3.0),
    norms=(1.0, 3.0, 9.0),
    worst=50.0,
)


def case(low: float, high: float, margin: float = 0.1, when: str = "it rains") -> Case:
    return Case(when, "bits", Figure((low + high) / 2, low, high, 8), margin, "none 1, value 0")


@pytest.fixture(scope="module")
def found():
    return conduct([TINY], seeds=range(5), workers=0)


def tiny_claim(found):
    cases = [
        lower(found["tiny"], "noise is heavy-tailed", "distance", 0.01),
        more_often(found["tiny"], "runs are counted", "share", 0.0, lambda o: not o.lost),
    ]
    return Claim("Tiny", "It helps.", "A bowl.", cases, jobs=["tiny"])


@pytest.mark.parametrize(
    ("low", "high", "speaks"),
    [
        (0.11, 0.5, "for"),
        (0.09, 0.5, "nothing"),
        (-0.1, 0.1, "nothing"),
        (0.01, 0.05, "nothing"),
        (-0.5, -0.01, "against"),
        (math.nan, math.nan, "nothing"),
    ],
)
def test_a_case_speaks_only_with_its_whole_interval(low, high, speaks):
    assert mark(case(low, high)) == speaks


def test_a_claim_holds_when_those_of_its_cases_say_so_that_speak_for_it():
    rain, snow = case(0.2, 0.3), case(0.2, 0.3, when="it snows")
    sun = case(-0.1, 0.3, when="the sun shines")
    assert verdict([rain, snow]) == "holds"
    assert verdict([rain, sun, snow]) == "holds when it rains; or it snows"
    assert verdict([sun]) == "does not hold"


def test_a_t_interval_is_the_mean_and_its_standard_error_times_t():
    numbers = [0.3, 0.1, 0.4, 0.1, 0.5, 0.9, 0.2, 0.6]
    figure = mean_interval(numbers)
    half = 2.364624 * statistics.stdev(numbers) / math.sqrt(8)  # t of 7 degrees of freedom
    assert figure.middle == pytest.approx(statistics.mean(numbers))
    assert figure.high - figure.middle == pytest.approx(half, rel=1e-3)


def test_an_interval_of_shares_is_newcombes_published_example():
    figure = share([True] * 56 + [False] * 14, [True] * 48 + [False] * 32)
    assert (figure.low, figure.high) == pytest.approx((0.0524, 0.3339), abs=1e-4)


def test_shares_that_all_runs_agree_on_still_have_an_interval():
    figure = share([True] * 8, [False] * 8)
    assert figure.middle == 1.0
    assert 0.4 < figure.low < 0.8


def test_halving_a_figure_is_one_in_favour():
    figure = ratio([2.0, 4, 6, 8, 10], [1.0, 2, 3, 4, 5])
    assert (figure.middle, figure.low) == pytest.approx((1.0, 1.0))


@pytest.mark.parametrize("job", JOBS.values(), ids=list(JOBS))
def test_no_arm_of_a_job_is_tuned_less_than_another(job):
    trials = {arm: job.trials(arm) for arm in job.arms}
    assert {len(set(tried)) for tried in trials.values()} == {12}
    for arm, tried in trials.items():
        assert set(job.rates) <= {trial.rate for trial in tried}, arm
    assert not set(FINAL_SEEDS) & {100, 101, 102}


@pytest.mark.parametrize("arm", ["value", "norm", "value + norm", "max-only"])
def test_an_arm_holds_its_limit(arm):
    parameter = nn.Parameter(torch.zeros(3))
    parameter.grad = torch.tensor([-4.0, 0.5, 3.0])
    ARMS[arm].make((1.0, 0.9))([parameter])
    held = parameter.grad
    assert held.max() <= 1.0
    assert (held.min() >= -1.0) == (arm != "max-only")
    if "norm" in arm:
        assert held.norm() <= 1.0001


def test_the_same_seed_gives_the_same_curve_in_this_process_and_in_another(found):
    again = conduct([TINY], seeds=range(5), workers=1)
    assert again["tiny"].best == found["tiny"].best
    assert again["tiny"].finals == found["tiny"].finals
    assert table([tiny_claim(again)]) == table([tiny_claim(found)])


def test_another_seed_gives_another_curve():
    one, other = (run(TINY, "value", Trial(0.1, (1.0,)), seed) for seed in (0, 1))
    assert one.curve != other.curve


def test_outcomes_that_are_known_are_not_trained_again(found):
    known = {}
    conduct([TINY], seeds=range(5), workers=0, outcomes=known)
    marked = {name: dataclasses.replace(o, extra={"drift": 7.0}) for name, o in known.items()}
    again = conduct([TINY], seeds=range(5), workers=0, outcomes=marked)
    assert {o.extra["drift"] for o in again["tiny"].finals["calm", "value"]} == {7.0}


def test_a_lost_run_counts_as_knowing_nothing_and_never_reaches_the_target():
    lost = run(TINY, "none", Trial(1e30), 0)
    assert lost.lost
    assert lost.score == TINY.worst
    assert len(lost.curve) == TINY.steps
    assert steps_to(-math.inf, lost) == TINY.steps + 1
    assert largest_rise(lost) == 1000.0


def test_a_fault_changes_the_second_half_and_nothing_before():
    trial = Trial(0.1, (1.0,))
    calm, faulty = (
        run(TINY, "none", trial, 0, fault).curve for fault in (Fault("a"), Fault("b", 2, rate=30.0))
    )
    half = TINY.steps // 2
    assert calm[: half + 1] == faulty[: half + 1]
    assert calm[half + 1 :] != faulty[half + 1 :]


def test_the_class_of_a_sequence_is_the_order_of_its_two_marks():
    symbols, classes = draw(200, 20, torch.Generator().manual_seed(0))
    for row, label in zip(symbols, classes, strict=True):
        marks = torch.nonzero(row < 2).flatten()
        assert len(marks) == 2
        assert 2 <= marks[0] < 4
        assert 10 <= marks[1] < 12
        assert label == 2 * row[marks[0]] + row[marks[1]]


def test_a_page_has_a_row_for_each_claim_and_says_how_it_was_measured(found):
    claim = tiny_claim(found)
    text = page([claim, claim], found, "measured here")
    rows = [line for line in text.splitlines() if re.match(r"\| [12] \|", line)]
    assert [row.count("|") for row in rows] == [6, 6]
    assert "measured here" in text
    assert f"*{verdict(claim.cases)}*" in rows[0]


def sections() -> list[str]:
    return re.split(r"^## (?=\d)", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]


def test_the_published_page_has_one_row_and_one_section_per_claim():
    text = PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \|.*\| \*(.+)\* \|$", text, flags=re.MULTILINE)
    assert [number for number, _ in rows] == [str(n + 1) for n in range(len(CLAIMS))]
    assert len(sections()) == len(CLAIMS)
    for _, says in rows:
        assert re.fullmatch(r"holds|does not hold|holds when .+", says)


def test_the_published_verdicts_follow_from_the_published_figures():
    number = r"([+-][\d.e+-]+|[+-]inf)"
    row = re.compile(
        rf"^\| (.+?) \| .+ \| {number} \[{number}, {number}\] \| ([\d.e-]+) \| (\S+) \|$",
        re.MULTILINE,
    )
    for text in sections():
        cases = []
        for when, middle, low, high, margin, speaks in row.findall(text):
            figure = Figure(float(middle), float(low), float(high), len(FINAL_SEEDS))
            told = Case(when, "", figure, float(margin), "")
            if speaks == "beside":
                continue
            assert speaks.strip("*") == mark(told), f"{when}: {figure}"
            cases.append(told)
        assert cases
        assert f"Verdict: *{verdict(cases)}*." in text


def test_the_command_that_writes_the_page_exists():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(r"^claims:.*\n\t.*-m benchmarks claims", makefile, flags=re.MULTILINE)
    assert "claims" in names()
    assert {job for jobs in CLAIMS.values() for job in jobs} == set(JOBS)
