"""A threshold that follows the service stays within what its user allowed, and can be replayed."""

import math
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.guarantees.fault_server import FaultServer
from torch import Tensor, nn

import gradwatch

STEPS = 120
BASE, MINIMUM, MAXIMUM, INTERVAL = 0.5, 0.1, 2.0, 5


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GRADWATCH_QUIET", "1")
    monkeypatch.setenv("GRADWATCH_DIR", str(tmp_path / "spool"))


@pytest.fixture
def server() -> Iterator[FaultServer]:
    made = FaultServer()
    yield made
    made.close()


def train(
    policy: Any, server: FaultServer | None = None, said: Mapping[int, Any] | None = None
) -> Tensor:
    """Train from a fixed seed; at the steps of ``said`` the service begins to recommend that."""
    torch.set_num_threads(1)
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    options: dict[str, Any] = {"url": server.url} if server else {"mode": "disabled"}
    watch = gradwatch.watch(model, optimizer, clip=policy, run="r", **options)
    for step in range(STEPS):
        if server is not None and step in (said or {}):
            server.recommendation = (said or {})[step]
            assert watch.flush(10.0)  # the next boundary has heard of it
        loss = 10.0 * model(torch.randn(4, 6)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    watch.close(timeout=10.0)
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def reported(server: FaultServer, scalar: str) -> list[float | None]:
    """One scalar at every step, as the service was told."""
    values = {
        step: value
        for report in server.stored.values()
        for step, value in zip(report.steps.flat(), report.scalars[scalar].to_list(), strict=True)
    }
    return [values[step] for step in range(STEPS)]


def advice(threshold: Any, version: Any, policy: str = "norm") -> dict[str, Any]:
    return {"policy": policy, "threshold": threshold, "version": version, "status": "estimated"}


SENSIBLE = {10: advice(0.3, 1), 40: advice(0.2, 2), 70: advice(0.21, 3), 100: advice(0.15, 4)}
HOSTILE = {
    5: advice(1e-9, 1),
    15: advice(1e9, 2),
    25: advice(math.pi * 1e300, 3),
    35: advice("0.2", 4),
    45: advice(-0.2, 5),
    55: advice(0.2, 6, policy="value"),
    65: advice(None, 7),
    75: [1, 2],
    85: {"threshold": {}},
    95: advice(0.2, 10**30),
    105: advice(0.15, 1),
}


def following() -> Any:
    norm = gradwatch.clip.norm(BASE)
    return gradwatch.clip.recommended(norm, minimum=MINIMUM, maximum=MAXIMUM, interval=INTERVAL)


def test_replaying_the_reported_thresholds_gives_the_same_weights(server: FaultServer) -> None:
    followed = train(following(), server, SENSIBLE)
    thresholds = reported(server, "threshold")
    versions = reported(server, "recommendation_version")
    assert len(set(thresholds)) >= 4
    assert max(version or 0 for version in versions) == 4
    moves = {
        step: gradwatch.clip.norm(threshold)
        for step, threshold in enumerate(thresholds)
        if threshold is not None and (step == 0 or threshold != thresholds[step - 1])
    }
    assert all(step % INTERVAL == 0 for step in moves)
    assert torch.equal(train(gradwatch.clip.schedule(moves)), followed)
    assert not torch.equal(train(gradwatch.clip.norm(BASE)), followed)


def test_a_lying_service_moves_nothing_beyond_what_was_allowed(server: FaultServer) -> None:
    train(following(), server, HOSTILE)
    thresholds = [t for t in reported(server, "threshold") if t is not None]
    assert len(thresholds) == STEPS
    assert all(MINIMUM <= t <= MAXIMUM for t in thresholds)
    for before, after in pairwise(thresholds):
        assert 0.5 * before <= after <= before * 1.001**STEPS
    assert set(thresholds[:95]) == {BASE}
    assert thresholds[-1] < BASE


def test_without_a_service_the_base_stays(server: FaultServer) -> None:
    server.close()
    assert torch.equal(train(following(), server), train(gradwatch.clip.norm(BASE)))


def test_when_the_service_is_lost_the_threshold_stays_where_it_is(server: FaultServer) -> None:
    def vanish(at: FaultServer, connection: Any, request: Any) -> bool:
        if len(at.stored) >= 2:
            return False
        connection.sendall(at.answer(request))
        return True

    server.fault = vanish
    torch.manual_seed(5)
    model = nn.Linear(6, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    watch = gradwatch.watch(model, optimizer, clip=following(), run="r", url=server.url)
    server.recommendation = advice(1.9, 1)  # far above: it would rise at every boundary
    seen = []
    for step in range(60):
        if step in (1, 21, 31):
            watch.flush(0.5)
        loss = 10.0 * model(torch.randn(4, 6)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert watch.threshold is not None
        seen.append(float(watch.threshold))
    watch.close(timeout=2.0)
    assert seen[30] > BASE
    assert set(seen[35:]) == {seen[35]}
