"""Promises 1 and 3 against a service that fails in every way we could think of.

Each fault is met by a real training over real sockets. Whatever it is: the weights are bit-identical
to those of a run without reporting, nothing is raised, closing ends in time, and once the service is
well again every step is stored exactly once or counted as dropped.
"""

import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tests.guarantees import fault_server as faults
from tests.guarantees.fault_server import Fault, FaultServer, Request, always, sends, spell
from torch import Tensor, nn

import gradwatch
from gradwatch.reporting.backoff import Backoff
from gradwatch.reporting.replay import find_spools, replay
from gradwatch.reporting.transport import HttpTransport

STEPS = 60
TLS = Path(__file__).parents[1] / "client" / "reporting" / "tls"
CLOSE_SECONDS = 1.0
CLIP = gradwatch.clip.chain(gradwatch.clip.value(0.05), gradwatch.clip.norm(0.1))


@dataclass
class Trained:
    """What is left of a training: weights, figures and how long closing took."""

    weights: Tensor
    health: gradwatch.Health | None = None
    closing_seconds: float = 0.0


def train(url: str = "", **options: object) -> Trained:
    """Train from a fixed seed, reporting to ``url``."""
    torch.set_num_threads(1)
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    options = {"mode": "online", "url": url} | options if url else {"mode": "disabled"}
    watch = gradwatch.watch(model, optimizer, clip=CLIP, run="r", nonfinite="zero", **options)
    for step in range(STEPS):
        loss = model(torch.randn(4, 8)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        if step % 20 == 10:
            # A non-finite step is delivered at once: so the fault is met amid training.
            model[0].weight.grad[0, 0] = float("inf")
        optimizer.step()
        watch.log(loss=loss)
    begun = time.monotonic()
    watch.close(timeout=CLOSE_SECONDS)
    seconds = time.monotonic() - begun
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    return Trained(weights, watch.health(), seconds)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GRADWATCH_QUIET", "1")
    monkeypatch.setenv("GRADWATCH_TIMEOUT", "0.3")
    monkeypatch.setenv("GRADWATCH_DIR", str(tmp_path / "spool"))


@pytest.fixture(scope="module")
def expected() -> Tensor:
    """The weights without reporting."""
    return train().weights


@pytest.fixture
def server() -> Iterator[FaultServer]:
    made = FaultServer()
    yield made
    made.close()


def on_reports(fault: Fault) -> Fault:
    """The fault for deliveries only; registering goes well."""

    def chosen(server: FaultServer, connection: object, request: Request) -> bool:
        if request.path.endswith("/reports"):
            return fault(server, connection, request)  # type: ignore[arg-type] # a socket, untyped here
        connection.sendall(server.answer(request))  # type: ignore[attr-defined] # the same
        return True

    return chosen


# Faults after which every step must have been stored, once the service is well again.
LOSES_NOTHING = {
    "black hole": faults.black_hole,
    "black hole for deliveries": on_reports(faults.black_hole),
    "slow drip of headers": faults.slow_drip,
    "slow drip of the body": faults.dripping_body,
    "reset without an answer": faults.reset,
    "reset amid every other answer": faults.every_other(faults.reset_amid_answer),
    "500": always(500),
    "every other 500": faults.every_other(always(500)),
    "503 with a clock a day ahead": faults.a_day_off,
    "502 from a proxy": sends(spell(502, b"<html>Bad gateway</html>"), stay=True),
    "408": on_reports(always(408)),
    "410": on_reports(always(410)),
    "429 in seconds": always(429, Retry_After="1"),
    "429 for a year": on_reports(always(429, Retry_After="31536000")),
    "429 until a date": always(429, Retry_After="Wed, 21 Oct 2099 07:28:00 GMT"),
    "429 with nonsense": always(429, Retry_After="soon"),
    "401": always(401),
    "403": on_reports(always(403)),
    "415": on_reports(always(415)),
    "redirect": always(302, Location="http://127.0.0.1:1/"),
    "garbage": sends(b"\x00\xff garbage\r\n\r\n" * 20),
    "a page that answers 200": sends(spell(200, b"<html>Please log in</html>"), stay=True),
    "200 for another delivery": on_reports(
        sends(spell(200, b'{"stored": true, "sequence": 99}'), stay=True)
    ),
    "200 with JSON of another kind": sends(spell(200, b"[1, 2]"), stay=True),
    "an answer without an end": faults.gigantic,
    "headers without an end": faults.gigantic_headers,
    "a body shorter than promised": sends(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{}"),
    "409 manifest_unknown for every other delivery": on_reports(
        faults.every_other(always(409, "manifest_unknown"))
    ),
    "404 for every other delivery": on_reports(faults.every_other(always(404))),
}
# Faults by which the service refuses deliveries for good: dropped, and counted.
COUNTS_DROPS = {
    "422": (on_reports(always(422)), "rejected"),
    "400": (on_reports(always(400)), "rejected"),
    "409 sequence_conflict": (on_reports(always(409, "sequence_conflict")), "rejected"),
    "409 manifest_conflict": (always(409, "manifest_conflict"), "rejected"),
    "413": (on_reports(always(413)), "too_large"),
    "404 again and again": (on_reports(always(404)), "rejected"),
}


def sync(directory: Path, url: str) -> None:
    """Bring everything spooled to the service, as ``gradwatch sync`` does."""
    for spool in find_spools(directory):
        outcome = replay(
            spool,
            lambda: HttpTransport(url, token=None, timeout=10.0),
            backoff=Backoff(first=0.01),
        )
        assert outcome.why == ""


@pytest.mark.parametrize("fault", LOSES_NOTHING.values(), ids=LOSES_NOTHING.keys())
def test_a_failing_service_costs_neither_weights_nor_steps(
    fault: Fault, server: FaultServer, expected: Tensor, tmp_path: Path
) -> None:
    server.fault = fault
    trained = train(server.url)
    assert torch.equal(trained.weights, expected)
    assert trained.closing_seconds < CLOSE_SECONDS + 1.0
    assert trained.health is not None
    assert trained.health.errors == 0
    server.fault = None
    sync(tmp_path / "spool", server.url)
    assert server.steps() == Counter(range(STEPS))
    assert server.dropped() == {}
    assert server.sequences() == list(range(len(server.stored)))
    assert server.finished
    assert list((tmp_path / "spool").rglob("*")) == []


@pytest.mark.parametrize(("fault", "reason"), COUNTS_DROPS.values(), ids=COUNTS_DROPS.keys())
def test_what_a_service_refuses_for_good_is_counted(
    fault: Fault, reason: str, server: FaultServer, expected: Tensor, tmp_path: Path
) -> None:
    server.fault = fault
    trained = train(server.url)
    assert torch.equal(trained.weights, expected)
    assert trained.health is not None
    assert trained.health.delivery is not None
    assert trained.health.delivery.dropped == {reason: STEPS}
    assert trained.health.delivery.pending_steps == 0


def test_no_service_at_all(expected: Tensor, tmp_path: Path, server: FaultServer) -> None:
    refused = FaultServer()
    refused.close()
    trained = train(refused.url)
    assert torch.equal(trained.weights, expected)
    assert trained.closing_seconds < CLOSE_SECONDS
    sync(tmp_path / "spool", server.url)
    assert server.steps() == Counter(range(STEPS))


@pytest.fixture(scope="module")
def untrusted() -> Iterator[FaultServer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS / "certificate.pem", TLS / "key.pem")
    made = FaultServer(tls=context)
    yield made
    made.close()


@pytest.mark.parametrize(
    "url",
    ["http://no-such-host.invalid:8642", "https://127.0.0.1:{plain}", "https://127.0.0.1:{tls}"],
    ids=["a name that does not resolve", "TLS towards a plain server", "an unknown certificate"],
)
def test_an_address_that_cannot_work(
    url: str, expected: Tensor, tmp_path: Path, server: FaultServer, untrusted: FaultServer
) -> None:
    trained = train(url.format(plain=server.port, tls=untrusted.port))
    assert untrusted.requests == []
    assert torch.equal(trained.weights, expected)
    assert trained.closing_seconds < CLOSE_SECONDS + 1.0
    sync(tmp_path / "spool", server.url)
    assert server.steps() == Counter(range(STEPS))


def test_a_service_that_lost_its_store_gets_the_rest_from_sequence_0(server: FaultServer) -> None:
    forgotten = False

    def forgetful(at: FaultServer, connection: object, request: Request) -> bool:
        nonlocal forgotten
        if len(at.stored) == 1 and not forgotten:
            forgotten = True
            at.forget()
        connection.sendall(at.answer(request))  # type: ignore[attr-defined] # a socket, untyped here
        return True

    server.fault = forgetful
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradwatch.watch(model, optimizer, clip=CLIP, run="r", url=server.url) as watch:
        for step in range(9):
            optimizer.zero_grad()
            model(torch.randn(3, 2)).sum().backward()
            optimizer.step()
            if step % 3 == 2:
                assert watch.flush(5.0)
    assert forgotten
    assert server.sequences() == [0, 1]
    assert server.steps() == Counter(range(3, 9))


def test_a_name_that_is_never_resolved_holds_nothing_up_and_loses_nothing(
    expected: Tensor, tmp_path: Path, server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No timeout covers getaddrinfo: the thread hangs in it, and closing must do its work."""
    wake = threading.Event()
    resolve = socket.getaddrinfo

    def hang(host: str, *arguments: object, **options: object) -> object:
        if host == "hangs.invalid":
            wake.wait(60.0)
            raise socket.gaierror("woken up")
        return resolve(host, *arguments, **options)  # type: ignore[arg-type] # passed on as they came

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    trained = train("http://hangs.invalid:8642")
    assert torch.equal(trained.weights, expected)
    assert trained.closing_seconds < CLOSE_SECONDS + 1.0
    assert trained.health is not None
    assert trained.health.delivery is not None
    assert trained.health.delivery.pending_steps == STEPS
    before = {path: path.read_bytes() for path in (tmp_path / "spool").rglob("*.gw")}
    wake.set()
    deadline = time.monotonic() + 10.0
    while any(thread.name == "gradwatch" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert {path: path.read_bytes() for path in (tmp_path / "spool").rglob("*.gw")} == before
    sync(tmp_path / "spool", server.url)
    assert server.steps() == Counter(range(STEPS))
