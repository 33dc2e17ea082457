"""``gradwatch doctor``: what this machine can do, what was set, and what to mend."""

import importlib.util
import json
import os
import platform
import sys
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from typing import Annotated

import typer

from gradwatch_cli.tables import console

__all__ = ["command"]

_PATIENCE_SECONDS = 3.0
_SECRET = "GRADWATCH_TOKEN"  # noqa: S105 -- the name of the variable, not a token


@dataclass(frozen=True)
class Check:
    """One thing looked at.

    Attributes:
        what: Its name.
        found: What was found.
        mend: What to do about it; empty when nothing is wrong.
        broken: Whether something that was asked for does not work.
    """

    what: str
    found: str
    mend: str = ""
    broken: bool = False


def command(
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check this machine's set-up and say what to mend. Exit code 1 when something is broken."""
    checks = [_versions(), *_client(), _service(), *_settings()]
    if as_json:
        typer.echo(json.dumps([asdict(check) for check in checks], indent=2))
    else:
        out = console()
        for check in checks:
            mark, colour = (
                ("✗", "red") if check.broken else ("!", "yellow") if check.mend else ("✓", "green")
            )
            out.print(
                f"{mark} {check.what}: {check.found}", style=colour, markup=False, soft_wrap=True
            )
            if check.mend:
                out.print(f"    {check.mend}", markup=False, soft_wrap=True)
    if any(check.broken for check in checks):
        raise typer.Exit(1)


def _versions() -> Check:
    system = f"{platform.system()} {platform.machine()}"
    return Check("python", f"{platform.python_version()} on {system}, {sys.executable}")


def _client() -> list[Check]:
    """Look at torch and the kernels, and measure them."""
    if importlib.util.find_spec("torch") is None:
        return [
            Check(
                "torch", "not installed", "To watch training here: pip install 'gradwatch[client]'."
            )
        ]
    import torch  # noqa: PLC0415 -- only where it is installed

    devices = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    checks = [Check("torch", f"{torch.__version__}, devices {', '.join(devices)}")]
    kernels = _kernels()
    if any(check.broken for check in kernels):
        return [*checks, *kernels]
    return [*checks, *kernels, Check("clipping", _measured_ratio())]


def _kernels() -> list[Check]:
    """Say which kernel each kind of device gets; where one is forced, look at its device alone."""
    import torch  # noqa: PLC0415 -- the caller has made sure that it is there

    from gradwatch.errors import KernelError  # noqa: PLC0415 -- needs torch
    from gradwatch.kernels import choose  # noqa: PLC0415 -- needs torch

    asked = os.environ.get("GRADWATCH_KERNEL", "").strip()
    places = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    checks = []
    for place in [asked] if asked in places else places:
        device = torch.device(place, 0) if place == "cuda" else torch.device(place)
        try:
            kernel, fallback = choose("auto", device)
        except KernelError as error:
            why = f"GRADWATCH_KERNEL={asked}: {error}"
            checks.append(Check(f"{place} kernel", "none", why, broken=True))
        else:
            checks.append(Check(f"{place} kernel", kernel.name, fallback or ""))
    return checks


def _measured_ratio() -> str:
    """Clip 8 M elements with every statistic, beside torch's clipping alone, on one thread."""
    import torch  # noqa: PLC0415 -- the caller has made sure that it is there
    from torch.nn.utils import clip_grad_norm_  # noqa: PLC0415 -- the same

    from gradwatch import Clipper, clip  # noqa: PLC0415 -- the same
    from gradwatch_cli.timing import median_ratio  # noqa: PLC0415 -- the same

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        parameters = [torch.nn.Parameter(torch.zeros(1).expand(1024, 1024)) for _ in range(8)]
        for parameter in parameters:
            parameter.grad = torch.randn(1024, 1024)
        grads = [parameter.grad for parameter in parameters]
        clipper = Clipper(clip.value(1e9))
        ratio = median_ratio(
            lambda: clipper.clip_(grads, parameters), lambda: clip_grad_norm_(parameters, 1e9)
        )
    finally:
        torch.set_num_threads(before)
    return (
        f"value clipping with every statistic takes {ratio:.2f} times torch's clip_grad_norm_ here"
    )


def _service() -> Check:
    """Ask the service that GRADWATCH_URL names whether it is there."""
    url = os.environ.get("GRADWATCH_URL", "").rstrip("/")
    if not url:
        mend = (
            ""
            if importlib.util.find_spec("fastapi")
            else "To run one here: pip install 'gradwatch[service]'."
        )
        return Check("service", "GRADWATCH_URL is not set", mend)
    if not url.startswith(("http://", "https://")):
        return Check(
            "service", url, "GRADWATCH_URL must begin with http:// or https://.", broken=True
        )
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=_PATIENCE_SECONDS) as answer:  # noqa: S310 -- http(s), see above
            return Check("service", f"{url} is ready ({answer.status})")
    except urllib.error.HTTPError as error:
        return Check(
            "service", f"{url} answers {error.code}", "It runs but is not ready.", broken=True
        )
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        mend = "Start it with `gradwatch serve`, or mend GRADWATCH_URL."
        return Check("service", f"{url} does not answer: {reason}", mend, broken=True)


def _settings() -> list[Check]:
    found = {n: v for n, v in sorted(os.environ.items()) if n.startswith("GRADWATCH_")}
    return [Check(name, "set" if name == _SECRET else value) for name, value in found.items()]
