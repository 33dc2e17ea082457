"""Other trackers that are servers: started here, sent the same numbers, their CPU read from outside.

Each is sent what its own interface takes best: Pushgateway one push per step, MLflow batches of a
thousand metrics, VictoriaMetrics and Prometheus remote write with 50 steps to a request.
"""

from __future__ import annotations

import http.client
import json
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from benchmarks.server_process import free_port, tree_cpu_seconds

__all__ = ["SERVERS", "Server", "Taken", "program"]

STEPS_PER_WRITE = 50
METRICS_PER_BATCH = 1000
IDLE_SECONDS = 8


@dataclass(frozen=True)
class Taken:
    """What a server needed: CPU seconds beyond idling, samples, bytes on disk."""

    cpu: float
    samples: int
    bytes: int | None


@dataclass(frozen=True)
class Server:
    """A tracker that runs as a server.

    Attributes:
        programs: Names to look for on the path; empty: a module of the peers' interpreter.
        command: Program, port and folder to command line.
        ready: Path that answers 200 once it serves.
        send: Connection, steps and samples per step to samples that arrived, checked.
        steps: Steps sent in one round.
        keeps: Whether what it leaves on disk is history.
    """

    programs: tuple[str, ...]
    command: Callable[[str, int, Path], Sequence[str]]
    ready: str
    send: Callable[[http.client.HTTPConnection, int, int], None]
    steps: int
    keeps: bool = True

    def measure(self, program: str, samples: int) -> Taken:
        """Start it, send, wait until it rests, and say what that took."""
        with tempfile.TemporaryDirectory() as folder:
            port = free_port()
            command = self.command(program, port, Path(folder))
            with _running(command, folder) as process:
                connection = _connected(port, self.ready)
                idle = _idle(process.pid)
                connection.close()  # it opens again by itself; servers close what is idle so long
                before, since = tree_cpu_seconds(process.pid), time.monotonic()
                self.send(connection, self.steps, samples)
                _rest(process.pid, idle)
                used = tree_cpu_seconds(process.pid) - before
                used -= idle * (time.monotonic() - since)
            size = sum(p.stat().st_size for p in Path(folder).rglob("*") if p.is_file())
        return Taken(used, self.steps * samples, size if self.keeps else None)


def program(server: Server, python: str) -> str | None:
    """Where the server is, or None when it is not here."""
    if server.programs:
        return next(filter(None, map(shutil.which, server.programs)), None)
    found = subprocess.run([python, "-c", "import mlflow"], capture_output=True, check=False)
    return python if found.returncode == 0 else None


def push(connection: http.client.HTTPConnection, steps: int, samples: int) -> None:
    """One push per step, as jobs do."""
    for step in range(steps):
        lines = [f'g{{tensor="layers.{i}"}} {i % 97 + step / 7}\n' for i in range(samples)]
        _ask(connection, "PUT", "/metrics/job/bench", "".join(lines).encode())


def log_batches(connection: http.client.HTTPConnection, steps: int, samples: int) -> None:
    """MLflow's own way for many metrics: at most a thousand to a call."""
    api = "/api/2.0/mlflow/runs"
    made = _ask_json(connection, f"{api}/create", {"experiment_id": "0"})
    run = made["run"]["info"]["run_id"]
    for step in range(steps):
        for first in range(0, samples, METRICS_PER_BATCH):
            metrics = [
                {"key": f"layers.{i}", "value": i % 97 + step / 7, "timestamp": step, "step": step}
                for i in range(first, min(samples, first + METRICS_PER_BATCH))
            ]
            _ask_json(connection, f"{api}/log-batch", {"run_id": run, "metrics": metrics})
    _ask(connection, "GET", f"{api}/get?run_id={run}")


def remote_write(connection: http.client.HTTPConnection, steps: int, samples: int) -> None:
    """Prometheus remote write; ends when every series can be asked for at its newest step."""
    series = [_labels({"__name__": "g", "tensor": f"layers.{i}"}) for i in range(samples)]
    rng = np.random.default_rng(0)
    begun = 1000 * int(time.time() - steps - 60)
    headers = {
        "Content-Encoding": "snappy",
        "Content-Type": "application/x-protobuf",
        "X-Prometheus-Remote-Write-Version": "0.1.0",
    }
    for first in range(0, steps, STEPS_PER_WRITE):
        number = min(STEPS_PER_WRITE, steps - first)
        values = np.exp(rng.normal(0, 0.3, (samples, number))).astype("<f4").astype("<f8")
        times = [begun + 1000 * (first + k) for k in range(number)]
        _ask(connection, "POST", "/api/v1/write", _written(series, values, times), headers)
    newest = begun // 1000 + steps - 1
    for _ in range(100):
        query = f"/api/v1/query?query=count(g)&time={newest}"
        found = json.loads(_ask(connection, "GET", query))["data"]["result"]
        if found and int(found[0]["value"][1]) == samples:
            return
        time.sleep(0.2)
    raise RuntimeError("what was written never became visible")


def _written(series: Sequence[bytes], values: np.ndarray, times: Sequence[int]) -> bytes:
    """A WriteRequest, as snappy that does not compress: what is measured is the server."""
    stamps = np.array([list(_varint(t)) for t in times], np.uint8)
    sample = np.zeros((*values.shape, 12 + stamps.shape[1]), np.uint8)
    sample[:, :, 0], sample[:, :, 1] = 0x12, 10 + stamps.shape[1]
    sample[:, :, 2] = 0x09
    sample[:, :, 3:11] = values[:, :, None].view(np.uint8)
    sample[:, :, 11] = 0x10
    sample[:, :, 12:] = stamps
    parts = []
    for labels, row in zip(series, sample, strict=True):
        body = labels + row.tobytes()
        parts += [b"\x0a", _varint(len(body)), body]
    plain = b"".join(parts)
    return _varint(len(plain)) + b"\xfc" + struct.pack("<I", len(plain) - 1) + plain


def _labels(labels: Mapping[str, str]) -> bytes:
    made = []
    for name, value in labels.items():
        pair = b"\x0a" + _varint(len(name)) + name.encode()
        pair += b"\x12" + _varint(len(value)) + value.encode()
        made += [b"\x0a", _varint(len(pair)), pair]
    return b"".join(made)


def _varint(value: int) -> bytes:
    made = bytearray()
    while value > 127:
        made.append(value & 127 | 128)
        value >>= 7
    return bytes([*made, value])


def _ask_json(connection: http.client.HTTPConnection, path: str, content: object) -> dict:
    body = json.dumps(content).encode()
    found: dict = json.loads(
        _ask(connection, "POST", path, body, {"Content-Type": "application/json"})
    )
    return found


def _ask(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> bytes:
    connection.request(method, path, body, dict(headers or {}))
    answer = connection.getresponse()
    content = answer.read()
    if answer.status >= 300:
        raise RuntimeError(f"{path} answered {answer.status}: {content[:300]!r}")
    return content


@contextmanager
def _running(command: Sequence[str], folder: str) -> Iterator[subprocess.Popen[bytes]]:
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, cwd=folder, stdout=quiet, stderr=quiet)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


def _connected(port: int, path: str) -> http.client.HTTPConnection:
    end = time.monotonic() + 300
    while time.monotonic() < end:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        try:
            _ask(connection, "GET", path)
        except (OSError, http.client.HTTPException, RuntimeError):
            time.sleep(0.1)
        else:
            return connection
    raise TimeoutError(f"nothing answers on port {port}")


def _idle(pid: int) -> float:
    """CPU seconds per second while nobody asks: of some seconds the quietest, to be fair to it."""
    used = []
    for _ in range(IDLE_SECONDS):
        before, since = tree_cpu_seconds(pid), time.monotonic()
        time.sleep(1)
        used.append((tree_cpu_seconds(pid) - before) / (time.monotonic() - since))
    return min(used)


def _rest(pid: int, idle: float) -> None:
    """Wait until what was put off is done: it uses little more than when idle."""
    for _ in range(15):
        before = tree_cpu_seconds(pid)
        time.sleep(1)
        if tree_cpu_seconds(pid) - before < idle + 0.05:
            return


def _mlflow(python: str, port: int, folder: Path) -> list[str]:
    store = ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
    store += ["--default-artifact-root", str(folder / "artifacts")]
    where = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    return [python, "-m", "mlflow", "server", *store, *where]


def _prometheus(found: str, port: int, folder: Path) -> list[str]:
    config = folder / "prometheus.yml"
    config.write_text("global: {}\n")
    options = [f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"]
    listen = f"--web.listen-address=127.0.0.1:{port}"
    return [found, *options, listen, "--web.enable-remote-write-receiver"]


def _victoria(found: str, port: int, folder: Path) -> list[str]:
    data = f"-storageDataPath={folder / 'data'}"
    return [found, data, f"-httpListenAddr=127.0.0.1:{port}", "-search.latencyOffset=0s"]


SERVERS = {
    "Pushgateway": Server(
        ("prometheus-pushgateway", "pushgateway"),
        lambda found, port, _: [found, f"--web.listen-address=127.0.0.1:{port}"],
        "/-/ready",
        push,
        60,
        keeps=False,
    ),
    "VictoriaMetrics": Server(
        ("victoria-metrics", "victoria-metrics-prod"), _victoria, "/health", remote_write, 500
    ),
    "Prometheus remote write": Server(("prometheus",), _prometheus, "/-/ready", remote_write, 500),
    "MLflow server": Server((), _mlflow, "/health", log_batches, 8),
}


if __name__ == "__main__":
    chosen = SERVERS[sys.argv[1]]
    print(chosen.measure(program(chosen, sys.argv[2]) or "", 2000))
