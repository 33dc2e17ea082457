"""Ten thousand steps cost no more memory, threads or descriptors than a hundred do."""

import os
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.guarantees import fault_server as faults
from tests.guarantees.fault_server import FaultServer, Request
from torch import nn

import gradwatch

pytestmark = pytest.mark.soak
STEPS = int(os.environ.get("SOAK_STEPS", "10000"))
ALLOWED_GROWTH_BYTES = 24 * 2**20


@pytest.fixture
def server() -> Iterator[FaultServer]:
    made = FaultServer()
    yield made
    made.close()


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("weather", ["fair", "changing", "away"])
def test_ten_thousand_steps_leave_nothing_behind(
    weather: str, server: FaultServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADWATCH_QUIET", "1")
    monkeypatch.setenv("GRADWATCH_TIMEOUT", "0.5")
    torch.set_num_threads(1)
    stored: Counter[int] = Counter()
    seen: set[tuple[int, int, int]] = set()

    def forget_bodies(at: FaultServer, connection: object, request: Request) -> bool:
        """The server of this test must not be what grows: it keeps step numbers alone."""
        if weather == "away" or (weather == "changing" and len(at.requests) % 3 == 0):
            return faults.reset(at, connection, request)  # type: ignore[arg-type] # a socket, untyped here
        connection.sendall(at.answer(request))  # type: ignore[attr-defined] # the same
        for key in list(at.stored):
            steps = at.stored.pop(key).steps.flat()
            if key not in seen:  # a repeat, whose first answer was lost
                seen.add(key)
                stored.update(steps)
        at.requests.clear()
        at.headers.clear()
        return True

    server.fault = forget_bodies
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(8)))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    watch = gradwatch.watch(
        model,
        optimizer,
        clip=gradwatch.clip.value(0.1),
        run="r",
        url=server.url,
        spool=tmp_path,
    )
    figures: list[tuple[int, int, int]] = []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = model(torch.randn(4, 8)).square().mean()
        loss.backward()
        optimizer.step()
        watch.log(loss=loss)
        if step in (STEPS // 10, STEPS - 1):
            figures.append((resident_bytes(), threading.active_count(), descriptors()))
    watch.close(timeout=10.0)
    (memory, threads, files), (memory_after, threads_after, files_after) = figures
    assert memory_after - memory < ALLOWED_GROWTH_BYTES
    # The server answers each new connection from a thread and descriptors of its own.
    assert threads_after <= threads + 2
    assert files_after <= files + 6
    delivery = watch.health().delivery
    assert delivery is not None
    assert sum(delivery.dropped.values()) + delivery.pending_steps + delivery.sent_steps == STEPS
    assert max(stored.values(), default=1) == 1
