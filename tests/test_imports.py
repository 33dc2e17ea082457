"""What is loaded, opened and started by importing each package, seen from a fresh interpreter."""

import json
import subprocess
import sys

import pytest

LOADED = """
import json, sys
before = set(sys.modules)
import {package}
print(json.dumps(sorted({{name.partition(".")[0] for name in set(sys.modules) - before}})))
"""

# torch is loaded before the hook is set: what it does on import is not ours to promise.
WATCHED = """
import json, sys, threading
import torch, torch.utils.data, torch.distributed
seen = []

def hook(event, arguments):
    if event == "open" and str(arguments[0]).endswith((".py", ".pyc")):
        return
    if event in {"open", "subprocess.Popen", "os.system", "ctypes.dlopen", "_thread.start_new_thread"}:
        seen.append([event, str(arguments[:1])])
    elif event.startswith(("socket.", "urllib.", "http.", "sqlite3.")):
        seen.append([event, str(arguments[:1])])

sys.addaudithook(hook)
import gradwatch
count = threading.active_count()
print(json.dumps({"seen": seen, "threads": count}))
"""


def loaded_by(package: str) -> set[str]:
    code = LOADED.format(package=package)
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


def test_the_wire_loads_nothing_but_the_standard_library():
    assert loaded_by("gradwatch_wire") - set(sys.stdlib_module_names) == {"gradwatch_wire"}


@pytest.mark.parametrize(
    ("package", "unwanted"),
    [
        ("gradwatch", {"fastapi", "uvicorn", "pydantic", "prometheus_client", "gradwatch_service"}),
        ("gradwatch_service.app", {"torch", "gradwatch", "gradwatch_cli"}),
        ("gradwatch_cli.main", {"torch", "fastapi", "typer", "gradwatch", "gradwatch_service"}),
        ("gradwatch_cli.commands.serve", {"torch", "gradwatch"}),
        ("gradwatch_cli.commands.sync", {"fastapi", "pydantic", "gradwatch_service"}),
    ],
)
def test_a_package_does_not_drag_in_the_other_sides_dependencies(package, unwanted):
    assert not unwanted & loaded_by(package)


def test_importing_gradwatch_starts_no_thread_opens_no_socket_and_reads_no_file():
    done = subprocess.run(
        [sys.executable, "-c", WATCHED], check=False, capture_output=True, text=True, timeout=120
    )

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"seen": [], "threads": 1}
