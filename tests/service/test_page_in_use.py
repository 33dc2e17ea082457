"""The page as a person uses it: it follows a run live, narrows, sorts, and asks for a token."""

import os
import shutil
from collections.abc import Iterator

import httpx
import pytest
from tests.service.browser import Browser, chromium

from gradwatch_cli.demo.service import running_service

pytestmark = pytest.mark.skipif(
    shutil.which("chromium") is None and os.environ.get("CI") != "true",
    reason="chromium is not installed (Debian package chromium)",
)

TENSORS = ("embed.weight", "rnn.weight", "head.weight")
READ = "tr td.name button"


class Job:
    """A run of three tensors that reports when told to."""

    def __init__(self, api: httpx.Client, run: str) -> None:
        self._api, self._url = api, f"/api/v1/runs/{run}"
        tensors = [{"name": name, "shape": [10], "dtype": "float32"} for name in TENSORS]
        known = api.put(self._url, json={"tensors": tensors}).raise_for_status().json()
        self._manifest, self._next, self._sequence = known["manifest"], 0, 0

    def report(self, steps: int) -> None:
        """Send the next steps; the norms of the three tensors are 1, 3 and 2."""
        numbers = list(range(self._next, self._next + steps))
        body = {"attempt": 0, "rank": 0, "optimizer": "default", "sequence": self._sequence}
        body |= {"manifest": self._manifest, "steps": numbers}
        body |= {"tensors": {"norm": [[1.0, 3.0, 2.0]] * steps}}
        self._api.post(f"{self._url}/reports", json=body).raise_for_status()
        self._next += steps
        self._sequence += 1


@pytest.fixture(scope="module")
def api() -> Iterator[httpx.Client]:
    with running_service() as service, httpx.Client(base_url=service.url) as client:
        yield client


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


def fact(title: str) -> str:
    """JavaScript for one fact of a run's heading."""
    return (
        "[...document.querySelectorAll('.facts li')]"
        f".find((li) => li.textContent.startsWith('{title} '))?.querySelector('b').textContent"
    )


def open_run(browser: Browser, api: httpx.Client, run: str) -> None:
    """Show a run; the page of an earlier test, which looks much the same, is gone afterwards."""
    browser.open(f"{api.base_url}#/runs/{run}")
    browser.wait_for(f"{fact('run')} === '{run}' && document.querySelector('{READ}')")


def test_new_steps_appear_without_a_reload(api, browser):
    job = Job(api, "live")
    job.report(10)
    open_run(browser, api, "live")
    browser.wait_for(f"{fact('newest step')} === '9'")
    browser.run("window.notReloaded = true")

    job.report(5)

    browser.wait_for(f"{fact('newest step')} === '14'")
    assert browser.run("window.notReloaded") is True


def test_tensors_stand_by_norm_and_a_heading_sorts_them(api, browser):
    Job(api, "sorted").report(3)
    open_run(browser, api, "sorted")
    names = f"[...document.querySelectorAll('{READ}')].map((b) => b.textContent).join(' ')"
    browser.wait_for(f"{names} === 'rnn.weight head.weight embed.weight'")

    browser.run("document.querySelector('th button').click()")

    browser.wait_for(f"{names} === 'embed.weight head.weight rnn.weight'")
    assert browser.run("document.querySelector('th').getAttribute('aria-sort')") == "ascending"


def test_a_tensors_name_draws_its_norm(api, browser):
    Job(api, "drawn").report(3)
    open_run(browser, api, "drawn")

    browser.run(f"document.querySelector('{READ}').click()")

    headings = "[...document.querySelectorAll('h2')].map((h) => h.textContent)"
    browser.wait_for(f"{headings}.includes('Norm of rnn.weight')")


def test_dragging_over_a_chart_narrows_the_steps_and_one_button_widens_them(api, browser):
    Job(api, "narrowed").report(200)
    open_run(browser, api, "narrowed")
    browser.wait_for(f"{fact('newest step')} === '199' && document.querySelector('svg.chart')")
    label = "document.querySelector('svg.chart').getAttribute('aria-label')"
    assert "newest step 199" in browser.run(label)

    browser.drag("svg.chart", 0.4, 0.6)

    browser.wait_for("document.querySelector('.bar button')?.textContent === 'all steps'")
    browser.wait_for(f"!{label}.includes('newest step 199')")
    start, end = browser.run("document.querySelector('.bar span').textContent.match(/\\d+/g)")
    assert 60 <= int(start) < int(end) <= 130
    browser.run("document.querySelector('.bar button').click()")
    browser.wait_for(f"{label}.includes('newest step 199')")


def test_runs_are_found_by_a_part_of_their_name(api, browser):
    Job(api, "needle-in-hay")
    Job(api, "straw")
    browser.open(f"{api.base_url}#/")
    links = "[...document.querySelectorAll('td a')].map((a) => a.textContent)"
    browser.wait_for(f"{links}.includes('straw')")

    browser.run(
        "const field = document.querySelector('input');"
        "field.value = 'needle'; field.dispatchEvent(new Event('input'))"
    )

    browser.wait_for(f"{links}.join() === 'needle-in-hay'")


def test_with_tokens_the_page_asks_for_one_and_then_shows_the_runs(tmp_path, browser, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    with running_service(options=["--tokens", "auto"]) as service:
        token = tmp_path.joinpath("gradwatch", "token").read_text().strip()
        headers = {"Authorization": f"Bearer {token}"}
        with httpx.Client(base_url=service.url, headers=headers) as api:
            Job(api, "guarded").report(2)
        browser.open(service.url)
        browser.wait_for("document.querySelector('input[type=password]')")
        assert "guarded" not in browser.run("document.body.innerText")

        browser.run(
            f"document.querySelector('input').value = '{token}';"
            "document.querySelector('form').requestSubmit()"
        )

        browser.wait_for("document.body.innerText.includes('guarded')")
        assert browser.run("localStorage.length + document.cookie.length") == 0
