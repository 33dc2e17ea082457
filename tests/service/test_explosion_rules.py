"""What is told of explosions that no single step shows, of starts, and of what a run gets over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.service.analysed import changed, healthy_rows, troubled_rows

from gradwatch_service.detectors import exploding
from gradwatch_service.detectors.base import Finding, RunContext
from gradwatch_service.detectors.diagnosis import Diagnosis
from gradwatch_service.rows import StepRows

CONTEXT = RunContext(run="r")


def find(rows: StepRows) -> list[Finding]:
    """Return what is found in the rows, read at once."""
    detector = Diagnosis()
    return detector.advance(detector.start(CONTEXT), rows)[1]


def alarms(findings: Sequence[Finding]) -> list[Finding]:
    """Those that count: warnings and critical ones."""
    return [finding for finding in findings if finding.severity != "info"]


def grown(rows: StepRows, start: int, factors: Sequence[float]) -> StepRows:
    """All norms times these factors from a step on."""
    norm = rows.tensors["norm"].copy()
    norm[start : start + len(factors)] *= np.array(factors, np.float32)[:, None]
    return changed(rows, tensors={"norm": norm})


def without(rows: StepRows, *names: str) -> StepRows:
    """The rows as a script posts them that does not measure these scalars."""
    kept = {name: values for name, values in rows.scalars.items() if name not in names}
    return replace(rows, scalars=kept)


@pytest.mark.parametrize("seed", range(5))
def test_gradients_that_add_up_are_found_within_five_steps_without_any_cosine(seed: int) -> None:
    rows = grown(healthy_rows(260, seed=seed), 200, np.sqrt(np.arange(2, 32)) * 1.2)
    found = find(without(rows, "cosine_previous"))
    assert 200 <= found[0].step <= 205
    assert "grown_alike" in {finding.cause for finding in found[:3]}


def test_a_sampled_cosine_names_the_missing_zero_grad_a_few_steps_later() -> None:
    rows = grown(healthy_rows(260), 200, np.sqrt(np.arange(2, 32)) * 1.2)
    cosine = rows.scalars["cosine_previous"].copy()
    cosine[200:230] = 0.95
    cosine[np.arange(260) % 5 != 0] = np.nan
    found = find(changed(rows, cosine_previous=cosine))
    assert found[0].step <= 205
    assert "zero_grad_missing" in {finding.cause for finding in found}


@pytest.mark.parametrize("seed", range(5))
def test_a_loss_scale_that_doubles_is_found_at_the_second_doubling(seed: int) -> None:
    factors = [2.0 ** (1 + i // 2) for i in range(16)]
    found = find(grown(healthy_rows(260, seed=seed), 200, factors))
    assert 200 <= found[0].step <= 204


def test_a_slow_rise_is_no_step_up() -> None:
    rise = np.exp(np.linspace(0, np.log(10), 300))
    assert find(grown(healthy_rows(500), 150, [*rise, *[10.0] * 50])) == []


def test_norms_that_rise_while_the_loss_falls_are_learning() -> None:
    rows = grown(healthy_rows(300), 200, [1.0, *[2.2] * 99])
    loss = rows.scalars["loss"].copy()
    loss[200:] -= 0.5
    assert alarms(find(changed(rows, loss=loss)))[:1] == []
    assert alarms(find(rows)) != []


def test_a_new_stage_of_the_schedule_explains_a_new_level() -> None:
    rows = grown(healthy_rows(300), 201, [2.0] * 99)
    rate = rows.scalars["learning_rate"].copy()
    rate[200:] *= 0.1
    assert find(changed(rows, learning_rate=rate)) == []


def test_a_run_that_explodes_from_the_start_is_found_while_it_has_no_history() -> None:
    rows = healthy_rows(40)
    norm, loss = rows.tensors["norm"].copy(), rows.scalars["loss"].copy()
    norm[3:8] *= np.array([8, 60, 500, 4e3, 1e5], np.float32)[:, None]
    loss[3:8] = [3, 9, 80, 1e3, 1e5]
    found = find(changed(rows, tensors={"norm": norm}, loss=loss))
    assert (found[0].step, found[0].kind, found[0].cause) == (5, "exploding", "bad_start")


@pytest.mark.parametrize("seed", range(5))
def test_a_healthy_start_may_grow_fourteen_times_while_the_loss_falls(seed: int) -> None:
    rise = np.exp(np.linspace(0, np.log(14), 120))
    rows = grown(healthy_rows(200, seed=seed), 0, [*rise, *[14.0] * 80])
    loss = rows.scalars["loss"] + 2 * np.exp(-np.arange(200) / 30)
    assert find(changed(rows, loss=loss)) == []


def test_what_the_run_got_over_by_itself_is_information_when_it_comes_again() -> None:
    rows = healthy_rows(1200)
    norm, loss = rows.tensors["norm"].copy(), rows.scalars["loss"].copy()
    norm[200::150] *= 6
    loss[200::150] += 1.5
    found = find(changed(rows, tensors={"norm": norm}, loss=loss))
    severities = {finding.step: finding.severity for finding in found}
    assert severities[200] != "info"
    assert {severities[step] for step in range(350, 1200, 150)} == {"info"}


def test_worse_than_what_it_got_over_is_a_warning_again() -> None:
    rows = healthy_rows(700)
    norm, loss = rows.tensors["norm"].copy(), rows.scalars["loss"].copy()
    for step, size, rise in ((200, 6, 1.5), (350, 6, 1.5), (500, 60, 8)):
        norm[step] *= size
        loss[step] += rise
    severities = {
        f.step: f.severity for f in find(changed(rows, tensors={"norm": norm}, loss=loss))
    }
    assert severities[350] == "info"
    assert severities[500] == "critical"


def test_a_hard_batch_for_a_model_that_has_nearly_learnt_its_task_is_information() -> None:
    rows = healthy_rows(400)
    decay = np.exp(-np.arange(400) / 20) + 0.003
    norm = rows.tensors["norm"] * decay[:, None]
    loss = rows.scalars["loss"] * decay
    norm[300] *= 60
    loss[300] += 0.4
    found = find(changed(rows, tensors={"norm": norm.astype(np.float32)}, loss=loss))
    assert [f.severity for f in found if f.step == 300] == ["info"]
    assert alarms(found) == []


@pytest.mark.parametrize(
    ("scalars", "cause"),
    [
        ({"loss": np.full(60, 2.0)}, "backward"),
        ({"loss": np.full(60, np.nan), "loss_nonfinite": np.ones(60)}, "loss_not_finite"),
        ({"loss": np.full(60, np.nan)}, "unknown"),
    ],
)
def test_a_nan_is_told_to_come_from_the_loss_or_from_the_backward_pass(
    scalars: dict[str, np.ndarray], cause: str
) -> None:
    rows = healthy_rows(60)
    bad, nan = rows.tensors["nonfinite_count"].copy(), np.zeros((60, 4))
    bad[40, 1] = nan[40, 1] = 2
    found = find(changed(rows, tensors={"nonfinite_count": bad, "nan_count": nan}, **scalars))
    assert [f.cause for f in found if f.kind == "nonfinite"] == [cause]


def test_overflows_that_never_end_ask_for_zero_grad() -> None:
    rows = healthy_rows(60)
    bad, skipped = rows.tensors["nonfinite_count"].copy(), np.zeros(60)
    bad[20:, 2], skipped[20:] = 1, 1
    found = find(
        changed(
            rows,
            tensors={"nonfinite_count": bad},
            skipped=skipped,
            grad_scale=np.full(60, 65536.0),
        )
    )
    assert found[0].cause == "loss_scale"
    assert (found[-1].cause, found[-1].severity) == ("never_cleared", "critical")


def disturbed_rows(seed: int, steps: int = 200) -> StepRows:
    """Troubles of random size, place, length and kind, with witnesses missing here and there."""
    rng = np.random.default_rng(seed)
    rows = troubled_rows(steps, seed)
    norm = rows.tensors["norm"].copy()
    scalars = {name: values.copy() for name, values in rows.scalars.items()}
    for _ in range(6):
        at, length = int(rng.integers(0, steps - 1)), int(rng.integers(1, 12))
        part = slice(at, at + length)
        norm[part, : int(rng.integers(1, 5))] *= np.exp(rng.normal(0.5, 1))
        scalars["loss"][part] += rng.normal(0, 1)
        scalars["cosine_previous"][part] = np.tanh(rng.normal(0.5, 1))
    for values in scalars.values():
        values[rng.random(steps) < rng.choice([0, 0.1, 0.9])] = np.nan
    return changed(rows, tensors={"norm": norm}, **scalars)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10_000))
def test_the_screens_miss_nothing_that_the_rules_would_find(seed: int) -> None:
    rows, detector = disturbed_rows(seed), Diagnosis(exact=True)
    quick = Diagnosis()
    state, found = quick.advance(quick.start(CONTEXT), rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exploding, "is_innocent", lambda *_: False)
        slow, expected = detector.advance(detector.start(CONTEXT), rows)
    assert found == expected
    assert quick.dump(state) == detector.dump(slow)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10_000), st.sets(st.integers(1, 199), max_size=8))
def test_any_split_of_disturbed_rows_gives_the_same(seed: int, cuts: set[int]) -> None:
    rows, detector = disturbed_rows(seed), Diagnosis()
    whole, expected = detector.advance(detector.start(CONTEXT), rows)
    state, found = detector.start(CONTEXT), []
    for start, stop in pairwise([0, *sorted(cuts), len(rows)]):
        state = detector.load(detector.dump(state))
        state, more = detector.advance(state, rows.cut(start, stop))
        found += more
    assert found == expected
    assert detector.dump(state) == detector.dump(whole)
