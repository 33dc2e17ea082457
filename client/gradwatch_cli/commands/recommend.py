"""``gradwatch recommend``: a threshold, how sure it is, and what it rests on."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from gradwatch_cli.rest import AsJson, Rest, Url, print_json, run_path
from gradwatch_cli.tables import console, number, share, table

__all__ = ["command", "told"]


def command(
    *,
    run: Annotated[str, typer.Argument(help="Run id.")],
    url: Url = None,
    policy: Annotated[str, typer.Option(help="norm, value, per_tensor or agc.")] = "norm",
    preference: Annotated[str, typer.Option(help="tight, balanced or guard.")] = "balanced",
    default: Annotated[
        float | None, typer.Option(help="Threshold to use while there is none.")
    ] = None,
    minimum: Annotated[float | None, typer.Option("--min", help="Never below this.")] = None,
    maximum: Annotated[float | None, typer.Option("--max", help="Never above this.")] = None,
    prior: Annotated[
        bool, typer.Option("--prior", help="Let earlier runs of the same model speak at first.")
    ] = False,
    removed_energy: Annotated[
        float | None,
        typer.Option(help="For value: share of the energy clipping may remove. [0.01]"),
    ] = None,
    optimizer: Annotated[
        str | None, typer.Option(help="Name of one of several optimizers.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Recommend a clipping threshold for a run, with its evidence."""
    answer = Rest(url).get(
        run_path(run, "/recommendation"),
        policy=policy,
        preference=preference,
        default=default,
        min=minimum,
        max=maximum,
        prior="true" if prior else None,
        removed_energy=removed_energy,
        optimizer=optimizer,
    )
    if as_json:
        print_json(answer)
        return
    out = console()
    for line in told(answer):
        out.print(line, markup=False)
    if answer.get("thresholds"):
        rows = [
            (name, number(one["threshold"]), _span(one["interval"]), one["status"])
            for name, one in answer["thresholds"].items()
        ]
        out.print(table(("tensor", "threshold", "interval", "status"), rows))


def told(answer: Mapping[str, Any]) -> list[str]:
    """A recommendation as lines."""
    lines = [f"{answer['policy']} threshold {number(answer['threshold'])}  ({answer['status']})"]
    if answer.get("effective_threshold") != answer["threshold"]:
        lines.append(f"  use now    {number(answer['effective_threshold'])}")
    if answer.get("interval"):
        lines.append(f"  interval   {_span(answer['interval'])}")
    if answer.get("spike_threshold") is not None:
        lines.append(f"  spikes     above {number(answer['spike_threshold'])}")
    lines.append(f"  rule       {answer['reason']}")
    tried = answer.get("backtest")
    if tried and tried.get("clipped_share") is not None:
        removed = tried.get("norm_removed_share")
        lines.append(
            f"  would have clipped {share(tried['clipped_share'])} of the last {tried['steps']} "
            + ("histograms" if answer["policy"] == "value" else "finite steps")
            + (f" and removed {share(removed)} of their norm" if removed is not None else "")
        )
    if answer.get("realised_share") is not None:
        verb, what = (
            ("remove", "the energy") if answer["policy"] == "value" else ("clip", "the steps")
        )
        lines.append(
            f"  meant to {verb} {share(answer['intended_share'])} of {what}; of the last "
            f"{answer['realised_steps']} it was {share(answer['realised_share'])}"
        )
    if answer.get("advice"):
        lines.append(f"  {answer['advice']}")
    return lines


def _span(interval: list[float] | None) -> str:
    return f"{number(interval[0])} to {number(interval[1])}" if interval else "-"
