"""The table of commands: name, the module that holds it, one line of help."""

from typing import NamedTuple

__all__ = ["COMMANDS", "EXTRAS", "Entry"]


class Entry(NamedTuple):
    """A command before it is imported.

    Attributes:
        module: Imported when the command runs. It holds ``app`` (a ``typer.Typer`` with
            subcommands) or ``command`` (one function with typer annotations).
        help: One line for ``gradwatch --help``.
    """

    module: str
    help: str


COMMANDS: dict[str, Entry] = {
    "serve": Entry("gradwatch_cli.commands.serve", "run the service"),
    "demo": Entry(
        "gradwatch_cli.commands.demo",
        "train a small LSTM with injected trouble and see what the service saw",
    ),
    "exec": Entry(
        "gradwatch_cli.commands.exec", "run a training script and watch it without changing it"
    ),
    "sync": Entry(
        "gradwatch_cli.commands.sync", "deliver what an offline or unlucky run left in its spool"
    ),
    "runs": Entry("gradwatch_cli.commands.runs", "list the runs of a service"),
    "show": Entry("gradwatch_cli.commands.show", "one run: state, numbers, thresholds, incidents"),
    "tail": Entry(
        "gradwatch_cli.commands.tail", "follow a run's steps and incidents as they arrive"
    ),
    "recommend": Entry(
        "gradwatch_cli.commands.recommend",
        "the recommended clipping threshold of a run, with its evidence",
    ),
    "backtest": Entry(
        "gradwatch_cli.commands.backtest", "what thresholds would have done to the recorded steps"
    ),
    "incidents": Entry(
        "gradwatch_cli.commands.incidents", "what went wrong in a run, when, where and why"
    ),
    "report": Entry(
        "gradwatch_cli.commands.report", "a run as one file to attach to a ticket: Markdown or HTML"
    ),
    "export": Entry("gradwatch_cli.commands.export", "a run as one Parquet file"),
    "import": Entry(
        "gradwatch_cli.commands.import_file", "store an exported run in a service again"
    ),
    "token": Entry("gradwatch_cli.commands.token", "create, list and revoke access tokens"),
    "store": Entry("gradwatch_cli.commands.store", "check, compact and measure a store"),
    "doctor": Entry(
        "gradwatch_cli.commands.doctor", "check this machine's set-up and say what to mend"
    ),
}

# Import name -> the extra of this distribution that brings it.
EXTRAS: dict[str, str] = {
    "torch": "client",
    "urllib3": "client",
    "typer": "client",
    "rich": "client",
    "fastapi": "service",
    "starlette": "service",
    "uvicorn": "service",
    "uvloop": "service",
    "httptools": "service",
    "pydantic": "service",
    "prometheus_client": "service",
    "pyarrow": "parquet",
    "numpy": "service",
    "orjson": "service",
    "zstandard": "service",
    "psycopg": "service",
}
