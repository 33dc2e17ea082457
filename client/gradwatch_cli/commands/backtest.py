"""``gradwatch backtest``: what thresholds would have done to the recorded steps."""

from typing import Annotated, Any

import typer

from gradwatch_cli.errors import CommandError
from gradwatch_cli.rest import AsJson, Rest, Url, print_json, run_path
from gradwatch_cli.tables import console, number, share, table

__all__ = ["command"]

RULES = ("adaptive", "autoclip", "zclip", "adagc", "quantile")


def command(
    *,
    run: Annotated[str, typer.Argument(help="Run id.")],
    threshold: Annotated[
        list[float] | None,
        typer.Option("--threshold", "-t", help="A threshold to try; may be repeated."),
    ] = None,
    grid: Annotated[
        int | None, typer.Option(min=2, max=256, help="Try so many over what was seen. [8]")
    ] = None,
    url: Url = None,
    policy: Annotated[
        str,
        typer.Option(
            help="norm, value, per_tensor or agc with thresholds; adaptive, autoclip, zclip, adagc or "
            "quantile, which find their own."
        ),
    ] = "norm",
    preference: Annotated[
        str | None, typer.Option(help="For adaptive: tight, balanced or guard.")
    ] = None,
    start: Annotated[int | None, typer.Option(help="First step.")] = None,
    end: Annotated[int | None, typer.Option(help="Last step.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say what thresholds would have done to the recorded steps of a run."""
    if threshold and grid:
        raise CommandError("give --threshold or --grid, not both", code=2)
    body: dict[str, Any] = {"policy": policy, "start": start, "end": end}
    if policy not in RULES or threshold or grid:
        body |= {"thresholds": threshold} if threshold else {"grid": grid or 8}
    if preference:
        body["preference"] = preference
    answer = Rest(url).post(run_path(run, "/backtest"), body)
    if as_json:
        print_json(answer)
        return
    out = console()
    if answer["reasons"] != ["ok"]:
        out.print(f"nothing to try it on: {', '.join(answer['reasons'])}")
        return
    rows = [
        (
            number(r["threshold"]),
            share(r["clipped_share"]),
            number(r["mean_coefficient"]),
            share(r["norm_removed_share"]),
            share(r["energy_removed_share"]),
            str(len(r["incidents"])),
        )
        for r in answer["results"]
    ]
    steps = answer["results"][0]["steps"]
    out.print(
        f"policy {policy} on {steps} finite steps, {answer['first_step']} to {answer['last_step']}"
    )
    headings = ("threshold", "clipped", "coefficient", "norm removed", "energy removed")
    out.print(table((*headings, "incidents touched"), rows))
