"""A service of our own for the length of the demo: started, asked and ended here."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gradwatch_cli.errors import CommandError

__all__ = ["DemoService", "running_service"]

START_SECONDS = 60.0  # a cold machine compiles every module of the service once
STOP_SECONDS = 15.0


class DemoService:
    """The address of a running service and the two questions the demo asks it."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str) -> Any:
        """The JSON answer under ``/api/v1``.

        Raises:
            CommandError: The service answered with an error, or not at all.
        """
        address = f"{self.url}/api/v1{path}"
        try:
            # S310 warns of file: addresses; this one is built from our own http address.
            with _direct().open(address, timeout=30) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise CommandError(f"GET {address} was answered with {error.code}") from error
        except OSError as error:
            raise CommandError(f"GET {address} failed: {error}") from error

    def is_ready(self) -> bool:
        """Whether the service takes reports."""
        try:
            with _direct().open(f"{self.url}/readyz", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


@contextlib.contextmanager
def running_service(port: int = 0, *, options: Sequence[str] = ()) -> Iterator[DemoService]:
    """Start ``gradwatch serve`` with a store of its own; end it and remove the store afterwards.

    Args:
        port: Where to listen on 127.0.0.1; 0 takes a free one.
        options: Further options of ``gradwatch serve``.

    Raises:
        CommandError: The port is taken, or the service did not start; the last line it printed says
            why.
    """
    with tempfile.TemporaryDirectory(prefix="gradwatch-demo-") as folder:
        port = _free_port(port)
        log = Path(folder, "service.log")
        command = [sys.executable, "-m", "gradwatch_cli", "serve", "--host", "127.0.0.1"]
        command += ["--port", str(port), "--store", f"sqlite:///{folder}/demo.db", *options]
        # A session of its own: Ctrl-C reaches the demo, which then ends the service in order.
        with log.open("wb") as output:
            process = subprocess.Popen(  # noqa: S603  our own interpreter, our own arguments
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=_environment(),
                start_new_session=True,
            )
        try:
            service = DemoService(f"http://127.0.0.1:{port}")
            _wait_until_ready(service, process, log)
            yield service
        finally:
            _stop(process)


def _environment() -> dict[str, str]:
    """The environment without the settings of the user's own service."""
    return {k: v for k, v in os.environ.items() if not k.startswith("GRADWATCH_")}


def _wait_until_ready(service: DemoService, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not service.is_ready():
        if process.poll() is not None or time.monotonic() > deadline:
            said = log.read_text(errors="replace").strip().splitlines() or ["it printed nothing"]
            raise CommandError(f"the service did not start: {said[-1]}")
        time.sleep(0.1)


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _direct() -> urllib.request.OpenerDirector:
    """An opener that ignores proxies: the service is on this machine."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _free_port(wanted: int) -> int:
    """The port that was asked for, or any free one for 0."""
    with socket.socket() as probe:
        # As the server does: a port whose last connections are still closing is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError as error:
            # Found here rather than later: whoever holds the port might answer in the service's place.
            message = f"port {wanted} is not free ({error.strerror}); leave --port out to take any"
            raise CommandError(message, code=2) from error
        port: int = probe.getsockname()[1]
        return port
