"""Promise 1: whatever happens to the service, the weights are those of a run without reporting."""

import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from torch import Tensor, nn

import gradwatch

STEPS = 200
Happening = Callable[[int], None]


class Characters(nn.Module):
    """A language model small enough for 200 steps in a second, and as deep as a real one."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(32, 16)
        self.rnn = nn.LSTM(16, 24, num_layers=2, batch_first=True)
        self.head = nn.Linear(24, 32)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden: Tensor = self.rnn(self.embed(tokens))[0]
        logits: Tensor = self.head(hidden)
        return logits


def train(
    happening: Happening = lambda _: None, steps: int = STEPS, **options: Any
) -> list[Tensor]:
    """Train from a fixed seed; return the final weights. ``options`` None: not watched at all."""
    torch.manual_seed(7)
    torch.set_num_threads(1)
    model = Characters()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    watch = gradwatch.watch(model, optimizer, **options) if options else None
    for step in range(steps):
        happening(step)
        tokens = torch.randint(0, 32, (4, 12))
        loss = nn.functional.cross_entropy(
            model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if watch is not None:
            watch.log(loss=loss)
    if watch is not None:
        watch.close(timeout=10.0)
        assert watch.health().errors == 0
    return [p.detach().clone() for p in model.parameters()]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def service(folder: Path, port: int) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Run ``gradwatch serve`` in a process of its own."""
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "gradwatch_cli", "serve", "--port", str(port)]
    store = ["--store", f"sqlite:///{folder / 'watch.db'}"]
    with (folder / "serve.log").open("ab") as log:
        process = subprocess.Popen([*command, *store], stdout=log, stderr=log)
    try:
        wait_until(lambda: is_ready(url), "the service to be ready")
        yield url, process
    finally:
        process.kill()
        process.wait()


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz").status_code == 200
    except httpx.TransportError:
        return False


def wait_until(happened: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.05)


CLIP = gradwatch.clip.chain(gradwatch.clip.value(0.01), gradwatch.clip.norm(0.05))


@pytest.fixture(scope="module")
def expected() -> list[Tensor]:
    """The weights with clipping and no reporting at all."""
    return train(clip=CLIP, mode="disabled")


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GRADWATCH_QUIET", "1")
    monkeypatch.setenv("GRADWATCH_DIR", str(tmp_path / "spool"))


def test_clipping_changes_the_weights_at_all(expected: list[Tensor]) -> None:
    assert not same(expected, train())


def test_the_weights_are_the_same_with_a_healthy_service_and_every_step_arrives(
    expected: list[Tensor], tmp_path: Path
) -> None:
    with service(tmp_path, free_port()) as (url, _):
        assert same(expected, train(clip=CLIP, url=url, run="healthy"))
        series = httpx.get(
            f"{url}/api/v1/runs/healthy/series", params={"metric": "loss", "points": STEPS}
        ).json()
        assert sum(series["count"]) == STEPS


def test_the_weights_are_the_same_when_there_is_no_service(expected: list[Tensor]) -> None:
    assert same(expected, train(clip=CLIP, url=f"http://127.0.0.1:{free_port()}", run="down"))


def test_the_weights_are_the_same_when_the_service_is_killed_midway(
    expected: list[Tensor], tmp_path: Path
) -> None:
    with service(tmp_path, free_port()) as (url, process):

        def kill(step: int) -> None:
            if step == STEPS // 2:
                wait_until(
                    lambda: httpx.get(f"{url}/api/v1/runs/killed").status_code == 200,
                    "the run to be registered",
                )
                process.send_signal(signal.SIGKILL)
                process.wait()

        assert same(expected, train(kill, clip=CLIP, url=url, run="killed"))


def test_without_a_policy_the_weights_are_those_of_a_run_that_nobody_watches(
    tmp_path: Path,
) -> None:
    with service(tmp_path, free_port()) as (url, _):
        assert same(train(), train(clip=None, url=url, run="monitor"))


def test_a_job_restarted_with_the_same_run_id_loses_nothing(tmp_path: Path) -> None:
    with service(tmp_path, free_port()) as (url, _):
        saved: dict[str, Any] = {}
        for attempt, steps in enumerate((range(60), range(40, 80))):
            model = nn.Linear(4, 1)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            watch = gradwatch.watch(model, optimizer, clip=CLIP, url=url, run="restarted")
            if attempt:
                watch.load_state_dict(saved)
            for step in steps:
                if step == 40:
                    saved = watch.state_dict()
                optimizer.zero_grad()
                model(torch.ones(2, 4)).sum().backward()
                optimizer.step()
            watch.close(timeout=10.0)
        run = f"{url}/api/v1/runs/restarted"
        asked: dict[str, Any] = {"metric": "global_norm", "points": STEPS}
        for attempt, steps in enumerate((range(60), range(40, 80))):
            stored = httpx.get(f"{run}/series", params={**asked, "attempt": attempt}).json()
            assert stored["start_step"] == list(steps)
        # What a reader sees without asking for an attempt: one line, the newest where both have a step.
        assert httpx.get(f"{run}/series", params=asked).json()["start_step"] == list(range(80))
        assert httpx.get(run).json()["attempt"] == 1
