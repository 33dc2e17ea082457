"""Registering, resuming, extending, finishing, editing and deleting runs; and the short way."""

from __future__ import annotations

import itertools

import pytest
from tests.conftest import serving
from tests.service import jobs

import gradwatch_wire as wire

NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("service"), finish_seconds=5) as served:
        yield served


@pytest.fixture
def run():
    return f"run-{next(NUMBERS)}"


def put(service, run, made):
    return service.http.put(f"/api/v1/runs/{run}", json=made.to_json())


def test_a_new_run_is_201_and_the_same_again_200_with_nothing_created(service, run):
    first, second = (put(service, run, jobs.manifest()) for _ in range(2))

    assert (first.status_code, first.json()["created"]) == (201, True)
    assert (second.status_code, second.json()["created"]) == (200, False)
    assert first.json()["manifest"] == second.json()["manifest"] == jobs.manifest().hash


def test_a_known_session_resumes_its_attempt_and_a_new_one_opens_the_next(service, run):
    attempts = [
        put(service, run, jobs.manifest(session=session)).json()["attempt"]
        for session in ("a", "b", "a", "b", "c")
    ]

    assert attempts == [0, 1, 0, 1, 2]


def test_ranks_of_one_session_share_the_attempt(service, run):
    for rank in (1, 0, 2):
        made = jobs.manifest(session="s", rank=rank, world_size=3)
        assert put(service, run, made).json()["attempt"] == 0

    assert [s.rank for s in service.parts.store.streams(run)] == [0, 1, 2]


def test_other_tensors_are_a_conflict_unless_they_extend(service, run):
    old = jobs.manifest()
    more = wire.TensorInfo("added.weight", (4, 4), "float32", "added")
    put(service, run, old)
    refused = put(service, run, jobs.manifest((*old.tensors, more)))
    assert (refused.status_code, refused.json()["code"]) == (409, "manifest_conflict")

    grown = jobs.manifest((*old.tensors, more), extends=old.hash)
    accepted = put(service, run, grown)

    assert (accepted.status_code, accepted.json()["created"]) == (200, True)
    # Reports under either manifest are welcome: some were on their way.
    assert jobs.post(service.http, run, jobs.report([0, 1], made=old)).status_code == 200
    late = jobs.report([2, 3], made=grown, sequence=1)
    assert jobs.post(service.http, run, late).status_code == 200


def test_an_extension_may_not_change_a_known_tensor(service, run):
    old = jobs.manifest()
    put(service, run, old)
    first, *rest = old.tensors
    changed = wire.TensorInfo(first.name, (1, 1), first.dtype, first.group)

    answer = put(service, run, jobs.manifest((changed, *rest), extends=old.hash))

    assert (answer.status_code, answer.json()["code"]) == (409, "manifest_conflict")
    assert first.name in answer.json()["detail"]


def test_a_run_belongs_to_the_project_that_made_it(service, run):
    put(service, run, jobs.manifest(project="one"))

    assert put(service, run, jobs.manifest(project="two")).status_code == 409


@pytest.mark.parametrize("bad", ["-x", "a b", "a" * 129, "ä", ".hidden"])
def test_a_bad_run_id_is_refused_everywhere(service, bad):
    answers = [
        service.http.put(f"/api/v1/runs/{bad}", json=jobs.manifest().to_json()),
        service.http.post(f"/api/v1/runs/{bad}/steps", json={"step": 1}),
        service.http.get(f"/api/v1/runs/{bad}"),
    ]

    assert {(a.status_code, a.json()["code"]) for a in answers} == {(422, "invalid_run")}


def test_finish_says_how_far_the_analysis_is_and_may_be_repeated(service, run):
    jobs.register(service.http, run)
    jobs.post(service.http, run, jobs.report(range(40)))

    answers = [
        service.http.post(f"/api/v1/runs/{run}/finish", json={"status": "completed"})
        for _ in range(2)
    ]

    for answer in answers:
        assert answer.status_code == 200, answer.text
        assert answer.json() == {"status": "completed", "analysed": True, "analysed_step": 39}
    assert service.http.get(f"/api/v1/runs/{run}").json()["state"] == "finished"
    late = jobs.report(range(40, 50), sequence=1)
    assert jobs.post(service.http, run, late).json()["stored"] is True


def test_finish_without_all_deliveries_is_202(tmp_path):
    with serving(tmp_path, finish_seconds=0.2, gap_seconds=60) as service:
        jobs.register(service.http, "gap")
        jobs.post(service.http, "gap", jobs.report(range(10), sequence=0))
        jobs.post(service.http, "gap", jobs.report(range(20, 30), sequence=2))

        answer = service.http.post("/api/v1/runs/gap/finish", json={"status": "failed"})

        assert (answer.status_code, answer.json()["analysed"]) == (202, False)


def test_a_run_is_renamed_tagged_and_annotated(service, run):
    put(service, run, jobs.manifest(tags={"lr": "0.1"}))
    edit = {"name": "Better", "note": "two\nlines", "tags": {"team": "speech"}}

    answer = service.http.patch(f"/api/v1/runs/{run}", json=edit)

    assert answer.status_code == 200, answer.text
    assert answer.json() == {"run": run, **edit}
    # Registering again does not undo what a person said.
    put(service, run, jobs.manifest(tags={"lr": "0.1"}, name="job"))
    summary = service.http.get(f"/api/v1/runs/{run}").json()
    assert (summary["name"], summary["note"]) == ("Better", "two\nlines")
    assert summary["tags"] == {"team": "speech", "lr": "0.1"}


@pytest.mark.parametrize("edit", [{"nmae": "x"}, {"tags": {"a": "\u0007"}}, {"name": "n" * 129}])
def test_an_edit_that_is_wrong_changes_nothing(service, run, edit):
    jobs.register(service.http, run)

    assert service.http.patch(f"/api/v1/runs/{run}", json=edit).status_code == 422


def test_a_deleted_run_is_gone_and_its_id_is_not_taken_for_a_new_one(service, run):
    made = jobs.manifest()
    jobs.register(service.http, run)
    jobs.post(service.http, run, jobs.report(range(4)))

    assert service.http.delete(f"/api/v1/runs/{run}").status_code == 204

    later = [
        service.http.get(f"/api/v1/runs/{run}"),
        put(service, run, made),
        jobs.post(service.http, run, jobs.report(range(4, 8), sequence=1)),
        service.http.post(f"/api/v1/runs/{run}/steps", json={"step": 1, "loss": 2.0}),
        service.http.delete(f"/api/v1/runs/{run}"),
    ]
    assert [a.status_code for a in later] == [410] * 5
    listed = service.http.get("/api/v1/runs", params={"limit": 1000}).json()["items"]
    assert run not in [item["run"] for item in listed]


def test_a_step_posted_the_short_way_makes_the_run_and_is_stored_once(service, run):
    step = {"step": 100, "global_norm": 0.72, "loss": 2.3}
    path = f"/api/v1/runs/{run}/steps"

    first = service.http.post(path, json=step)
    again = service.http.post(path, json=step)
    other = service.http.post(path, json={**step, "loss": 2.4})

    assert (first.status_code, first.json()["stored"], first.json()["steps"]) == (200, True, 1)
    assert (again.status_code, again.json()["stored"], again.json()["steps"]) == (200, False, 0)
    assert (other.status_code, other.json()["code"]) == (409, "sequence_conflict")
    assert service.parts.store.run(run).steps == 1


def test_a_list_of_steps_is_stored_whole_or_not_at_all(service, run):
    path = f"/api/v1/runs/{run}/steps"
    service.http.post(path, json={"step": 5, "global_norm": 1.0})
    steps = [{"step": n, "global_norm": 2.0} for n in range(3, 8)]

    assert service.http.post(path, json=steps).status_code == 409
    assert service.parts.store.run(run).steps == 1

    steps[2]["global_norm"] = 1.0
    answer = service.http.post(path, json=steps)
    assert (answer.status_code, answer.json()["steps"]) == (200, 4)
    (rows,) = service.parts.store.read(run, attempt=0, optimizer="steps", rank=0)
    assert rows.steps.tolist() == [3, 4, 5, 6, 7]
    assert rows.scalars["global_norm"].tolist() == [2.0, 2.0, 1.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("body", "at"),
    [
        pytest.param({"global_norm": 1.0}, "step", id="no step"),
        pytest.param({"step": -1}, "step", id="below zero"),
        pytest.param({"step": True}, "step", id="a truth value"),
        pytest.param({"step": 1, "global_norm": -1}, "global_norm", id="negative norm"),
        pytest.param({"step": 1, "loss": "low"}, "loss", id="a word"),
        pytest.param([{"step": 1}, {"step": 1}], "[1].step", id="twice"),
        pytest.param([], "body", id="empty list"),
        pytest.param("x", "body", id="no object"),
    ],
)
def test_a_wrong_step_is_named_and_makes_no_run(service, run, body, at):
    answer = service.http.post(f"/api/v1/runs/{run}/steps", json=body)

    assert answer.status_code == 422
    assert answer.json()["errors"][0]["at"] == at
    assert service.http.get(f"/api/v1/runs/{run}").status_code == 404
