"""What the image holds, without a container engine: the wheel and its locked requirements alone."""

import os
import subprocess
import sys
import venv

import httpx
import pytest
from tests.conftest import free_port, poll, ready
from tests.deploy.deployed import DEPLOY, ROOT


@pytest.mark.soak
def test_the_wheel_with_its_locked_requirements_serves_without_torch(tmp_path):
    home = tmp_path / "venv"
    venv.create(home, with_pip=True)
    python = str(home / "bin" / "python")
    locked = str(DEPLOY / "requirements.txt")
    subprocess.run(
        [python, "-m", "pip", "install", "-q", "--require-hashes", "-r", locked], check=True
    )
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "-w",
        str(tmp_path),
        str(ROOT),
    ]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("gradwatch-*.whl")
    subprocess.run(
        [python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", str(wheel)], check=True
    )

    found = subprocess.run([python, "-c", "import torch"], capture_output=True, check=False)
    assert b"No module named 'torch'" in found.stderr

    port = free_port()
    command = [str(home / "bin" / "gradwatch"), "serve", "--port", str(port)]
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "GRADWATCH"))}
    service = subprocess.Popen(
        [*command, "--store", f"sqlite:///{tmp_path / 'gradwatch.db'}"], env=clean, cwd=tmp_path
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as http:
            poll(lambda: service.poll() is not None or ready(http))
            step = {"step": 1, "global_norm": 0.5}
            assert http.post("/api/v1/runs/r/steps", json=step).status_code == 200
            assert "gradwatch_run_gradient_norm{" in http.get("/metrics").text
            assert http.get("/healthz").status_code == 200
    finally:
        service.terminate()
        assert service.wait(20) == 0
