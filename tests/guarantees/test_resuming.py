"""A job that goes on from a checkpoint: the same bits, and one story in the service."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import free_port, serve_process, serving
from tests.guarantees.fault_server import FaultServer
from torch import Tensor, nn

import gradwatch
from gradwatch import clip

BREAK, END = 30, 60


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GRADWATCH_QUIET", "1")
    monkeypatch.setenv("GRADWATCH_DIR", str(tmp_path / "spool"))
    torch.set_num_threads(1)


class Job:
    """A training from a fixed seed, whose data depend on the step alone."""

    def __init__(self, policy: Any, **options: Any) -> None:
        torch.manual_seed(3)
        self.model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 1))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)
        self.watch = gradwatch.watch(self.model, self.optimizer, clip=policy, **options)

    def train(self, steps: range, scale: float = 10.0) -> None:
        for step in steps:
            batch = torch.randn(4, 6, generator=torch.Generator().manual_seed(step))
            self.optimizer.zero_grad()
            (scale * self.model(batch).square().mean()).backward()
            self.optimizer.step()

    def saved(self) -> bytes:
        file = io.BytesIO()
        parts = (self.model.state_dict(), self.optimizer.state_dict(), self.watch.state_dict())
        torch.save(parts, file)
        return file.getvalue()

    def load(self, saved: bytes) -> None:
        model, optimizer, watch = torch.load(io.BytesIO(saved), weights_only=True)
        self.model.load_state_dict(model)
        self.optimizer.load_state_dict(optimizer)
        self.watch.load_state_dict(watch)

    def weights(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.model.parameters()])


POLICIES: dict[str, Any] = {
    "value_rms": clip.value_rms(1.5),
    "adaptive": clip.adaptive(),
    "autoclip": clip.published.autoclip(),
    "zclip": clip.published.zclip(0.5, warmup=5, max_norm=None),
    "adagc": clip.published.adagc(1.0, warmup=5),
    "quantile": clip.published.quantile(),
    "spike_skip": clip.spike_skip(),
    "schedule": clip.schedule({0: clip.norm(2.0), BREAK + 5: clip.norm(0.1)}),
    "chain": clip.chain(clip.value_rms(1.5), clip.norm(0.3)),
    "patterns": {"0.*": clip.value_rms(1.2), "2.*": clip.norm(0.2)},
}


@pytest.mark.parametrize("kind", POLICIES)
def test_resuming_equals_not_stopping(kind: str) -> None:
    policy = POLICIES[kind]
    straight, broken, resumed, forgetful = (Job(policy, mode="disabled") for _ in range(4))
    straight.train(range(END))
    broken.train(range(BREAK))
    saved = broken.saved()
    resumed.load(saved)
    resumed.train(range(BREAK, END))
    assert torch.equal(resumed.weights(), straight.weights())
    # Without the Watch's own state it would not be the same.
    forgetful.load(saved)
    forgetful.watch.load_state_dict(Job(policy, mode="disabled").watch.state_dict())
    forgetful.train(range(BREAK, END))
    assert not torch.equal(forgetful.weights(), straight.weights())


def test_resuming_goes_on_with_the_recommendation_that_was_in_force() -> None:
    straight = follow(stops=False)
    assert torch.equal(follow(stops=True), straight)
    assert not torch.equal(follow(stops=True, forgets=True), straight)


def follow(*, stops: bool, forgets: bool = False) -> Tensor:
    """Train with a service that recommends twice, before and after the break; the weights."""
    policy = clip.recommended(clip.norm(0.5), minimum=0.1, maximum=2.0, interval=5)
    server = FaultServer()
    job = Job(policy, url=server.url, run="r")

    def hear(step: int, threshold: float, version: int) -> None:
        server.recommendation = {"policy": "norm", "threshold": threshold, "version": version}
        job.train(range(step, step + 1))
        assert job.watch.flush(10.0)

    hear(0, 0.2, 1)  # 0.5 falls by half at most: to 0.25
    job.train(range(1, BREAK))
    if stops:
        saved = job.saved()
        job.watch.close(timeout=10.0)
        job = Job(policy, url=server.url, run="r")
        if forgets:
            server.recommendation = None
            model, optimizer, _ = torch.load(io.BytesIO(saved), weights_only=True)
            job.model.load_state_dict(model)
            job.optimizer.load_state_dict(optimizer)
        else:
            job.load(saved)
    job.train(range(BREAK, BREAK + 11))
    hear(BREAK + 11, 0.1, 2)
    job.train(range(BREAK + 12, END))
    job.watch.close(timeout=10.0)
    server.close()
    return job.weights()


def test_a_resumed_job_supersedes_the_tail_of_the_one_that_stopped(tmp_path: Path) -> None:
    with serving(tmp_path) as served:
        options = {"url": served.base_url, "run": "resumed"}
        first = Job(clip.value_rms(1.5), **options)
        first.train(range(900))
        saved = first.saved()
        first.train(range(900, 1000))
        first.watch.close(timeout=20.0)
        second = Job(clip.value_rms(1.5), **options)
        second.load(saved)
        second.train(range(900, 1100), scale=2.0)  # other gradients than those it supersedes
        second.watch.close(timeout=20.0)

        def norms(**query: Any) -> dict[int, float]:
            asked = {"metric": "global_norm", "points": 1100, **query}
            told = served.http.get("/api/v1/runs/resumed/series", params=asked).json()
            assert set(told["count"]) == {1}
            return dict(zip(told["start_step"], told["max"], strict=True))

        old, new, all_of_it = norms(attempt=0), norms(attempt=1), norms()
        assert list(old) == list(range(1000))
        assert list(new) == list(range(900, 1100))
        assert any(old[step] != new[step] for step in range(900, 1000))
        assert all_of_it == {**old, **new}
        summary = served.http.get("/api/v1/runs/resumed").json()
        assert (summary["attempt"], summary["last_step"]) == (1, 1099)


def test_several_watches_outlive_a_service_that_goes_and_comes_back(tmp_path: Path) -> None:
    port, store = free_port(), tmp_path / "store.db"
    url = f"http://127.0.0.1:{port}"
    with serve_process(store, port=port) as process:
        jobs = {run: Job(clip.norm(0.3), url=url, run=run) for run in ("one", "two", "three")}
        for job in jobs.values():
            job.train(range(20))
        assert jobs["one"].watch.flush(20.0)
        process.kill()
    for job in jobs.values():
        job.train(range(20, 40))
        assert not job.watch.flush(0.1)
    with serve_process(store, port=port) as process:
        for run, job in jobs.items():
            job.train(range(40, 50))
            if run == "one":
                job.watch.close(timeout=20.0)  # one ends, the others go on
                continue
            assert job.watch.flush(30.0)
            job.train(range(50, 60))
            job.watch.close(timeout=20.0)
        for run, last in (("one", 50), ("two", 60), ("three", 60)):
            asked = {"metric": "global_norm", "points": 100}
            told = process.http.get(f"/api/v1/runs/{run}/series", params=asked).json()
            assert told["start_step"] == list(range(last))
            assert set(told["count"]) == {1}
    # Neither knows of the others, and none was disturbed by any of it.
    alone = Job(clip.norm(0.3), mode="disabled")
    alone.train(range(60))
    assert torch.equal(jobs["two"].weights(), alone.weights())
    assert torch.equal(jobs["three"].weights(), alone.weights())


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    """Close what a failed test left open, so that it reports on its own and not in the next one."""
    yield
    gradwatch.shutdown._close_all()
