"""A run that was exported and imported is the same run: every attempt, rank, step and number."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.conftest import serving
from tests.service import jobs

import gradwatch_wire as wire
from gradwatch_cli.commands import import_file
from gradwatch_cli.main import run as cli

WIDER = (*jobs.TENSORS, wire.TensorInfo("late.weight", (4,), "float32", "late"))


@pytest.fixture
def two(tmp_path):
    """The service that has a run, and another that is empty."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with serving(tmp_path / "a") as here, serving(tmp_path / "b") as there:
        yield here, there


def histograms(steps, **changes):
    counts = np.random.default_rng(3).integers(0, 2, (len(steps), 3, 40)).astype("<u8")
    counts[:, 1] = 0
    at = jobs.column(np.asarray(steps, "<i8"))
    return replace(wire.Histograms(at, 4, -48, 0.5, jobs.column(counts)), **changes)


def fill(service):
    """A run with everything that can make one hard to carry elsewhere."""
    http = service.http
    first = jobs.manifest(session="first", tags={"lr": "0.1"}, name="a name", world_size=1)
    jobs.register(http, "run", first)
    post(http, jobs.report(range(300), made=first))
    gap = np.full((20, 3), np.nan, "<f4")
    gap[3] = 0.25
    extra = jobs.report(range(300, 320), sequence=1, made=first)
    tensors = {**extra.tensors, "weight_norm": jobs.column(gap)}
    tensors["nonfinite_count"] = jobs.column(np.eye(20, 3, dtype="<u4"))
    del tensors["zero_count"]
    scalars = {**extra.scalars, "rare": jobs.column(np.where(np.arange(20) == 7, 1 / 3, np.nan))}
    post(http, replace(extra, tensors=tensors, scalars=scalars, histograms=histograms([305, 311])))
    other_bins = histograms([325], bins_per_octave=2, lowest_exponent=-32)
    post(http, jobs.report(range(320, 330), sequence=2, made=first, histograms=other_bins))
    second = jobs.manifest(session="second", optimizer="critic")
    jobs.register(http, "run", second)
    post(http, jobs.report(range(250, 290, 2), made=second, attempt=1))
    third = jobs.manifest(session="second")
    jobs.register(http, "run", third)
    post(http, jobs.report(range(280, 300), sequence=1, made=third, attempt=1))
    wider = jobs.manifest(WIDER, session="second", extends=third.hash)
    jobs.register(http, "run", wider)
    post(http, jobs.report(range(300, 340), sequence=2, made=wider, attempt=1))
    http.post("/api/v1/runs/run/finish", json={"status": "failed"})


def post(http, report):
    answer = jobs.post(http, "run", report)
    assert answer.status_code == 200, answer.text


def stored(service, name="run"):
    """Everything of a run by attempt, optimizer, rank and step, with the bits of every number."""
    found = {}
    for item in service.http.get(f"/api/v1/runs/{name}/manifests").json()["items"]:
        which = {key: item[key] for key in ("attempt", "optimizer", "rank")}
        start, tensors = 0, len(item["manifest"]["tensors"])
        manifest = wire.Manifest.from_json(item["manifest"])
        found[*which.values()] = (manifest.hash, manifest.tags, manifest.name, item["steps"])
        while True:
            body = service.http.get(
                f"/api/v1/runs/{name}/steps",
                params={**which, "start": start, "limit": 64},
                headers={"accept": wire.CONTENT_TYPE},
            )
            report = wire.decode(body.content)
            wire.check(
                replace(report, tensors=report.tensors or {"norm": report.steps}), tensors
            ) if tensors else None
            if not report.steps.items:
                break
            add(found, tuple(which.values()), report)
            start = report.steps.flat()[-1] + 1
    return found


def add(found, key, report):
    columns = {f"scalar {n}": c for n, c in report.scalars.items()}
    columns |= {f"tensor {n}": c for n, c in report.tensors.items()} | {"time": report.time}
    for name, column in columns.items():
        values = np.frombuffer(column.data, "<" + column.dtype).reshape(column.shape)
        for step, value in zip(report.steps.flat(), values, strict=True):
            # What is not measured is NaN, or has no column: the same thing.
            if not np.isnan(value.astype("f8")).all():
                exact = value.astype("f8").tobytes() if value.dtype.kind == "u" else value.tobytes()
                found[(*key, step, name)] = exact
    parts = report.histograms
    if parts is not None:
        counts = np.frombuffer(parts.counts.data, "<" + parts.counts.dtype)
        counts = counts.reshape(parts.counts.shape)
        for step, one in zip(parts.steps.flat(), counts, strict=True):
            lists = [np.trim_zeros(row, "b").tolist() for row in one]
            head = (parts.bins_per_octave, parts.lowest_exponent, parts.sampled)
            found[(*key, step, "histogram")] = (head, lists)


def test_everything_comes_back_bit_for_bit(two, tmp_path, capsys):
    here, there = two
    fill(here)
    file = tmp_path / "run.parquet"

    assert cli(["export", "run", "-o", str(file), "--url", here.base_url, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["steps"], told["file"]) == (330 + 20 + 60, str(file))
    assert cli(["import", str(file), "--url", there.base_url, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["run"], told["steps"], told["stored"]) == ("run", 410, 410)

    before, after = stored(here), stored(there)
    assert before.keys() == after.keys()
    assert before == after
    assert len(before) > 4000
    for key in ("state", "status", "name", "tags", "steps", "attempt", "first_step", "last_step"):
        one, other = (s.http.get("/api/v1/runs/run").json()[key] for s in two)
        assert one == other, key
    series = "/api/v1/runs/run/series?metric=norm&tensor=late.weight"
    assert here.http.get(series).json() == there.http.get(series).json()
    kinds = [
        [(i["id"], i["kind"]) for i in s.http.get("/api/v1/runs/run/incidents").json()["items"]]
        for s in two
    ]
    assert kinds[0] == kinds[1]


def test_an_import_that_was_interrupted_goes_on_and_a_repeat_stores_nothing(
    two, tmp_path, monkeypatch, capsys
):
    here, there = two
    fill(here)
    file = tmp_path / "run.parquet"
    assert cli(["export", "run", "-o", str(file), "--url", here.base_url]) == 0
    send, calls = import_file._send, []

    def breaking(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        send(*arguments)

    monkeypatch.setattr(import_file, "NUMBERS", 4096)
    monkeypatch.setattr(import_file, "_send", breaking)
    assert cli(["import", str(file), "--url", there.base_url]) == 130
    monkeypatch.setattr(import_file, "_send", send)
    capsys.readouterr()
    assert cli(["import", str(file), "--url", there.base_url, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert 0 < told["stored"] < told["steps"] == 410
    assert stored(here) == stored(there)
    assert cli(["import", str(file), "--url", there.base_url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stored"] == 0


def test_a_run_that_is_there_already_is_left_alone(two, tmp_path, capsys):
    here, _ = two
    fill(here)
    before = stored(here)
    file = tmp_path / "run.parquet"
    assert cli(["export", "run", "-o", str(file), "--url", here.base_url]) == 0

    assert cli(["import", str(file), "--url", here.base_url]) == 1
    assert "--run stores the file under another id" in capsys.readouterr().err
    assert {k: v for k, v in stored(here).items() if k in before} == before
    assert cli(["import", str(file), "--url", here.base_url, "--run", "copy"]) == 0
    assert stored(here, "copy").keys() == before.keys()


def test_steps_that_a_script_posted_come_back_too(two, tmp_path):
    here, there = two
    rows = [{"step": n, "global_norm": 1 / (n + 1), "loss": 0.1 * n} for n in range(50)]
    del rows[7]["loss"]
    assert here.http.post("/api/v1/runs/script/steps", json=rows).status_code == 200
    file = tmp_path / "script.parquet"

    assert cli(["export", "script", "-o", str(file), "--url", here.base_url]) == 0
    assert cli(["import", str(file), "--url", there.base_url]) == 0

    assert stored(here, "script") == stored(there, "script")


def test_other_tools_read_the_file(two, tmp_path):
    here, _ = two
    fill(here)
    file = tmp_path / "run.parquet"
    assert cli(["export", "run", "-o", str(file), "--url", here.base_url]) == 0

    table = pq.read_table(file)

    chosen = table.filter(pa.compute.equal(table["attempt"], 0))
    assert chosen["step"].to_pylist() == list(range(330))
    norms = np.array(chosen["tensor.norm"].to_pylist()[:300], "<f4")
    truth = jobs.report(range(300), made=jobs.manifest(session="first")).tensors["norm"]
    assert norms.tobytes() == truth.data
    head = json.loads(table.schema.metadata[b"gradwatch"])
    names = [t["name"] for t in head["sources"][0]["manifest"]["tensors"]]
    assert names == [t.name for t in jobs.TENSORS]


@pytest.mark.parametrize("kind", ["none", "text", "other", "newer", "cut"])
def test_what_is_no_export_is_refused_before_anything_is_stored(two, tmp_path, capsys, kind):
    here, there = two
    file = tmp_path / "x.parquet"
    if kind == "text":
        file.write_text("step,loss\n1,2\n")
    elif kind in {"other", "newer"}:
        head = {b"gradwatch": b'{"format": 99}'} if kind == "newer" else {}
        pq.write_table(pa.table({"step": [1]}).replace_schema_metadata(head), file)
    elif kind == "cut":
        fill(here)
        assert cli(["export", "run", "-o", str(file), "--url", here.base_url]) == 0
        file.write_bytes(file.read_bytes()[:-100])

    assert cli(["import", str(file), "--url", there.base_url]) == 2

    told = capsys.readouterr().err
    assert {"none": "no such file", "other": "not written by", "newer": "format 99"}.get(
        kind, "no Parquet file"
    ) in told
    assert len(told.splitlines()) == 1
    assert there.http.get("/api/v1/runs").json()["items"] == []


def test_an_export_never_leaves_half_a_file_and_replaces_none_unasked(two, tmp_path, capsys):
    here, _ = two
    file = tmp_path / "run.parquet"
    assert cli(["export", "nothing", "-o", str(file), "--url", here.base_url]) == 1
    assert list(tmp_path.glob("*.parquet*")) == []
    fill(here)
    file.write_text("mine")
    assert cli(["export", "run", "-o", str(file), "--url", here.base_url]) == 2
    assert file.read_text() == "mine"
    assert "--overwrite" in capsys.readouterr().err
    assert cli(["export", "run", "-o", str(file), "--url", here.base_url, "--overwrite"]) == 0
    assert pq.read_metadata(file).num_rows == 410
