"""Builders for panels: what every panel needs is an argument, what Grafana needs besides is here."""

from typing import Any

__all__ = [
    "DATASOURCE",
    "heatmap",
    "link",
    "stat",
    "state_timeline",
    "table",
    "target",
    "timeseries",
]

Json = dict[str, Any]

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}

# Red is for what is broken, orange for what wants a look: never for mere size.
STATE_COLOURS = {
    "warming_up": "light-blue",
    "healthy": "green",
    "exploding": "red",
    "vanishing": "orange",
    "oscillating": "orange",
    "nonfinite": "dark-red",
    "silent": "purple",
    "finished": "blue",
    "failed": "dark-purple",
    "interrupted": "super-light-purple",
}


def target(expr: str, legend: str = "", *, instant: bool = False, form: str = "") -> Json:
    """A query. ``form`` is ``table`` or ``heatmap`` where the panel is one."""
    return {
        "datasource": DATASOURCE,
        "expr": expr,
        "legendFormat": legend or "__auto",
        "instant": instant,
        "range": not instant,
        "format": form or ("table" if instant and not legend else "time_series"),
        "editorMode": "code",
    }


def link(title: str, url: str) -> Json:
    """A link on a value, to the same time range."""
    return {"title": title, "url": f"{url}&${{__url_time_range}}", "targetBlank": False}


def timeseries(
    title: str,
    description: str,
    targets: list[Json],
    *,
    unit: str = "short",
    log: bool = False,
    low: float | None = None,
    high: float | None = None,
    stacked: bool = False,
    points: bool = False,
    links: list[Json] | None = None,
    overrides: list[Json] | None = None,
) -> Json:
    """Lines over time; ``log`` for what spreads over decades."""
    custom: Json = {
        "drawStyle": "bars" if points else "line",
        "lineWidth": 1,
        "fillOpacity": 60 if points else 10 if stacked else 0,
        "showPoints": "never",
        # A gap is a message: the value was not finite, or nobody reported.
        "spanNulls": False,
        "scaleDistribution": {"type": "log", "log": 10} if log else {"type": "linear"},
        "stacking": {"mode": "normal" if stacked else "none", "group": "A"},
        "axisPlacement": "auto",
    }
    defaults: Json = {"unit": unit, "custom": custom, "links": links or []}
    if low is not None:
        defaults["min"] = low
    if high is not None:
        defaults["max"] = high
    return {
        "type": "timeseries",
        "title": title,
        "description": description,
        "targets": targets,
        "fieldConfig": {"defaults": defaults, "overrides": overrides or []},
        "options": {
            "legend": {
                "displayMode": "table",
                "placement": "bottom",
                "calcs": ["lastNotNull", "max"],
            },
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
    }


def stat(
    title: str,
    description: str,
    targets: list[Json],
    *,
    unit: str = "short",
    limits: list[tuple[float, str]] | None = None,
    zero: str = "",
    text: str = "value",
) -> Json:
    """One large number per series, as it is now. ``limits``: from this value on this colour.

    Instant queries: over a range, a state that ended an hour ago would still be shown.
    """
    now = [{**query, "instant": True, "range": False} for query in targets]
    steps: list[Json] = [{"color": "text" if limits is None else "green", "value": None}]
    steps += [{"color": colour, "value": value} for value, colour in limits or []]
    mappings = (
        [{"type": "value", "options": {"0": {"text": zero, "color": "green"}}}] if zero else []
    )
    return {
        "type": "stat",
        "title": title,
        "description": description,
        "targets": now,
        "fieldConfig": {
            "defaults": {
                "unit": unit,
                "thresholds": {"mode": "absolute", "steps": steps},
                "mappings": mappings,
                "noValue": "-",
            },
            "overrides": [],
        },
        "options": {
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "colorMode": "background" if limits else "value",
            "graphMode": "none",
            "textMode": text,
            "justifyMode": "auto",
            "orientation": "auto",
        },
    }


def state_timeline(title: str, description: str, targets: list[Json]) -> Json:
    """What state each run was in, over time: one row per run, each state in its colour.

    The series hold 1 and are called ``run: state``; the state gives the colour.
    """
    overrides = [
        {
            "matcher": {"id": "byRegexp", "options": f"/: {state}$/"},
            "properties": [{"id": "color", "value": {"mode": "fixed", "fixedColor": colour}}],
        }
        for state, colour in STATE_COLOURS.items()
    ]
    return {
        "type": "state-timeline",
        "title": title,
        "description": description,
        "targets": targets,
        "fieldConfig": {
            "defaults": {
                "unit": "short",
                "custom": {"fillOpacity": 80, "lineWidth": 0},
                "mappings": [{"type": "value", "options": {"1": {"text": " "}}}],
            },
            "overrides": overrides,
        },
        "options": {
            "mergeValues": True,
            "showValue": "never",
            "rowHeight": 0.8,
            "alignValue": "left",
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": False},
            "tooltip": {"mode": "single"},
        },
    }


def heatmap(title: str, description: str, expr: str, *, unit: str = "short") -> Json:
    """A histogram over time: each column an interval, each row a bucket, colour the number."""
    return {
        "type": "heatmap",
        "title": title,
        "description": description,
        "targets": [target(expr, "{{le}}", form="heatmap")],
        "fieldConfig": {"defaults": {"unit": unit, "custom": {}}, "overrides": []},
        "options": {
            "calculate": False,
            "cellGap": 1,
            "color": {"mode": "scheme", "scheme": "Blues", "steps": 64, "exponent": 0.5},
            "yAxis": {"unit": unit, "axisPlacement": "left"},
            "rowsFrame": {"layout": "auto"},
            "filterValues": {"le": 1e-9},
            "tooltip": {"mode": "single", "yHistogram": False},
            "legend": {"show": True},
        },
    }


def table(
    title: str,
    description: str,
    targets: list[Json],
    *,
    columns: dict[str, tuple[str, str]],
    links: dict[str, Json] | None = None,
    worst: str = "",
) -> Json:
    """Rows joined from several instant queries on the labels they share.

    ``columns`` gives, in order, each field to show: its heading and unit; the rest is hidden.
    Rows are sorted by the column called ``worst``, largest first.
    """
    overrides: list[Json] = []
    for heading, unit in columns.values():
        properties: list[Json] = [{"id": "unit", "value": unit}]
        if links and heading in links:
            properties.append({"id": "links", "value": [links[heading]]})
        overrides.append(
            {"matcher": {"id": "byName", "options": heading}, "properties": properties}
        )
    order = {field: position for position, field in enumerate(columns)}
    return {
        "type": "table",
        "title": title,
        "description": description,
        "targets": targets,
        "fieldConfig": {
            "defaults": {"unit": "short", "custom": {"align": "auto", "filterable": True}},
            "overrides": overrides,
        },
        "transformations": [
            {"id": "merge", "options": {}},
            {
                "id": "filterFieldsByName",
                "options": {"include": {"names": list(columns)}},
            },
            {
                "id": "organize",
                "options": {
                    "indexByName": order,
                    "renameByName": {field: heading for field, (heading, _) in columns.items()},
                },
            },
        ],
        "options": {
            "showHeader": True,
            "cellHeight": "sm",
            "footer": {"show": False},
            "sortBy": [{"displayName": worst, "desc": True}] if worst else [],
        },
    }
