"""`gradwatch serve`: one line when it stands, one line and exit code 2 when it cannot."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess

import httpx
import pytest
from tests.conftest import free_port, poll, serve_process, serving
from tests.service import jobs

from gradwatch_cli.main import run


def refused(capsys, *arguments):
    """Run `gradwatch serve` in this process, which must not come to serve; return its one line."""
    assert run(["serve", *arguments]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("gradwatch serve: ")
    assert "\n" not in said
    return said


def test_a_taken_port_is_one_line_and_exit_code_2(tmp_path, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        said = refused(capsys, "--port", port, "--store", f"sqlite:///{tmp_path}/a.db")

    assert port in said
    assert "--port" in said
    assert not (tmp_path / "a.db").exists()


def test_an_open_address_without_tokens_is_refused(tmp_path, capsys):
    everywhere = "0.0.0.0"  # noqa: S104 - refused, never bound
    said = refused(capsys, "--host", everywhere, "--store", f"sqlite:///{tmp_path}/a.db")

    assert "--tokens" in said
    assert "--insecure" in said


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--store", "mysql://x"], "--store"),
        (["--tokens", "nowhere.json"], "nowhere.json"),
        (["--tls-cert", "a.pem"], "--tls-key"),
        (["--tls-cert", "a.pem", "--tls-key", "b.pem"], "a.pem"),
        (["--retention-bytes", "much"], "--retention-bytes"),
        (["--retention-full", "long"], "--retention-full"),
        (["--retention-bytes", "10"], "--retention-bytes"),
    ],
)
def test_a_wrong_option_is_named(tmp_path, monkeypatch, capsys, arguments, names):
    monkeypatch.chdir(tmp_path)
    said = refused(capsys, "--port", str(free_port()), *arguments)

    assert names in said


def test_it_says_its_address_once_and_ends_with_0(tmp_path):
    with serve_process(tmp_path / "a.db") as service:
        jobs.register(service.http, "run")
        assert service.terminate() == 0
        assert service.process.stdout.read() == f"gradwatch serves at {service.base_url}\n"


def test_a_file_left_by_a_killed_service_is_taken_up(tmp_path):
    with serve_process(tmp_path / "a.db") as service:
        jobs.register(service.http, "run")
        jobs.post(service.http, "run", jobs.report(range(50)))
        service.kill()
    with serve_process(tmp_path / "a.db") as service:
        summary = service.http.get("/api/v1/runs/run").json()
        assert summary["steps"] == 50
        assert 'gradwatch_run_steps_total{project="default",run="run"} 50' in (
            service.http.get("/metrics").text
        )


def test_it_stands_behind_a_proxy_that_takes_a_prefix_away(tmp_path):
    with serving(tmp_path, root_path="/watch") as service:
        assert service.http.get("/healthz").status_code == 200
        assert service.http.get("/api/v1/runs").json()["items"] == []
        document = service.http.get("/api/v1/openapi.json").json()
        assert document["servers"] == [{"url": "/watch"}]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_it_speaks_tls(tmp_path):
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 "
        f"-subj /CN=localhost -addext subjectAltName=DNS:localhost -keyout {key} -out {cert}"
    )
    subprocess.run(command.split(), check=True, capture_output=True)
    port = free_port()
    command = ["--tls-cert", str(cert), "--tls-key", str(key)]
    trust = ssl.create_default_context(cafile=str(cert))
    http = httpx.Client(base_url=f"https://localhost:{port}", verify=trust)
    with serve_process(tmp_path / "a.db", *command, port=port, http=http) as service:
        assert service.http.get("/readyz").status_code == 200
        http.close()  # an idle TLS connection is waited for when stopping


def test_limits_are_refused_by_name(tmp_path):
    with serving(tmp_path, max_runs=2, max_attempts=2, max_tensors=3) as service:
        for run_id in ("a", "b"):
            jobs.register(service.http, run_id)
        answers = {
            "runs": service.http.put("/api/v1/runs/c", json=jobs.manifest().to_json()),
            "steps": service.http.post("/api/v1/runs/d/steps", json={"step": 1}),
        }
        for answer in answers.values():
            assert (answer.status_code, answer.json()["code"]) == (409, "limit_reached")
        wide = service.http.put("/api/v1/runs/a", json=jobs.manifest(4).to_json())
        assert (wide.status_code, wide.json()["errors"][0]["at"]) == (422, "tensors")
        for session, status in (("s", 200), ("t", 409)):
            made = jobs.manifest(session=session).to_json()
            assert service.http.put("/api/v1/runs/a", json=made).status_code == status
        poll(lambda: service.http.get("/readyz").status_code == 200)
