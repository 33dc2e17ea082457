"""However wrong a service is, a threshold goes no further than its user allowed."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradwatch.advice import MAX_FALL, MAX_RISE_PER_STEP, Advice, accept

CURRENT = Advice(1.0, 4)


def advised(**changes: Any) -> dict[str, Any]:
    return {"policy": "norm", "threshold": 0.9, "version": 5} | changes


def decide(
    recommendation: dict[str, Any], current: Advice = CURRENT, steps: int = 50
) -> Advice | None:
    return accept(
        recommendation, policy="norm", current=current, minimum=0.1, maximum=10.0, steps=steps
    )


def test_a_newer_recommendation_within_the_limits_is_taken_as_it_is() -> None:
    assert decide(advised()) == Advice(0.9, 5)
    assert decide(advised(threshold=1.04)) == Advice(1.04, 5)


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 3},
        {"version": "5"},
        {"version": True},
        {"version": None},
        {"threshold": None},
        {"threshold": math.nan},
        {"threshold": math.inf},
        {"threshold": 0},
        {"threshold": -1.0},
        {"threshold": "0.9"},
        {"threshold": True},
        {"threshold": 10**400},
        {"threshold": 0.099},
        {"threshold": 10.1},
        {"policy": "value"},
        {"policy": None},
    ],
)
def test_what_is_stale_out_of_bounds_or_no_threshold_changes_nothing(
    changes: dict[str, Any],
) -> None:
    assert decide(advised(**changes)) is None
    assert decide({}) is None


def test_a_recommendation_falls_by_half_at_most_and_once() -> None:
    first = decide(advised(threshold=0.2))
    assert first == Advice(0.5, 5)
    assert decide(advised(threshold=0.2), first) is None
    assert decide(advised(threshold=0.2, version=6), first) == Advice(0.25, 6)


def test_a_rise_goes_on_between_messages_by_a_tenth_of_a_percent_a_step() -> None:
    current, steps = CURRENT, 0
    while (moved := decide(advised(threshold=2.0), current, steps=50)) is not None:
        assert moved.threshold <= current.threshold * (1 + MAX_RISE_PER_STEP) ** 50
        current, steps = moved, steps + 50
    assert current.threshold == 2.0
    assert steps == 700  # ln 2 / ln 1.001 = 693.5 steps, in boundaries of 50


@given(
    st.floats(allow_nan=True) | st.integers() | st.none(),
    st.integers(-5, 10),
    st.floats(0.1, 10.0),
    st.integers(0, 5),
    st.integers(0, 10_000),
)
def test_whatever_is_recommended_bounds_and_pace_hold(
    threshold: Any, version: int, now: float, seen: int, steps: int
) -> None:
    moved = decide(advised(threshold=threshold, version=version), Advice(now, seen), steps)
    if moved is None:
        return
    assert 0.1 <= moved.threshold <= 10.0
    assert moved.version >= seen
    assert moved.threshold >= now * MAX_FALL
    assert moved.threshold <= max(now, now * (1 + MAX_RISE_PER_STEP) ** steps) * (1 + 1e-12)
