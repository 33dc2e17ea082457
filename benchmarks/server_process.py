"""A server under measurement: when it is ready, when it rests, what it used."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import time
from pathlib import Path

__all__ = [
    "cpu_seconds",
    "free_port",
    "rss_megabytes",
    "settle",
    "tree_cpu_seconds",
    "wait_until_ready",
]


def wait_until_ready(port: int) -> None:
    """Return once the service answers that it is ready."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/readyz")
            if connection.getresponse().status == 200:
                return
        except OSError:
            time.sleep(0.05)
    raise TimeoutError(f"nothing answers on port {port}")


def settle(pid: int, limit: float = 60.0) -> None:
    """Wait until the process has used next to no CPU for two seconds."""
    end = time.monotonic() + limit
    before = cpu_seconds(pid)
    while time.monotonic() < end:
        time.sleep(2)
        now = cpu_seconds(pid)
        if now - before < 0.1:
            return
        before = now


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, from the operating system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def tree_cpu_seconds(pid: int) -> float:
    """The same of a process, of all it started, and of those of them that have ended."""
    fields: dict[int, list[str]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # ended meanwhile
            fields[int(path.parent.name)] = path.read_text().rpartition(")")[2].split()
    ticks, waiting = 0, [pid]
    while waiting:
        one = waiting.pop()
        ticks += sum(map(int, fields[one][11:15])) if one in fields else 0
        waiting += [child for child, f in fields.items() if int(f[1]) == one]
    return ticks / os.sysconf("SC_CLK_TCK")


def rss_megabytes(pid: int) -> float:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
