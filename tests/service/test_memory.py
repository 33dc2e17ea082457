"""What the service needs with a hundred live runs, and that it does not grow.

``SOAK_MINUTES`` and ``SOAK_PAUSE`` (seconds between two steps of a run) shorten or ease it;
``SOAK_LOG`` names a file that gets a line a minute.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from tests.conftest import free_port, serve_process
from tests.service import jobs

import gradwatch_wire as wire

RUNS, TENSORS = 100, 200
MINUTES = float(os.environ.get("SOAK_MINUTES", "60"))
PAUSE = float(os.environ.get("SOAK_PAUSE", "1"))
DISTINCT = 8


class Record:
    """Samples of a process, and a line a minute for whoever watches."""

    def __init__(self, pid):
        self.pid, self.begun = pid, time.monotonic()
        self.minutes, self.rss = [], []

    def take(self, step):
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        self.rss.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)
        self.minutes.append((time.monotonic() - self.begun) / 60)
        if len(self.minutes) < 2 or int(self.minutes[-1]) > int(self.minutes[-2]):
            self.say(
                f"{self.minutes[-1]:.1f} min, step {step}, {self.rss[-1]:.1f} MB, {self.cpu()}"
            )

    def cpu(self):
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return f"{seconds:.1f} s CPU"

    def say(self, line):
        if path := os.environ.get("SOAK_LOG"):
            with Path(path).open("a") as log:
                log.write(line + "\n")


@pytest.mark.soak
@pytest.mark.timeout(MINUTES * 60 + 300)
def test_a_hundred_live_runs_stay_below_200_megabytes_without_growing(tmp_path):
    made = jobs.manifest(TENSORS)
    reports = [jobs.report([0], made=made, seed=seed) for seed in range(DISTINCT)]
    port = free_port()
    # A soak that shares its machine may have to wait for its turn.
    patient = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=300)
    with serve_process(tmp_path / "a.db", port=port, http=patient) as service:
        for run in range(RUNS):
            jobs.register(service.http, f"run-{run}", made)
        record, step = Record(service.process.pid), 0
        while time.monotonic() - record.begun < MINUTES * 60:
            steps = wire.Column("i8", (1,), step.to_bytes(8, "little"))
            body = wire.encode(replace(reports[step % DISTINCT], sequence=step, steps=steps))
            for run in range(RUNS):
                answer = service.http.post(
                    f"/api/v1/runs/run-{run}/reports",
                    content=body,
                    headers={"content-type": wire.CONTENT_TYPE},
                )
                assert answer.status_code == 200, answer.text
            service.http.get("/metrics")
            service.http.get(f"/api/v1/runs/run-{step % RUNS}/series")
            record.take(step)
            step += 1
            time.sleep(max(0.0, record.begun + step * PAUSE - time.monotonic()))
    half = len(record.rss) // 2
    slope, _ = np.polyfit(record.minutes[half:], record.rss[half:], 1)
    record.say(
        f"{step} steps of {RUNS} runs: at most {max(record.rss):.1f} MB, second half "
        f"{min(record.rss[half:]):.1f} to {max(record.rss[half:]):.1f}, {60 * slope:+.2f} MB an hour"
    )
    assert max(record.rss) < 200
    # Chunks, snapshots and caches have all been made several times by half time.
    assert max(record.rss[half:]) < max(record.rss[:half]) * 1.1
