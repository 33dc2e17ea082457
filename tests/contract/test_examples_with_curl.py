"""The examples of the contract, as a person would type them: curl, JSON, nothing of ours."""

import json
import subprocess
from collections.abc import Iterator

import pytest

from gradwatch_cli.demo.service import running_service

MANIFEST = {
    "project": "default",
    "name": "lstm-demo",
    "session": "f3a9",
    "world_size": 1,
    "rank": 0,
    "optimizer": "default",
    "tags": {"lr": "0.1"},
    "optimizer_class": "SGD",
    "policy": {"kind": "value", "threshold": 1.0},
    "tensors": [
        {"name": "rnn.weight_ih_l0", "shape": [1024, 256], "dtype": "float32", "group": "rnn"}
    ],
}


def report(manifest: str) -> dict[str, object]:
    return {
        "attempt": 0,
        "rank": 0,
        "optimizer": "default",
        "sequence": 0,
        "manifest": manifest,
        "steps": [100, 101],
        "scalars": {
            "loss": [2.31, 2.30],
            "learning_rate": [0.1, 0.1],
            "threshold": [1.0, 1.0],
        },
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


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running_service() as service:
        yield service.url


def curl(address: str, *, method: str = "GET", body: str | None = None) -> tuple[int, str]:
    command = ["curl", "-sS", "--noproxy", "*", "-X", method, "-w", "\n%{http_code}", address]
    if body is not None:
        command += ["-H", "Content-Type: application/json", "--data-binary", body]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)
    answer, _, status = done.stdout.rpartition("\n")
    return int(status), answer


@pytest.fixture(scope="module")
def manifest(url) -> str:
    """The run ``example``, registered and with one report."""
    status, answer = curl(f"{url}/api/v1/runs/example", method="PUT", body=json.dumps(MANIFEST))
    assert status == 201, answer
    known = json.loads(answer)
    assert {**known, "manifest": ""} == {
        "run": "example",
        "attempt": 0,
        "manifest": "",
        "created": True,
    }
    body = json.dumps(report(known["manifest"]))
    status, answer = curl(f"{url}/api/v1/runs/example/reports", method="POST", body=body)
    assert status == 200, answer
    receipt = json.loads(answer)
    assert (receipt["stored"], receipt["sequence"], receipt["steps"]) == (True, 0, 2)
    return known["manifest"]


def test_registering_the_same_again_is_known_not_new(url, manifest):
    status, answer = curl(f"{url}/api/v1/runs/example", method="PUT", body=json.dumps(MANIFEST))

    assert status == 200
    assert json.loads(answer)["created"] is False
    assert json.loads(answer)["manifest"] == manifest


def test_a_report_sent_twice_is_stored_once(url, manifest):
    body = json.dumps(report(manifest))
    status, answer = curl(f"{url}/api/v1/runs/example/reports", method="POST", body=body)

    assert status == 200
    assert json.loads(answer)["stored"] is False


def test_the_reported_steps_come_back_as_a_series(url, manifest):
    status, answer = curl(f"{url}/api/v1/runs/example/series?metric=global_norm")

    series = json.loads(answer)
    assert status == 200
    assert (series["start_step"], series["end_step"]) == ([100, 101], [100, 101])
    assert series["max"] == pytest.approx([0.72, 0.70], rel=1e-6)


def test_a_recommendation_with_too_little_evidence_says_so(url, manifest):
    status, answer = curl(f"{url}/api/v1/runs/example/recommendation?policy=norm&default=1.0")

    advice = json.loads(answer)
    assert status == 200
    assert (advice["status"], advice["threshold"]) == ("none", None)
    assert advice["effective_threshold"] == 1.0
    assert "too_few_steps" in advice["reasons"]


def test_the_metrics_tell_of_the_run(url, manifest):
    status, text = curl(f"{url}/metrics")

    assert status == 200
    assert 'project="default"' in text
    assert 'run="example"' in text


def test_not_a_number_in_a_body_is_refused_and_nothing_of_it_is_stored(url, manifest):
    body = json.dumps(report(manifest) | {"sequence": 1, "steps": [102, 103]})
    status, answer = curl(
        f"{url}/api/v1/runs/example/reports", method="POST", body=body.replace("0.72", "NaN")
    )

    assert status == 422
    assert json.loads(answer)["code"]
    summary = json.loads(curl(f"{url}/api/v1/runs/example")[1])
    assert summary["last_step"] == 101


def test_the_short_way_needs_no_registration(url):
    body = json.dumps({"step": 100, "global_norm": 0.72, "loss": 2.3})
    status, answer = curl(f"{url}/api/v1/runs/short/steps", method="POST", body=body)

    assert status == 200
    assert "recommendation" in json.loads(answer)
    assert json.loads(curl(f"{url}/api/v1/runs/short")[1])["last_step"] == 100
