"""The dashboards keep the rules of Grafana's dashboard linter, and some of our own."""

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from tests.deploy.deployed import DASHBOARD_FILES, DEPLOY, dashboards, panels, queries

from gradwatch_service.exposition.template import ALL_SERIES
from gradwatch_service.exposition.text import registry_text
from gradwatch_service.instruments import Instruments

BOARDS = dashboards()
# Of Prometheus and of its scrapes; process_ and python_ metrics come with the instruments.
FOREIGN = {"up", "scrape_duration_seconds"}
UNITS = {
    *("short", "none", "string", "s", "bytes", "percentunit", "reqps", "sci"),
}
SUFFIXES = ("_bucket", "_sum", "_count")


def every_panel():
    """(uid, panel), with ids."""
    for uid, board in BOARDS.items():
        for panel in panels(board):
            yield pytest.param(board, panel, id=f"{uid}: {panel['title']}")


def catalogue():
    """Every metric's name that the service can expose, with its labels."""
    known = {series.family.name: set(series.family.labels) for series in ALL_SERIES}
    for name in re.findall(r"# TYPE (\S+)", registry_text(Instruments().registry)):
        known[name] = set()
    known["gradwatch_runs"] = {"state"}
    return known


def test_regenerating_the_dashboards_changes_nothing(tmp_path):
    generator = DEPLOY / "grafana" / "generator"
    subprocess.run([sys.executable, str(generator), str(tmp_path)], check=True)

    assert {p.name for p in tmp_path.iterdir()} == {p.name for p in DASHBOARD_FILES}
    for path in DASHBOARD_FILES:
        assert path.read_text() == (tmp_path / path.name).read_text(), path.name


def test_there_are_four_with_addresses_that_stay():
    assert set(BOARDS) == {f"gradwatch-{n}" for n in ("fleet", "run", "layers", "service")}
    assert len({board["title"] for board in BOARDS.values()}) == 4
    for path in DASHBOARD_FILES:
        assert json.loads(path.read_text())["uid"] == path.stem


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_a_dashboard_keeps_the_linters_rules(board):
    variables = {v["name"]: v for v in board["templating"]["list"]}

    assert board["editable"] is False
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["label"] == "Data source"
    assert variables["datasource"]["query"] == "prometheus"
    for name in ("job", "instance"):
        assert variables[name]["label"] == name
        assert variables[name]["multi"] is True
        assert variables[name]["allValue"] == ".+"
    for variable in variables.values():
        if variable["type"] == "query":
            assert variable["refresh"] == 2, "choices follow the time range"
            assert variable["datasource"]["uid"] == "${datasource}"


@pytest.mark.parametrize(("board", "panel"), list(every_panel()))
def test_a_panel_keeps_the_linters_rules(board, panel):
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
    assert panel["targets"]
    assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    for target in panel["targets"]:
        assert target["refId"]
        assert target["datasource"] == panel["datasource"]


@pytest.mark.parametrize(("uid", "title", "expr"), queries())
def test_a_query_keeps_the_linters_rules(uid, title, expr):
    for selector in re.findall(r"[a-z_]+\{([^}]*)\}", expr):
        assert 'job=~"$job"' in selector
        assert 'instance=~"$instance"' in selector
    for interval in re.findall(r"\[([^\]]+)\]", expr):
        # A number or a table that speaks of the time shown means all of it.
        assert interval in ("$__rate_interval", "$__range")
    for function, metric in re.findall(r"(\w+)\((gradwatch_\w+_total)\{", expr):
        assert function in ("rate", "increase"), metric
    counters = re.findall(r"(gradwatch_\w+_total)", expr)
    assert len(re.findall(r"(?:rate|increase)\((?:gradwatch_\w+_total)", expr)) == len(counters)


@pytest.mark.parametrize(("uid", "title", "expr"), queries())
def test_a_query_names_metrics_and_labels_that_exist(uid, title, expr):
    known = catalogue()
    for name in re.findall(r"\b([a-z_]+)\{", expr):
        base = next((name.removesuffix(s) for s in SUFFIXES if name.endswith(s)), name)
        assert name in known or base in known or name in FOREIGN, name


def test_legends_and_groupings_use_labels_that_exist():
    labels = set().union(*(family.labels for family in (s.family for s in ALL_SERIES)))
    labels |= {"le", "job", "instance", "state", "route", "code", "reason", "method"}
    for uid, board in BOARDS.items():
        for panel, target in ((p, t) for p in panels(board) for t in p["targets"]):
            where = f"{uid}: {panel['title']}"
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= labels, where
            for group in re.findall(r"(?:by|on) \(([^)]*)\)", target["expr"]):
                assert {label.strip() for label in group.split(",")} <= labels, where


@pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)
def test_panels_have_ids_of_their_own_and_do_not_overlap(board):
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    cells = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        taken = set(
            itertools.product(
                range(place["x"], place["x"] + place["w"]),
                range(place["y"], place["y"] + place["h"]),
            )
        )
        assert not taken & cells, panel["title"]
        cells |= taken


def test_links_lead_to_dashboards_and_variables_that_exist():
    text = "".join(path.read_text() for path in DASHBOARD_FILES)
    links = re.findall(r"/d/([a-z-]+)\?([^\"]*)", text)

    assert {uid for uid, _ in links} == {"gradwatch-run", "gradwatch-layers"}
    for uid, query in links:
        known = {v["name"] for v in BOARDS[uid]["templating"]["list"]}
        assert set(re.findall(r"var-(\w+)=", query)) <= known


def test_what_is_wrong_is_in_the_first_screen_of_a_laptop():
    # 1080 pixels less Grafana's own bars are about 24 grid units of 38.
    first = {p["title"] for p in panels(BOARDS["gradwatch-run"]) if p["gridPos"]["y"] < 19}

    assert {"State", "What is wrong", "Since when", "Recommended threshold"} <= first
    assert "Gradient norm and thresholds" in first


def test_incidents_and_threshold_changes_are_marks_on_the_curves():
    for uid in ("gradwatch-run", "gradwatch-layers"):
        names = {a["name"] for a in BOARDS[uid]["annotations"]["list"]}
        assert names == {"Incidents", "Threshold changes"}


@pytest.mark.parametrize("path", DASHBOARD_FILES, ids=lambda p: p.stem)
def test_grafanas_own_types_know_every_field(path: Path):
    register_default_plugins()
    given = json.loads(path.read_text())

    known = json.loads(JSONEncoder(sort_keys=True).encode(Dashboard.from_json(given)))

    # Prometheus' own fields of an annotation; the types know only those all data sources share.
    unmodelled = re.compile(r"\.annotations\.list\[\d\]\.(titleFormat|tagKeys|step)$")
    assert [path for path in lost(given, known) if not unmodelled.search(path)] == []


def lost(given, known, at="$"):
    """Paths in ``given`` that are not in ``known``."""
    if isinstance(given, dict):
        if not isinstance(known, dict):
            return [at]
        missing = [f"{at}.{key}" for key in given if key not in known and given[key] is not None]
        return missing + [
            path
            for key in given
            if key in known
            for path in lost(given[key], known[key], f"{at}.{key}")
        ]
    if isinstance(given, list):
        if not isinstance(known, list) or len(given) != len(known):
            return [at]
        pairs = zip(given, known, strict=True)
        return [path for i, (a, b) in enumerate(pairs) for path in lost(a, b, f"{at}[{i}]")]
    return []


def test_the_round_trip_would_notice_a_misspelled_field():
    assert lost({"panels": [{"titel": "x"}]}, {"panels": [{"title": ""}]}) == ["$.panels[0].titel"]
