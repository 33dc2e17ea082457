"""The first five minutes: start the service, add one line, see the run everywhere it should be."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import torch
from torch import nn

import gradwatch
from gradwatch_cli.demo.service import running_service

STEPS = 80
EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def api() -> Iterator[httpx.Client]:
    """A client of a real ``gradwatch serve`` in a process of its own."""
    with running_service() as service, httpx.Client(base_url=service.url) as client:
        yield client


def eventually(question: Callable[[], bool], *, seconds: float = 30.0) -> bool:
    """Ask until the answer is yes; False when it never was within the time."""
    deadline = time.monotonic() + seconds
    while not question():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def train(run: str, url: str) -> list[float]:
    """A small training with one line of ours; returns the norms that torch itself computes."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    watch = gradwatch.watch(
        model, optimizer, clip=gradwatch.clip.value(0.5), run=run, url=url, mode="online"
    )
    norms = []
    for _ in range(STEPS):
        inputs = torch.randn(16, 8)
        loss = (model(inputs) - inputs.sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(nn.utils.get_total_norm([p.grad for p in model.parameters()])))
        optimizer.step()
        watch.log(loss=loss)
    watch.close(timeout=30.0)
    return norms


@pytest.fixture(scope="module")
def norms(api) -> list[float]:
    return train("first-use", str(api.base_url).rstrip("/"))


def test_every_step_is_in_the_series_with_the_norm_torch_computes(api, norms):
    answer = api.get("/api/v1/runs/first-use/series", params={"metric": "global_norm"}).json()

    assert answer["start_step"] == list(range(STEPS))
    assert answer["max"] == pytest.approx(norms, rel=1e-5)


def test_the_loss_that_was_logged_belongs_to_its_step(api, norms):
    answer = api.get("/api/v1/runs/first-use/series", params={"metric": "loss"}).json()

    assert answer["count"] == [1] * STEPS


def test_the_run_is_finished_and_analysed_to_its_last_step(api, norms):
    summary = api.get("/api/v1/runs/first-use").json()

    assert summary["state"] == "finished"
    assert (summary["steps"], summary["last_step"]) == (STEPS, STEPS - 1)
    assert eventually(
        lambda: api.get("/api/v1/runs/first-use").json()["analysed_step"] == STEPS - 1
    )


def test_the_newest_step_has_a_row_for_every_tensor(api, norms):
    answer = api.get("/api/v1/runs/first-use/tensors").json()

    assert answer["step"] == STEPS - 1
    names = [item["name"] for item in answer["items"]]
    assert names == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_prometheus_sees_the_run(api, norms):
    assert eventually(lambda: 'run="first-use"' in api.get("/metrics").text)


def test_a_threshold_is_recommended_with_its_evidence(api, norms):
    url = "/api/v1/runs/first-use/recommendation"
    assert eventually(
        lambda: api.get(url, params={"policy": "norm"}).json()["threshold"] is not None
    )

    advice = api.get(url, params={"policy": "norm"}).json()
    assert min(norms) <= advice["threshold"] <= max(norms)
    assert advice["steps_used"] >= 32
    assert advice["backtest"]["steps"] == STEPS
    over = sum(norm > advice["threshold"] for norm in norms) / STEPS
    assert advice["backtest"]["clipped_share"] == pytest.approx(over, abs=1.5 / STEPS)


def test_twenty_lines_without_our_client_are_enough(api):
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "rest_only_loop.py"), "rest-only"],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env={"GRADWATCH_URL": str(api.base_url).rstrip("/"), "PATH": "/usr/bin:/bin"},
    )

    assert done.returncode == 0, done.stderr
    assert "after 100 steps clip at" in done.stdout
    summary = api.get("/api/v1/runs/rest-only").json()
    assert (summary["steps"], summary["last_step"]) == (100, 99)
