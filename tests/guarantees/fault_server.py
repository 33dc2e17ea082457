"""A service that keeps what it acknowledges, and misbehaves on command, on real sockets."""

import json
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any

from gradwatch_wire import Manifest, Report, decode

DAY_SECONDS = 86_400


@dataclass
class Request:
    """One request, read in full."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class FaultServer:
    """Answers like the service, except where a fault is set.

    ``fault`` is called for each request with the connection, the request and ``good``, the bytes of
    the right answer (already stored when they are made). It sends what it likes and returns whether
    the connection stays open.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.fault: Fault | None = None
        self.stored: dict[tuple[int, int, int], Report] = {}
        self.repeats = 0
        self.requests: list[tuple[str, str]] = []
        self.headers: list[dict[str, str]] = []
        self.finished: list[str] = []
        self.recommendation: dict[str, Any] | None = None
        self.extra: dict[str, Any] = {}
        self.incidents: list[dict[str, Any]] = []
        self._sessions: dict[str | None, int] = {}
        self._manifests: set[str] = set()
        self._tls = tls
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.closing = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    def steps(self) -> Counter[int]:
        """How often each step is stored."""
        return Counter(step for report in self.stored.values() for step in report.steps.flat())

    def dropped(self) -> Counter[str]:
        """What stored deliveries say was dropped."""
        counts: Counter[str] = Counter()
        for report in self.stored.values():
            counts.update(report.dropped)
        return counts

    def sequences(self) -> list[int]:
        return sorted(sequence for _, _, sequence in self.stored)

    def forget(self) -> None:
        """Lose everything, as a service on an empty store does."""
        with self._lock:
            self.stored.clear()
            self._sessions.clear()
            self._manifests.clear()

    def close(self) -> None:
        self.closing.set()
        for sock in (self._listener, *self._connections):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits in it
            sock.close()

    def _accept(self) -> None:
        while not self.closing.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.add(connection)
            threading.Thread(target=self._serve, args=[connection], daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError, ValueError), connection:
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_side=True)
            with connection, connection.makefile("rb") as stream:
                while (request := _read(stream)) is not None:
                    with self._lock:
                        self.requests.append((request.method, request.path))
                        self.headers.append(request.headers)
                    fault = self.fault
                    if fault is None:
                        connection.sendall(self.answer(request))
                    elif not fault(self, connection, request):
                        return

    def answer(self, request: Request) -> bytes:
        """Do what the service does, and spell its answer."""
        with self._lock:
            status, body = self._handle(request)
        return spell(status, json.dumps(body).encode())

    def _handle(self, request: Request) -> tuple[int, dict[str, Any]]:
        if request.method == "PUT":
            manifest = Manifest.from_json(json.loads(request.body))
            attempt = self._sessions.setdefault(manifest.session, len(self._sessions))
            new = manifest.hash not in self._manifests
            self._manifests.add(manifest.hash)
            answer = {"run": "r", "attempt": attempt, "manifest": manifest.hash, "created": new}
            return (201 if new else 200), answer
        if request.path.endswith("/finish"):
            self.finished.append(json.loads(request.body)["status"])
            return 200, {"status": self.finished[-1], "analysed": True, "analysed_step": 0}
        if request.method == "GET":
            return 200, {"items": self.incidents, "next_cursor": None}
        if not self._sessions:
            return 404, {"code": "unknown_run", "detail": "no such run"}
        report = decode(request.body)
        if report.manifest not in self._manifests:
            return 409, {"code": "manifest_unknown", "detail": "register it first"}
        key = (report.attempt, report.rank, report.sequence)
        new = key not in self.stored
        self.repeats += not new
        assert new or self.stored[key].steps == report.steps
        self.stored.setdefault(key, report)
        answer = {"stored": new, "sequence": report.sequence, "steps": report.steps.items}
        return 200, {**answer, "recommendation": self.recommendation, **self.extra}


Fault = Callable[[FaultServer, socket.socket, Request], bool]


def _read(stream: Any) -> Request | None:
    line = stream.readline().split()
    if len(line) < 2:
        return None
    headers: dict[str, str] = {}
    while (header := stream.readline().strip()) != b"":
        name, _, value = header.decode().partition(":")
        headers[name.lower()] = value.strip()
    body = stream.read(int(headers.get("content-length", 0)))
    return Request(line[0].decode(), line[1].decode(), headers, body)


def spell(status: int, body: bytes, **headers: str) -> bytes:
    """An HTTP/1.1 answer."""
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


def always(status: int, code: str = "", **headers: str) -> Fault:
    """Every request gets this status."""

    def fault(_: FaultServer, connection: socket.socket, __: Request) -> bool:
        problem = json.dumps({"code": code, "detail": "as the test wants it"}).encode()
        connection.sendall(spell(status, problem, **headers))
        return True

    return fault


def sends(data: bytes, *, stay: bool = False) -> Fault:
    """Every request gets these bytes."""

    def fault(_: FaultServer, connection: socket.socket, __: Request) -> bool:
        connection.sendall(data)
        return stay

    return fault


def black_hole(server: FaultServer, _: socket.socket, __: Request) -> bool:
    """Nothing is ever answered."""
    server.closing.wait(60)
    return False


def slow_drip(server: FaultServer, connection: socket.socket, _: Request) -> bool:
    """A byte now and then: each keeps a socket's own timeout from running out."""
    for byte in b"HTTP/1.1 200 OK\r\n" + b"X-Slow: yes\r\n" * 10_000:
        connection.sendall(bytes([byte]))
        if server.closing.wait(0.02):
            break
    return False


def dripping_body(server: FaultServer, connection: socket.socket, _: Request) -> bool:
    """Headers at once, then the body a byte now and then."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n")
    for _ in range(60_000):
        connection.sendall(b"x")
        if server.closing.wait(0.02):
            break
    return False


def reset(_: FaultServer, connection: socket.socket, __: Request) -> bool:
    """The connection is reset without an answer."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return False


def reset_amid_answer(server: FaultServer, connection: socket.socket, request: Request) -> bool:
    """Stored, but the answer breaks off: the client cannot know and must repeat."""
    good = server.answer(request)
    connection.sendall(good[: len(good) // 2])
    return reset(server, connection, request)


def gigantic(_: FaultServer, connection: socket.socket, __: Request) -> bool:
    """An answer that would fill the memory of a client that reads it all."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n")
    for _ in range(10_000):
        connection.sendall(b" " * 65_536)
    return False


def gigantic_headers(_: FaultServer, connection: socket.socket, __: Request) -> bool:
    """Headers without an end."""
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    for _ in range(10_000):
        connection.sendall(b"X-More: " + b"x" * 60_000 + b"\r\n")
    return False


def a_day_off(server: FaultServer, connection: socket.socket, request: Request) -> bool:
    """A service whose clock is a day ahead asks, by its own clock, for no wait at all."""
    tomorrow = formatdate(time.time() + DAY_SECONDS, usegmt=True)
    connection.sendall(spell(503, b"{}", Date=tomorrow, Retry_After=tomorrow))
    return True


def every_other(fault: Fault) -> Fault:
    """The fault for every first and third ... request, the right answer for the others."""
    count = 0

    def alternate(server: FaultServer, connection: socket.socket, request: Request) -> bool:
        nonlocal count
        count += 1
        if count % 2:
            return fault(server, connection, request)
        connection.sendall(server.answer(request))
        return True

    return alternate
