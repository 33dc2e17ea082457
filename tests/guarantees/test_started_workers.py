"""A worker that is started afresh gets a harmless copy of a Watch; the job goes on as before."""

import pickle
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.guarantees.fault_server import FaultServer
from tests.guarantees.spawned import Holding
from torch import nn
from torch.utils.data import DataLoader

import gradwatch

LIMIT = 0.01
STEPS = 20


@pytest.fixture
def server() -> Iterator[FaultServer]:
    made = FaultServer()
    yield made
    made.close()


@pytest.fixture
def held(server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Holding]:
    monkeypatch.setenv("GRADWATCH_QUIET", "1")
    monkeypatch.setenv("GRADWATCH_TOKEN", "a-secret")
    monkeypatch.setenv("GRADWATCH_DIR", str(tmp_path / "spool"))
    torch.set_num_threads(1)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    watch = gradwatch.watch(
        model, optimizer, clip=gradwatch.clip.value(LIMIT), run="r", url=server.url
    )
    yield Holding(watch, model, optimizer)
    watch.close(timeout=2.0)


def train(held: Holding, steps: int) -> None:
    for _ in range(steps):
        held.optimizer.zero_grad()
        held.model(torch.randn(3, 4)).square().sum().backward()
        held.optimizer.step()
        assert all(float(p.grad.abs().max()) <= LIMIT for p in held.model.parameters())


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_started_worker_reports_nothing_and_its_parent_goes_on(
    method: str, held: Holding, server: FaultServer
) -> None:
    train(held, STEPS // 2)
    assert held.watch.flush(10.0)
    requests = list(server.requests)
    loader = DataLoader(held, batch_size=None, num_workers=1, multiprocessing_context=method)
    found = list(loader)
    assert found == 2 * [
        {
            "run": "r",
            "reports": False,
            "clips": False,
            "flushed": True,
            "token": None,
            "threads": [],
        }
    ]
    assert server.requests == requests
    train(held, STEPS // 2)
    held.watch.close(timeout=10.0)
    assert server.steps() == Counter(range(STEPS))
    assert server.repeats == 0
    assert server.finished == ["completed"]


def test_a_pickled_or_printed_watch_does_not_tell_the_token(held: Holding) -> None:
    assert held.watch.settings.token == "a-secret"  # noqa: S105 - a test's own
    assert b"a-secret" not in pickle.dumps(held)
    assert "a-secret" not in repr(held.watch)
