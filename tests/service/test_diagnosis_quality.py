"""The detectors keep what they were measured to do, on a dozen recorded trainings with known faults."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.detectors import counted, incidents, score
from benchmarks.trace_scorer import Score, Trace, load_split, score_split

TRACES = Path(__file__).parent / "traces"


@pytest.fixture(scope="module")
def traces() -> list[Trace]:
    return load_split(TRACES)


@pytest.fixture(scope="module")
def ours(traces: list[Trace]) -> Score:
    return score(traces)


def test_every_visible_fault_is_found_under_its_right_name(ours: Score) -> None:
    assert len(ours.visible) == 17
    assert [o for o in ours.visible if not o.right_class] == []


def test_nothing_is_said_of_healthy_steps(ours: Score) -> None:
    assert ours.healthy_steps > 3000
    assert ours.false_incidents == []


def test_faults_are_found_soon_and_in_the_right_tensors(ours: Score) -> None:
    figures = ours.figures()
    assert figures["delay_median"] <= 1
    assert figures["delay_p90"] <= 5
    assert figures["localisation"] >= 0.95


def test_one_fault_is_about_one_incident(ours: Score) -> None:
    assert ours.figures()["incidents_per_fault"] <= 1.2


def test_the_size_of_the_deliveries_does_not_matter(traces: list[Trace]) -> None:
    trace = next(t for t in traces if t.name == "cnn_digits.t1")
    ones, fifties = (incidents(trace, batch=size) for size in (1, 50))
    assert ones == fifties


@pytest.mark.parametrize("without", ["loss", "cosine_previous", "learning_rate"])
def test_a_witness_that_is_missing_costs_recall_but_raises_no_false_alarm(
    traces: list[Trace], without: str
) -> None:
    found = {t.name: counted(incidents(t, without=(without,))) for t in traces}
    assert score_split(traces, found).false_incidents == []
