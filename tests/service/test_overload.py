"""What happens when too much comes, when nothing can be stored, and when the service stops."""

from __future__ import annotations

import http.client
import signal
import sqlite3
import threading
import time

import httpx
import pytest
from tests.conftest import poll, serve_process, serving
from tests.service import jobs

import gradwatch_wire as wire


def hold_writer(service):
    """Keep the writer busy until the returned event is set."""
    release, busy = threading.Event(), threading.Event()

    def wait():
        busy.set()
        release.wait(20)

    service.parts.store.writer.submit(wait)
    assert busy.wait(5)
    return release


def test_a_full_queue_is_429_and_what_was_let_in_is_stored(tmp_path):
    made = [jobs.report(range(n * 50, n * 50 + 50), sequence=n) for n in range(12)]
    size = len(wire.encode(made[0]))
    with serving(tmp_path, max_queue_bytes=max(1024, size * 3)) as service:
        jobs.register(service.http, "run")
        release = hold_writer(service)
        answers = {}

        def send(n):
            with httpx.Client(base_url=service.base_url, timeout=30) as client:
                answers[n] = jobs.post(client, "run", made[n])

        threads = [threading.Thread(target=send, args=(n,)) for n in range(12)]
        for thread in threads:
            thread.start()
        poll(lambda: sum(a.status_code == 429 for a in answers.values()) >= 8)
        release.set()
        for thread in threads:
            thread.join()

        refused = {n for n, a in answers.items() if a.status_code == 429}
        stored = {n for n, a in answers.items() if a.status_code == 200}
        assert refused | stored == set(range(12))
        assert stored
        for n in refused:
            assert answers[n].json()["code"] == "overload"
            assert int(answers[n].headers["retry-after"]) >= 1
        assert service.parts.store.run("run").steps == 50 * len(stored)
        assert service.parts.ingest.backlog.bytes == 0
        # Once there is room, the refused ones are welcome.
        assert all(jobs.post(service.http, "run", made[n]).json()["stored"] for n in refused)


def test_a_draining_service_takes_nothing_and_says_so(service):
    jobs.register(service.http, "run")
    service.parts.drain()

    answer = jobs.post(service.http, "run", jobs.report(range(4)))

    assert (answer.status_code, answer.json()["code"]) == (503, "draining")
    assert "retry-after" in answer.headers
    assert service.http.get("/readyz").status_code == 503
    assert service.http.get("/healthz").status_code == 200


def test_a_store_that_cannot_write_is_503_and_recovers(service):
    jobs.register(service.http, "run")
    writer = service.parts.store.writer
    pages = writer.call(lambda: writer.connection.execute("PRAGMA page_count").fetchone()[0])
    # A database at its largest size answers as a full disk does: SQLITE_FULL.
    writer.call(lambda: writer.connection.execute(f"PRAGMA max_page_count = {pages}").fetchone())
    full = None
    for n in range(50):
        answer = jobs.post(service.http, "run", jobs.report(range(n * 99, n * 99 + 99), sequence=n))
        if answer.status_code != 200:
            full = n
            break

    assert answer.status_code == 503
    assert answer.json()["code"] == "store_unavailable"
    assert "full" in answer.json()["detail"]
    writer.call(lambda: writer.connection.execute("PRAGMA max_page_count = 1000000").fetchone())
    again = jobs.report(range(full * 99, full * 99 + 99), sequence=full)
    assert jobs.post(service.http, "run", again).json()["stored"] is True
    assert service.parts.store.run("run").steps == 99 * (full + 1)


def test_a_body_that_announces_too_much_is_refused_before_it_is_read(service):
    port = int(service.base_url.rpartition(":")[2])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.putrequest("POST", "/api/v1/runs/run/reports")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", str(service.settings.max_body_bytes + 1))
    connection.endheaders()

    answer = connection.getresponse()

    assert answer.status == 413
    assert answer.getheader("connection") == "close"
    assert b'"code":"too_large"' in answer.read()
    connection.close()


def test_a_body_without_a_length_is_cut_off_at_the_limit(tmp_path):
    with serving(tmp_path, max_body_bytes=4096) as service:

        def endless():
            for _ in range(100):
                yield b" " * 1024

        answer = service.http.post(
            "/api/v1/runs/run/reports",
            content=endless(),
            headers={"content-type": "application/json"},
        )

        assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
        assert service.parts.ingest.backlog.bytes == 0


def test_stopping_answers_what_is_under_way_and_ends_event_streams(tmp_path):
    with serve_process(tmp_path / "a.db") as service:
        jobs.register(service.http, "run")
        sent = 0
        with service.http.stream("GET", "/api/v1/runs/run/events") as stream:
            assert stream.status_code == 200
            for n in range(5):
                sent += jobs.post(service.http, "run", jobs.report([n], sequence=n)).is_success
            started = time.monotonic()
            service.process.send_signal(signal.SIGTERM)
            text = stream.read().decode()
        assert service.process.wait(10) == 0
        assert time.monotonic() - started < 8
        assert text.count("event: steps") == 5
    with sqlite3.connect(tmp_path / "a.db") as connection:
        assert connection.execute("SELECT count(*) FROM delivery").fetchone() == (sent,)


def test_listeners_are_bounded_and_get_what_happens(tmp_path):
    with serving(tmp_path, max_event_subscribers=1) as service:
        jobs.register(service.http, "run")
        jobs.register(service.http, "other")
        with (
            httpx.Client(base_url=service.base_url) as client,
            client.stream("GET", "/api/v1/runs/run/events") as stream,
        ):
            refused = service.http.get("/api/v1/runs/run/events")
            assert (refused.status_code, refused.json()["code"]) == (
                503,
                "too_many_subscribers",
            )
            jobs.post(service.http, "other", jobs.report(range(4)))
            jobs.post(service.http, "run", jobs.report(range(7)))
            lines = stream.iter_lines()
            event = next(line for line in lines if line.startswith("event:"))
            data = next(line for line in lines if line.startswith("data:"))
        assert event == "event: steps"
        assert '"last_step":6' in data
        poll(lambda: len(service.parts.events) == 0)


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/nowhere", 404, "not_found"),
        ("/api/v1/runs/x/finish", 405, "method_not_allowed"),
        ("/api/v1/runs/x", 404, "unknown_run"),
        ("/api/v1/runs?limit=0", 422, "invalid"),
    ],
)
def test_every_error_has_the_same_form(service, path, status, code):
    answer = service.http.get(path)

    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["type"].endswith(f"/problems/{code}")
    assert (problem["status"], problem["code"]) == (status, code)
    assert problem["title"]
    assert problem["detail"]


def test_an_error_of_ours_is_500_in_the_same_form_and_tells_nothing(service, caplog):
    service.parts.store.runs = None  # breaks the listing as no caller could

    answer = service.http.get("/api/v1/runs")

    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert "NoneType" not in answer.text
    assert "GET /api/v1/runs failed" in caplog.text
