"""The closed-loop benchmark can be stopped anywhere, and its live arm really follows the service."""

import json
from pathlib import Path

import pytest
import torch
from benchmarks.closed_loop_arms import FIXED, LIVE, Unit, run
from benchmarks.closed_loop_figures import figures
from tests.conftest import serving

from benchmarks import closed_loop

ARMS = ["none", *FIXED, "AutoClip", "clip.adaptive"]


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setenv("GRADWATCH_QUIET", "1")


def table(out: Path, capsys: pytest.CaptureFixture[str]) -> str:
    job = ["--jobs", "CNN, SGD", "--steps", "10", "--seeds", "1"]
    closed_loop.main(["--quick", *job, "--arms", *ARMS, "--out", str(out)])
    return capsys.readouterr().out


def test_a_loop_that_was_stopped_goes_on_to_the_same_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, stopped = tmp_path / "whole.jsonl", tmp_path / "stopped.jsonl"
    expected = table(whole, capsys)
    lines = whole.read_text().splitlines()
    stopped.write_text("\n".join(lines[:9]) + "\n" + lines[9][:40])

    assert table(stopped, capsys) == expected
    assert len(lines) == len(ARMS)
    assert all(f"| {arm} |" in expected for arm in ARMS)
    again = [json.loads(line) for line in stopped.read_text().splitlines() if line.endswith("}}")]
    assert [one["unit"] for one in again] == [json.loads(line)["unit"] for line in lines]


def test_the_live_arm_trains_with_what_the_service_recommends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unit = Unit("tanh RNN, temporal order", LIVE, 0, 60)
    with serving(tmp_path) as service:
        live = run(unit, service.base_url)["losses"]
        given = service.http.get(service.api("runs")).json()

    alone = run(Unit(unit.job, "fixed 10", 0, 60))["losses"]
    # It starts at the same limit of 10, and leaves it at the first advice.
    assert live[:3] == alone[:3]
    assert live != alone
    assert given["items"][0]["steps"] == 60


def test_figures_tell_a_rise_from_a_fall_and_a_recovery_from_a_loss() -> None:
    falling = figures([2.0 - 0.01 * step for step in range(100)], 100)
    risen = figures([*[1.0] * 50, *[1.8] * 20, *[1.0] * 30], 100)
    broken = figures([2.0, 1.0, 1.5, None], 100)

    assert (falling.overshoot, falling.recovery_steps, falling.diverged) == (0.0, 0, False)
    assert falling.steps_to(1.5) == pytest.approx(50, abs=6)
    assert risen.overshoot == pytest.approx(0.8)
    assert 0 < risen.recovery_steps <= 20
    assert not risen.diverged
    assert broken.diverged
    assert broken.final == 2 * broken.start
