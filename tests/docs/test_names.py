"""Documents and code know the same names: commands, routes, settings, metrics, public functions.

Both directions: what exists is documented, and what is documented exists.
"""

import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from tests.docs.pages import PAGES, ROOT

import gradwatch
from gradwatch_cli.catalog import COMMANDS
from gradwatch_service.routes import ALL_ROUTERS

TEXT = {page: page.read_text(encoding="utf-8") for page in PAGES}
# The changelog and the decisions tell of what was; only what the other pages say must exist.
EVERYTHING = "\n".join(TEXT.values())
PRESENT = "\n".join(text for page, text in TEXT.items() if page.name != "decisions.md")


def is_written(pattern: str) -> bool:
    """Whether any page says it. A plain yes or no, since all pages together are no message."""
    return re.search(pattern, EVERYTHING) is not None


def test_the_page_of_commands_is_what_the_commands_say():
    script = ROOT / "scripts" / "command_reference.py"
    done = subprocess.run(
        [sys.executable, str(script)], check=True, capture_output=True, text=True, timeout=60
    )

    assert (ROOT / "docs" / "commands.md").read_text(encoding="utf-8") == done.stdout, (
        "run: python scripts/command_reference.py > docs/commands.md"
    )


def test_every_command_line_in_the_documents_can_be_typed():
    reference = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    sections = dict(
        re.findall(r"^## gradwatch (\w+)$(.*?)(?=^## |\Z)", reference, re.MULTILINE | re.DOTALL)
    )
    lines = re.findall(r"(?:^|[`$&] ?)gradwatch ([a-z]+)((?: [^`\n|;&]*)?)", PRESENT, re.MULTILINE)
    typed = [(name, rest) for name, rest in lines if name in COMMANDS or "--" in rest]

    assert typed
    for name, rest in typed:
        assert name in COMMANDS, f"the documents name a command {name!r}"
        # What follows -- is the other program's (gradwatch exec -- python train.py --lr 0.1).
        ours = re.split(r" # | -- ", rest)[0]
        for option in re.findall(r"(?<!\S)--[a-z-]+", ours):
            assert option == "--help" or f"`{option}`" in sections[name], f"{name} has no {option}"


def routes() -> set[str]:
    """Every path of the service, the page's own files aside."""
    paths = {route.path for router in ALL_ROUTERS for route in router.routes}
    return paths - {"/page/{name}"}


def short(path: str) -> str:
    return path.removeprefix("/api/v1")


@pytest.mark.parametrize("path", sorted(routes()))
def test_every_route_is_documented(path):
    assert is_written(rf"[`\s]({re.escape(path)}|{re.escape(short(path))})[`?\s]"), path


def test_every_documented_route_exists():
    known = {short(path) for path in routes()}
    # GET `/runs/{run}/series?metric=` and `/api/v1/runs/{run}/series` both mean the same route.
    named = re.findall(r"`(?:[A-Z/]+ )?((?:/api/v1)?/(?:runs|incidents|recommend|metrics|prometheus|healthz|readyz)[\w/{}]*)", PRESENT)  # fmt: skip

    assert named
    assert {short(path).replace("/RUN", "/{run}") for path in named} <= known


def source(*folders: str) -> str:
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return "\n".join(path.read_text(encoding="utf-8") for path in files)


SETTING = re.compile(r"GRADWATCH_[A-Z]+(?:_[A-Z]+)*")
# How gradwatch exec hands its options to the program it starts; nobody sets these.
HANDED_OVER = {"GRADWATCH_EXEC_CLIP"}
READ = (set(SETTING.findall(source("client", "service"))) - HANDED_OVER) | {
    # settings.py builds these from the names of its fields
    f"GRADWATCH_{name}"
    for name in [
        "URL",
        "TOKEN",
        "MODE",
        "RUN",
        "PROJECT",
        "DIR",
        "EVERY",
        "TIMEOUT",
        "FLUSH_TIMEOUT",
        "QUIET",
    ]
}


@pytest.mark.parametrize("name", sorted(READ))
def test_every_setting_is_documented(name):
    assert is_written(rf"\b{name}\b"), name


def test_every_documented_setting_is_read_somewhere():
    assert set(SETTING.findall(PRESENT)) <= READ


FAMILY = re.compile(r"^# TYPE (gradwatch_\w+) ", re.MULTILINE)
MODULES = {"gradwatch_wire", "gradwatch_cli", "gradwatch_service"}


@pytest.fixture(scope="session")
def families(service_url) -> set[str]:
    """The metric families that the service shows for a run."""
    return set(FAMILY.findall(httpx.get(f"{service_url}/metrics").text))


def test_every_metric_the_service_shows_is_documented(families):
    assert families
    assert [name for name in sorted(families) if f"`{name}" not in EVERYTHING] == []


def test_every_documented_metric_is_one_the_service_can_show(families):
    code = source("service")
    named = set(re.findall(r"`(gradwatch_[a-z_]+)[`{]", PRESENT)) - MODULES
    unknown = [
        name
        for name in sorted(named)
        if re.sub(r"_(bucket|sum|count)$", "", name) not in families
        and f'"{name}"' not in code
        and f'"{name.removesuffix("_total")}"' not in code
    ]

    assert unknown == []


@pytest.mark.parametrize(
    "name",
    [
        *(f"gradwatch.{name}" for name in gradwatch.__all__ if name != "__version__"),
        *(f"gradwatch.clip.{name}" for name in gradwatch.clip.__all__),
    ],
)
def test_every_public_name_is_documented(name):
    # In full, without the package, or (a policy on the page of policies) as a bare call.
    short_name, call = name.removeprefix("gradwatch."), name.rpartition(".")[2]
    assert is_written(rf"{name}\b|`{short_name}\b|`{call}\("), name


def test_every_public_name_in_the_documents_exists():
    # gradwatch.clip.norm is one; gradwatch.db and gradwatch.yml are files.
    named = re.findall(r"(?<![\w/.-])gradwatch\.((?:clip|integrations)\.\w+|[a-z_]+)\(", PRESENT)

    assert named
    for dotted in set(named):
        thing = gradwatch
        for part in dotted.split("."):
            thing = getattr(thing, part, None)
        assert thing is not None, f"the documents name gradwatch.{dotted}"


def test_no_document_or_source_names_a_place_outside_the_repository():
    ours = [*PAGES, *(p for folder in ("client", "service", "tests", "examples", "benchmarks", "scripts") for p in Path(ROOT, folder).rglob("*.py"))]  # fmt: skip
    outside = re.compile(r"(?<![\w.])/(?:wor[k]/|hom[e]/|roo[t]/)")

    found = [p.name for p in ours if outside.search(p.read_text(encoding="utf-8"))]
    assert found == []
