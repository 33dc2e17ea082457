"""The ratio that the service recommends for agc clips, in the client, about the share that it says."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from tests.conftest import Served, serving
from tests.service.recorded import get
from torch import Tensor, nn

import gradwatch
from gradwatch import Clipper, clip

STEPS = 160


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADWATCH_QUIET", "1")
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with serving(tmp_path_factory.mktemp("ratio")) as served:
        yield served


@dataclass
class Step:
    """What one step used, and whether anything was clipped."""

    gradients: list[Tensor]
    weights: list[Tensor]
    clipped: bool
    threshold: float


def train(service: Served, run: str, policy: Any, enough: Callable[[list[Step]], bool]) -> Any:
    """Train a small net until it is ``enough``; return its steps."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 1))
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(parameters, lr=1e-4)
    watch = gradwatch.watch(model, optimizer, clip=policy, run=run, url=service.base_url)
    seen: list[Step] = []
    while not enough(seen):
        optimizer.zero_grad()
        inputs = torch.randn(4, 6)
        (model(inputs) - inputs[:, :1].abs()).square().mean().backward()
        before = [p.grad.clone() for p in parameters if p.grad is not None]
        weights = [p.detach().clone() for p in parameters]
        if len(seen) % 10 == 0:
            assert watch.flush(10.0)
            service.parts.analyser.wait(run, 10.0)
        optimizer.step()
        after = [p.grad for p in parameters if p.grad is not None]
        changed = any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
        assert watch.threshold is not None
        seen.append(Step(before, weights, changed, float(watch.threshold)))
    watch.close(timeout=10.0)
    return seen


@pytest.fixture(scope="module")
def measured(service: Served) -> list[Step]:
    """A run whose limit is so high that it only measures."""
    torch.set_num_threads(1)
    return train(service, "measured", clip.agc(1e6), lambda seen: len(seen) == STEPS)


def clipped_tensors(steps: list[Step], ratio: float) -> np.ndarray:
    """[steps, tensors] whether a client with this ratio changes anything."""
    clipper, found = Clipper(clip.agc(ratio)), []
    for step in steps:
        stats = clipper.clip_([grad.clone() for grad in step.gradients], step.weights)
        found.append([count > 0 for count in stats.to_dict()["clipped_count"]])
    return np.array(found)


@pytest.mark.parametrize(("preference", "intended"), [("guard", 0.0), ("tight", 0.9)])
def test_the_recommended_ratio_clips_the_intended_share_of_steps_in_the_client(
    service: Served, measured: list[Step], preference: str, intended: float
) -> None:
    given = get(service, "runs/measured/recommendation", policy="agc", preference=preference)

    assert given["ratio_of"] == "units"
    assert given["status"] in {"provisional", "estimated", "validated"}
    assert given["intended_share"] == pytest.approx(intended)
    clipped = clipped_tensors(measured, given["ratio"]).any(axis=1)
    assert clipped[-64:].mean() == pytest.approx(intended, abs=0.15)
    assert clipped.mean() == given["backtest"]["clipped_share"]
    assert given["backtest"]["steps"] == STEPS


def test_the_largest_ratio_of_a_tensor_is_that_of_its_rows(
    service: Served, measured: list[Step]
) -> None:
    for step in (0, STEPS - 1):
        items = get(service, "runs/measured/tensors", step=step)["items"]
        one = measured[step]
        for row, grad, weight in zip(items, one.gradients, one.weights, strict=True):
            flat = grad.flatten(1) if grad.dim() > 1 else grad[None]
            beside = weight.flatten(1) if weight.dim() > 1 else weight[None]
            expected = (flat.norm(dim=1) / beside.norm(dim=1).clamp(min=1e-3)).max()
            assert row["unit_ratio"] == pytest.approx(float(expected), rel=1e-5), row["name"]
            assert row["weight_norm"] == pytest.approx(float(weight.norm()), rel=1e-5)


def test_a_backtest_tells_the_share_of_tensors_with_a_clipped_unit_and_no_more(
    service: Served, measured: list[Step]
) -> None:
    body = {"policy": "agc", "threshold": 3.0}
    told = service.http.post(service.api("runs/measured/backtest"), json=body).json()["results"][0]

    clipped = clipped_tensors(measured, 3.0)
    assert 0.05 < clipped.mean() < 0.95
    assert told["clipped_share"] == clipped.mean()
    assert told["steps"] == STEPS
    assert told["mean_coefficient"] is told["norm_removed_share"] is None


def test_a_job_that_follows_the_ratio_clips_about_that_share(
    service: Served, measured: list[Step]
) -> None:
    # A threshold falls by at most half per recommendation, so this one arrives with the first.
    start = 1.5 * get(service, "runs/measured/recommendation", policy="agc")["ratio"]
    deadline = time.monotonic() + 30

    def arrived(seen: list[Step]) -> bool:
        moved = [step.threshold for step in seen].count(start)
        assert time.monotonic() < deadline, "the threshold never moved"
        return moved < len(seen) - 64

    steps = train(service, "following", clip.recommended(clip.agc(start), interval=5), arrived)

    share = np.mean([step.clipped for step in steps[-64:]])
    given = get(service, "runs/following/recommendation", policy="agc")
    assert share == pytest.approx(given["intended_share"], abs=0.25)
    assert steps[-1].threshold < start
