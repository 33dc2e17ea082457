"""What many tests share: the real service on a free port, in this process or in one of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from gradwatch_service.app import create_app
from gradwatch_service.server import Server, bind, configure
from gradwatch_service.settings import Settings
from gradwatch_service.store.opening import open_store

DEADLINE = 20.0


@dataclass
class Served:
    """The real app behind a real uvicorn, in a thread of this process."""

    base_url: str
    http: httpx.Client
    app: Any
    settings: Any

    @property
    def parts(self) -> Any:
        """The service's parts: store, ingest, analyser, live view."""
        return self.app.state.service

    def api(self, path: str) -> str:
        """Full address of a path below /api/v1."""
        return f"{self.base_url}/api/v1/{path.lstrip('/')}"


@dataclass
class Process:
    """`gradwatch serve` as a process of its own."""

    process: subprocess.Popen[str]
    base_url: str
    store: Path
    port: int
    http: httpx.Client = field(repr=False)

    def kill(self) -> None:
        """End it as a power cut would end a process: no goodbye."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(DEADLINE)

    def terminate(self) -> int:
        """Ask it to stop and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(DEADLINE)


@contextlib.contextmanager
def serving(directory: Path, **options: Any) -> Iterator[Served]:
    """Serve a fresh app on a free port; options are settings."""
    options.setdefault("store", f"sqlite:///{directory / 'gradwatch.db'}")
    options.setdefault("drain_seconds", 2)
    settings = Settings(**options)
    app = create_app(settings, open_store(settings))
    listener = bind(settings, 0)
    server = Server(configure(app, settings))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    poll(lambda: server.started or not thread.is_alive())
    assert server.started, "the service did not start"
    port = listener.getsockname()[1]
    base_url = f"http://127.0.0.1:{port}"
    with httpx.Client(base_url=base_url, timeout=DEADLINE) as http:
        try:
            yield Served(base_url, http, app, settings)
        finally:
            server.should_exit = True
            thread.join(DEADLINE)
    assert not thread.is_alive(), "the service did not stop"


@contextlib.contextmanager
def serve_process(
    store: Path,
    *arguments: str,
    port: int | None = None,
    env: dict[str, str] | None = None,
    http: httpx.Client | None = None,
) -> Iterator[Process]:
    """Run `gradwatch serve` on a store file until the block ends; ``http`` asks it, if given."""
    port = port or free_port()
    command = [sys.executable, "-m", "gradwatch_cli", "serve", "--port", str(port)]
    command += ["--store", f"sqlite:///{store}", *arguments]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **(env or {})},
    )
    base_url = f"http://127.0.0.1:{port}"
    with http or httpx.Client(base_url=base_url, timeout=DEADLINE) as asking:
        try:
            poll(lambda: process.poll() is not None or ready(asking))
            if process.poll() is not None:
                pytest.fail(
                    f"gradwatch serve left with {process.returncode}: {process.stdout.read()}"
                )
            yield Process(process, base_url, store, port, asking)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(DEADLINE)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            if process.stdout is not None:
                process.stdout.close()


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Served]:
    """Serve the real app with default settings; `service.http` is a client of it."""
    with serving(tmp_path) as served:
        yield served


@pytest.fixture
def service_process(tmp_path: Path) -> Iterator[Process]:
    """Run `gradwatch serve` as users do."""
    with serve_process(tmp_path / "gradwatch.db") as process:
        yield process


def poll(condition: Callable[[], Any], deadline: float = DEADLINE) -> Any:
    """Ask until the answer is true, and return it; fail when it never is."""
    end = time.monotonic() + deadline
    while time.monotonic() < end:
        answer = condition()
        if answer:
            return answer
        time.sleep(0.01)
    pytest.fail(f"still not true after {deadline} s")


def ready(http: httpx.Client) -> bool:
    """Whether a service answers that it is ready."""
    try:
        return http.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
