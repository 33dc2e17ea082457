"""The command's dispatcher: what it lists, what it refuses, and with which exit code."""

import importlib
import inspect
import re
import subprocess
import sys

import pytest

import gradwatch
from gradwatch_cli.catalog import COMMANDS
from gradwatch_cli.main import run

# Runs one command line as if some packages were not installed.
WITHOUT = """
import sys
from importlib.abc import MetaPathFinder

class Missing(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {missing!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
from gradwatch_cli.main import run
sys.exit(run({arguments!r}))
"""


def run_without(missing: set[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    code = WITHOUT.format(missing=missing, arguments=list(arguments))
    return subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60
    )


def test_help_lists_every_command_that_has_a_module(capsys):
    assert run(["--help"]) == 0

    listed = re.findall(r"^  ([a-z]+)  ", capsys.readouterr().out, flags=re.MULTILINE)
    assert listed == sorted(COMMANDS)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_listed_command_can_be_imported_and_explains_itself(name, capfd):
    module = importlib.import_module(COMMANDS[name].module)
    assert hasattr(module, "app") or inspect.getdoc(module.command)

    assert run([name, "--help"]) == 0
    assert f"gradwatch {name}" in capfd.readouterr().out


def test_an_unknown_command_names_the_nearest_one(capsys):
    assert run(["incident"]) == 2

    assert capsys.readouterr().err == (
        "gradwatch: no command 'incident'; did you mean 'incidents'? gradwatch --help lists them\n"
    )


def test_no_command_shows_the_help_and_counts_as_wrong_use(capsys):
    assert run([]) == 2

    assert "commands:" in capsys.readouterr().err


def test_an_option_out_of_range_is_wrong_use_and_is_named(capfd):
    assert run(["demo", "--steps", "3"]) == 2

    assert "--steps" in capfd.readouterr().err


def test_the_version_is_the_distributions(capsys):
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"gradwatch {gradwatch.__version__}\n"


@pytest.mark.parametrize(
    ("command", "missing", "extra"),
    [
        ("demo", "torch", "demo"),
        ("demo", "typer", "demo"),
        ("sync", "torch", "client"),
        ("serve", "fastapi", "service"),
        ("serve", "uvicorn", "service"),
    ],
)
def test_a_missing_extra_is_one_line_with_the_pip_command(command, missing, extra):
    arguments = ["--help"] if command != "sync" else ["somewhere"]
    done = run_without({missing}, command, *arguments)

    assert done.returncode == 2
    assert done.stderr == (
        f"gradwatch {command}: this command needs '{missing}', which is not installed: "
        f"pip install 'gradwatch[{extra}]'\n"
    )


@pytest.mark.parametrize(
    ("command", "absent"),
    [("serve", {"torch"}), ("sync", {"fastapi", "uvicorn", "pydantic"}), ("runs", {"torch"})],
)
def test_a_command_needs_only_its_own_sides_packages(command, absent):
    done = run_without(absent, command, "--help")

    assert done.returncode == 0, done.stderr


def test_the_help_needs_no_package_at_all():
    done = run_without({"typer", "rich", "torch", "fastapi"}, "--help")

    assert done.returncode == 0, done.stderr
