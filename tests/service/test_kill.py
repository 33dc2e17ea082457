"""kill -9 at random moments under concurrent clients: every acknowledged report is there, once."""

from __future__ import annotations

import random
import sqlite3
import threading
import time

import httpx
import numpy as np
import pytest
from tests.conftest import free_port, ready, serve_process
from tests.service import jobs

from gradwatch_service.settings import Settings
from gradwatch_service.store.sqlite import SqliteStore

CLIENTS = 4
STEPS = 20


class Job(threading.Thread):
    """Posts deliveries in order, each until it is acknowledged, across restarts of the service."""

    def __init__(self, base_url: str, index: int) -> None:
        super().__init__(daemon=True)
        self.run_id = f"job-{index}"
        self.acknowledged = 0
        self.repeats = 0
        self.stop = threading.Event()
        self._base_url = base_url
        self._seed = index

    def report(self, sequence: int):
        first = sequence * STEPS
        return jobs.report(range(first, first + STEPS), sequence=sequence, seed=self._seed)

    def run(self) -> None:
        with httpx.Client(base_url=self._base_url, timeout=5) as http:
            registered = False
            while not self.stop.is_set():
                try:
                    if not registered:
                        jobs.register(http, self.run_id)
                        registered = True
                    answer = jobs.post(http, self.run_id, self.report(self.acknowledged))
                except httpx.TransportError:
                    time.sleep(0.01)
                    continue
                if answer.status_code == 200:
                    self.repeats += not answer.json()["stored"]
                    self.acknowledged += 1
                else:
                    assert answer.status_code in {429, 503}, answer.text


def rounds(tmp_path, count, seed):
    rng = random.Random(seed)
    path, port = tmp_path / "a.db", free_port()
    crew = [Job(f"http://127.0.0.1:{port}", index) for index in range(CLIENTS)]
    for job in crew:
        job.start()
    for _ in range(count):
        with serve_process(path, port=port) as service:
            assert ready(service.http)
            time.sleep(rng.uniform(0.1, 0.8))
            service.kill()
    with serve_process(path, port=port):
        for job in crew:
            job.stop.set()
        for job in crew:
            job.join(20)
            assert not job.is_alive()
    assert sum(job.acknowledged for job in crew) > count * CLIENTS
    check(path, crew)


def check(path, crew):
    """Every acknowledged step is there once, with the numbers that were sent."""
    store = SqliteStore(path, Settings())
    try:
        for job in crew:
            blocks = list(store.read(job.run_id, attempt=0, optimizer="default", rank=0))
            steps = np.concatenate([rows.steps for rows in blocks])
            norms = np.concatenate([rows.tensors["norm"] for rows in blocks])
            # At most the one delivery that was never answered may be there beyond.
            assert len(steps) - job.acknowledged * STEPS in {0, STEPS}
            assert steps.tolist() == list(range(len(steps)))
            sent = [job.report(n).tensors["norm"].data for n in range(len(steps) // STEPS)]
            assert np.ascontiguousarray(norms).tobytes() == b"".join(sent)
            counters = store.run(job.run_id).counters
            assert counters.counts.steps == len(steps)
    finally:
        store.close()
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_nothing_acknowledged_is_lost_or_doubled(tmp_path):
    rounds(tmp_path, count=2, seed=1)


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_nothing_acknowledged_is_lost_or_doubled_in_fifty_rounds(tmp_path):
    rounds(tmp_path, count=50, seed=2)
