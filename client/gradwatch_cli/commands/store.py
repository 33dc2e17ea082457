"""``gradwatch store``: look at a store file, check it, compact it, copy it."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from gradwatch_cli.errors import CommandError
from gradwatch_service.settings import Settings
from gradwatch_service.store.opening import StoreOpenError, sqlite_path
from gradwatch_service.store.sqlite import tools

__all__ = ["app"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)

DEFAULT = "sqlite:///gradwatch-data/gradwatch.db"
Address = Annotated[
    str, typer.Option("--store", help="sqlite:///relative.db or sqlite:////absolute.db.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("stats")
def stats(*, store: Address = DEFAULT, as_json: AsJson = False) -> None:
    """Say what is in a store and how large it is; works beside a running service."""
    with _refusals():
        found = asdict(tools.stats(sqlite_path(store)))
    if as_json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name.replace('_', ' '):<24}{value:>16,}")


@app.command("check")
def check(*, store: Address = DEFAULT, as_json: AsJson = False) -> None:
    """Check every page and every packed column; exit code 1 when something is damaged."""
    with _refusals(), _bar("checking") as progress:
        damage = tools.check(sqlite_path(store), progress)
    if as_json:
        print(json.dumps({"ok": not damage, "damage": damage}))
    else:
        print("\n".join(damage) or "everything is in order")
    if damage:
        raise CommandError(
            f"{len(damage)} places are damaged; put a backup in the file's place", code=1
        )


@app.command("compact")
def compact(*, store: Address = DEFAULT, as_json: AsJson = False) -> None:
    """Compact everything now and give free space back; no service may be using the store."""
    with _refusals():
        path = sqlite_path(store)
        before = tools.stats(path)
        made = tools.compact(path, Settings(store=store))
        after = tools.stats(path)
    sizes = (before.file_bytes + before.journal_bytes, after.file_bytes + after.journal_bytes)
    if as_json:
        print(json.dumps({"chunks": made, "bytes_before": sizes[0], "bytes_after": sizes[1]}))
    else:
        print(f"{made} chunks made; {sizes[0]:,} bytes before, {sizes[1]:,} after")


@app.command("backup")
def backup(
    target: Annotated[Path, typer.Argument(help="File to write; must not exist.")],
    *,
    store: Address = DEFAULT,
) -> None:
    """Copy a store as it is at this moment; works beside a running service."""
    with _refusals(), _bar("copying") as progress:
        tools.backup(sqlite_path(store), target, progress)
    print(f"copied to {target}")


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except StoreOpenError as error:
        raise CommandError(str(error), code=2) from None


@contextmanager
def _bar(title: str) -> Iterator[Callable[[int, int], None]]:
    # On standard error, and gone afterwards: what is printed stays fit for a pipe.
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
