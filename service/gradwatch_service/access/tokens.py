"""The token file: names, scopes, projects and hashes, never a token itself."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["Token", "TokenFileError", "add_token", "new_secret", "read_tokens"]

VERSION = 1


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


def _write(path: Path, tokens: Iterable[Token]) -> None:
    text = json.dumps({"version": VERSION, "tokens": [asdict(t) for t in tokens]}, indent=1)
    scratch = path.with_name(path.name + ".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        # Replaced as a whole: a crash leaves the old file or the new one.
        scratch.replace(path)
    except OSError as error:
        raise TokenFileError(f"{path}: cannot be written: {error.strerror}") from error
