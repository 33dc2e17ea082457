"""A report stands alone, says what the service says, and runs nothing that a job made up."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import numpy as np
import pytest
from tests.conftest import serving
from tests.service import jobs

import gradwatch_wire as wire
from gradwatch_cli.main import run as cli

EVIL = "<script>alert(1)</script>|`**x**`"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A run that explodes, with names that try to be markup."""
    with serving(tmp_path_factory.mktemp("report")) as service:
        tensors = (wire.TensorInfo(EVIL, (8, 8), "float32", "g"), *jobs.TENSORS)
        made = jobs.manifest(tensors, tags={"what": EVIL[:20]}, name=EVIL)
        jobs.register(service.http, "run", made)
        report = jobs.report(range(400), made=made)
        norm = np.frombuffer(report.tensors["norm"].data, "<f4").reshape(400, 4).copy()
        norm[300:310] *= 1000
        changed = {**report.tensors, "norm": jobs.column(norm)}
        report = jobs.report(range(400), made=made, tensors=changed)
        assert jobs.post(service.http, "run", report).status_code == 200
        service.http.post("/api/v1/runs/run/finish", json={})
        service.http.put("/api/v1/runs/empty", json=jobs.manifest().to_json())
        yield service


class Page(HTMLParser):
    """Tags, addresses and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.text = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [v for k, v in attrs if k in {"src", "href", "action", "onload"}]

    def handle_data(self, data):
        self.text.append(data)


def test_a_page_stands_alone_and_says_what_the_service_says(served, tmp_path, capsys):
    file = tmp_path / "run.html"

    assert cli(["report", "run", "-o", str(file), "--url", served.base_url]) == 0

    page = Page(file.read_text(encoding="utf-8"))
    text = " ".join("".join(page.text).split())
    assert page.addresses == []
    assert not {"script", "img", "link", "iframe"} & set(page.tags)
    assert page.tags.count("svg") >= 3
    assert EVIL in text
    (incident,) = served.http.get("/api/v1/runs/run/incidents").json()["items"]
    assert incident["kind"] == "exploding"
    assert " ".join(incident["verdict"].split()) in text
    threshold = served.http.get("/api/v1/runs/run/recommendation").json()["threshold"]
    assert f"norm threshold {threshold:.4g}" in text
    assert page.tags.count("rect") == page.tags.count("svg")


def test_markdown_says_the_same_and_nothing_in_it_is_markup_of_the_job(served, tmp_path):
    file = tmp_path / "run.md"

    assert cli(["report", "run", "-o", str(file), "--url", served.base_url]) == 0

    text = file.read_text(encoding="utf-8")
    (incident,) = served.http.get("/api/v1/runs/run/incidents").json()["items"]
    assert incident["verdict"] in text
    assert "<script>" not in "".join(text.split("```")[::2])
    tables = [line for line in text.splitlines() if line.startswith("|")]
    cells = {line.replace("\\|", "").count("|") for line in tables}
    assert cells <= {3, 6, 7}


def test_json_has_the_same_content_and_writes_no_file(served, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    assert cli(["report", "run", "--url", served.base_url, "--json"]) == 0

    told = json.loads(capsys.readouterr().out)
    assert told["run"] == "run"
    assert [i["kind"] for i in told["incidents"]] == ["exploding"]
    assert max(v for v in told["charts"][0]["series"]["max"] if v is not None) > 100
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["empty.html", "empty.md"])
def test_a_run_without_a_step_has_a_report_too(served, tmp_path, name):
    assert cli(["report", "empty", "-o", str(tmp_path / name), "--url", served.base_url]) == 0
    assert "No incidents." in (tmp_path / name).read_text(encoding="utf-8")


def test_a_wrong_ending_an_existing_file_and_an_unknown_run_are_refused(served, tmp_path, capsys):
    file = tmp_path / "run.html"
    file.write_text("mine")
    assert cli(["report", "run", "-o", str(tmp_path / "x.pdf"), "--url", served.base_url]) == 2
    assert ".html or .md" in capsys.readouterr().err
    assert cli(["report", "run", "-o", str(file), "--url", served.base_url]) == 2
    assert file.read_text() == "mine"
    assert cli(["report", "no", "-o", str(tmp_path / "n.md"), "--url", served.base_url]) == 1
    assert not (tmp_path / "n.md").exists()
