"""The token that one user's own service and jobs share on one machine."""

import os
import urllib.parse
from collections.abc import Mapping
from pathlib import Path

__all__ = ["local_token", "local_token_path"]

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def local_token_path(environment: Mapping[str, str] | None = None) -> Path:
    """Where ``gradwatch serve --tokens auto`` leaves the token: below ``XDG_CONFIG_HOME``."""
    known = os.environ if environment is None else environment
    base = known.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "gradwatch" / "token"


def local_token(url: str, environment: Mapping[str, str] | None = None) -> str | None:
    """The token for a service on this machine; None for any other address, or without the file.

    A file that others may read is left alone: it is not this user's secret any more.
    """
    if urllib.parse.urlsplit(url).hostname not in LOOPBACK:
        return None
    path = local_token_path(environment)
    try:
        if os.name == "posix" and path.stat().st_mode & 0o077:
            return None
        return path.read_text().strip() or None
    except OSError:
        return None
