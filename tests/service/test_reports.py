"""What POST .../reports promises: stored once, whatever form it came in, or refused whole."""

from __future__ import annotations

import copy

import pytest

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


@pytest.fixture
def registered(service):
    answer = service.http.put("/api/v1/runs/demo", json=MANIFEST)
    assert answer.status_code == 201, answer.text
    return answer.json()


def report(registered, **changes):
    made = copy.deepcopy(REPORT) | {"manifest": registered["manifest"]}
    return made | changes


def test_the_example_of_the_contract_is_stored_and_read_back(service, registered):
    answer = service.http.post("/api/v1/runs/demo/reports", json=report(registered))

    assert answer.status_code == 200, answer.text
    assert answer.json()["stored"] is True
    assert answer.json()["sequence"] == 0
    assert answer.json()["steps"] == 2
    (rows,) = service.parts.store.read("demo", attempt=0, optimizer="default", rank=0)
    assert rows.steps.tolist() == [100, 101]
    assert rows.tensors["norm"][:, 0] == pytest.approx([0.72, 0.70])


def test_a_repeat_is_acknowledged_and_stored_once(service, registered):
    first = service.http.post("/api/v1/runs/demo/reports", json=report(registered))
    second = service.http.post("/api/v1/runs/demo/reports", json=report(registered))

    assert (first.json()["stored"], second.json()["stored"]) == (True, False)
    assert second.status_code == 200
    assert service.parts.store.run("demo").steps == 2
