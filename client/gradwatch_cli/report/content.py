"""What a report says, gathered from the service and put into words once for every form."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from gradwatch_cli.commands.recommend import told
from gradwatch_cli.rest import Rest, run_path
from gradwatch_cli.tables import number, share

__all__ = ["Chart", "Content", "gather"]

POINTS = 400
GRID = 8
MOST_TENSORS = 20
MOST_INCIDENTS = 100
POLICIES = ("norm", "value", "agc")
# Metric, title, whether its axis is logarithmic.
CURVES = (
    ("global_norm", "Global gradient norm", True),
    ("global_norm_after", "Global gradient norm after clipping", True),
    ("loss", "Loss", False),
    ("clip_fraction", "Share of elements clipped", False),
)


@dataclass(frozen=True)
class Chart:
    """One curve: least, mean and greatest value per bucket of steps."""

    title: str
    log: bool
    series: Mapping[str, Any]


@dataclass(frozen=True)
class Content:
    """A report before it has a form.

    Attributes:
        run: Run id.
        facts: Name and value of what is known of the run.
        incidents: As the service answers them, newest first.
        notices: The same.
        advice: Recommendations as lines, by kind of policy.
        backtest: Rows of the table of thresholds, its headings first.
        tensors: The largest tensors, headings first.
        charts: Curves that hold something.
        footer: Where and when this was made.
    """

    run: str
    facts: list[tuple[str, str]]
    incidents: list[Mapping[str, Any]]
    notices: list[Mapping[str, Any]]
    advice: list[list[str]]
    backtest: list[tuple[str, ...]]
    tensors: list[tuple[str, ...]]
    charts: list[Chart]
    footer: str


def gather(rest: Rest, run: str) -> Content:
    """Ask the service for everything that a report says."""
    summary = rest.get(run_path(run))
    reported = summary["last_step"] is not None
    return Content(
        run=run,
        facts=_facts(summary),
        incidents=rest.get(run_path(run, "/incidents"), limit=MOST_INCIDENTS)["items"],
        notices=rest.get(run_path(run, "/notices"), limit=MOST_INCIDENTS)["items"],
        advice=_advice(rest, run) if reported else [],
        backtest=_backtest(rest, run) if reported else [],
        tensors=_tensors(rest, run) if reported else [],
        charts=_charts(rest, run) if reported else [],
        footer=f"gradwatch {metadata.version('gradwatch')}, {rest.url}, {_moment(time.time())}",
    )


def _facts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    facts = [
        ("State", summary["state"]),
        ("Name", summary["name"]),
        ("Project", summary["project"]),
        (
            "Steps",
            f"{summary['steps']}, {number(summary['first_step'])} to {number(summary['last_step'])}",
        ),
        ("Attempt", str(summary["attempt"])),
        ("Ranks", str(summary["world_size"])),
    ]
    for one in summary["manifests"]:
        kind = one["optimizer_class"] or "optimizer"
        size = f"{one['tensors']} tensors, {one['elements']} elements"
        facts.append((f"{kind} {one['optimizer']}, rank {one['rank']}", size))
    facts += [("Policy", _policy(summary["policy"])), ("Note", summary["note"] or "")]
    facts += [(f"Tag {key}", value) for key, value in summary["tags"].items()]
    facts += [(f"Dropped: {key}", f"{value} steps") for key, value in summary["dropped"].items()]
    facts += [
        (title, _moment(summary[key]))
        for title, key in (
            ("Started", "created_at"),
            ("Last report", "last_report_at"),
            ("Finished", "finished_at"),
        )
        if summary[key]
    ]
    return [(name, value) for name, value in facts if value]


def _policy(policy: Mapping[str, Any] | None) -> str:
    if policy is None:
        return "no clipping"
    return ", ".join(f"{key} {value}" for key, value in policy.items())


def _advice(rest: Rest, run: str) -> list[list[str]]:
    answers = [rest.get(run_path(run, "/recommendation"), policy=kind) for kind in POLICIES]
    return [told(a) for a in answers if a["status"] != "none" or a["policy"] == "norm"]


def _backtest(rest: Rest, run: str) -> list[tuple[str, ...]]:
    answer = rest.post(run_path(run, "/backtest"), {"policy": "norm", "grid": GRID})
    if answer["reasons"] != ["ok"]:
        return []
    rows = [
        (
            number(r["threshold"]),
            share(r["clipped_share"]),
            number(r["mean_coefficient"]),
            share(r["norm_removed_share"]),
            str(len(r["incidents"])),
        )
        for r in answer["results"]
    ]
    return [("threshold", "steps clipped", "coefficient", "norm removed", "incidents"), *rows]


def _tensors(rest: Rest, run: str) -> list[tuple[str, ...]]:
    answer = rest.get(run_path(run, "/tensors"))
    ordered = sorted(answer["items"], key=lambda i: i.get("norm") or 0.0, reverse=True)
    rows = [
        (
            item["name"],
            "x".join(map(str, item["shape"])) or "scalar",
            number(item.get("norm")),
            number(item.get("max_abs")),
            share(item.get("clip_fraction")),
            number(item.get("nonfinite_count")),
        )
        for item in ordered[:MOST_TENSORS]
    ]
    head = (f"tensor, at step {answer['step']}", "shape", "norm", "max abs", "clipped")
    return [(*head, "not finite"), *rows] if rows else []


def _charts(rest: Rest, run: str) -> list[Chart]:
    found = []
    for metric, title, log in CURVES:
        series = rest.get(run_path(run, "/series"), metric=metric, points=POINTS)
        if any(value is not None for value in series["max"]):
            found.append(Chart(title, log, series))
    return found


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
