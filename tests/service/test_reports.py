"""What POST .../reports promises: stored once, whatever form it came in, or refused whole."""

from __future__ import annotations

import copy
import gzip
import itertools
import json

import numpy as np
import pytest
import zstandard
from tests.conftest import serving
from tests.service import jobs

import gradwatch_wire as wire

MANIFEST = {
    "tensors": [
        {"name": "rnn.weight_ih_l0", "shape": [1024, 256], "dtype": "float32", "group": "rnn"}
    ]
}
REPORT = {
    "attempt": 0,
    "rank": 0,
    "optimizer": "default",
    "sequence": 0,
    "steps": [100, 101],
    "scalars": {"loss": [2.31, 2.30], "learning_rate": [0.1, 0.1], "threshold": [1.0, 1.0]},
    "tensors": {
        "norm": [[0.72], [0.70]],
        "max_abs": [[0.11], [0.10]],
        "mean": [[0.0], [0.001]],
        "zero_count": [[0], [0]],
        "nonfinite_count": [[0], [0]],
        "clipped_count": [[0], [0]],
        "norm_after": [[0.72], [0.70]],
        "cosine_previous": [[None], [0.2]],
    },
    "histograms": {
        "steps": [100],
        "bins_per_octave": 4,
        "lowest_exponent": -48,
        "sampled": 1.0,
        "counts": [[[0, 12, 7]]],
    },
    "time": [1795341600.1, 1795341600.9],
}
NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("service")) as served:
        yield served


@pytest.fixture
def registered(service):
    run = f"run-{next(NUMBERS)}"
    answer = service.http.put(f"/api/v1/runs/{run}", json=MANIFEST)
    assert answer.status_code == 201, answer.text
    return answer.json() | {"path": f"/api/v1/runs/{run}/reports"}


def report(registered, **changes):
    made = copy.deepcopy(REPORT) | {"manifest": registered["manifest"]}
    return made | changes


def stored(service, run, **which):
    which = {"attempt": 0, "optimizer": "default", "rank": 0} | which
    return list(service.parts.store.read(run, **which))


def test_the_example_of_the_contract_is_stored_and_read_back(service, registered):
    answer = service.http.post(registered["path"], json=report(registered))

    assert answer.status_code == 200, answer.text
    assert answer.json()["stored"] is True
    assert answer.json()["sequence"] == 0
    assert answer.json()["steps"] == 2
    (rows,) = stored(service, registered["run"])
    assert rows.steps.tolist() == [100, 101]
    assert rows.tensors["norm"][:, 0] == pytest.approx([0.72, 0.70])
    assert np.isnan(rows.tensors["cosine_previous"][0, 0])
    assert rows.scalars["loss"].tolist() == [2.31, 2.30]
    assert rows.time.tolist() == REPORT["time"]
    (histogram,) = rows.histograms
    assert histogram.counts[0, 0, :3].tolist() == [0, 12, 7]


@pytest.mark.parametrize("encoding", ["identity", "gzip", "zstd"])
def test_both_forms_in_every_encoding_store_the_same_numbers(service, encoding):
    sent = {"json": jobs.report(range(8)), "compact": jobs.report(range(8))}
    squeeze = {"identity": bytes, "gzip": gzip.compress, "zstd": zstandard.compress}[encoding]
    for form, made in sent.items():
        run = f"{form}-{encoding}"
        jobs.register(service.http, run)
        if form == "json":
            body, kind = json.dumps(wire.report_to_json(made)).encode(), "application/json"
        else:
            body, kind = wire.encode(made), wire.CONTENT_TYPE
        headers = {"content-type": kind, "content-encoding": encoding}
        answer = service.http.post(
            f"/api/v1/runs/{run}/reports", content=squeeze(body), headers=headers
        )
        assert answer.status_code == 200, answer.text

    (one,), (other,) = (stored(service, f"{form}-{encoding}") for form in sent)
    assert one.steps.tolist() == other.steps.tolist()
    assert one.tensors.keys() == other.tensors.keys()
    for name, values in one.tensors.items():
        assert values.tobytes() == other.tensors[name].tobytes(), name


def test_a_repeat_is_acknowledged_and_stored_once_also_in_the_other_form(service, registered):
    made = wire.report_from_json(report(registered))

    answers = [
        service.http.post(registered["path"], json=report(registered)),
        service.http.post(registered["path"], json=report(registered)),
        jobs.post(service.http, registered["run"], made),
    ]

    assert [a.status_code for a in answers] == [200, 200, 200]
    assert [a.json()["stored"] for a in answers] == [True, False, False]
    assert service.parts.store.run(registered["run"]).steps == 2


def test_the_same_sequence_with_other_numbers_is_a_conflict_and_changes_nothing(
    service, registered
):
    service.http.post(registered["path"], json=report(registered))
    changed = report(registered)
    changed["tensors"]["norm"] = [[0.73], [0.70]]

    answer = service.http.post(registered["path"], json=changed)

    assert answer.status_code == 409
    assert answer.json()["code"] == "sequence_conflict"
    (rows,) = stored(service, registered["run"])
    assert rows.tensors["norm"][0, 0] == pytest.approx(0.72)


def test_an_empty_delivery_tells_what_was_dropped(service, registered):
    empty = report(registered, steps=[], scalars={}, tensors={}, histograms=None, time=None)
    answer = service.http.post(registered["path"], json=empty | {"dropped": {"queue_full": 7}})

    assert answer.status_code == 200, answer.text
    assert answer.json()["steps"] == 0
    assert service.parts.store.run(registered["run"]).dropped == {"queue_full": 7}
    assert service.parts.store.gaps(registered["run"], 0)[0].contiguous == 0


def broken(path, value):
    def change(made):
        *parents, last = path
        target = made
        for name in parents:
            target = target[name]
        target[last] = value
        return made

    return change


@pytest.mark.parametrize(
    ("change", "at"),
    [
        pytest.param(broken(["tensors", "norm"], [[-0.1], [0.7]]), "tensors.norm[0][0]", id="negative norm"),
        pytest.param(broken(["tensors", "norm"], [[None], [0.7]]), "tensors.norm[0][0]", id="norm not measured"),
        pytest.param(broken(["tensors", "norm"], [[0.7]]), "tensors.norm", id="a step too few"),
        pytest.param(broken(["tensors"], {"max_abs": [[1], [1]]}), "tensors.norm", id="norm missing"),
        pytest.param(broken(["tensors", "zero_count"], [[262145], [0]]), "tensors.zero_count[0][0]", id="more zeros than elements"),
        pytest.param(broken(["tensors", "present"], [[2], [1]]), "tensors.present", id="present twice"),
        pytest.param(broken(["steps"], [101, 100]), "steps", id="steps fall"),
        pytest.param(broken(["steps"], [100, 100]), "steps", id="a step twice"),
        pytest.param(broken(["steps"], None), "steps", id="no steps"),
        pytest.param(broken(["scalars", "loss"], ["high", 1]), "scalars.loss[0]", id="a word for a number"),
        pytest.param(broken(["histograms", "counts"], [[[0, 262145]]]), "histograms.counts[0][0]", id="histogram too full"),
        pytest.param(broken(["manifest"], "nothash"), "manifest", id="no hash"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_and_nothing_of_it_is_stored(service, registered, change, at):
    answer = service.http.post(registered["path"], json=change(report(registered)))

    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert at in [error["at"] for error in answer.json()["errors"]]
    assert stored(service, registered["run"]) == []
    assert service.parts.store.gaps(registered["run"], 0) == {}


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity", "1e400"])
@pytest.mark.parametrize("field", ["norm", "loss"])
def test_not_a_number_in_json_is_422_and_never_500(service, registered, word, field):
    made = json.dumps(report(registered))
    made = made.replace("0.72", word, 1) if field == "norm" else made.replace("2.31", word, 1)

    answer = service.http.post(
        registered["path"], content=made, headers={"content-type": "application/json"}
    )

    assert answer.status_code == 422, answer.text
    assert any(field in error["at"] for error in answer.json()["errors"])


def test_infinity_in_the_compact_form_is_refused_where_nan_means_not_measured(service):
    jobs.register(service.http, "infinity")
    for value, status in ((np.inf, 422), (np.nan, 200)):
        extra = {"cosine_previous": jobs.column(np.full((4, 3), value, "<f4"))}
        made = jobs.report(range(4))
        made = jobs.report(range(4), tensors={**made.tensors, **extra})

        assert jobs.post(service.http, "infinity", made).status_code == status


def test_an_unknown_manifest_is_409_and_an_unknown_run_404(service, registered):
    unknown = report(registered, manifest="0" * 16)

    assert service.http.post(registered["path"], json=unknown).json()["code"] == "manifest_unknown"
    assert service.http.post(registered["path"], json=unknown).status_code == 409
    other = service.http.post("/api/v1/runs/other/reports", json=unknown)
    assert (other.status_code, other.json()["code"]) == (404, "unknown_run")


def test_an_unknown_version_is_415_with_the_supported_ones(service, registered):
    answer = service.http.post(registered["path"], json=report(registered, version=99))

    assert answer.status_code == 415
    assert answer.json()["supported"] == [1]


def test_a_bomb_is_refused_without_being_unpacked(service, registered):
    limit = service.settings.max_decompressed_bytes
    for encoding, squeeze in (("gzip", gzip.compress), ("zstd", zstandard.compress)):
        headers = {"content-type": "application/json", "content-encoding": encoding}
        answer = service.http.post(
            registered["path"], content=squeeze(bytes(limit + 1)), headers=headers
        )

        assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
        assert answer.headers["connection"] == "close"


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_a_cut_off_body_is_malformed(service, registered, encoding):
    squeeze = {"gzip": gzip.compress, "zstd": zstandard.compress}[encoding]
    body = squeeze(json.dumps(report(registered)).encode())[:-9]
    headers = {"content-type": "application/json", "content-encoding": encoding}

    answer = service.http.post(registered["path"], content=body, headers=headers)

    assert (answer.status_code, answer.json()["code"]) == (400, "malformed")


def test_rejections_are_counted_by_reason(service, registered):
    def counted(reason):
        name = f'gradwatch_ingest_rejected_reports_total{{reason="{reason}"}} '
        (line,) = [t for t in service.http.get("/metrics").text.splitlines() if t.startswith(name)]
        return float(line.removeprefix(name))

    before = {reason: counted(reason) for reason in ("invalid", "conflict", "overload")}
    service.http.post(
        registered["path"], content=b"{", headers={"content-type": "application/json"}
    )
    service.http.post(registered["path"], json=report(registered, manifest="0" * 16))

    assert counted("invalid") == before["invalid"] + 1
    assert counted("conflict") == before["conflict"] + 1
    assert counted("overload") == before["overload"]


def test_zstd_bodies_of_several_frames_and_of_unknown_size_are_read(service, registered):
    body = json.dumps(report(registered)).encode()
    squeeze = zstandard.ZstdCompressor(write_content_size=False)
    several = zstandard.compress(body[:100]) + squeeze.compress(body[100:])
    headers = {"content-type": "application/json", "content-encoding": "zstd"}

    for sent in (several, squeeze.compress(body)):
        answer = service.http.post(registered["path"], content=sent, headers=headers)
        assert answer.status_code == 200, answer.text
