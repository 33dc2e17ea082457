"""The reporter between the hook and the service."""

import gc
import os
import signal
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.client.reporting.samples import IDENTITY, TENSORS, manifest, sample, settings
from tests.guarantees.fault_server import FaultServer, always

from gradwatch.reporting.backoff import Backoff
from gradwatch.reporting.delivery import MAX_BYTES
from gradwatch.reporting.outbox import MAX_SAMPLES
from gradwatch.reporting.reporter import Reporter
from gradwatch.statistics import STATISTICS

QUICK = Backoff(first=0.01, probe=(0.02, 0.05))


@pytest.fixture
def server() -> Iterator[FaultServer]:
    made = FaultServer()
    yield made
    made.close()


@pytest.fixture
def reporter(server: FaultServer, tmp_path: Path) -> Iterator[Reporter]:
    made = Reporter(settings(server.url, tmp_path), IDENTITY, backoff=QUICK)
    made.register("default", manifest(), STATISTICS)
    yield made
    made.close("completed", 2.0)


def until(condition: Callable[[], Any], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_registering_reaches_the_service_before_the_first_step(
    reporter: Reporter, server: FaultServer
) -> None:
    until(lambda: ("PUT", "/api/v1/runs/r") in server.requests)


def test_what_is_put_arrives_unchanged(reporter: Reporter, server: FaultServer) -> None:
    reporter.put(sample(5, value=0.5, scalars={"loss": 2.5}))
    assert reporter.flush(5.0)
    (report,) = server.stored.values()
    assert list(report.steps.flat()) == [5]
    assert report.tensors["norm"].to_list() == [[0.5, 0.5, 0.5]]
    assert report.tensors["zero_count"].to_list() == [[0, 0, 0]]
    assert report.scalars["loss"].to_list() == [2.5]
    assert report.scalars["global_norm"].to_list() == [0.5]
    assert set(report.tensors) == set(STATISTICS)


def test_a_scalar_logged_after_the_step_still_travels_with_it(
    reporter: Reporter, server: FaultServer
) -> None:
    newest = sample(0)
    reporter.put(newest)
    until(lambda: reporter._outbox.waiting == 0)
    newest.scalars["loss"] = float("nan")
    assert reporter.flush(5.0)
    assert newest.packed
    (report,) = server.stored.values()
    assert report.scalars["loss"].to_list() == [None]
    assert report.scalars["loss_nonfinite"].to_list() == [1.0]


def test_a_non_finite_step_is_delivered_without_being_asked(
    reporter: Reporter, server: FaultServer
) -> None:
    reporter.put(sample(0))
    reporter.put(sample(1, nonfinite=2))
    reporter.put(sample(2))
    until(lambda: server.steps()[1])
    assert 2 not in server.steps()


def test_steps_that_are_alike_share_a_delivery_and_sequences_have_no_gap(
    reporter: Reporter, server: FaultServer
) -> None:
    reporter.register("other", manifest("other"), STATISTICS)
    for step in range(40):
        reporter.put(sample(step))
        reporter.put(sample(step, optimizer="other"))
    assert reporter.flush(5.0)
    assert server.sequences() == [0, 1]
    assert {r.optimizer for r in server.stored.values()} == {"default", "other"}


def test_a_burst_is_cut_into_deliveries_of_bounded_size(
    server: FaultServer, tmp_path: Path
) -> None:
    gate = threading.Event()
    reporter = Reporter(settings(server.url, tmp_path), IDENTITY, backoff=QUICK)
    reporter.on_read(lambda *_: gate.wait(10.0))  # type: ignore[arg-type] # its value is ignored
    reporter.register("default", manifest(tensors=1000), STATISTICS)
    for step in range(40):
        reporter.put(sample(step, tensors=1000))
    gate.set()
    assert reporter.close("completed", 10.0)
    assert server.steps() == Counter(range(40))
    sizes = [sum(len(c.data) for c in r.tensors.values()) for r in server.stored.values()]
    assert sum(sizes) > 4 * MAX_BYTES
    assert max(sizes) < MAX_BYTES + 2 * sum(sizes) / 40


def test_a_step_that_goes_back_begins_another_delivery(
    reporter: Reporter, server: FaultServer
) -> None:
    for step in (8, 9, 3, 4):
        reporter.put(sample(step))
    assert reporter.flush(5.0)
    assert [list(r.steps.flat()) for r in server.stored.values()] == [[8, 9], [3, 4]]


def test_tensors_added_later_have_a_manifest_of_their_own(
    reporter: Reporter, server: FaultServer
) -> None:
    reporter.put(sample(0))
    reporter.register("default", manifest(tensors=4), STATISTICS)
    reporter.put(sample(1, tensors=4))
    assert reporter.flush(5.0)
    assert [r.tensors["norm"].shape for r in server.stored.values()] == [(1, 3), (1, 4)]


def test_when_training_is_faster_samples_are_dropped_counted_and_told(
    reporter: Reporter, server: FaultServer
) -> None:
    gate, entered = threading.Event(), threading.Event()
    reporter.on_read(lambda *_: (entered.set(), gate.wait(10.0)))  # type: ignore[arg-type] # its value is ignored
    reporter.put(sample(0))
    assert entered.wait(10.0)
    for step in range(1, MAX_SAMPLES + 8):
        reporter.put(sample(step))
    gate.set()
    assert reporter.close("completed", 10.0)
    assert reporter.health().dropped["queue_full"] == 7
    assert server.dropped()["queue_full"] == 7
    assert server.steps() == Counter(range(MAX_SAMPLES + 1))


def test_a_sample_nobody_can_read_costs_itself_alone(
    reporter: Reporter, server: FaultServer
) -> None:
    reporter.put(sample(0))
    reporter.put(sample(1, tensors=2))
    reporter.put(sample(2))
    assert reporter.flush(5.0)
    assert server.steps() == Counter([0, 2])
    assert reporter.health().dropped == {"internal": 1}
    assert "expected" in str(reporter.health().last_error)


@pytest.mark.parametrize("sampled", [0.0, 0.5, 1.0, 1.5, float("nan")])
def test_a_histogram_travels_when_it_looked_at_something(
    sampled: float, reporter: Reporter, server: FaultServer
) -> None:
    made = sample(0)
    counts = torch.arange(TENSORS * 256, dtype=torch.int64).view(TENSORS, 256)
    made.stats = replace(made.stats, histogram=counts, histogram_sampled=sampled)
    reporter.put(made)
    assert reporter.flush(5.0)
    (report,) = server.stored.values()
    if 0.0 < sampled <= 1.0:
        assert report.histograms is not None
        assert report.histograms.sampled == sampled
        assert report.histograms.counts.to_list() == [counts.tolist()]
    else:
        assert report.histograms is None


def test_numbers_beyond_the_wire_cost_no_delivery(reporter: Reporter, server: FaultServer) -> None:
    """The worst step must not be the one that is refused: it is what people will ask about."""
    reporter.put(sample(0, value=1e300))
    reporter.put(sample(1, value=float("nan")))
    assert reporter.flush(5.0)
    (report,) = server.stored.values()
    largest = report.tensors["norm"].to_list()[0][0]
    assert largest == pytest.approx(3.4028234663852886e38)
    assert report.tensors["norm"].to_list()[1] == [0.0] * TENSORS
    assert report.tensors["max_abs"].to_list()[1] == [None] * TENSORS


def test_a_callback_that_raises_costs_nothing(reporter: Reporter, server: FaultServer) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("a user's mistake")

    reporter.on_answer(broken)
    reporter.on_read(broken)
    reporter.on_start(broken)
    for step in range(3):
        reporter.put(sample(step))
        assert reporter.flush(5.0)
    assert server.steps() == Counter(range(3))
    assert reporter.health().dropped == {}


def test_the_recommendation_on_an_answer_is_kept(reporter: Reporter, server: FaultServer) -> None:
    assert reporter.recommendation is None
    server.recommendation = {"policy": "norm", "threshold": 0.5, "version": 1}
    reporter.put(sample(0))
    assert reporter.flush(5.0)
    server.recommendation = None
    reporter.put(sample(1))
    assert reporter.flush(5.0)
    assert reporter.recommendation == {"policy": "norm", "threshold": 0.5, "version": 1}


def test_the_service_can_make_a_client_quieter_and_never_louder(
    reporter: Reporter, server: FaultServer
) -> None:
    server.extra = {"every": 4}
    reporter.put(sample(0))
    assert reporter.flush(5.0)
    server.extra = {"every": 0.25, "pause": -1}
    for step in range(1, 13):
        reporter.put(sample(step, nonfinite=step == 7))
    assert reporter.flush(5.0)
    assert sorted(server.steps()) == [0, 4, 7, 8, 12]
    reporter.put(sample(13))
    reporter.put(sample(16))
    assert reporter.flush(5.0)
    assert server.dropped() == {"paused": 9}
    assert reporter.health().dropped == {"paused": 9}


def test_a_pause_ends_by_itself_and_is_bounded(reporter: Reporter, server: FaultServer) -> None:
    server.extra = {"pause": 10**400}
    reporter.put(sample(0))
    assert reporter.flush(5.0)
    assert reporter._background._quiet_until <= time.monotonic() + 300.0


def test_incidents_are_told_once(server: FaultServer, tmp_path: Path) -> None:
    told: list[Any] = []
    reporter = Reporter(settings(server.url, tmp_path), IDENTITY, backoff=QUICK)
    reporter.on_incident(told.append)
    reporter.register("default", manifest(), STATISTICS)
    server.incidents = [{"id": "b", "kind": "nonfinite"}, {"id": "a", "kind": "exploding"}]
    reporter.put(sample(0))
    assert reporter.flush(5.0)
    assert reporter.close("completed", 5.0)
    assert [incident["id"] for incident in told] == ["a", "b"]


def test_an_incident_that_opens_after_the_last_delivery_is_told(
    server: FaultServer, tmp_path: Path
) -> None:
    told: list[Any] = []
    reporter = Reporter(settings(server.url, tmp_path), IDENTITY, backoff=QUICK)
    reporter.on_incident(told.append)
    reporter.register("default", manifest(), STATISTICS)
    reporter.put(sample(0))
    assert reporter.flush(5.0)
    # It opened and closed since; the others are of an earlier start of the job, or were withdrawn.
    server.incidents = [
        {"id": "now", "attempt": 0, "status": "closed"},
        {"id": "withdrawn", "attempt": 0, "status": "retracted"},
        {"id": "before", "attempt": 7, "status": "open"},
    ]
    until(lambda: told)
    assert reporter.close("completed", 5.0)
    assert [incident["id"] for incident in told] == ["now"]


def test_health_follows_the_service(reporter: Reporter, server: FaultServer) -> None:
    until(lambda: reporter.health().state == "online")
    server.fault = always(503)
    reporter.put(sample(0))
    assert not reporter.flush(0.2)
    assert reporter.health().state == "away"
    assert reporter.health().spooled_deliveries == 1
    assert reporter.health().pending_steps == 1
    assert "503" in str(reporter.health().last_error)
    server.fault = None
    assert reporter.flush(5.0)
    assert reporter.health().state == "online"
    assert reporter.health().spooled_deliveries == 0
    assert reporter.health().sent_steps == 1
    assert reporter.close("completed", 5.0)
    assert reporter.health().state == "closed"


def test_a_refusal_is_told_once_and_nothing_more_is_sent(
    server: FaultServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.fault = always(401)
    reporter = Reporter(settings(server.url, tmp_path), IDENTITY, backoff=QUICK)
    reporter.register("default", manifest(), STATISTICS)
    for step in range(3):
        reporter.put(sample(step))
        reporter.flush(0.5)
    assert reporter.health().state == "refused"
    assert len(server.requests) == 1
    assert not reporter.close("completed", 1.0)
    assert len(server.requests) == 1
    assert [r.getMessage() for r in caplog.records] == [
        "nothing more is sent: answered 401: as the test wants it"
    ]


def test_offline_needs_no_service_and_opens_no_connection(
    server: FaultServer, tmp_path: Path
) -> None:
    reporter = Reporter(settings(server.url, tmp_path, mode="offline"), IDENTITY)
    reporter.register("default", manifest(), STATISTICS)
    reporter.put(sample(0))
    assert reporter.flush(5.0)
    assert reporter.health().state == "offline"
    assert reporter.health().spooled_deliveries == 1
    reporter.close("completed", 5.0)
    assert server.requests == []


def test_closing_twice_and_without_a_start_is_harmless(server: FaultServer, tmp_path: Path) -> None:
    idle = Reporter(settings(server.url, tmp_path), IDENTITY)
    assert idle.close("completed", 1.0)
    used = Reporter(settings(server.url, tmp_path), IDENTITY)
    used.register("default", manifest(), STATISTICS)
    assert used.close("failed", 5.0)
    assert used.close("completed", 5.0)
    used.put(sample(0))
    assert server.finished == ["failed"]


def test_only_the_first_rank_finishes_the_run(server: FaultServer, tmp_path: Path) -> None:
    for rank in (1, 0):
        reporter = Reporter(
            settings(server.url, tmp_path), replace(IDENTITY, rank=rank), backoff=QUICK
        )
        reporter.register("default", manifest(), STATISTICS)
        reporter.put(sample(0))
        assert reporter.close("completed", 5.0)
        assert server.finished == ["completed"] * (rank == 0)


def test_nothing_is_left_behind_after_closing(server: FaultServer, tmp_path: Path) -> None:
    reporter = Reporter(settings(server.url, tmp_path), IDENTITY, backoff=QUICK)
    reporter.register("default", manifest(), STATISTICS)
    reporter.put(sample(0))
    assert reporter.close("completed", 5.0)
    until(lambda: not any(thread.name == "gradwatch" for thread in threading.enumerate()))
    gone = weakref.ref(reporter)
    del reporter
    gc.collect()
    assert gone() is None
    assert list(tmp_path.iterdir()) == []


def test_handing_over_needs_no_lock_of_the_background_thread(
    reporter: Reporter, server: FaultServer
) -> None:
    with reporter._background._working:
        for step in range(100):
            reporter.put(sample(step))
        assert reporter.health().state in {"starting", "online"}
    assert reporter.flush(10.0)
    assert server.steps() == Counter(range(100))


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_child_forked_while_a_lock_is_held_cannot_hang(
    reporter: Reporter, server: FaultServer
) -> None:
    with reporter._background._working:
        child = os.fork()
        if child == 0:
            reporter.put(sample(0))
            fine = reporter.health().state == "closed" and reporter.flush(5.0)
            reporter.close("completed", 5.0)
            os._exit(0 if fine else 1)
    ended = (0, 0)
    deadline = time.monotonic() + 20.0
    while ended == (0, 0) and time.monotonic() < deadline:
        ended = os.waitpid(child, os.WNOHANG)
        time.sleep(0.01)
    if ended == (0, 0):
        os.kill(child, signal.SIGKILL)
    assert ended == (child, 0)
    reporter.put(sample(7))
    assert reporter.flush(10.0)
    assert server.steps() == Counter([7])
