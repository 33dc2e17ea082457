"""A loop that sets its threshold from the service's answers has a number at every step of its life."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import Process, free_port, serve_process
from torch import nn

import gradwatch

FLOOD = range(60, 84)  # steps whose gradients are NaN
CHECKPOINT, LOST, BACK, FIRST_END, END = 88, 92, 96, 100, 130
BOUNDS = {"default": 1.0, "minimum": 0.01, "maximum": 5.0}
POLICIES = ("norm", "value", "per_tensor", "agc")


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GRADWATCH_QUIET", "1")
    monkeypatch.setenv("GRADWATCH_DIR", str(tmp_path / "spool"))
    torch.set_num_threads(1)


class Script:
    """A training that asks before every step and clips by what it is told."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.answers: list[dict[str, Any]] = []
        self.refusals: list[int | None] = []
        self.threshold = BOUNDS["default"]

    def begin(self) -> None:
        """A process of the job begins: model, optimizer and Watch are new."""
        torch.manual_seed(1)
        self.model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 1))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.02)
        self.watch = gradwatch.watch(self.model, self.optimizer, run="script", url=self.url)

    def saved(self) -> Any:
        return self.model.state_dict(), self.watch.state_dict()

    def load(self, saved: Any) -> None:
        self.model.load_state_dict(saved[0])
        self.watch.load_state_dict(saved[1])

    def step(self, step: int) -> None:
        self.ask(step)
        self.optimizer.zero_grad()
        batch = torch.randn(4, 6, generator=torch.Generator().manual_seed(step))
        loss = self.model(batch).square().mean()
        (loss * math.nan if step in FLOOD else loss).backward()
        self.optimizer.step()  # measured here, before the script's own clipping would come too late
        if step in FLOOD:
            self.model.load_state_dict(self.kept)
        else:
            self.kept = {name: value.clone() for name, value in self.model.state_dict().items()}
        if step % 10 == 9:
            self.watch.flush(5.0)

    def ask(self, step: int) -> None:
        """Take the number over if the service answers; every answer is kept for the test."""
        for policy in POLICIES if step % 10 == 5 else ("norm",):
            try:
                answer = gradwatch.recommendation("script", policy, self.url, **BOUNDS)
            except gradwatch.QueryError as error:
                self.refusals.append(error.status)
                continue
            self.answers.append({"step": step, **answer})
            if policy == "norm":
                self.threshold = answer["effective_threshold"]


def run_through(script: Script, store: Path, port: int) -> Process:
    with serve_process(store, port=port) as first:
        script.begin()
        for step in range(CHECKPOINT):
            script.step(step)
        checkpoint = script.saved()
        for step in range(CHECKPOINT, LOST):
            script.step(step)
        first.kill()
        for step in range(LOST, BACK):
            script.step(step)
    with serve_process(store, port=port) as second:
        for step in range(BACK, FIRST_END):
            script.step(step)
        script.watch.close(timeout=10.0)
        script.begin()
        script.load(checkpoint)
        for step in range(CHECKPOINT, END):
            script.step(step)
        script.watch.close(timeout=20.0)
        script.ask(5)
        return second


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Script:
    directory = tmp_path_factory.mktemp("script")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADWATCH_QUIET", "1")
        patch.setenv("GRADWATCH_DIR", str(directory / "spool"))
        port = free_port()
        made = Script(f"http://127.0.0.1:{port}")
        run_through(made, directory / "gradwatch.db", port)
    return made


def test_every_answer_has_a_number_within_the_bounds(script: Script) -> None:
    assert len(script.answers) > 130
    assert {answer["policy"] for answer in script.answers} == set(POLICIES)
    for answer in script.answers:
        found = [answer["effective_threshold"]]
        found += [one["effective_threshold"] for one in answer.get("thresholds", {}).values()]
        for number in found:
            assert isinstance(number, float), answer
            assert BOUNDS["minimum"] <= number <= BOUNDS["maximum"], answer
        if answer["status"] == "none":
            assert answer["effective_threshold"] == BOUNDS["default"]
            assert answer["reasons"] != ["ok"]
            assert answer["reason"].startswith("no threshold: ")


def test_what_the_script_went_through_is_in_the_answers(script: Script) -> None:
    norm = [answer for answer in script.answers if answer["policy"] == "norm"]
    flooded = [a["step"] for a in norm if "nonfinite_flood" in a["reasons"]]

    # 404 is the time before the run is known, if it was asked then; None a service that is not there.
    assert set(script.refusals) <= {404, None}
    assert script.refusals.count(None) >= BACK - LOST
    assert flooded
    assert FLOOD.start < min(flooded) <= max(flooded) < FLOOD.stop + 40
    assert {"none", "provisional"} < {answer["status"] for answer in norm}
    versions = [answer["version"] for answer in norm]
    assert versions == sorted(versions), "after a restart or a rewind the newer answer still wins"
    assert norm[-1]["valid_from_step"] == END
    assert norm[-1]["threshold"] is not None
