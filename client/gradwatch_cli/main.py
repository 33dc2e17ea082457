"""The dispatcher: finds the command, imports its module alone, turns failures into exit codes.

Exit codes: 0 done, 1 could not, 2 wrong use or environment. ``gradwatch serve`` never imports
torch and ``gradwatch sync`` never imports fastapi, because nothing else is imported beside them.
"""

import difflib
import importlib
import os
import sys
from collections.abc import Sequence
from importlib import metadata

from gradwatch_cli.catalog import COMMANDS, EXTRAS
from gradwatch_cli.errors import CommandError

__all__ = ["main", "run"]

HELP = """\
usage: gradwatch COMMAND [OPTIONS]

Zero-centred gradient clipping, gradient diagnostics and recommended thresholds.

commands:
{commands}

gradwatch COMMAND --help explains one command; gradwatch --version prints the version.
exit codes: 0 done, 1 could not, 2 wrong use or environment"""


def main() -> None:
    """Run the command line and leave with its exit code."""
    raise SystemExit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line.

    Args:
        arguments: What follows ``gradwatch`` on the command line.

    Returns:
        The exit code: 0 done, 1 could not, 2 wrong use or environment, 130 interrupted.
    """
    name, *rest = arguments or [""]
    if name in {"--help", "-h", "help"}:
        print(help_text())
        return 0
    if name in {"--version", "-V"}:
        print(f"gradwatch {metadata.version('gradwatch')}")
        return 0
    if name not in COMMANDS:
        print(unknown(name), file=sys.stderr)
        return 2
    try:
        return _call(name, rest)
    except CommandError as error:
        message, code = str(error), error.code
    except ModuleNotFoundError as error:
        message, code = missing(name, error), 2
    except KeyboardInterrupt:
        message, code = "interrupted", 130
    except BrokenPipeError:
        # The reader (head, less) went away. Python would complain once more while shutting down.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    print(f"gradwatch {name}: {message}", file=sys.stderr)
    return code


def help_text() -> str:
    """The list of commands, without importing any of them."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {entry.help}" for name, entry in sorted(COMMANDS.items())]
    return HELP.format(commands="\n".join(lines))


def unknown(name: str) -> str:
    """What to say about a command that does not exist."""
    if not name:
        return help_text()
    close = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"gradwatch: no command {name!r}; {hint}gradwatch --help lists them"


def missing(command: str, error: ModuleNotFoundError) -> str:
    """What to say when a package of an extra is not installed.

    Raises:
        ModuleNotFoundError: ``error`` itself, when no extra would bring the module.
    """
    module = (error.name or "").partition(".")[0]
    if module not in EXTRAS:
        raise error
    # The demo needs both sides: naming one at a time would make people install twice.
    extra = "demo" if command == "demo" else EXTRAS[module]
    return (
        f"this command needs {module!r}, which is not installed: pip install 'gradwatch[{extra}]'"
    )


def _call(name: str, arguments: list[str]) -> int:
    import typer  # noqa: PLC0415  the help above works without any extra installed

    module = importlib.import_module(COMMANDS[name].module)
    app = getattr(module, "app", None)
    if app is None:
        app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        app.command()(module.command)
    try:
        app(arguments, prog_name=f"gradwatch {name}")
    except SystemExit as leave:  # how typer ends every command
        return leave.code if isinstance(leave.code, int) else int(leave.code is not None)
    return 0
