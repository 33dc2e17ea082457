"""What is shipped in service/deploy, read once for the tests."""

import json
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "service" / "deploy"
RULE_FILES = sorted((DEPLOY / "rules").glob("*.yml"))
ALERT_TESTS = sorted((Path(__file__).parent / "alerts").glob("*.yml"))
DASHBOARD_FILES = sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))


def rules():
    """Every rule of every file."""
    documents = [yaml.safe_load(path.read_text()) for path in RULE_FILES]
    return [
        rule for document in documents for group in document["groups"] for rule in group["rules"]
    ]


def alerts():
    """Every alert by name."""
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def dashboards():
    """Every dashboard by uid."""
    known = [json.loads(path.read_text()) for path in DASHBOARD_FILES]
    return {board["uid"]: board for board in known}


def panels(board):
    """The panels of a dashboard that show something."""
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def queries():
    """(dashboard uid, panel title, query) of every panel and annotation."""
    found = []
    for uid, board in dashboards().items():
        for panel in panels(board):
            found += [(uid, panel["title"], target["expr"]) for target in panel["targets"]]
        found += [(uid, a["name"], a["expr"]) for a in board["annotations"]["list"]]
    return found
