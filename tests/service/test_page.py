"""The built-in page: static, self-contained, and safe with names it did not choose."""

import os
import re
import shutil
import subprocess
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

import gradwatch_service
from gradwatch_cli.demo.service import running_service

HOSTILE = "<img src=x onerror=\"document.title='owned'\">'&"
FILES = sorted(Path(gradwatch_service.__file__).parent.joinpath("page").iterdir())

needs_chromium = pytest.mark.skipif(
    shutil.which("chromium") is None and os.environ.get("CI") != "true",
    reason="chromium is not installed (Debian package chromium)",
)


@pytest.fixture(scope="module")
def api() -> Iterator[httpx.Client]:
    with running_service() as service, httpx.Client(base_url=service.url) as client:
        record(client, "calm", "calm")
        record(client, "hostile", HOSTILE)
        yield client


def record(api: httpx.Client, run: str, name: str) -> None:
    """Forty steps of one tensor; the run and its tensor bear ``name``."""
    tensor = {"name": name, "shape": [100], "dtype": "float32"}
    manifest = {"name": name, "tags": {name: name}, "tensors": [tensor]}
    known = api.put(f"/api/v1/runs/{run}", json=manifest).raise_for_status().json()
    steps = list(range(40))
    norms = [[0.7 + step / 100] for step in steps]
    body = {"attempt": 0, "rank": 0, "optimizer": "default", "sequence": 0}
    body |= {"manifest": known["manifest"], "steps": steps, "scalars": {"loss": [1.5] * 40}}
    body |= {"tensors": {"norm": norms, "nonfinite_count": [[int(step == 20)] for step in steps]}}
    api.post(f"/api/v1/runs/{run}/reports", json=body).raise_for_status()


def test_every_file_of_the_page_is_served_under_a_strict_content_policy(api):
    for path in ["/", *(f"/page/{file.name}" for file in FILES)]:
        answer = api.get(path)

        assert answer.status_code == 200, path
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_an_unchanged_file_is_not_sent_again(api):
    etag = api.get("/page/app.js").headers["etag"]

    assert api.get("/page/app.js", headers={"If-None-Match": etag}).status_code == 304


@pytest.mark.parametrize("name", ["nothing.js", "..%2Fapp.py", "%2e%2e/settings.py"])
def test_nothing_but_the_page_is_served_from_its_folder(api, name):
    assert api.get(f"/page/{name}").status_code == 404


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_no_file_needs_another_host_or_writes_markup(file):
    text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")

    assert not re.search(r"https?://", text)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text)
    assert not re.search(r"<script(?![^>]*src=)|\son\w+=\"|style=\"", text)


def seen_in_chromium(url: str, profile: Path) -> str:
    """The page as a browser shows it after its scripts have run."""
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"]
    command += ["--no-first-run", "--disable-background-networking", "--disable-component-update"]
    command += ["--disable-sync", f"--user-data-dir={profile}", "--virtual-time-budget=8000"]
    done = subprocess.run(
        [*command, "--dump-dom", url], check=True, capture_output=True, text=True, timeout=120
    )
    return done.stdout


@needs_chromium
def test_a_browser_lists_the_runs_with_their_states(api, tmp_path):
    html = seen_in_chromium(f"{api.base_url}", tmp_path)

    assert 'href="#/runs/calm"' in html
    assert re.search(r'class="state [a-z]+">', html)


@needs_chromium
def test_a_browser_draws_a_run_and_shows_hostile_names_as_written(api, tmp_path):
    html = seen_in_chromium(f"{api.base_url}#/runs/hostile", tmp_path)

    assert "<title>hostile · gradwatch</title>" in html  # not "owned": nothing of the name ran
    assert "<img" not in html
    assert "&lt;img src=x onerror=" in html
    assert "newest step <b>39</b>" in html
    assert 'class="band"' in html  # the curve
    assert 'class="nonfinite"' in html  # the mark of step 20
    assert re.search(r"<th [^>]*aria-sort=\"descending\"[^>]*><button>norm ↓", html)


@needs_chromium
def test_a_browser_says_that_a_run_does_not_exist(api, tmp_path):
    unknown = urllib.parse.quote("no such run", safe="")

    assert "Not here" in seen_in_chromium(f"{api.base_url}#/runs/{unknown}", tmp_path)
