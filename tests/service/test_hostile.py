"""Whatever comes over the wire: never a 5xx, nothing half stored."""

from __future__ import annotations

import json
import struct

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from tests.conftest import serving
from tests.service import jobs

import gradwatch_wire as wire

QUICK = hypothesis.settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
WORD = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=6))
TREE = st.recursive(
    WORD,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
FIELDS = (
    "attempt", "rank", "optimizer", "sequence", "manifest", "steps", "scalars", "tensors",
    "histograms", "time", "partial", "dropped", "version",
)  # fmt: skip


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("service")) as served:
        jobs.register(served.http, "run")
        yield served


def untouched(service):
    store = service.parts.store
    assert list(store.read("run", attempt=0, optimizer="default", rank=0)) == []
    assert store.gaps("run", 0) == {}


def refused(answer):
    assert 400 <= answer.status_code < 500, (answer.status_code, answer.text)
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["detail"]


@QUICK
@given(body=st.binary(max_size=200))
def test_any_bytes_are_refused(service, body):
    for kind in (wire.CONTENT_TYPE, "application/json"):
        answer = service.http.post(
            "/api/v1/runs/run/reports", content=body, headers={"content-type": kind}
        )
        refused(answer)
    untouched(service)


@QUICK
@given(field=st.sampled_from(FIELDS), value=TREE)
def test_a_report_with_any_field_replaced_is_refused_or_means_the_same(service, field, value):
    made = wire.report_to_json(jobs.report(range(2)))
    made["manifest"] = "0" * 16  # unknown: nothing is stored even where the field is harmless
    made[field] = value

    answer = service.http.post(
        "/api/v1/runs/run/reports",
        content=json.dumps(made),
        headers={"content-type": "application/json"},
    )

    refused(answer)
    untouched(service)


@QUICK
@given(data=st.data())
def test_a_damaged_frame_is_refused(service, data):
    body = bytearray(wire.encode(jobs.report(range(3))))
    length = struct.unpack("<Q", body[:8])[0]
    kind = data.draw(st.sampled_from(["cut", "length", "header"]))
    if kind == "cut":
        del body[data.draw(st.integers(0, len(body) - 1)) :]
    elif kind == "length":
        body[:8] = struct.pack(
            "<Q", data.draw(st.integers(0, 2**64 - 1).filter(lambda n: n != length))
        )
    else:
        body[8] = data.draw(st.integers(0, 255).filter(lambda n: n != body[8]))

    answer = service.http.post(
        "/api/v1/runs/run/reports",
        content=bytes(body),
        headers={"content-type": wire.CONTENT_TYPE},
    )

    refused(answer)
    untouched(service)


@QUICK
@given(value=TREE)
def test_any_json_is_refused_as_manifest_and_as_steps(service, value):
    # What hypothesis calls a float may be NaN: json.dumps writes it as people's tools do.
    for method, path in (
        ("PUT", "runs/new"),
        ("POST", "runs/new/steps"),
        ("POST", "runs/run/finish"),
    ):
        answer = service.http.request(
            method,
            f"/api/v1/{path}",
            content=json.dumps(value),
            headers={"content-type": "application/json"},
        )
        if path.endswith("finish"):
            assert answer.status_code < 500
        else:
            refused(answer)
    assert service.http.get("/api/v1/runs/new").status_code == 404


@pytest.fixture(scope="module")
def explored(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("explored"), finish_seconds=0) as served:
        jobs.register(served.http, "run")
        jobs.post(served.http, "run", jobs.report(range(64)))
        yield served


def operations(served):
    document = served.http.get("/api/v1/openapi.json").json()
    # A stream has no end: it has tests of its own.
    del document["paths"]["/api/v1/runs/{run}/events"]
    return schemathesis.openapi.from_dict(document)


def explore(served, examples):
    """Every operation with generated input, valid and not, against the running service."""
    schema = operations(served)
    seen = set()
    for result in schema.get_all_operations():
        operation = result.ok()

        @hypothesis.settings(
            max_examples=examples,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(), known=st.booleans())
        def check(case, known):
            if known and case.method != "DELETE" and "run" in case.path_parameters:
                case.path_parameters["run"] = "run"
            answer = case.call(base_url=served.base_url, timeout=20)
            assert answer.status_code < 500, (case.method, case.path, answer.text)
            if answer.status_code >= 400:
                assert answer.headers["content-type"][0] == "application/problem+json"

        check()
        seen.add((operation.method.upper(), operation.path))
    return seen


def test_generated_requests_are_never_answered_with_5xx(explored):
    seen = explore(explored, examples=5)

    assert ("POST", "/api/v1/runs/{run}/reports") in seen
    assert len(seen) >= 20


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_many_generated_requests_are_never_answered_with_5xx(explored):
    explore(explored, examples=500)


def test_every_operation_has_a_name_of_its_own(explored):
    document = explored.http.get("/api/v1/openapi.json").json()
    names = [
        operation["operationId"]
        for path in document["paths"].values()
        for operation in path.values()
    ]

    assert len(names) == len(set(names))
    assert all(name.isidentifier() for name in names)
