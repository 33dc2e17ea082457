"""Puts panels, variables and annotations together as one dashboard."""

from string import ascii_uppercase
from typing import Any

from panels import DATASOURCE

__all__ = ["RUN", "SCOPE", "dashboard", "row"]

Json = dict[str, Any]

# What every query is limited to: this service, then these projects, then this run.
SERVICE = 'job=~"$job",instance=~"$instance"'
SCOPE = f'{SERVICE},project=~"$project"'
RUN = f'{SCOPE},run=~"$run"'

_COLUMNS = 24
# Classic schema, from before Grafana 12's new one: Grafana 10 to 13 read it.
_SCHEMA = 39


def row(title: str, height: int, *panels: Json | tuple[Json, int]) -> tuple[str, int, list[Json]]:
    """A row of panels that share its width, or have the width that stands beside them."""
    given = [panel if isinstance(panel, tuple) else (panel, 0) for panel in panels]
    free = _COLUMNS - sum(width for _, width in given)
    shared = sum(1 for _, width in given if not width)
    placed, x = [], 0
    for panel, wanted in given:
        width = wanted or free // shared
        if not wanted:
            free, shared = free - width, shared - 1
        placed.append({**panel, "gridPos": {"x": x, "y": 0, "w": width, "h": height}})
        x += width
    return title, height, placed


def dashboard(
    name: str,
    title: str,
    description: str,
    rows: list[tuple[str, int, list[Json]]],
    *,
    variables: tuple[str, ...] = (),
    annotations: bool = False,
    refresh: str = "15s",
) -> Json:
    """The whole dashboard; ``variables`` are those after datasource, job and instance."""
    return {
        "uid": f"gradwatch-{name}",
        "title": f"gradwatch / {title}",
        "description": description,
        "tags": ["gradwatch"],
        "schemaVersion": _SCHEMA,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "refresh": refresh,
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {
            "list": [_datasource(), *(_variable(v) for v in ("job", "instance", *variables))]
        },
        "annotations": {"list": _annotations() if annotations else []},
        "links": [
            {
                "type": "dashboards",
                "title": "gradwatch",
                "tags": ["gradwatch"],
                "asDropdown": False,
                "includeVars": True,
                "keepTime": True,
            }
        ],
        "panels": _place(rows),
    }


def _place(rows: list[tuple[str, int, list[Json]]]) -> list[Json]:
    placed: list[Json] = []
    y, number = 0, 1
    for title, height, panels in rows:
        if title:
            placed.append(
                {
                    "id": number,
                    "type": "row",
                    "title": title,
                    "collapsed": False,
                    "panels": [],
                    "gridPos": {"x": 0, "y": y, "w": _COLUMNS, "h": 1},
                }
            )
            y, number = y + 1, number + 1
        for panel in panels:
            targets = [
                {**query, "refId": letter}
                for query, letter in zip(panel["targets"], ascii_uppercase, strict=False)
            ]
            placed.append(
                {
                    "id": number,
                    **panel,
                    "targets": targets,
                    "datasource": DATASOURCE,
                    "gridPos": {**panel["gridPos"], "y": y},
                }
            )
            number += 1
        y += height
    return placed


def _datasource() -> Json:
    return {
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
        "current": {},
        "hide": 0,
        "includeAll": False,
        "multi": False,
        "refresh": 1,
        "regex": "",
    }


_QUERIES = {
    "job": "label_values(gradwatch_build_info, job)",
    "instance": 'label_values(gradwatch_build_info{job=~"$job"}, instance)',
    "project": f"label_values(gradwatch_run_info{{{SERVICE}}}, project)",
    "run": f"label_values(gradwatch_run_info{{{SCOPE}}}, run)",
    "group": f"label_values(gradwatch_group_elements_total{{{RUN}}}, group)",
}


def _variable(name: str) -> Json:
    # One run at a time: the curves of two runs in one panel answer no question.
    one = name == "run"
    query = _QUERIES[name]
    return {
        "name": name,
        "label": name,
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "sort": 1,
        "multi": not one,
        "includeAll": not one,
        "allValue": None if one else ".+",
        "current": {} if one else {"selected": True, "text": "All", "value": "$__all"},
        "hide": 0,
        "regex": "",
    }


def _annotations() -> list[Json]:
    return [
        _annotation(
            "Incidents",
            "red",
            f"sum by (kind) (increase(gradwatch_run_incidents_total{{{RUN}}}[$__rate_interval])) > 0",
            "{{kind}}",
        ),
        _annotation(
            "Threshold changes",
            "blue",
            f"sum(increase(gradwatch_run_threshold_changes_total{{{RUN}}}[$__rate_interval])) > 0",
            "threshold changed",
        ),
    ]


def _annotation(name: str, colour: str, expr: str, text: str) -> Json:
    return {
        "name": name,
        "datasource": DATASOURCE,
        "enable": True,
        "hide": False,
        "iconColor": colour,
        "expr": expr,
        "titleFormat": text,
        "tagKeys": "kind",
        "step": "15s",
    }
