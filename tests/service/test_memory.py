"""What the service needs with a hundred live runs, and that it does not grow."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from tests.conftest import serve_process
from tests.service import jobs

import gradwatch_wire as wire

RUNS, TENSORS = 100, 200
MINUTES = float(os.environ.get("SOAK_MINUTES", "60"))


def rss(pid):
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.soak
@pytest.mark.timeout(MINUTES * 60 + 300)
def test_a_hundred_live_runs_stay_below_200_megabytes_without_growing(tmp_path):
    made = jobs.manifest(TENSORS)
    report = jobs.report([0], made=made)
    fields = {name: getattr(report, name) for name in wire.Report.__slots__}
    measured = []
    with serve_process(tmp_path / "a.db") as service:
        for run in range(RUNS):
            jobs.register(service.http, f"run-{run}", made)
        start, step = time.monotonic(), 0
        while time.monotonic() - start < MINUTES * 60:
            steps = wire.Column("i8", (1,), step.to_bytes(8, "little"))
            body = wire.encode(wire.Report(**{**fields, "sequence": step, "steps": steps}))
            for run in range(RUNS):
                answer = service.http.post(
                    f"/api/v1/runs/run-{run}/reports",
                    content=body,
                    headers={"content-type": wire.CONTENT_TYPE},
                )
                assert answer.status_code == 200, answer.text
            service.http.get("/metrics")
            measured.append(rss(service.process.pid))
            step += 1
            time.sleep(max(0.0, start + step - time.monotonic()))
    half = len(measured) // 2
    assert max(measured) < 200
    # Chunks, snapshots and caches have all been made several times by half time.
    assert max(measured[half:]) < max(measured[:half]) * 1.1
