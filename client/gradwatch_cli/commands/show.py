"""``gradwatch show``: one run on one screen."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from gradwatch_cli.commands.incidents import card
from gradwatch_cli.commands.recommend import told
from gradwatch_cli.rest import AsJson, Rest, Url, print_json, run_path
from gradwatch_cli.tables import ago, console, number, share, style, table

__all__ = ["command"]

MOST_TENSORS = 12
MOST_INCIDENTS = 5


def command(
    *,
    run: Annotated[str, typer.Argument(help="Run id.")],
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Show one run: state, numbers, threshold, incidents."""
    rest = Rest(url)
    answer = {
        "run": rest.get(run_path(run)),
        "recommendation": rest.get(run_path(run, "/recommendation")),
        "incidents": rest.get(run_path(run, "/incidents"), limit=MOST_INCIDENTS)["items"],
        "tensors": None,
    }
    if answer["run"]["last_step"] is not None:
        answer["tensors"] = rest.get(run_path(run, "/tensors"))
    if as_json:
        print_json(answer)
        return
    out = console()
    summary = answer["run"]
    out.print(f"{summary['run']}  {summary['state']}", style=style(summary["state"]), markup=False)
    for line in _facts(summary):
        out.print(line, markup=False)
    for line in told(answer["recommendation"]):
        out.print(line, markup=False)
    for item in answer["incidents"]:
        for line, colour in card(item):
            out.print(line, style=colour, markup=False)
    if answer["tensors"] and answer["tensors"]["items"]:
        out.print(_largest(answer["tensors"]["items"]))


def _facts(summary: Mapping[str, Any]) -> list[str]:
    lines = [
        f"  project {summary['project']}, attempt {summary['attempt']}, {summary['steps']} steps"
        f" ({number(summary['first_step'])} to {number(summary['last_step'])}),"
        f" last report {ago(summary['last_report_at'])}"
    ]
    sizes = [f"{m['tensors']} tensors, {m['elements']} elements" for m in summary["manifests"]]
    if sizes:
        lines.append(f"  {'; '.join(dict.fromkeys(sizes))}")
    if summary["policy"]:
        lines.append(f"  policy {summary['policy']}")
    if summary["dropped"]:
        lines.append(f"  dropped by the client: {summary['dropped']}")
    return lines


def _largest(items: list[dict[str, Any]]) -> Any:
    ordered = sorted(items, key=lambda i: i.get("norm") or 0.0, reverse=True)
    rows = [
        (
            item["name"],
            number(item.get("norm")),
            number(item.get("max_abs")),
            share(item.get("clip_fraction")),
            number(item.get("nonfinite_count")),
        )
        for item in ordered[:MOST_TENSORS]
    ]
    return table(("largest tensors", "norm", "max abs", "clipped", "not finite"), rows)
