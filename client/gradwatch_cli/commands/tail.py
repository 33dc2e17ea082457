"""``gradwatch tail``: a run's steps and incidents as they arrive."""

import json
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from gradwatch_cli.commands.incidents import card
from gradwatch_cli.rest import AsJson, Rest, Url, run_path
from gradwatch_cli.tables import console, number

__all__ = ["command", "events"]

MOST_LINES = 50


def command(
    *,
    run: Annotated[str, typer.Argument(help="Run id.")],
    url: Url = None,
    as_json: AsJson = False,
) -> None:
    """Follow a run until it finishes or Ctrl-C."""
    rest = Rest(url, timeout=60.0)
    out = console()
    for name, data in events(rest.lines(run_path(run, "/events"))):
        if as_json:
            print(json.dumps({"event": name, "data": data}), flush=True)
        elif name == "steps":
            for line in _steps(rest, run, data):
                out.print(line, markup=False)
        elif name == "incident":
            for line, colour in card(data):
                out.print(line, style=colour, markup=False)
        elif name == "threshold":
            out.print(f"threshold {number(data.get('threshold'))}  ({data.get('status')})")
        else:
            words = ", ".join(f"{k} {v}" for k, v in data.items())
            out.print(f"{name}: {words}", markup=False)
        if name == "finished":
            return


def events(lines: Iterator[str]) -> Iterator[tuple[str, Any]]:
    """Server-sent events as (name, data); comments that keep the connection open are left out."""
    name, data = "message", []
    for line in lines:
        if line.startswith("event:"):
            name = line.removeprefix("event:").strip()
        elif line.startswith("data:"):
            data.append(line.removeprefix("data:").strip())
        elif not line and data:
            yield name, json.loads("\n".join(data))
            name, data = "message", []


def _steps(rest: Rest, run: str, data: dict[str, Any]) -> list[str]:
    """One line per new step: its norm, and how many elements were not finite."""
    series = rest.get(
        run_path(run, "/series"),
        start=data["first_step"],
        end=data["last_step"],
        points=MOST_LINES,
        optimizer=data.get("optimizer"),
    )
    lines = []
    for step, norm, bad in zip(
        series["end_step"], series["max"], series["nonfinite_count"], strict=True
    ):
        note = f"  {bad} elements not finite" if bad else ""
        lines.append(f"step {step:>8}  norm {number(norm):>10}{note}")
    return lines
