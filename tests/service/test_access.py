"""Who may ask: tokens, scopes, projects, hosts and content types; nothing crosses projects."""

from __future__ import annotations

import json
import re
import stat
import time

import httpx
import pytest
from tests.conftest import free_port, poll, serve_process, serving
from tests.service import jobs

from gradwatch_cli.main import run
from gradwatch_service.access.tokens import add_token, remove_token
from gradwatch_service.routes import ALL_ROUTERS
from gradwatch_wire.local_token import local_token


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """A service with tokens, and a client for each."""
    folder = tmp_path_factory.mktemp("guarded")
    path = folder / "tokens.json"
    secrets = {
        "ours": add_token(path, "ours", ("ingest", "read", "admin"), "ours"),
        "theirs": add_token(path, "theirs", ("ingest", "read", "admin"), "theirs"),
        "writer": add_token(path, "writer", ("ingest",), None),
        "reader": add_token(path, "reader", ("read",), None),
        "all": add_token(path, "all", ("admin",), None),
    }
    with serving(folder, tokens=path, allowed_hosts=("good.example",)) as served:
        clients = {
            name: httpx.Client(
                base_url=served.base_url, headers={"Authorization": f"Bearer {secret}"}
            )
            for name, secret in secrets.items()
        }
        clients["nobody"] = httpx.Client(base_url=served.base_url)
        clients["wrong"] = httpx.Client(
            base_url=served.base_url, headers={"Authorization": "Bearer gw_wrong"}
        )
        jobs.register(clients["ours"], "secret-run", jobs.manifest(project="ours"))
        answer = jobs.post(clients["ours"], "secret-run", jobs.report(range(64)))
        assert answer.status_code == 200, answer.text
        jobs.register(clients["theirs"], "public-run", jobs.manifest(project="theirs"))
        yield served, clients, path
        for client in clients.values():
            client.close()


ROUTES = sorted(
    (method, route.path)
    for router in ALL_ROUTERS
    for route in router.routes
    for method in (route.methods or ())
    if method != "HEAD"
)
OPEN = {"/healthz", "/readyz", "/", "/page/{name}"}
BODIES = {
    "/api/v1/runs/{run}": jobs.manifest(project="theirs").to_json(),
    "/api/v1/runs/{run}/reports": None,
    "/api/v1/runs/{run}/steps": {"step": 1, "loss": 1.0},
    "/api/v1/runs/{run}/finish": {"status": "completed"},
    "/api/v1/runs/{run}/backtest": {"policy": "norm", "threshold": 1.0},
    "/api/v1/recommend": {"policy": "norm", "norms": [1.0] * 40},
}


def ask(client, method, path, run):
    """Call a route as well as can be: a body that is right, parameters that exist."""
    address = path.replace("{run}", run)
    address = re.sub(r"\{[^}]*\}", "x", address)
    body = BODIES.get(path)
    if path.endswith("/reports"):
        report = jobs.report(range(64, 70), sequence=1)
        return jobs.post(client, run, report)
    if method == "PATCH":
        body = {"name": "changed"}
    parameters = {"tensor": jobs.TENSORS[0].name} if path.endswith("/histogram") else None
    if method in {"POST", "PUT", "PATCH"}:
        return client.request(method, address, json=body or {}, params=parameters)
    if path.endswith("/events"):
        with client.stream(method, address) as answer:
            return answer
    return client.request(method, address, params=parameters)


@pytest.mark.parametrize(("method", "path"), [r for r in ROUTES if "{run}" in r[1]])
def test_a_run_of_another_project_is_404_on_every_route(guarded, method, path):
    _, clients, _ = guarded
    if method == "GET" and not path.endswith("/events"):
        # What was answered to one caller is remembered, but not for another project's.
        ask(clients["ours"], method, path, "secret-run")

    answer = ask(clients["theirs"], method, path, "secret-run")

    assert answer.status_code == 404, (method, path, answer.status_code)
    assert clients["ours"].get("/api/v1/runs/secret-run").json()["steps"] == 64


@pytest.mark.parametrize(
    ("method", "path"), [r for r in ROUTES if "{" not in r[1] and r[1] not in OPEN]
)
def test_lists_and_metrics_never_name_a_run_of_another_project(guarded, method, path):
    _, clients, _ = guarded

    ours, theirs = (ask(clients[name], method, path, "x") for name in ("ours", "theirs"))

    assert ours.status_code == theirs.status_code == 200, (method, path, theirs.text)
    assert "secret-run" not in theirs.text
    if path in {"/api/v1/runs", "/metrics"}:
        assert "secret-run" in ours.text


@pytest.mark.parametrize(("method", "path"), [r for r in ROUTES if r[1] not in OPEN])
@pytest.mark.parametrize("who", ["nobody", "wrong"])
def test_every_route_but_health_and_the_page_asks_for_a_token(guarded, method, path, who):
    _, clients, _ = guarded

    answer = ask(clients[who], method, path, "secret-run")

    assert answer.status_code == 401, (method, path)
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_health_is_open_to_load_balancers_too(guarded, method, path):
    _, clients, _ = guarded

    assert clients["nobody"].request(method, path).status_code == 200


def test_scopes_reach_no_further_than_they_say(guarded):
    _, clients, _ = guarded
    path = "/api/v1/runs/secret-run"

    assert clients["writer"].get(path).status_code == 403
    assert clients["reader"].get(path).status_code == 200
    assert clients["reader"].post(f"{path}/steps", json={"step": 1}).status_code == 403
    assert clients["reader"].delete(path).status_code == 403
    assert clients["writer"].post(f"{path}/steps", json={"step": 1}).status_code == 200
    assert clients["all"].get(path).status_code == 200


def test_a_token_of_a_project_makes_runs_in_it_alone(guarded):
    _, clients, _ = guarded
    unnamed = {k: v for k, v in jobs.manifest().to_json().items() if k != "project"}

    refused = clients["ours"].put("/api/v1/runs/x1", json=jobs.manifest(project="else").to_json())
    made = clients["ours"].put("/api/v1/runs/x2", json=unnamed)

    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden_project")
    assert made.status_code == 201
    assert clients["all"].get("/api/v1/runs/x2").json()["project"] == "ours"


def test_tokens_are_made_and_revoked_while_the_service_runs(guarded):
    served, _, path = guarded
    secret = add_token(path, "late", ("read",), None)
    headers = {"Authorization": f"Bearer {secret}"}

    def status():
        return httpx.get(f"{served.base_url}/api/v1/runs", headers=headers).status_code

    poll(lambda: status() == 200, 5)
    remove_token(path, "late")
    poll(lambda: status() == 401, 5)


def test_the_token_file_holds_no_token_and_is_private(guarded):
    _, clients, path = guarded

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    secret = clients["ours"].headers["authorization"].removeprefix("Bearer ")
    assert secret not in path.read_text()


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:1", 200),
        ("localhost", 200),
        ("[::1]:8642", 200),
        ("good.example", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("10.1.2.3", 403),
        ("", 403),
    ],
)
def test_only_hosts_that_are_ours_are_answered(guarded, host, status):
    _, clients, _ = guarded
    answer = clients["all"].get("/api/v1/runs", headers={"host": host})

    assert answer.status_code == status
    if status == 403:
        assert answer.json()["code"] == "forbidden_host"


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", None])
def test_what_a_foreign_page_could_send_is_415(service, kind):
    headers = {} if kind is None else {"content-type": kind}
    body = json.dumps(jobs.manifest().to_json()).encode()

    answer = service.http.put("/api/v1/runs/demo", content=body, headers=headers)

    assert answer.status_code == 415
    assert service.http.get("/api/v1/runs/demo").status_code == 404
    assert "access-control-allow-origin" not in answer.headers


def test_posts_beyond_the_rate_are_429_with_the_time_to_wait(tmp_path):
    with serving(tmp_path, max_posts_per_second=1) as service:
        answers = [
            service.http.post("/api/v1/runs/fast/steps", json={"step": n, "loss": 1.0})
            for n in range(12)
        ]

    assert [a.status_code for a in answers[:10]] == [200] * 10
    assert answers[-1].status_code == 429
    assert int(answers[-1].headers["retry-after"]) >= 1


def test_auto_tokens_are_found_by_this_users_jobs_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    env = {"XDG_CONFIG_HOME": str(tmp_path)}
    with serve_process(tmp_path / "a.db", "--tokens", "auto", env=env) as service:
        token = local_token(service.base_url)
        assert token is not None
        assert local_token("http://elsewhere.example:8642") is None
        headers = {"Authorization": f"Bearer {token}"}
        assert service.http.get("/api/v1/runs").status_code == 401
        assert service.http.get("/api/v1/runs", headers=headers).status_code == 200
    secret = tmp_path / "gradwatch" / "token"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    secret.chmod(0o644)
    assert local_token("http://127.0.0.1:8642") is None


def test_tokens_are_made_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def token(*arguments):
        code = run(["token", *arguments])
        return code, capsys.readouterr().out

    code, secret = token("create", "ci", "--scope", "ingest", "--project", "speech")

    assert code == 0
    assert secret.startswith("gw_")
    assert token("create", "ci")[0] == 2
    assert token("create", "x", "--scope", "root")[0] == 2
    assert token("list") == (0, "ci\tingest\tspeech\n")
    assert token("revoke", "ci")[0] == 0
    assert token("list") == (0, "")


def test_metrics_may_be_open_on_a_port_of_their_own(tmp_path):
    path = tmp_path / "tokens.json"
    add_token(path, "t", ("read",), None)
    port = free_port()
    with serve_process(
        tmp_path / "a.db", "--tokens", str(path), "--open-metrics-port", str(port)
    ) as service:
        assert service.http.get("/metrics").status_code == 401
        answer = poll(lambda: _get(f"http://127.0.0.1:{port}/metrics"))
        assert "gradwatch_build_info" in answer.text
        assert httpx.get(f"http://127.0.0.1:{port}/api/v1/runs").status_code == 404


def _get(address):
    try:
        return httpx.get(address)
    except httpx.TransportError:
        time.sleep(0.05)
        return None
