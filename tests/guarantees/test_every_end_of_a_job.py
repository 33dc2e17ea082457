"""However a job ends, what it measured arrives or lies in the spool, and the job ends as it would."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.guarantees.fault_server import FaultServer, black_hole
from torch import nn

import gradwatch
from gradwatch.reporting.replay import find_spools, replay
from gradwatch.reporting.transport import HttpTransport

STEPS = 40
SCRIPT = Path(__file__).parent / "ending_job.py"


@pytest.fixture
def server() -> Iterator[FaultServer]:
    made = FaultServer()
    yield made
    made.close()


def job(ending: str, server: FaultServer, directory: Path) -> subprocess.Popen[str]:
    environment = os.environ | {
        "GRADWATCH_URL": server.url,
        "GRADWATCH_DIR": str(directory / "spool"),
        "GRADWATCH_QUIET": "1",
    }
    return subprocess.Popen(
        [sys.executable, "-W", "error", str(SCRIPT), ending],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_job_that_forks_and_never_closes_is_delivered_and_its_thread_did_no_io(
    server: FaultServer, tmp_path: Path
) -> None:
    out, errors = (process := job("falls off the end", server, tmp_path)).communicate(timeout=120)
    assert (process.returncode, errors) == (0, "")
    assert out.split() == ["CHILD", "0"]
    assert server.steps() == Counter(range(STEPS))
    assert server.repeats == 0
    assert server.finished == ["completed"]


def test_a_job_that_raises_is_delivered_as_failed(server: FaultServer, tmp_path: Path) -> None:
    _, errors = (process := job("raises", server, tmp_path)).communicate(timeout=120)
    assert process.returncode == 1
    assert errors.endswith("ValueError: the job's own fault\n")
    assert server.steps() == Counter(range(STEPS))
    assert server.finished == ["failed"]


def test_a_preempted_job_is_delivered_as_interrupted(server: FaultServer, tmp_path: Path) -> None:
    process = job("is terminated", server, tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "READY\n"
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (-signal.SIGTERM, "")
    assert server.steps() == Counter(range(STEPS))
    assert server.finished == ["interrupted"]


def test_a_handler_that_was_there_before_is_still_called(
    server: FaultServer, tmp_path: Path
) -> None:
    ending = "terminates itself from a chained handler"
    _, errors = (process := job(ending, server, tmp_path)).communicate(timeout=120)
    assert (process.returncode, errors) == (7, "")
    assert server.finished == ["interrupted"]


def train_until_killed(
    url: str, directory: Path, ready: "multiprocessing.connection.Connection"
) -> None:
    """Train without a service, tell once a part lies in the spool, and go on for ever."""
    os.environ |= {"GRADWATCH_DIR": str(directory), "GRADWATCH_QUIET": "1"}
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    watch = gradwatch.watch(model, optimizer, clip=gradwatch.clip.value(0.1), run="r", url=url)
    while True:
        optimizer.zero_grad()
        model(torch.randn(3, 4)).sum().backward()
        if watch.tracked[0].step % 5 == 0:
            model.weight.grad[0, 0] = float("inf")  # delivered at once: many small deliveries
        optimizer.step()
        delivery = watch.health().delivery
        if delivery is not None and delivery.spooled_deliveries >= 20:
            ready.send(delivery.spooled_deliveries)
        time.sleep(0.001)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_what_lay_in_the_spool_when_a_job_was_killed_is_replayed(
    server: FaultServer, tmp_path: Path
) -> None:
    away = FaultServer()
    away.close()
    here, there = multiprocessing.Pipe(duplex=False)
    context = multiprocessing.get_context("fork")
    process = context.Process(target=train_until_killed, args=(away.url, tmp_path, there))
    process.start()
    there.close()
    assert here.poll(60)
    promised = here.recv()
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join(20)
    (spool,) = find_spools(tmp_path)
    assert spool.deliveries >= promised
    outcome = replay(spool, lambda: HttpTransport(server.url, token=None, timeout=10.0))
    assert (outcome.left, outcome.why) == (0, "")
    stored = server.steps()
    # A prefix without a hole, each step once: only the last moment, never acknowledged, is missing.
    assert stored == Counter(range(len(stored)))
    assert server.sequences() == list(range(spool.deliveries))


def test_a_replay_that_is_interrupted_and_repeated_counts_nothing_twice(
    server: FaultServer, tmp_path: Path
) -> None:
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    options = {"mode": "offline", "run": "r", "spool": tmp_path}
    with gradwatch.watch(model, optimizer, clip=gradwatch.clip.value(0.1), **options) as watch:
        for _ in range(STEPS):
            optimizer.zero_grad()
            model(torch.randn(3, 4)).sum().backward()
            optimizer.step()
            if watch.tracked[0].step % 10 == 0:
                assert watch.flush(5.0)

    def connect() -> HttpTransport:
        return HttpTransport(server.url, token=None, timeout=10.0)

    def interrupt() -> None:
        if len(server.stored) == 2:
            raise KeyboardInterrupt

    (spool,) = find_spools(tmp_path)
    assert spool.deliveries >= 4
    with pytest.raises(KeyboardInterrupt):
        replay(spool, connect, on_delivery=interrupt)
    (again,) = find_spools(tmp_path)
    kept = replay(again, connect, keep=True)
    assert find_spools(tmp_path) == [again]
    last = replay(again, connect)
    assert (kept.why, last.why) == ("", "")
    assert server.steps() == Counter(range(STEPS))
    assert server.repeats > 0
    assert find_spools(tmp_path) == []
    assert set(server.finished) == {"completed"}


def test_a_replay_gives_up_when_the_service_is_away_and_says_what_is_left(
    server: FaultServer, tmp_path: Path
) -> None:
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with gradwatch.watch(model, optimizer, mode="offline", run="r", spool=tmp_path):
        model(torch.randn(3, 4)).sum().backward()
        optimizer.step()
    server.fault = black_hole
    (spool,) = find_spools(tmp_path)
    outcome = replay(spool, lambda: HttpTransport(server.url, token=None, timeout=0.1), patience=2)
    assert outcome.left == 1
    assert "timed out" in outcome.why
    assert find_spools(tmp_path) == [spool]
