"""The token file: names, scopes, projects and hashes, never a token itself."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from gradwatch_wire.local_token import local_token_path

__all__ = [
    "Token",
    "TokenFileError",
    "add_token",
    "auto_tokens",
    "new_secret",
    "read_tokens",
    "remove_token",
]

VERSION = 1
AUTO = "auto"


class TokenFileError(ValueError):
    """The token file cannot be read or is none."""


@dataclass(frozen=True, slots=True)
class Token:
    """What is kept of a token.

    Attributes:
        name: What people call it; shown in logs in place of the token.
        digest: SHA-256 of the token, hexadecimal. Tokens are random, so no salt is needed.
        scopes: Some of ``ingest``, ``read``, ``admin``.
        project: The one project it may see, or None for all.
    """

    name: str
    digest: str
    scopes: tuple[str, ...]
    project: str | None = None


def new_secret() -> str:
    """A random token with 256 bits of entropy."""
    return "gw_" + secrets.token_urlsafe(32)


def read_tokens(path: Path) -> dict[str, Token]:
    """Tokens of the file by digest.

    Raises:
        TokenFileError: It cannot be read or is no token file.
    """
    try:
        content = json.loads(path.read_text())
        if content["version"] != VERSION:
            raise TokenFileError(f"{path}: version {content['version']!r}; expected {VERSION}")
        tokens = [Token(**{**t, "scopes": tuple(t["scopes"])}) for t in content["tokens"]]
    except OSError as error:
        raise TokenFileError(f"{path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, TokenFileError):
            raise
        raise TokenFileError(
            f"{path}: not a token file; `gradwatch token create` writes one"
        ) from error
    return {token.digest: token for token in tokens}


def add_token(
    path: Path, name: str, scopes: Iterable[str], project: str | None, secret: str | None = None
) -> str:
    """Add a token to the file, made 0600 if it is new, and return the token itself.

    Raises:
        TokenFileError: The file cannot be written, is no token file, or has a token of that name.
    """
    known: Mapping[str, Token] = read_tokens(path) if path.exists() else {}
    if any(token.name == name for token in known.values()):
        raise TokenFileError(
            f"{path}: there is a token named {name!r} already; choose another name"
        )
    secret = secret or new_secret()
    digest = hashlib.sha256(secret.encode()).hexdigest()
    _write(path, [*known.values(), Token(name, digest, tuple(sorted(set(scopes))), project)])
    return secret


def remove_token(path: Path, name: str) -> None:
    """Remove the token of that name; a running service forgets it within two seconds.

    Raises:
        TokenFileError: There is none, or the file cannot be read or written.
    """
    known = read_tokens(path)
    left = [token for token in known.values() if token.name != name]
    if len(left) == len(known):
        names = ", ".join(sorted(token.name for token in known.values())) or "none"
        raise TokenFileError(f"{path}: no token named {name!r}; there are: {names}")
    _write(path, left)


def auto_tokens() -> Path:
    """The token file of this user's own service, made with one token that its jobs find.

    The token itself is in :func:`gradwatch_wire.local_token.local_token_path`, mode 0600.

    Raises:
        TokenFileError: The files cannot be read or written.
    """
    secret_path = local_token_path()
    path = secret_path.with_name("tokens.json")
    known = read_tokens(path) if path.exists() else {}
    secret = _read_secret(secret_path)
    if secret is not None and hashlib.sha256(secret.encode()).hexdigest() in known:
        return path
    _write(path, [token for token in known.values() if token.name != AUTO])
    _write_private(secret_path, add_token(path, AUTO, ("ingest", "read", "admin"), None) + "\n")
    return path


def _read_secret(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _write(path: Path, tokens: Iterable[Token]) -> None:
    content = {"version": VERSION, "tokens": [asdict(t) for t in tokens]}
    _write_private(path, json.dumps(content, indent=1) + "\n")


def _write_private(path: Path, text: str) -> None:
    scratch = path.with_name(path.name + ".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        # Replaced as a whole: a crash leaves the old file or the new one.
        scratch.replace(path)
    except OSError as error:
        raise TokenFileError(f"{path}: cannot be written: {error.strerror}") from error
