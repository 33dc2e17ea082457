"""Every alert fires when it should and stays quiet when it should, and says what to do."""

import re
import subprocess
from collections import defaultdict

import pytest
import yaml
from tests.deploy.deployed import ALERT_TESTS, DEPLOY, ROOT, RULE_FILES, alerts, dashboards, rules
from tests.tools import tool

ALERTS = alerts()
# What somebody is woken up for: a training that is being lost, and a service that is away.
PAGES = {"GradwatchCriticalIncident", "GradwatchDown", "GradwatchAbsent", "GradwatchStorageErrors"}


def run(*command):
    """Run a tool; its output when it fails is the test's message."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_accepts_the_rules_and_the_configuration():
    run(tool("promtool"), "check", "rules", *map(str, RULE_FILES))
    run(tool("promtool"), "check", "config", str(DEPLOY / "prometheus.yml"))


def test_amtool_accepts_the_alertmanagers_configuration():
    run(tool("amtool"), "check-config", str(DEPLOY / "alertmanager.yml"))


@pytest.mark.parametrize(
    ("severity", "receiver"), [("critical", "pager"), ("warning", "tickets"), ("info", "nobody")]
)
def test_only_critical_alerts_reach_the_pager(severity, receiver):
    run(
        *(tool("amtool"), "config", "routes", "test", f"severity={severity}"),
        *(f"--config.file={DEPLOY / 'alertmanager.yml'}", f"--verify.receivers={receiver}"),
    )


@pytest.mark.parametrize("path", ALERT_TESTS, ids=lambda path: path.stem)
def test_every_alert_fires_and_stays_quiet_as_described(path):
    run(tool("promtool"), "test", "rules", str(path))


def test_every_alert_is_tested_firing_and_quiet():
    fires, quiet = set(), set()
    for path in ALERT_TESTS:
        for case in yaml.safe_load(path.read_text())["tests"]:
            subjects = defaultdict(set)
            for series in case["input_series"]:
                for label in ("run", "instance", "reason", "scope"):
                    for value in re.findall(rf'{label}="([^"]*)"', series["series"]):
                        subjects[label].add(value)
            most = max((len(values) for values in subjects.values()), default=0)
            for check in case.get("alert_rule_test", []):
                expected = check["exp_alerts"]
                if expected:
                    fires.add(check["alertname"])
                # promtool wants exactly these: a subject that is not among them stayed quiet.
                if len(expected) < most:
                    quiet.add(check["alertname"])

    assert fires == set(ALERTS)
    assert quiet == set(ALERTS)


def test_only_critical_incidents_and_the_services_availability_page():
    assert {n for n, a in ALERTS.items() if a["labels"]["severity"] == "critical"} == PAGES
    assert {a["labels"]["severity"] for a in ALERTS.values()} == {"critical", "warning", "info"}


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_says_what_where_and_what_to_do(name):
    annotations = ALERTS[name]["annotations"]

    assert annotations["summary"]
    assert annotations["description"].endswith(".")
    assert annotations["runbook_url"] == f"docs/runbooks/{name}.md"
    runbook = (ROOT / annotations["runbook_url"]).read_text()
    assert runbook.startswith(f"# {name}\n")
    assert "## Look" in runbook
    assert "## Do" in runbook
    uid = re.match(r"/d/([a-z-]+)", annotations["dashboard"])[1]
    assert uid in dashboards()


def test_every_runbook_has_an_alert_and_is_listed():
    written = {path.stem for path in (ROOT / "docs" / "runbooks").glob("Gradwatch*.md")}
    index = (ROOT / "docs" / "runbooks" / "README.md").read_text()

    assert written == set(ALERTS)
    assert all(f"[{name}]({name}.md)" in index for name in written)


def test_runbooks_speak_of_panels_that_exist():
    titles = {panel["title"] for board in dashboards().values() for panel in board["panels"]}
    known = titles | {"Run", "Service", "Layers", "Status / Targets", "Status / Configuration"}
    for path in (ROOT / "docs" / "runbooks").glob("Gradwatch*.md"):
        named = set(re.findall(r"(?<!\*)\*([A-Z][^*]+)\*(?!\*)", path.read_text()))
        assert named <= known, f"{path.name}: {named - known}"


def test_recording_rules_are_named_by_what_they_keep():
    recorded = [rule["record"] for rule in rules() if "record" in rule]

    assert len(recorded) == 4
    assert all(re.fullmatch(r"job[a-z_]*:gradwatch_[a-z_]+:[a-z0-9]+_rate5m", r) for r in recorded)
