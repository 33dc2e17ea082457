"""The demo, small: it ends by itself, and what it injected is what the service saw."""

import json
import math
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

STEPS = 160


def demo(*options: str) -> list[str]:
    return [sys.executable, "-m", "gradwatch_cli", "demo", *options]


@pytest.fixture(scope="module")
def summary() -> dict:
    """What ``gradwatch demo --json`` ends with, run once."""
    done = subprocess.run(
        demo("--steps", str(STEPS), "--json"),
        check=False,
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert done.returncode == 0, done.stderr
    assert "step    16 of 160" in done.stderr  # the progress of a demo without a terminal
    return json.loads(done.stdout)


def incidents(summary: dict, run: str) -> list[dict]:
    return next(r["incidents"] for r in summary["runs"] if r["run"] == run)


def test_the_model_learns_and_clipping_keeps_what_it_learned(summary):
    clipped = next(run for run in summary["runs"] if run["clipped"])

    assert clipped["steps"] == STEPS
    assert clipped["bits_per_character"] < math.log2(96) - 1.5


def test_the_same_seed_without_clipping_loses_its_weights(summary):
    unclipped = next(run for run in summary["runs"] if not run["clipped"])
    clipped = next(run for run in summary["runs"] if run["clipped"])

    assert unclipped["losses"][0] == clipped["losses"][0]
    assert unclipped["bits_per_character"] is None


def test_the_corrupted_batch_is_an_incident_at_its_step_with_its_tensor(summary):
    found = [i for i in incidents(summary, "demo-clipped") if i["kind"] == "nonfinite"]

    assert [i["opened_step"] for i in found] == [STEPS * 3 // 4]
    assert found[0]["first_tensor"].startswith("head.")
    assert found[0]["severity"] == "critical"


def test_the_wrong_learning_rate_is_an_incident_while_it_lasts(summary):
    found = [i for i in incidents(summary, "demo-clipped") if i["kind"] == "exploding"]

    assert any(STEPS // 2 <= i["opened_step"] < STEPS // 2 + 12 for i in found)


def test_there_is_no_incident_before_the_first_trouble(summary):
    for run in ("demo-clipped", "demo-unclipped"):
        early = [i for i in incidents(summary, run) if i["opened_step"] < STEPS // 2]
        assert [i for i in early if i["severity"] != "info"] == []


def test_thresholds_are_recommended_with_a_reason(summary):
    for policy in ("norm", "value"):
        answer = summary["recommendations"][policy]
        assert answer["threshold"] > 0
        assert answer["reason"]


def test_nothing_is_left_running(summary):
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{summary['url']}/readyz", timeout=5)  # noqa: S310  our own address


def test_keep_serving_serves_until_it_is_interrupted():
    command = demo("--steps", str(STEPS), "--no-compare", "--keep-serving", "--json")
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            url = json.loads(process.stdout.readline())["url"]
            with urllib.request.urlopen(f"{url}/", timeout=10) as page:  # noqa: S310  our own address
                assert page.status == 200
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
        finally:
            process.kill()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{url}/readyz", timeout=5)  # noqa: S310  our own address


def test_a_port_that_is_taken_is_one_line_and_wrong_use():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run(
            demo("--port", str(port)), check=False, capture_output=True, text=True, timeout=60
        )

    assert done.returncode == 2
    assert done.stderr.startswith(f"gradwatch demo: port {port} is not free")
    assert done.stderr.count("\n") == 1


def test_a_demo_that_is_terminated_ends_its_service():
    with subprocess.Popen(
        demo(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        url = process.stderr.readline().removeprefix("service at ").partition(";")[0]
        process.send_signal(signal.SIGTERM)
        try:
            assert process.wait(60) == 130
        finally:
            process.kill()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{url}/readyz", timeout=5)  # noqa: S310  our own address
