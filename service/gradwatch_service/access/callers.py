"""Who may do what: bearer tokens with scopes, bound to one project or to none."""

from __future__ import annotations

import hashlib
import hmac
import logging
import math
import time
from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import Depends, Request
from fastapi.concurrency import run_in_threadpool

from gradwatch_service.access.tokens import Token, TokenFileError, read_tokens
from gradwatch_service.problems import ServiceError, invalid
from gradwatch_service.settings import Settings
from gradwatch_service.store.base import RunRecord, Store, UnknownRunError
from gradwatch_wire import is_run_id

__all__ = [
    "SCOPES",
    "Access",
    "Admin",
    "Caller",
    "Ingester",
    "Reader",
    "VisibleRun",
    "check_run_id",
]

Scope = Literal["ingest", "read", "admin"]
SCOPES: tuple[Scope, ...] = ("ingest", "read", "admin")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request.

    Attributes:
        name: The token's name; empty when the service asks for none.
        scopes: What it may do.
        project: The one project it may see, or None for all.
    """

    name: str
    scopes: frozenset[str]
    project: str | None

    def sees(self, project: str) -> bool:
        """Whether something of that project exists for the caller at all."""
        return self.project is None or self.project == project

    def check(self, store: Store, run: str) -> None:
        """Pass a run that is new or seen; reads the store only for callers of one project.

        Raises:
            UnknownRunError: The run is another project's.
        """
        if self.project is None:
            return
        try:
            project = store.run(run).project
        except UnknownRunError:
            return
        if project != self.project:
            raise UnknownRunError(run)


LOOK_SECONDS = 1.0
BURST_SECONDS = 10
log = logging.getLogger("gradwatch.service")
ANYONE = Caller("", frozenset(SCOPES), None)


class Access:
    """Knows the tokens. Without any, every request may do everything.

    The file is read again when it has changed: a token is made or revoked without a restart.

    Args:
        settings: Names the file, and how much one token may post.

    Raises:
        TokenFileError: The file cannot be read or is not a token file.
    """

    def __init__(self, settings: Settings) -> None:
        self._path = settings.tokens
        self._tokens = None if self._path is None else read_tokens(self._path)
        self._changed = self._stamp()
        self._looked = time.monotonic()
        self._budget = Budget(settings.max_posts_per_second)

    def caller(self, authorization: str | None, scope: Scope) -> Caller:
        """Return who sent the header.

        Raises:
            ServiceError: 401 without a known token, 403 when its scopes do not reach.
        """
        if self._tokens is None:
            if scope == "ingest":
                self._budget.spend("")
            return ANYONE
        self._look_again()
        token = self._find(authorization)
        if scope not in token.scopes and "admin" not in token.scopes:
            raise ServiceError(
                403,
                "forbidden",
                f"token {token.name!r} has {', '.join(sorted(token.scopes))}; "
                f"this needs {scope}. `gradwatch token create --scope {scope}` makes one.",
            )
        if scope == "ingest":
            self._budget.spend(token.name)
        return Caller(token.name, frozenset(token.scopes), token.project)

    def _look_again(self) -> None:
        now = time.monotonic()
        if self._path is None or now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        stamp = self._stamp()
        if stamp == self._changed:
            return
        try:
            self._tokens = read_tokens(self._path)
            self._changed = stamp
        except TokenFileError as error:
            log.warning("tokens stay as they were: %s", error)

    def _stamp(self) -> tuple[int, int] | None:
        try:
            found = None if self._path is None else self._path.stat()
        except OSError:
            return None
        return None if found is None else (found.st_mtime_ns, found.st_ino)

    def _find(self, authorization: str | None) -> Token:
        kind, _, secret = (authorization or "").partition(" ")
        secret = secret.strip()
        if kind.lower() == "bearer" and secret:
            digest = hashlib.sha256(secret.encode()).hexdigest()
            found = (self._tokens or {}).get(digest)
            # The dictionary has compared already; this keeps the time independent of the digest.
            if found is not None and hmac.compare_digest(found.digest, digest):
                return found
        raise ServiceError(
            401,
            "unauthorized",
            "a known token is needed: Authorization: Bearer <token>",
            headers={"WWW-Authenticate": "Bearer"},
        )


class Budget:
    """What each token may post: a rate, averaged over ten seconds.

    Args:
        per_second: Posts per second; 0 is no limit.
    """

    def __init__(self, per_second: float) -> None:
        self._rate = per_second
        self._left: dict[str, tuple[float, float]] = {}

    def spend(self, name: str) -> None:
        """Count one post.

        Raises:
            ServiceError: 429, the token has posted more than it may.
        """
        if not self._rate:
            return
        now = time.monotonic()
        most = self._rate * BURST_SECONDS
        left, since = self._left.get(name, (most, now))
        left = min(most, left + (now - since) * self._rate)
        self._left[name] = (max(0.0, left - 1), now)
        if left < 1:
            wait = math.ceil((1 - left) / self._rate)
            raise ServiceError(
                429,
                "too_many_posts",
                f"more than {self._rate:g} posts per second; send more steps in each",
                headers={"Retry-After": str(wait)},
            )


class _Needs:
    """A dependency that answers the caller, who has the scope."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope

    async def __call__(self, request: Request) -> Caller:
        access: Access = request.app.state.service.access
        return access.caller(request.headers.get("authorization"), self.scope)


Reader = Annotated[Caller, Depends(_Needs("read"))]
Ingester = Annotated[Caller, Depends(_Needs("ingest"))]
Admin = Annotated[Caller, Depends(_Needs("admin"))]


def check_run_id(run: str) -> None:
    """Refuse what cannot be a run id.

    Raises:
        ServiceError: 422 ``invalid_run``.
    """
    if not is_run_id(run):
        raise invalid(
            "run",
            f"{run[:140]!r} given; allowed: a letter or digit, then up to 127 of A-Za-z0-9._-",
            code="invalid_run",
        )


async def _visible_run(run: str, request: Request, caller: Reader) -> RunRecord:
    check_run_id(run)
    service = request.app.state.service
    version = service.remembered.version(run)
    record: RunRecord = service.remembered.find_record(run, version)
    if record is None:
        record = await run_in_threadpool(service.store.run, run)
        service.remembered.keep_record(record, version)
    if not caller.sees(record.project):
        # The same as for a run that never was: its existence is nobody else's business.
        raise UnknownRunError(run)
    return record


VisibleRun = Annotated[RunRecord, Depends(_visible_run)]
