import json
import os
import subprocess
import sys


def doctor(*arguments, **settings):
    clean = {k: v for k, v in os.environ.items() if not k.startswith("GRADWATCH_")}
    command = [sys.executable, "-m", "gradwatch_cli", "doctor", *arguments]
    return subprocess.run(
        command, env=clean | settings, capture_output=True, text=True, check=False
    )


def test_doctor_names_the_kernel_and_how_fast_it_is_here():
    done = doctor("--json")

    found = {check["what"]: check["found"] for check in json.loads(done.stdout)}
    assert done.returncode == 0
    assert found["cpu kernel"] in {"cpu", "reference"}
    assert "times torch's clip_grad_norm_" in found["clipping"]


def test_doctor_fails_on_a_kernel_that_cannot_be_and_a_service_that_is_away_and_hides_the_token():
    done = doctor(
        GRADWATCH_KERNEL="cuda",
        GRADWATCH_URL="http://127.0.0.1:1",
        GRADWATCH_TOKEN="open sesame",  # noqa: S106 -- the point of the test
    )

    assert done.returncode == 1
    assert "kernel 'cuda' cannot clip gradients on cpu" in done.stdout.replace("\n", " ")
    assert "does not answer" in done.stdout
    assert "gradwatch serve" in done.stdout
    assert "sesame" not in done.stdout + done.stderr


def test_doctor_without_a_compiled_kernel_says_how_to_get_one():
    code = (
        "import pathlib, sys; from gradwatch.kernels import library; "
        "library.PATH = pathlib.Path('/none'); from gradwatch_cli.main import main; "
        "sys.argv = ['gradwatch', 'doctor']; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert "reference" in done.stdout
    assert "C compiler" in done.stdout
