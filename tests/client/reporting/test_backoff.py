"""How long a failing service is left alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradwatch.reporting.backoff import Backoff


def after(failures: int, chance: float = 1.0) -> tuple[Backoff, float]:
    backoff, wait = Backoff(), 0.0
    for _ in range(failures):
        backoff, wait = backoff.failed(lambda: chance)
    return backoff, wait


def test_waits_double_until_the_circuit_opens() -> None:
    assert [after(n)[1] for n in (1, 2, 3, 4)] == [0.5, 1.0, 2.0, 4.0]
    assert not after(4)[0].open


def test_an_open_circuit_is_probed_now_and_then() -> None:
    assert after(5)[0].open
    assert after(5, chance=0.0)[1] == 30.0
    assert after(50, chance=1.0)[1] == 120.0


def test_one_answer_closes_the_circuit() -> None:
    assert after(9)[0].succeeded() == Backoff()


@given(st.floats(0, 1e12), st.integers(0, 20), st.floats(0, 1, exclude_max=True))
def test_what_the_service_asks_for_is_a_minimum_and_is_itself_bounded(
    asked: float, failures: int, chance: float
) -> None:
    backoff, _ = after(failures)
    _, wait = backoff.failed(lambda: chance, asked)
    assert min(asked, 300.0) <= wait <= 300.0


@pytest.mark.parametrize("chance", [0.0, 0.3, 0.999])
def test_every_wait_is_spread_out(chance: float) -> None:
    assert after(3, chance)[1] == pytest.approx(2.0 * chance)
