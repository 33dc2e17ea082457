"""Print docs/commands.md from the commands: python scripts/command_reference.py > docs/commands.md."""

import importlib
import inspect
import sys
from collections.abc import Iterator
from typing import Any

import typer

from gradwatch_cli.catalog import COMMANDS

INTRODUCTION = """\
# Commands

<!-- Written by scripts/command_reference.py; a test compares this page with the commands. -->

`gradwatch COMMAND --help` says the same in the terminal. Exit codes: 0 done, 1 could not, 2 wrong use or environment. Only the command that runs is
imported: `gradwatch serve` works without torch, `gradwatch sync` without fastapi.

| command | |
|---|---|"""


def main() -> None:
    """Print the page."""
    print(INTRODUCTION)
    for name, entry in sorted(COMMANDS.items()):
        print(f"| [`gradwatch {name}`](#gradwatch-{name}) | {entry.help} |")
    for name in sorted(COMMANDS):
        print(f"\n## gradwatch {name}\n")
        print("\n".join(section(f"gradwatch {name}", command(name))).rstrip("\n"))


def command(name: str) -> Any:
    """The command as typer builds it."""
    module = importlib.import_module(COMMANDS[name].module)
    app = getattr(module, "app", None)
    if app is None:
        app = typer.Typer(add_completion=False)
        app.command()(module.command)
    return typer.main.get_command(app)


def section(title: str, described: Any) -> Iterator[str]:
    """What a command does, its usage and its options; then the same for its subcommands."""
    yield f"{inspect.cleandoc(described.help or '')}\n"
    subcommands = getattr(described, "commands", {})
    if not subcommands:
        yield from usage(title, described.params)
    for name, inner in sorted(subcommands.items()):
        yield f"### {title} {name}\n"
        yield from section(f"{title} {name}", inner)


def usage(title: str, parameters: list[Any]) -> Iterator[str]:
    """The usage line and a table of the options."""
    arguments = [p for p in parameters if p.param_type_name == "argument"]
    options = [p for p in parameters if p.param_type_name == "option" and "--help" not in p.opts]
    words = [title, *(a.name.upper() for a in arguments)]
    yield f"```console\n$ {' '.join([*words, *(['[OPTIONS]'] if options else [])])}\n```"
    if options:
        yield "\n| option | default | |\n|---|---|---|"
    for option in options:
        names = ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
        help_text = (option.help or "").replace("|", "\\|")
        yield f"| {names} | {default(option.default)} | {help_text} |"
    yield ""


def default(value: Any) -> str:
    """A default as the table shows it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if value is None or value == () or callable(value):
        return ""
    return f"`{value}`"


if __name__ == "__main__":
    sys.exit(main())
