"""Answers given again are those that asking anew would give, and only to those who may read them."""

from __future__ import annotations

import itertools

from tests.conftest import serving
from tests.service import jobs

from gradwatch_service.queries.remembered import LARGEST_BYTES, SECONDS, Answer, Remembered
from gradwatch_service.store.base import Commit

QUESTIONS = (
    "recommendation?default=1",
    "recommendation?policy=per_tensor",
    "series",
    "series?metric=loss&points=3",
    "tensors",
    "histogram",
    "",
)


def answer(text="x"):
    return Answer(text.encode(), f'"{text[:8]}"', "private, max-age=1")


def commit(run):
    return Commit(kind="report", run=run, project="default")


def test_an_answer_is_given_again_until_its_run_changes():
    kept = Remembered()
    kept.keep("question", kept.version("a"), answer())
    kept.committed([commit("b")])
    assert kept.find("question", kept.version("a")) == answer()
    kept.committed([commit("a")])
    assert kept.find("question", kept.version("a")) is None
    kept.keep("question", kept.version("a"), answer())
    kept.analysed("a", None)
    assert kept.find("question", kept.version("a")) is None


def test_what_changes_while_an_answer_is_made_is_not_missed():
    kept = Remembered()
    version = kept.version("a")
    kept.committed([commit("a")])
    kept.keep("question", version, answer())
    assert kept.find("question", kept.version("a")) is None


def test_an_answer_ages_and_memory_is_bounded():
    now = 0.0
    kept = Remembered(clock=lambda: now, most_bytes=1000)
    for number in range(20):
        kept.keep(number, 0, answer("x" * 99))
    held = [number for number in range(20) if kept.find(number, 0) is not None]
    assert held == list(range(10, 20))
    kept.keep("huge", 0, answer("x" * (LARGEST_BYTES + 1)))
    assert kept.find("huge", 0) is None
    now = SECONDS
    assert kept.find(19, 0) is None


def test_whatever_happens_to_a_run_its_answers_follow_at_once(tmp_path):
    marks = itertools.count()

    def compare(service):
        for question in QUESTIONS:
            path = f"/api/v1/runs/run{'/' if question else ''}{question}"
            service.http.get(path)
            again = service.http.get(path)
            mark = "&" if "?" in path else "?"
            anew = service.http.get(f"{path}{mark}anew={next(marks)}")
            if again.content != anew.content:  # analysis may have gone on between the two
                again = service.http.get(path)
            assert again.status_code == anew.status_code, question
            assert again.content == anew.content, question

    with serving(tmp_path) as service:
        made = jobs.manifest(3)
        jobs.register(service.http, "run", made)
        compare(service)
        for sequence in range(6):
            steps = range(10 * sequence, 10 * sequence + 10)
            report = jobs.report(steps, sequence=sequence, made=made)
            assert jobs.post(service.http, "run", report).status_code == 200
            last = service.http.get("/api/v1/runs/run").json()["last_step"]
            assert last == steps[-1]
            tensors = service.http.get("/api/v1/runs/run/tensors").json()
            assert tensors["step"] == steps[-1]
            compare(service)
        service.http.patch("/api/v1/runs/run", json={"name": "other"})
        assert service.http.get("/api/v1/runs/run").json()["name"] == "other"
        compare(service)
        service.http.post("/api/v1/runs/run/finish", json={})
        assert service.http.get("/api/v1/runs/run").json()["state"] == "finished"
        compare(service)
        assert service.http.delete("/api/v1/runs/run").status_code == 204
        assert service.http.get("/api/v1/runs/run").status_code == 410
        assert service.http.get("/api/v1/runs/run/series").status_code == 410


def test_an_answer_given_again_keeps_its_tag_and_is_304_for_who_holds_it(tmp_path):
    with serving(tmp_path) as service:
        jobs.register(service.http, "run")
        jobs.post(service.http, "run", jobs.report(range(5)))
        service.http.post("/api/v1/runs/run/finish", json={})
        first, second = (service.http.get("/api/v1/runs/run/series") for _ in range(2))
        assert first.headers["etag"] == second.headers["etag"]
        assert first.headers["cache-control"] == second.headers["cache-control"]
        held = {"if-none-match": first.headers["etag"]}
        third = service.http.get("/api/v1/runs/run/series", headers=held)
        assert (third.status_code, third.content) == (304, b"")
