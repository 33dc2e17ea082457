"""/metrics over HTTP: what a scraper gets, after reports, crashes and without a token."""

import gzip
import json
import threading

import httpx
import pytest
from tests.conftest import poll, serve_process, serving
from tests.service.scraped import read

from gradwatch_service.access.tokens import add_token

MANIFEST = {
    "policy": {"kind": "value", "threshold": 1.0},
    "tensors": [{"name": "rnn.weight", "shape": [10], "dtype": "float32", "group": "rnn"}],
}
R = {"project": "default", "run": "demo"}


@pytest.fixture
def guarded(tmp_path):
    """A service that asks for tokens, with headers of an administrator and of a reader of `a`."""
    tokens = tmp_path / "tokens.json"
    admin = add_token(tokens, "admin", ["admin"], None)
    reader = add_token(tokens, "reader", ["read"], "a")
    with serving(tmp_path, tokens=tokens) as served:
        served.admin = {"Authorization": f"Bearer {admin}"}
        served.reader_of_a = {"Authorization": f"Bearer {reader}"}
        yield served


def report(http, sequence=0, *, steps=(0,), norm=0.5, run="demo", **columns):
    """Register the run and post one delivery."""
    registered = http.put(f"/api/v1/runs/{run}", json=MANIFEST).raise_for_status().json()
    body = {
        "manifest": registered["manifest"],
        "attempt": 0,
        "rank": 0,
        "optimizer": "default",
        "sequence": sequence,
        "steps": list(steps),
        "scalars": {"loss": [2.5] * len(steps), "threshold": [1.0] * len(steps)},
        "tensors": {"norm": [[norm]] * len(steps)}
        | {name: [[value]] * len(steps) for name, value in columns.items()},
    }
    return http.post(f"/api/v1/runs/{run}/reports", json=body)


def scrape(http, **headers):
    """One page, read strictly."""
    answer = http.get("/metrics", headers={"Accept-Encoding": "identity", **headers})
    answer.raise_for_status()
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return read(answer.content)


def test_an_acknowledged_report_is_on_the_next_page(service):
    assert report(service.http, clipped_count=3).status_code == 200

    page = scrape(service.http)

    assert page.value("gradwatch_run_steps_total", **R) == 1
    assert page.value("gradwatch_run_gradient_norm", **R) == 0.5
    assert page.value("gradwatch_group_clipped_elements_total", **R, group="rnn") == 3
    assert page.value("gradwatch_ingest_reports_total") == 1
    assert (
        page.value(
            "gradwatch_run_info",
            **R,
            name="demo",
            policy="value",
            world_size="1",
            model="",
            framework="",
            client_version="",
        )
        == 1
    )


def test_a_repeated_delivery_is_counted_once(service):
    for _ in range(3):
        assert report(service.http).status_code == 200

    page = scrape(service.http)

    assert page.value("gradwatch_run_steps_total", **R) == 1
    assert page.value("gradwatch_ingest_reports_total") == 1
    assert page.value("gradwatch_ingest_duplicate_reports_total") == 2


def test_steps_of_a_script_without_a_manifest_are_on_the_page(service):
    service.http.post(
        "/api/v1/runs/script/steps", json={"step": 100, "global_norm": 0.72, "loss": 2.3}
    )

    page = scrape(service.http)

    assert page.value("gradwatch_run_gradient_norm", project="default", run="script") == 0.72
    assert page.value("gradwatch_run_last_step", project="default", run="script") == 100


def test_refused_reports_are_counted_by_reason_and_change_no_run(service):
    report(service.http)
    body = '{"steps": [1], "tensors": {"norm": [[NaN]]}}'
    json_type = {"Content-Type": "application/json"}
    refused = service.http.post("/api/v1/runs/demo/reports", content=body, headers=json_type)
    conflict = report(service.http, norm=0.75)

    page = scrape(service.http)

    assert refused.status_code == 422
    assert conflict.status_code == 409
    assert page.value("gradwatch_ingest_rejected_reports_total", reason="invalid") == 1
    assert page.value("gradwatch_ingest_rejected_reports_total", reason="conflict") == 1
    assert page.value("gradwatch_run_steps_total", **R) == 1


def test_chosen_tags_are_labels_of_the_info_and_follow_an_edit(tmp_path):
    with serving(tmp_path, metric_tags=("team", "cost-centre")) as service:
        tags = {"team": "vision", "cost-centre": "7", "secret": "x"}
        service.http.put("/api/v1/runs/demo", json=MANIFEST | {"tags": tags})
        (before, _) = scrape(service.http).named("gradwatch_run_info")[0]
        service.http.patch("/api/v1/runs/demo", json={"tags": {"team": "speech"}})
        (after, _) = scrape(service.http).named("gradwatch_run_info")[0]

    assert (before["team"], before["cost_centre"]) == ("vision", "7")
    assert "secret" not in before
    assert after["team"] == "speech"


def test_requests_are_counted_by_route_and_never_by_what_clients_make_up(service):
    for path in ("/api/v1/runs/never-was", "/no/such/place", "/metrics"):
        service.http.get(path)

    page = scrape(service.http)

    count = "gradwatch_http_requests_total"
    assert page.value(count, method="GET", route="/api/v1/runs/{run}", code="404") == 1
    assert page.value(count, method="GET", route="unmatched", code="404") == 1
    assert page.value(count, method="GET", route="/metrics", code="200") == 1
    assert not [labels for labels, _ in page.named(count) if "never-was" in labels["route"]]


def test_a_scraper_that_reads_gzip_gets_it_and_another_does_not(service):
    with httpx.Client(base_url=service.base_url) as http:
        raw = http.send(
            http.build_request("GET", "/metrics", headers={"Accept-Encoding": "gzip"}), stream=True
        )
        assert raw.headers["content-encoding"] == "gzip"
        read(gzip.decompress(b"".join(raw.iter_raw())))
        refused = http.get("/metrics", headers={"Accept-Encoding": "gzip;q=0, br"})
        assert "content-encoding" not in refused.headers


def test_a_finished_run_is_finished_on_the_next_page(service):
    report(service.http)
    service.http.post("/api/v1/runs/demo/finish", json={"status": "completed"})

    assert scrape(service.http).value("gradwatch_run_state", **R, state="finished") == 1


def test_non_finite_gradients_become_an_incident_that_is_counted_once(service):
    for sequence in range(3):
        report(service.http, sequence, steps=[sequence], nonfinite_count=2)

    total = {**R, "kind": "nonfinite"}
    poll(lambda: scrape(service.http).value("gradwatch_run_incidents_total", **total) == 1)
    page = scrape(service.http)
    assert page.value("gradwatch_run_nonfinite_steps_total", **R) == 3
    assert page.value("gradwatch_run_nonfinite_elements_total", **R) == 6
    assert page.value("gradwatch_run_gradient_norm", **R) is None
    (onset, step), *_ = page.named("gradwatch_run_incident_onset_step")
    assert (onset["kind"], onset["first_tensor"], step) == ("nonfinite", "rnn.weight", 0)


def test_counters_survive_a_kill_and_are_back_on_the_first_page(tmp_path):
    store = tmp_path / "gradwatch.db"
    with serve_process(store) as first:
        for sequence in range(3):
            columns = {"clipped_count": 2, "nonfinite_count": int(sequence == 1)}
            answer = report(first.http, sequence, steps=[sequence], **columns)
            assert answer.status_code == 200
        total = {**R, "kind": "nonfinite"}
        poll(lambda: scrape(first.http).value("gradwatch_run_incidents_total", **total) == 1)
        before = scrape(first.http)
        first.kill()

    with serve_process(store) as again:
        after = scrape(again.http)

    assert before.value("gradwatch_run_steps_total", **R) == 3
    for name, value in before.samples.items():
        if name[0].endswith("_total") and ("run", "demo") in name[1]:
            assert after.samples[name] == value
    assert after.value("gradwatch_run_gradient_norm", **R) == 0.5


def test_what_a_client_dropped_is_counted_by_reason_even_without_steps(service):
    registered = service.http.put("/api/v1/runs/demo", json=MANIFEST).json()
    empty = {
        "manifest": registered["manifest"],
        "sequence": 0,
        "steps": [],
        "tensors": {"norm": []},
        "dropped": {"queue_full": 7, "a reason of its own": 2},
    }
    service.http.post("/api/v1/runs/demo/reports", json=empty).raise_for_status()

    page = scrape(service.http)

    dropped = "gradwatch_client_dropped_reports_total"
    assert page.value(dropped, **R, reason="queue_full") == 7
    assert page.value(dropped, **R, reason="a reason of its own") == 2
    assert page.value(dropped, **R, reason="spool_full") == 0
    assert page.value("gradwatch_run_steps_total", **R) == 0


def test_hostile_names_arrive_escaped_or_are_refused_but_never_break_the_page(service):
    group = 'x"} 1\\'
    tensors = [{"name": "w", "shape": [1], "dtype": "float32", "group": group}]
    answer = service.http.put("/api/v1/runs/hostile", json={"name": 'a"b\\c', "tensors": tensors})
    assert answer.status_code == 201
    body = {
        "manifest": answer.json()["manifest"],
        "sequence": 0,
        "steps": [0],
        "tensors": {"norm": [[1.0]]},
    }
    service.http.post("/api/v1/runs/hostile/reports", json=body).raise_for_status()
    for name in ("a\nb", "a\ud800b"):
        raw = json.dumps({"tensors": [{**tensors[0], "group": name}]})
        refused = service.http.put(
            "/api/v1/runs/other", content=raw, headers={"Content-Type": "application/json"}
        )
        assert refused.status_code in (400, 422)

    page = scrape(service.http)

    labels = {"project": "default", "run": "hostile", "group": group}
    assert page.value("gradwatch_group_gradient_norm", **labels) == 1.0
    info = [labels for labels, _ in page.named("gradwatch_run_info") if labels["run"] == "hostile"]
    assert info[0]["name"] == 'a"b\\c'


def test_scrapes_at_the_same_time_all_get_a_whole_page(service):
    report(service.http)
    pages, failures = [], []

    def once():
        try:
            pages.append(scrape(service.http))
        except Exception as error:  # noqa: BLE001 - shown by the assertion below
            failures.append(error)

    threads = [threading.Thread(target=once) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert not failures
    assert len(pages) == 8


@pytest.mark.parametrize("path", ["/metrics", "/metrics/runs/demo", "/api/v1/prometheus/targets"])
def test_without_a_token_there_are_no_metrics(guarded, path):
    answer = guarded.http.get(path)

    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"


def test_a_token_of_one_project_sees_that_project_alone(guarded):
    guarded.http.put("/api/v1/runs/mine", json=MANIFEST | {"project": "a"}, headers=guarded.admin)
    guarded.http.put("/api/v1/runs/theirs", json=MANIFEST | {"project": "b"}, headers=guarded.admin)

    page = scrape(guarded.http, **guarded.reader_of_a)
    targets = guarded.http.get("/api/v1/prometheus/targets", headers=guarded.reader_of_a).json()
    other = guarded.http.get("/metrics/runs/theirs", headers=guarded.reader_of_a)

    assert {labels["run"] for labels, _ in page.named("gradwatch_run_info")} == {"mine"}
    assert [target["labels"]["instance"] for target in targets] == ["mine"]
    assert other.status_code == 404


def test_every_live_run_is_a_target_whose_page_has_its_tensors(service):
    report(service.http, clipped_count=4, max_abs=0.25)

    (target,) = service.http.get("/api/v1/prometheus/targets").json()
    assert target["targets"] == [service.base_url.removeprefix("http://")]
    assert target["labels"]["instance"] == "demo"
    page = read(service.http.get(target["labels"]["__metrics_path__"]).content)

    tensor = {**R, "optimizer": "default", "group": "rnn", "tensor": "rnn.weight"}
    assert page.value("gradwatch_tensor_gradient_norm", **tensor) == 0.5
    assert page.value("gradwatch_tensor_clipped_elements_ratio", **tensor) == 0.4
    assert page.value("gradwatch_tensor_gradient_max_abs", **tensor) == 0.25
    assert not page.named("gradwatch_tensor_zero_elements_ratio")


def test_there_are_no_targets_without_runs_and_no_page_of_an_unknown_run(service):
    assert service.http.get("/api/v1/prometheus/targets").json() == []
    assert service.http.get("/metrics/runs/nobody").status_code == 404


def test_a_run_with_5000_tensors_is_folded_on_one_page_and_cut_on_its_own(service):
    tensors = [
        {"name": f"t{i}", "shape": [3], "dtype": "float32", "group": f"g{i}"} for i in range(5000)
    ]
    answer = service.http.put("/api/v1/runs/large", json={"tensors": tensors}).raise_for_status()
    body = {
        "manifest": answer.json()["manifest"],
        "sequence": 0,
        "steps": [0],
        "tensors": {"norm": [[1.0] * 5000], "clipped_count": [[1] * 5000]},
    }
    service.http.post("/api/v1/runs/large/reports", json=body).raise_for_status()

    page = scrape(service.http)
    own = read(service.http.get("/metrics/runs/large").content)

    large = {"project": "default", "run": "large"}
    assert len(page.named("gradwatch_group_elements_total")) == 64
    assert page.value("gradwatch_group_clipped_elements_total", **large, group="other") == 5000 - 63
    assert page.value("gradwatch_run_elements_total", **large) == 15_000
    assert page.value("gradwatch_series_dropped_total", scope="run") > 0
    assert len(own.named("gradwatch_tensor_gradient_norm")) == 2000
    assert scrape(service.http).value("gradwatch_series_dropped_total", scope="run") >= 2 * 3000
