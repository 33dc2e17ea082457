"""HTTP: what travels with a request, and what a request can cost."""

import gzip
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.guarantees.fault_server import (
    FaultServer,
    Request,
    black_hole,
    reset,
    sends,
    slow_drip,
    spell,
)

from gradwatch.reporting.transport import HttpTransport, TransportError, is_loopback, may_carry

TOKEN = "secret"  # noqa: S105 - of the test server
# Self-signed for 127.0.0.1 and service.test, until 2126; the key protects nothing.
TLS = Path(__file__).parent / "tls"
OK = spell(200, b'{"a": 1}')
VARIABLES = (
    "HTTP_PROXY HTTPS_PROXY ALL_PROXY NO_PROXY REQUESTS_CA_BUNDLE CURL_CA_BUNDLE SSL_CERT_FILE"
)


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES.split():
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def server() -> Iterator[FaultServer]:
    made = FaultServer()
    made.fault = sends(OK, stay=True)
    yield made
    made.close()


@pytest.fixture
def tls_server() -> Iterator[FaultServer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS / "certificate.pem", TLS / "key.pem")
    made = FaultServer(tls=context)
    made.fault = sends(OK, stay=True)
    yield made
    made.close()


def transport(url: str, *, timeout: float = 2.0, insecure: bool = False) -> HttpTransport:
    return HttpTransport(url, token=TOKEN, timeout=timeout, insecure=insecure)


def ask(via: HttpTransport, body: bytes = b"{}") -> tuple[int, bytes]:
    answer = via.request("POST", "/x", body, "application/json")
    return answer.status, answer.body


def test_requests_share_one_connection(server: FaultServer) -> None:
    via = transport(server.url)
    assert [ask(via) for _ in range(3)] == [(200, b'{"a": 1}')] * 3
    assert len(server._connections) == 1
    assert server.requests == [("POST", "/api/v1/x")] * 3
    assert server.headers[0]["authorization"] == "Bearer secret"


def test_a_connection_that_went_stale_is_replaced(server: FaultServer) -> None:
    via = transport(server.url)
    server.fault = sends(OK, stay=False)
    assert ask(via)[0] == 200
    server.fault = sends(OK, stay=True)
    time.sleep(0.05)  # lets the other side's end of the connection arrive
    assert ask(via)[0] == 200
    assert len(server._connections) == 2


@pytest.mark.parametrize("fault", [slow_drip, black_hole], ids=["slow drip", "black hole"])
def test_a_request_ends_in_its_time_however_slowly_the_answer_drips(
    fault: Callable[..., bool], server: FaultServer
) -> None:
    server.fault = fault
    with pytest.raises(TransportError, match=r"timed out|longer than allowed"):
        ask(transport(server.url, timeout=0.2))


def test_another_thread_can_end_a_request(server: FaultServer) -> None:
    server.fault = black_hole
    via = transport(server.url, timeout=60.0)
    failed: list[Exception] = []

    def wait() -> None:
        try:
            ask(via)
        except TransportError as error:
            failed.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    deadline = time.monotonic() + 10.0
    while not server.requests and time.monotonic() < deadline:
        time.sleep(0.005)
    via.abort()
    thread.join(10.0)
    assert not thread.is_alive()
    assert failed
    with pytest.raises(TransportError):
        ask(via)


def test_a_large_answer_is_not_read_to_its_end(server: FaultServer) -> None:
    server.fault = sends(spell(200, b" " * 65_537), stay=True)
    with pytest.raises(TransportError, match="65536 bytes"):
        ask(transport(server.url))


def test_a_redirect_is_not_followed(server: FaultServer) -> None:
    server.fault = sends(spell(307, b"", Location=f"{server.url}/elsewhere"), stay=True)
    assert ask(transport(server.url))[0] == 307
    assert len(server.requests) == 1


def test_a_failure_says_what_was_underneath(server: FaultServer) -> None:
    server.fault = reset
    with pytest.raises(TransportError, match=r"reset|without response"):
        ask(transport(server.url))
    server.close()
    with pytest.raises(TransportError, match="refused"):
        ask(transport(server.url))


@pytest.mark.parametrize(
    ("url", "loopback"),
    [
        ("http://127.0.0.1:8642", True),
        ("http://127.9.9.9", True),
        ("http://[::1]:8642", True),
        ("http://localhost", True),
        ("http://localhost.example.com", False),
        ("http://127.0.0.1.example.com", False),
        ("http://10.0.0.1", False),
        ("http://service", False),
    ],
)
def test_this_machine_is_recognised(url: str, loopback: bool) -> None:
    assert is_loopback(url) is loopback
    assert may_carry(url, insecure=False) is loopback
    assert may_carry(url, insecure=True)
    assert may_carry(url.replace("http:", "https:"), insecure=False)


def test_a_token_never_travels_in_the_clear_to_another_machine(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The proxy stands for the other machine: it sees what would travel.
    monkeypatch.setenv("HTTP_PROXY", server.url)
    assert ask(transport("http://service.test:8642"))[0] == 200
    assert "authorization" not in server.headers[0]
    assert ask(transport("http://service.test:8642", insecure=True))[0] == 200
    assert server.headers[1]["authorization"] == "Bearer secret"
    assert server.requests[0] == ("POST", "http://service.test:8642/api/v1/x")


def test_bodies_are_compressed_for_other_machines_only(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    bodies: list[Request] = []

    def keep(_: FaultServer, connection: object, request: Request) -> bool:
        bodies.append(request)
        connection.sendall(OK)  # type: ignore[attr-defined] # a socket, untyped here
        return True

    server.fault = keep
    body = b"gradient " * 1000
    ask(transport(server.url), body)
    monkeypatch.setenv("HTTP_PROXY", server.url)
    ask(transport("http://service.test:8642"), body)
    assert "content-encoding" not in bodies[0].headers
    assert bodies[0].body == body
    assert bodies[1].headers["content-encoding"] == "gzip"
    assert gzip.decompress(bodies[1].body) == body


def test_a_proxy_is_used_with_its_credentials_and_never_for_this_machine(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", server.url.replace("//", "//user:p%40ss@"))
    ask(transport("http://service.test:8642"))
    assert server.headers[0]["proxy-authorization"] == "Basic dXNlcjpwQHNz"
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    assert ask(transport(server.url))[0] == 200
    monkeypatch.setenv("NO_PROXY", "service.test")
    with pytest.raises(TransportError):  # asked directly: the name does not resolve
        ask(transport("http://service.test:8642"))


def test_an_unknown_certificate_is_refused_and_a_given_one_is_trusted(
    tls_server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TransportError, match="certificate verify failed"):
        ask(transport(tls_server.url))
    assert tls_server.requests == []
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        with monkeypatch.context() as patched:
            patched.setenv(name, str(TLS / "certificate.pem"))
            assert ask(transport(tls_server.url))[0] == 200
    assert tls_server.headers[0]["authorization"] == "Bearer secret"


def test_a_certificate_for_another_name_is_refused(
    tls_server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(TLS / "certificate.pem"))
    with pytest.raises(TransportError, match=r"certificate|hostname"):
        ask(transport(tls_server.url.replace("127.0.0.1", "localhost")))
    assert tls_server.requests == []


def test_slow_drip_over_tls_ends_in_its_time(
    tls_server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(TLS / "certificate.pem"))
    via = transport(tls_server.url, timeout=0.5)
    assert ask(via)[0] == 200
    tls_server.fault = slow_drip
    with pytest.raises(TransportError, match=r"timed out|longer than allowed"):
        ask(via)
