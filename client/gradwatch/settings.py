"""Settings of the client: argument over ``GRADWATCH_*`` environment over default.

A bad value in the environment never stops a training job: it is named once, with what is allowed and
what is used instead. A bad *argument* is a mistake in the program and raises where it was written.
"""

import math
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar, cast
from urllib.parse import urlsplit

from gradwatch.errors import WatchError
from gradwatch_wire import is_run_id
from gradwatch_wire.local_token import local_token

__all__ = ["DEFAULT_URL", "Mode", "Settings", "SettingsWarning", "resolve"]

Mode = Literal["online", "offline", "disabled"]
Value = TypeVar("Value")

DEFAULT_URL = "http://127.0.0.1:8642"
_MODES = ("online", "offline", "disabled")
_KERNELS = ("auto", "reference", "cpu", "cuda")
_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"", "0", "false", "no", "off"})
# A variable is complained about once per process, however many Watches are made.
_warned: set[tuple[str, str]] = set()


class SettingsWarning(UserWarning):
    """A ``GRADWATCH_*`` variable holds something that cannot be used; a default stands in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a Watch needs to know about its surroundings.

    Attributes:
        url: Address of the service, without a trailing slash.
        token: Bearer token: ``GRADWATCH_TOKEN``, else the one that ``gradwatch serve --tokens auto``
            left for this user on this machine, else None.
        mode: ``online`` reports, ``offline`` only spools, ``disabled`` only clips.
        run: Run id asked for, or None for one made up at start.
        project: Project the run belongs to.
        directory: Where the spool lies. Nothing is created before something is written.
        spool: False keeps everything in memory: what cannot be delivered is dropped and counted.
        every: A report is made on every ``every``-th step; clipping happens on all of them.
        timeout: Seconds one request to the service may take.
        flush_timeout: Seconds ``close()`` waits for what is still to be delivered.
        quiet: Print nothing.
        insecure: Allow the token over plain http to another host.
        kernel: Kernel to use; ``auto`` chooses by device.
    """

    url: str = DEFAULT_URL
    token: str | None = field(default=None, repr=False)
    mode: Mode = "online"
    run: str | None = None
    project: str = "default"
    directory: Path = Path("gradwatch")
    spool: bool = True
    every: int = 1
    timeout: float = 10.0
    flush_timeout: float = 5.0
    quiet: bool = False
    insecure: bool = False
    kernel: str = "auto"


def resolve(
    *,
    url: str | None = None,
    mode: str | None = None,
    run: str | None = None,
    project: str | None = None,
    every: int | None = None,
    spool: str | os.PathLike[str] | bool | None = None,
    environment: Mapping[str, str] | None = None,
) -> Settings:
    """Merge arguments, environment and defaults into one :class:`Settings`.

    Args:
        url: Address of the service.
        mode: ``online``, ``offline`` or ``disabled``.
        run: Run id.
        project: Project name.
        every: Steps per report, at least 1.
        spool: Directory of the spool, or False for none.
        environment: Read instead of ``os.environ``.

    Returns:
        Settings in which every value is usable.

    Raises:
        WatchError: An argument is out of range. A bad variable warns instead.
    """
    env = _Environment(os.environ if environment is None else environment)
    address = _choose("url", url, env.read("URL", _url, DEFAULT_URL), _url)
    return Settings(
        url=address,
        token=env.text("TOKEN") or local_token(address, env.variables),
        mode=cast("Mode", _choose("mode", mode, env.read("MODE", _mode, "online"), _mode)),
        run=_choose("run", run, env.read("RUN", _run_id, None), _run_id),
        project=_choose("project", project, env.read("PROJECT", _project, "default"), _project),
        directory=_directory(spool, env),
        spool=spool is not False,
        every=_choose("every", every, env.read("EVERY", _count, 1), _count),
        timeout=env.read("TIMEOUT", _seconds, 10.0),
        flush_timeout=env.read("FLUSH_TIMEOUT", _seconds, 5.0),
        quiet=env.read("QUIET", _switch, default=False),
        insecure=env.read("INSECURE", _switch, default=False),
        kernel=env.read("KERNEL", _kernel, "auto"),
    )


@dataclass(frozen=True, slots=True)
class _Environment:
    """The ``GRADWATCH_*`` variables; each bad one is named once."""

    variables: Mapping[str, str]

    def text(self, name: str) -> str | None:
        return self.variables.get(f"GRADWATCH_{name}") or None

    def read(self, name: str, parse: Callable[[object], Value], default: Value) -> Value:
        text = self.text(name)
        if text is None:
            return default
        try:
            return parse(text.strip())
        except ValueError as error:
            key = (name, text)
            if key not in _warned:
                _warned.add(key)
                message = f"GRADWATCH_{name}={text!r}: {error} Using {default!r} instead."
                warnings.warn(message, SettingsWarning, stacklevel=2)
            return default


def _choose(
    name: str, argument: object, otherwise: Value, parse: Callable[[object], Value]
) -> Value:
    """Return the argument, checked, or what the environment and the default say."""
    if argument is None:
        return otherwise
    try:
        return parse(argument)
    except ValueError as error:
        raise WatchError(f"watch({name}={argument!r}): {error}") from None


def _directory(spool: object, env: _Environment) -> Path:
    if not isinstance(spool, str | os.PathLike) and spool not in {None, False}:
        raise WatchError(f"watch(spool={spool!r}): give a directory, or False for no spool.")
    if isinstance(spool, str | os.PathLike):
        return Path(spool).expanduser()
    return Path(env.text("DIR") or "gradwatch").expanduser()


def _url(value: object) -> str:
    text = str(value).rstrip("/")
    parts = urlsplit(text)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("the address of a service looks like http://127.0.0.1:8642.")
    return text


def _mode(value: object) -> str:
    if value not in _MODES:
        raise ValueError("the mode is one of online, offline, disabled.")
    return str(value)


def _kernel(value: object) -> str:
    if value not in _KERNELS:
        raise ValueError("the kernel is one of auto, reference, cpu, cuda.")
    return str(value)


def _run_id(value: object) -> str | None:
    if not isinstance(value, str) or not is_run_id(value):
        raise ValueError(
            "a run id starts with a letter or digit and holds at most 128 of "
            "letters, digits, '.', '_' and '-'."
        )
    return value


def _project(value: object) -> str:
    text = value if isinstance(value, str) else ""
    if not text.isprintable() or not 1 <= len(text) <= 128:
        raise ValueError("a project name is 1 to 128 printable characters.")
    return text


def _count(value: object) -> int:
    try:
        number = int(value) if isinstance(value, int | str) else 0
    except ValueError:
        number = 0
    if number < 1 or isinstance(value, bool):
        raise ValueError("give a whole number of steps, 1 or more.")
    return number


def _seconds(value: object) -> float:
    try:
        seconds = float(str(value))
    except ValueError:
        seconds = -1.0
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError("give seconds, 0 or more.")
    return seconds


def _switch(value: object) -> bool:
    text = str(value).lower()
    if text not in _TRUE | _FALSE:
        raise ValueError("give 1 or 0.")
    return text in _TRUE
