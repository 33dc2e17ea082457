"""``gradwatch runs``: what a service has seen, newest first."""

from typing import Annotated

import typer

from gradwatch_cli.rest import AsJson, Rest, Url, print_json
from gradwatch_cli.tables import ago, console, number, table

__all__ = ["command"]


def command(
    *,
    url: Url = None,
    project: Annotated[str | None, typer.Option(help="Only runs of this project.")] = None,
    state: Annotated[str | None, typer.Option(help="Only runs in this state.")] = None,
    q: Annotated[
        str | None, typer.Option("--search", "-q", help="Text in id, name or tags.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Most runs to list.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List the runs of a service, newest first."""
    answer = Rest(url).get("/runs", project=project, state=state, q=q, limit=limit)
    if as_json:
        print_json(answer)
        return
    rows = [
        (
            item["run"],
            item["project"],
            item["state"],
            number(item["last_step"]),
            str(item["open_incidents"]),
            ago(item["last_report_at"]),
        )
        for item in answer["items"]
    ]
    out = console()
    if not rows:
        out.print("no runs yet; gradwatch.watch(model, optimizer) in a training loop makes one")
        return
    out.print(table(("run", "project", "state", "last step", "open incidents", "report"), rows))
    if answer["next_cursor"]:
        out.print(f"the newest {limit}; --limit shows more")
