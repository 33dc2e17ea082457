"""``gradwatch exec``: watch a training script without changing a line of it."""

import importlib.util
import math
import os
import re
from pathlib import Path
from typing import Annotated

import typer

from gradwatch_cli.errors import CommandError

__all__ = ["command"]

_POLICIES = ("value", "norm", "per_tensor", "agc")


def command(
    *,
    arguments: Annotated[
        list[str], typer.Argument(metavar="-- COMMAND", help="The training command, after --.")
    ],
    clip: Annotated[
        str | None,
        typer.Option(
            "--clip",
            help="Clip as well: value=1.0, norm=1.0, per_tensor=1.0 or agc=0.01; several joined by "
            "commas are a chain. Without it the training is only measured and stays as it is.",
        ),
    ] = None,
    run: Annotated[str | None, typer.Option("--run", help="Run id; else GRADWATCH_RUN.")] = None,
) -> None:
    """Run a training command and watch every optimizer in it.

    Works through torch's global optimizer hook, also below launchers such as torchrun. The exit code is
    the command's own. Example: gradwatch exec --clip value=1.0 -- python train.py
    """
    environment = dict(os.environ)
    if clip is not None:
        environment["GRADWATCH_EXEC_CLIP"] = _checked(clip)
    if run is not None:
        environment["GRADWATCH_RUN"] = run
    path = [str(_injected()), *filter(None, [environment.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(path)
    try:
        os.execvpe(arguments[0], arguments, environment)  # noqa: S606 - the user's own command
    except OSError as error:
        raise CommandError(f"cannot run {arguments[0]!r}: {error.strerror}", code=2) from error


def _checked(clip: str) -> str:
    """Refuse a policy that the training would refuse later; torch is not imported for that."""
    for part in clip.split(","):
        found = re.fullmatch(r"\s*(\w+)=(\S+)\s*", part)
        try:
            limit = float(found[2]) if found else math.nan
        except ValueError:
            limit = math.nan
        if found is None or found[1] not in _POLICIES or not (math.isfinite(limit) and limit > 0):
            raise CommandError(
                f"--clip {clip!r}: write one of {', '.join(f'{p}=NUMBER' for p in _POLICIES)} with a "
                "number above 0, several joined by commas",
                code=2,
            )
    return clip


def _injected() -> Path:
    """Return the folder whose sitecustomize.py Python will run first."""
    spec = importlib.util.find_spec("gradwatch")  # found, not imported
    if spec is None or not spec.submodule_search_locations:
        raise CommandError("the gradwatch package is not installed here", code=2)
    return Path(next(iter(spec.submodule_search_locations)), "injected")
