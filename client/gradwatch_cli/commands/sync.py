"""``gradwatch sync``: bring what an offline or unlucky run left in its spool to the service."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from gradwatch.reporting.replay import Replayed, Spooled, find_spools, replay
from gradwatch.reporting.transport import HttpTransport, Transport, may_carry
from gradwatch.settings import Settings, resolve
from gradwatch_cli.errors import CommandError
from gradwatch_cli.tables import console

__all__ = ["command"]


def command(
    *,
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="A spool directory, or one run's folder in it.")
    ],
    url: Annotated[
        str | None,
        typer.Option(
            "--url", help="Address of the service; else GRADWATCH_URL, else this machine."
        ),
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Delete nothing, not even what was acknowledged.")
    ] = False,
) -> None:
    """Deliver what lies in a spool; what the service acknowledged is deleted.

    Can be interrupted and repeated: nothing is counted twice. Exit code 0 when everything was
    delivered, 1 when something is left, 2 when there is no such directory.
    """
    if not directory.is_dir():
        raise CommandError(
            f"{str(directory)!r} is no directory; a spool lies where GRADWATCH_DIR says", code=2
        )
    settings = _settings(url)
    spools = find_spools(directory)
    out = console()
    if not spools:
        out.print(f"nothing is waiting in {directory}")
        return
    outcomes = _replay_all(spools, settings, keep=keep)
    for spool, outcome in zip(spools, outcomes, strict=True):
        out.print(_line(spool, outcome), highlight=False)
    left = sum(outcome.left for outcome in outcomes)
    if any(outcome.why for outcome in outcomes):
        raise CommandError(f"{left} deliveries are left in {directory}; run the same command again")


def _settings(url: str | None) -> Settings:
    if url is not None and urlsplit(url).scheme not in {"http", "https"}:
        raise CommandError(f"--url {url!r} is no address such as http://127.0.0.1:8642", code=2)
    settings = resolve(url=url)
    if settings.token and not may_carry(settings.url, insecure=settings.insecure):
        raise CommandError(
            f"the token would travel unencrypted to {urlsplit(settings.url).hostname}: use https, "
            "or allow it with GRADWATCH_INSECURE=1",
            code=2,
        )
    return settings


def _replay_all(spools: list[Spooled], settings: Settings, *, keep: bool) -> list[Replayed]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    out = console()
    shown = Progress(*columns, console=out, transient=True, disable=not out.is_terminal)
    with shown as progress:
        outcomes = []
        for spool in spools:
            task = progress.add_task(spool.run, total=spool.deliveries)
            outcomes.append(
                replay(
                    spool,
                    _connect(settings),
                    keep=keep,
                    on_delivery=lambda task=task: progress.advance(task),  # type: ignore[misc] # mypy cannot infer a default's type
                )
            )
    return outcomes


def _connect(settings: Settings) -> Callable[[], Transport]:
    return lambda: HttpTransport(
        settings.url, token=settings.token, timeout=settings.timeout, insecure=settings.insecure
    )


def _line(spool: Spooled, outcome: Replayed) -> str:
    parts = [f"{spool.run} (rank {spool.rank}): {outcome.delivered} delivered"]
    if outcome.dropped:
        refused = ", ".join(f"{steps} steps {reason}" for reason, steps in outcome.dropped.items())
        parts.append(f"dropped: {refused}")
    if spool.damaged:
        parts.append(f"{spool.damaged} files end within a delivery, which was never whole")
    if outcome.why:
        parts.append(f"{outcome.left} left: {outcome.why}")
    return "; ".join(parts)
