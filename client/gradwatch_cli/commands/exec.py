"""``gradwatch exec``: watch a training script without changing a line of it."""

import importlib.util
import math
import os
from pathlib import Path
from typing import Annotated

import typer

from gradwatch_cli.errors import CommandError

__all__ = ["command"]

# Name to whether it needs a number. The training knows more about each (gradwatch/injection.py).
POLICIES = {
    "value": True,
    "norm": True,
    "per_tensor": True,
    "agc": False,
    "value_rms": True,
    "adaptive": False,
    "recommended": True,
    "spike_skip": False,
    "autoclip": False,
    "zclip": False,
    "adagc": False,
    "quantile": False,
}
PREFERENCES = ("tight", "balanced", "guard")
LEAST = {"value_rms": 1.0, "spike_skip": 1.0 - 1e-9}  # what the number must lie above, if not 0
BELOW = {"quantile": 1.0, "autoclip": 100.0 + 1e-9}


def command(
    *,
    arguments: Annotated[
        list[str], typer.Argument(metavar="-- COMMAND", help="The training command, after --.")
    ],
    clip: Annotated[
        str | None,
        typer.Option(
            "--clip",
            help="Clip as well: value=1.0, norm=1.0, per_tensor=1.0, agc[=0.01], value_rms=6, "
            "adaptive[=tight|balanced|guard], recommended=1.0, spike_skip[=5], autoclip[=10], "
            "zclip[=2.5], adagc[=1.05] or quantile[=0.9]; several joined by commas are a chain. Without "
            "it the training is only measured and stays as it is.",
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
        name, equals, given = part.strip().partition("=")
        if name not in POLICIES or not _says_something(name, given if equals else None):
            known = ", ".join(f"{p}=NUMBER" if needs else p for p, needs in POLICIES.items())
            raise CommandError(
                f"--clip {clip!r}: {part.strip()!r} is none of {known}; those without NUMBER take one too "
                "(adaptive: tight, balanced or guard). Numbers lie above 0; several are joined by commas",
                code=2,
            )
    return clip


def _says_something(name: str, given: str | None) -> bool:
    """Whether this value makes a policy; None is none given."""
    if given is None:
        return not POLICIES[name]
    if name == "adaptive":
        return given in PREFERENCES
    try:
        number = float(given)
    except ValueError:
        return False
    whole = name != "spike_skip" or number.is_integer()
    return (
        whole
        and math.isfinite(number)
        and LEAST.get(name, 0.0) < number < BELOW.get(name, math.inf)
    )


def _injected() -> Path:
    """Return the folder whose sitecustomize.py Python will run first."""
    spec = importlib.util.find_spec("gradwatch")  # found, not imported
    if spec is None or not spec.submodule_search_locations:
        raise CommandError("the gradwatch package is not installed here", code=2)
    return Path(next(iter(spec.submodule_search_locations)), "injected")
