"""A real Prometheus scrapes the real service while a real job trains."""

import os
import subprocess
import sys
import time

import pytest
import torch
from tests.conftest import poll, serving
from tests.deploy.deployed import DEPLOY, queries
from tests.deploy.prometheus_server import prometheus
from tests.deploy.substituted import substitute

import gradwatch
from gradwatch_service.exposition.template import ALL_SERIES

RUN = "live-job"
# Empty while nothing is wrong, as they should be.
QUIET = {"Incidents", "Threshold changes", "What is wrong"}
# Of statistics that this job does not send; test_history shows them.
OPTIONAL = {"Cosine to the step before", "Gradient over weights", "Magnitudes", "Share below 1e-8"}


def start_job(url):
    """The job of the compose file's profile `demo`, in a process of its own."""
    script = [sys.executable, str(DEPLOY / "demo" / "train.py"), "--run", RUN, "--pause", "0.03"]
    environment = {**os.environ, "GRADWATCH_URL": url, "GRADWATCH_QUIET": "1"}
    return subprocess.Popen(script, env=environment)


@pytest.fixture(scope="module")
def scraped(tmp_path_factory):
    """(service, Prometheus, job): all three running for the whole of this file."""
    folder = tmp_path_factory.mktemp("scraped")
    with serving(folder) as service:
        job = start_job(service.base_url)
        targets = f"{service.base_url}/api/v1/prometheus/targets"
        discovery = {
            "job_name": "gradwatch-tensors",
            "sample_limit": 12_000,
            "http_sd_configs": [{"url": targets, "refresh_interval": "1s"}],
        }
        address = service.base_url.removeprefix("http://")
        with prometheus(folder, address, extra_jobs=[discovery]) as server:
            try:
                poll(lambda: server.value('up{job="gradwatch"}') == 1)
                steps = f'rate(gradwatch_run_steps_total{{run="{RUN}"}}[5s])'
                poll(lambda: job.poll() is not None or server.value(steps), 60)
                assert job.poll() is None, "the job ended"
                yield service, server, job
            finally:
                job.terminate()
                job.wait(20)


def test_the_target_is_up_and_nothing_of_its_page_was_refused(scraped):
    _, server, _ = scraped

    def healthy():
        targets = server.ask("targets", state="active")["activeTargets"]
        return targets and all((t["health"], t["lastError"]) == ("up", "") for t in targets)

    poll(healthy)
    # What arrived is what was sent: nothing twice, nothing renamed out of the way.
    assert server.value('scrape_samples_scraped{job="gradwatch"}') > 100
    assert server.query('{exported_job!=""}') == []
    assert server.query('{exported_instance!=""}') == []
    assert "duplicate" not in server.log().lower()
    assert "out of order" not in server.log().lower()


def test_prometheus_knows_every_metric_by_our_type_and_help(scraped):
    _, server, _ = scraped

    known = server.ask("metadata")

    for family in (series.family for series in ALL_SERIES):
        if family.name in known:
            (told,) = known[family.name]
            assert (told["type"], told["help"]) == (family.kind, family.text)
    assert {s.family.name for s in ALL_SERIES if "group" not in s.family.labels} <= {
        *known,
        "gradwatch_run_incident_onset_step",
    }


def test_every_panel_shows_something_while_the_job_runs(scraped):
    _, server, _ = scraped

    def empty():
        return [
            (uid, title, query)
            for uid, title, expr in queries()
            if title not in QUIET | OPTIONAL
            and not server.query(query := substitute(expr, run=RUN, interval="5s", span="1m"))
        ]

    end = time.monotonic() + 10
    while (still := empty()) and time.monotonic() < end:
        time.sleep(0.5)
    assert still == []


def test_every_run_has_its_tensors_on_a_target_of_its_own(scraped):
    _, server, _ = scraped

    norms = poll(lambda: server.query(f'gradwatch_tensor_gradient_norm{{run="{RUN}"}}'))

    names = {labels["tensor"] for labels, _ in norms}
    assert {"embedding.weight", "rnn.weight_hh_l0", "head.bias"} < names
    assert {labels["instance"] for labels, _ in norms} == {RUN}
    assert server.value(f'up{{job="gradwatch-tensors",instance="{RUN}"}}') == 1


def test_recording_rules_have_values(scraped):
    _, server, _ = scraped

    poll(lambda: server.query("job_project_run:gradwatch_clipped_elements:ratio_rate5m"))
    assert server.query("job_project_run_group:gradwatch_clipped_elements:ratio_rate5m")


def test_non_finite_gradients_page_with_their_tensor(scraped):
    service, server, _ = scraped
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradwatch.watch(model, optimizer, run="broken", url=service.base_url):
        for step in range(40):
            loss = model(torch.randn(8, 4)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            if step >= 30:
                model.weight.grad[0, 0] = float("nan")
            optimizer.step()

    alert = 'ALERTS{alertname="GradwatchCriticalIncident",alertstate="firing",run="broken"}'
    firing = poll(lambda: server.query(alert))

    assert {labels["kind"] for labels, _ in firing} == {"nonfinite"}
    assert {labels["first_tensor"] for labels, _ in firing} == {"weight"}
    assert {labels["severity"] for labels, _ in firing} == {"critical"}


def test_a_deleted_runs_series_end_with_the_next_scrape(scraped):
    service, server, _ = scraped
    service.http.post("/api/v1/runs/short/steps", json={"step": 1, "global_norm": 0.5})
    series = 'gradwatch_run_gradient_norm{run="short"}'
    poll(lambda: server.value(series) == 0.5)

    service.http.delete("/api/v1/runs/short")

    poll(lambda: server.query(series) == [])
