"""``gradwatch incidents``: what went wrong, when, where and why."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from gradwatch_cli.rest import AsJson, Rest, Url, print_json, run_path
from gradwatch_cli.tables import console, style

__all__ = ["card", "command"]


def command(
    *,
    run: Annotated[str, typer.Argument(help="Run id.")],
    url: Url = None,
    status: Annotated[str | None, typer.Option(help="open, closed or retracted.")] = None,
    kind: Annotated[
        str | None, typer.Option(help="exploding, vanishing, oscillating or nonfinite.")
    ] = None,
    severity: Annotated[str | None, typer.Option(help="critical, warning or info.")] = None,
    as_json: AsJson = False,
) -> None:
    """Tell what went wrong in a run, when, where and why."""
    path = run_path(run, "/incidents")
    answer = Rest(url).get(path, status=status, kind=kind, severity=severity)
    if as_json:
        print_json(answer)
        return
    out = console()
    if not answer["items"]:
        out.print(f"no incidents in {run}")
        return
    for item in answer["items"]:
        for line, colour in card(item):
            out.print(line, style=colour, markup=False)


def card(item: Mapping[str, Any]) -> list[tuple[str, str]]:
    """An incident as lines with their colours."""
    steps = f"step {item['opened_step']}"
    if item["last_step"] != item["opened_step"]:
        steps += f" to {item['last_step']}"
    head = f"{item['severity']} {item['kind']}, {steps}, {item['status']}"
    lines = [(head, style(item["severity"]) or "bold"), (f"  {item['verdict']}", "")]
    said = [name for name in ("why", "next") if item.get(name)]
    return [*lines, *((f"  {name}: {item[name]}", "dim") for name in said)]
