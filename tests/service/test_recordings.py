"""What is recorded through the client comes back as the reports it made, with labels that hold."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
from benchmarks.client_trace import COLUMNS, SCALARS, Recorded
from benchmarks.detectors import incidents
from benchmarks.fault_kinds import CLASSES, LENGTHS, Injection
from benchmarks.jobs_seen import SEEN
from benchmarks.labels import label
from benchmarks.record_traces import PLANS, labels, plan, record, runs_of
from benchmarks.trace_files import save_trace
from benchmarks.trace_reports import reports
from benchmarks.trace_scorer import Trace, load_trace

from gradwatch_service.ingest.validation import numel_of, rows_of
from gradwatch_service.settings import Settings
from gradwatch_wire import decode, encode

HEALTHY = Path(__file__).parent / "traces_healthy"
JOB = SEEN["value_rmsprop"]
FAULTS = [
    Injection("nan_tensor", 20, 22, JOB.place, "b.weight"),
    Injection("frozen_layer", 45, 60, JOB.place),
]


@pytest.fixture(scope="module")
def recorded() -> Recorded:
    with contextlib.redirect_stderr(None):
        (found,) = record(JOB, FAULTS, steps=64, seed=3)
    return found


@pytest.fixture(scope="module")
def trace(recorded: Recorded, tmp_path_factory: pytest.TempPathFactory) -> Trace:
    folder: Path = tmp_path_factory.mktemp("traces")
    told = labels(recorded, FAULTS)
    save_trace(folder, "value.nan-3", recorded.columns, recorded.manifest, told)
    return load_trace(folder / "value.nan-3.json")


@pytest.mark.parametrize("batch", [1, 7, 50])
def test_a_trace_gives_back_what_the_client_reported(
    recorded: Recorded, trace: Trace, batch: int
) -> None:
    parts = []
    for report, manifest in reports(trace, batch=batch):
        assert manifest.hash == recorded.manifest.hash
        parts.append(rows_of(decode(encode(report)), manifest, numel_of(manifest), Settings()))
    assert np.concatenate([rows.steps for rows in parts]).tolist() == list(range(64))
    for key, name in COLUMNS.items():
        if key in recorded.columns:
            came = np.concatenate([rows.tensors[name] for rows in parts])
            np.testing.assert_array_equal(came, recorded.columns[key].astype(came.dtype))
    for key, name in SCALARS.items():
        if key in recorded.columns:
            came = np.concatenate([rows.scalars[name] for rows in parts])
            np.testing.assert_array_equal(came, recorded.columns[key].astype("f4"))
    taken = [step for rows in parts for part in rows.histograms for step in part.steps.tolist()]
    assert taken == list(range(0, 64, 10))


def test_labels_name_the_tensors_that_were_hit(trace: Trace) -> None:
    nan, frozen = trace.faults
    assert nan.tensors == {"b.weight"}
    assert nan.visible == {"nonfinite"}
    assert frozen.tensors == {JOB.place.frozen}
    assert "tensors_vanished" in frozen.visible
    assert trace.columns["skipped"].nonzero()[0].tolist() == [20, 21]


def test_a_fault_that_changes_nothing_is_labelled_as_not_visible() -> None:
    rng = np.random.default_rng(0)
    columns = {
        "norm": 1 + 0.1 * rng.random((200, 3)),
        "nonfinite": np.zeros((200, 3), int),
        "sizes": np.array([9, 9, 9]),
        "gcos": rng.normal(0, 0.1, 200),
        "loss": 2 + 0.1 * rng.random(200),
    }
    told = label("label_shift", "exploding", (100, 120), columns, ["a", "b", "c"])
    assert told["visible"] == []
    assert told["aftermath_end"] == 120
    columns["norm"][100:150] *= 5
    told = label("label_shift", "exploding", (100, 120), columns, ["a", "b", "c"])
    assert told["visible"] == ["norm_up"]
    assert 145 <= told["aftermath_end"] <= 150


def test_every_kind_of_fault_has_a_class_a_length_and_a_plan() -> None:
    planned = {kind for run in PLANS.values() for kind, _ in run} - {"dead"}
    assert planned | {"dead_relu", "saturate"} == set(CLASSES) == set(LENGTHS)
    for run in runs_of(JOB):
        assert plan(JOB, run, 440, seed=1) == plan(JOB, run, 440, seed=1)


@pytest.mark.parametrize("name", sorted(path.stem for path in HEALTHY.glob("*.json")))
def test_resuming_and_pauses_for_evaluation_are_no_troubles(name: str) -> None:
    found = incidents(load_trace(HEALTHY / f"{name}.json"), batch=50)
    assert [i for i in found if i.severity != "info"] == []
